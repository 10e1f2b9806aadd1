"""Load causal language models safely, check their folders early, and build small Llamas from a seed."""

import json
import logging
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from unlearn_core.data.sources import looks_like_path, on_this_node
from unlearn_core.errors import MissingPackageError, UserError
from unlearn_core.storage import fetch, uri_of

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Names of the number formats that models are held in."""

QUANTISATIONS = ("none", "int8", "nf4")
"""How the weights of linear layers are held: as they are, LLM.int8() (arXiv 2208.07339), NormalFloat (2305.14314)."""

_PLAIN_HEADS = {"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma"}
"""Architectures whose logits are `lm_head(last hidden state)` and nothing else, read in their source. Others scale or
cap the logits (gemma2, cohere, granite), so they go through their own forward."""

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits are the output layer's product with the last hidden state, and the blocks are Llama's kind."""
    return model.config.model_type in _PLAIN_HEADS


def check_model_source(name_or_folder: str) -> None:
    """Find a missing or incomplete model folder before any worker starts. Loads no weights.

    A hub name passes: whether it exists is known when it is loaded. A model in an object store is fetched.

    Args:
        name_or_folder: a model's folder, its URI, or a hub name such as `meta-llama/Llama-3.2-1B-Instruct`.

    Raises:
        UserError: what can only be a path is no folder; the folder has no `config.json`, or one that is not JSON, of an
            unknown architecture, or in need of code that came with it; it has no safetensors weights, lacks a shard
            that its index names, or a weight file is cut short.
    """
    if not looks_like_path(name_or_folder):
        return
    folder = Path(on_this_node(name_or_folder)).expanduser()
    if uri_of(folder) is not None and not (folder.is_dir() and _has_weights(folder)):
        fetch(folder)  # a mirror that was brought without its large files
    if not folder.is_dir():
        raise UserError(f"model folder '{name_or_folder}' does not exist; give a Hugging Face folder or a hub name")
    if not (folder / "config.json").is_file():
        raise UserError(f"'{name_or_folder}' has no config.json; give a folder written by save_pretrained")
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot use {folder / 'config.json'}: {error}") from error
    for path in _weight_files(folder):
        if not path.is_file():
            raise UserError(f"'{name_or_folder}' lacks the weight file {path.name} that its index names; copy it again")
        try:
            # Opening reads the header and compares the file's size with it: finds cut-off files and git-lfs pointers.
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise UserError(f"{path} is no whole safetensors file ({error}); copy it again") from error


def load_model(name_or_folder: str, dtype: str, attention: str = "sdpa", quantisation: str = "none") -> PreTrainedModel:
    """Load a causal language model from safetensors, on the CPU, in evaluation mode. No code of its own is run.

    A quantised model is for evaluation only. Linear layers inside its blocks hold rounded weights; embeddings, norms
    and the output layer keep `dtype`, as transformers leaves them. `nf4` rounds weights alone (4 bits, one scale for 64
    of them) and computes in `dtype`. `int8` (8 bits, a scale for each output) also rounds the layers' inputs, to fp16
    and then to 8 bits, but for channels that hold a value of magnitude 6 or more. Those are found for the rows of a
    batch together, so where they occur a row's numbers depend on its batch, by less than the rounding changes them.

    Args:
        name_or_folder: a model's folder, its URI or a hub name.
        dtype: `fp32` or `bf16`, whatever the file holds.
        attention: `sdpa`, `eager` or `flash_attention_2` (needs the package `flash-attn` and a GPU).
        quantisation: one of `QUANTISATIONS`, whatever the file holds; the model may be moved to a GPU afterwards.

    Returns:
        The model with every weight taken from the file.

    Raises:
        UserError: unknown dtype or quantisation, what `check_model_source` finds, no such hub model or no network, no
            safetensors weights, weights that do not fit the architecture, an attention that the model does not have, or
            no linear layer to quantise.
        MissingPackageError: the attention or the quantisation needs a package that is not installed.
    """
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype '{dtype}'; expected one of {', '.join(DTYPES)}")
    how = _quantised(quantisation, DTYPES[dtype])
    name_or_folder = on_this_node(name_or_folder)
    check_model_source(name_or_folder)
    place = str(Path(name_or_folder).expanduser()) if looks_like_path(name_or_folder) else name_or_folder
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=DTYPES[dtype],
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **how,
        )
    except ImportError as error:
        raise MissingPackageError(f"attention '{attention}' for '{name_or_folder}': {error}; or use 'sdpa'") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot load a model from '{name_or_folder}' (safetensors only): {error}") from error
    model, report = cast("tuple[PreTrainedModel, dict[str, set[str]]]", loaded)
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers fills them with random numbers and only warns.
        raise UserError(
            f"'{name_or_folder}' has no weights for {len(missing)} tensors of {type(model).__name__} "
            f"(first: {missing[0]}); it is no whole causal language model"
        )
    if quantisation != "none":
        _settle_quantised(model, f"'{name_or_folder}' ({type(model).__name__})")
    return model


def _quantised(quantisation: str, compute: torch.dtype) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantise."""
    if quantisation not in QUANTISATIONS:
        raise UserError(f"unknown quantisation '{quantisation}'; expected one of {', '.join(QUANTISATIONS)}")
    if quantisation == "none":
        return {}
    # One line for every matrix product otherwise, to say that its input is cast to fp16; and one at the import, on a
    # CPU with bf16 instructions, about a kernel that is not used here.
    for name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import accelerate  # noqa: F401
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"quantisation '{quantisation}' needs the packages 'bitsandbytes' and 'accelerate' "
            f"(pip install 'unlearn[quantisation]'): {error}"
        ) from error
    settings = (
        BitsAndBytesConfig(load_in_8bit=True)
        if quantisation == "int8"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    )
    # Without a map transformers takes the current GPU, and callers choose the device themselves.
    return {"quantization_config": settings, "device_map": {"": "cpu"}}


def _settle_quantised(model: PreTrainedModel, what: str) -> None:
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    layers = [module for module in model.modules() if isinstance(module, Linear4bit | Linear8bitLt)]
    if not layers:
        raise UserError(f"{what} has no linear layer that bitsandbytes can quantise; evaluate it unquantised")
    for layer in layers:
        if isinstance(layer, Linear4bit):
            # On a CPU with bf16 instructions the layer would else compute in bf16, fp32 asked for or not.
            layer.support_avx512bf16_for_cpu = False
            if layer.in_features % cast(Any, layer.weight).blocksize:
                layer.__class__ = _straddling_linear()


@cache
def _straddling_linear() -> type:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit

    class StraddlingLinear4bit(Linear4bit):
        """For a width over whose rows the blocks of one scale run on.

        bitsandbytes 0.50.2 on a CPU with AVX-512 reads wrong scales for such a matrix where the width is a multiple of
        32, and right ones for the same numbers in a single row.
        """

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            row = copy(cast(Any, self.weight).quant_state)
            row.shape = torch.Size((1, self.out_features * self.in_features))
            weight_OI = dequantize_4bit(self.weight.data, row).reshape(self.out_features, self.in_features)
            return torch.nn.functional.linear(x, weight_OI.to(x.dtype), self.bias)

    return StraddlingLinear4bit


def build_without_weights(name_or_folder: str) -> PreTrainedModel:
    """The architecture alone, to look names up in: call it under `torch.device("meta")` and nothing is allocated.

    Raises:
        UserError: no such hub model, no network, or a config that no causal language model has.
    """
    name_or_folder = on_this_node(name_or_folder)
    place = str(Path(name_or_folder).expanduser()) if looks_like_path(name_or_folder) else name_or_folder
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read the model's config from '{name_or_folder}': {error}") from error


def build_empty(name_or_folder: str, dtype: str, attention: str) -> PreTrainedModel:
    """The architecture with weights that nobody has written to: they take no memory until somebody does.

    Buffers that are computed (rotary tables) have their values.

    Args:
        name_or_folder: as for `load_model`.
        dtype: of the weights.
        attention: as for `load_model`.

    Raises:
        UserError: as `build_without_weights`.
        MissingPackageError: the attention needs a package that is not installed.
    """
    from transformers.initialization import no_init_weights

    name_or_folder = on_this_node(name_or_folder)
    place = str(Path(name_or_folder).expanduser()) if looks_like_path(name_or_folder) else name_or_folder
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(
                config, dtype=DTYPES[dtype], attn_implementation=attention, trust_remote_code=False
            )
    except ImportError as error:
        raise MissingPackageError(f"attention '{attention}' for '{name_or_folder}': {error}; or use 'sdpa'") from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot build the model of '{name_or_folder}': {error}") from error
    model.tie_weights()
    return model.eval()


class SmallLlama(BaseModel):
    """Size of a Llama that is trained from scratch.

    About `2 * vocab * hidden + layers * (4 * hidden^2 + 3 * hidden * mlp)` parameters, `vocab * hidden` fewer when
    tied.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_size: int = Field(default=128, ge=8)
    """Width D; a multiple of 2 * heads."""
    layers: int = Field(default=4, ge=1)
    """Transformer blocks."""
    heads: int = Field(default=4, ge=1)
    """Attention heads, each with its own key and value."""
    mlp_size: int = Field(default=344, ge=8)
    """Inner width of the gated MLP."""
    vocab_size: int = Field(default=1536, ge=2)
    """Most token ids; the model gets one row for each id that the tokenizer really has."""
    max_positions: int = Field(default=512, ge=2)
    """Longest sequence, tokens."""
    tie_embeddings: bool = True
    """Whether input and output share one embedding matrix."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of 2 * heads = {2 * self.heads}: "
                "rotary positions pair the dimensions of a head"
            )
        return self


def build_small_llama(config: SmallLlama, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A Llama with fresh fp32 weights; equal arguments give equal weights, the global random state is left alone.

    Args:
        config: its size.
        tokenizer: gives the number of ids (`len(tokenizer)`) and the pad, beginning- and end-of-text ids.
        seed: of the weights, from 0.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        UserError: the tokenizer has more ids than `config.vocab_size`.
    """
    ids = len(tokenizer)
    if ids > config.vocab_size:
        raise UserError(f"the tokenizer has {ids} ids, over vocab_size {config.vocab_size}; raise vocab_size to {ids}")
    llama = LlamaConfig(
        vocab_size=ids,
        hidden_size=config.hidden_size,
        intermediate_size=config.mlp_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=config.tie_embeddings,
        pad_token_id=cast("int | None", tokenizer.pad_token_id),
        bos_token_id=cast("int | None", tokenizer.bos_token_id),
        eos_token_id=cast("int | None", tokenizer.eos_token_id),
        dtype=torch.float32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(llama).float().eval()


def _has_weights(folder: Path) -> bool:
    try:
        return all(path.is_file() for path in _weight_files(folder))
    except UserError:
        return False


def _weight_files(folder: Path) -> list[Path]:
    """Paths of the weight files that the folder should hold; they need not exist where an index names them."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if (folder / _INDEX).is_file():
        try:
            names = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{folder / _INDEX} is no weight index ({error!r}); copy it again") from error
        outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
        if outside:
            raise UserError(f"{folder / _INDEX} names {outside[0]!r}, which lies outside of its folder; refused")
        return [folder / name for name in sorted(set(names))]
    if any(folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"'{folder}' holds pytorch_model.bin, which can run code when loaded; convert it to safetensors once "
            "(load it where you trust it, then save_pretrained)"
        )
    raise UserError(f"'{folder}' holds no weights; expected {_WEIGHTS} or {_INDEX}")
