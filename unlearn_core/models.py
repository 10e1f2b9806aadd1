"""Load causal language models safely, check their folders early, and build small Llamas from a seed."""

import json
from pathlib import Path
from typing import Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from unlearn_core.data.sources import looks_like_path
from unlearn_core.errors import MissingPackageError, UserError

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Names of the number formats that models are held in."""

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def check_model_source(name_or_folder: str) -> None:
    """Find a missing or incomplete model folder before any worker starts. Loads no weights, uses no network.

    A hub name passes: whether it exists is known when it is loaded.

    Args:
        name_or_folder: a model's folder, or a hub name such as `meta-llama/Llama-3.2-1B-Instruct`.

    Raises:
        UserError: what can only be a path is no folder; the folder has no `config.json`, or one that is not JSON, of an
            unknown architecture, or in need of code that came with it; it has no safetensors weights, lacks a shard
            that its index names, or a weight file is cut short.
    """
    if not looks_like_path(name_or_folder):
        return
    folder = Path(name_or_folder).expanduser()
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


def load_model(name_or_folder: str, dtype: str, attention: str = "sdpa") -> PreTrainedModel:
    """Load a causal language model from safetensors, on the CPU, in evaluation mode. No code of its own is run.

    Args:
        name_or_folder: a model's folder or a hub name.
        dtype: `fp32` or `bf16`, whatever the file holds.
        attention: `sdpa`, `eager` or `flash_attention_2` (needs the package `flash-attn` and a GPU).

    Returns:
        The model with every weight taken from the file.

    Raises:
        UserError: unknown dtype, what `check_model_source` finds, no such hub model or no network, no safetensors
            weights, weights that do not fit the architecture, or an attention that the model does not have.
        MissingPackageError: the attention needs a package that is not installed.
    """
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype '{dtype}'; expected one of {', '.join(DTYPES)}")
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
    return model


def build_without_weights(name_or_folder: str) -> PreTrainedModel:
    """The architecture alone, to look names up in: call it under `torch.device("meta")` and nothing is allocated.

    Raises:
        UserError: no such hub model, no network, or a config that no causal language model has.
    """
    place = str(Path(name_or_folder).expanduser()) if looks_like_path(name_or_folder) else name_or_folder
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read the model's config from '{name_or_folder}': {error}") from error


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


def _weight_files(folder: Path) -> list[Path]:
    """Paths of the weight files that the folder should hold; they need not exist where an index names them."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if (folder / _INDEX).is_file():
        try:
            names = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{folder / _INDEX} is no weight index ({error!r}); copy it again") from error
        return [folder / name for name in sorted(set(names))]
    if any(folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"'{folder}' holds pytorch_model.bin, which can run code when loaded; convert it to safetensors once "
            "(load it where you trust it, then save_pretrained)"
        )
    raise UserError(f"'{folder}' holds no weights; expected {_WEIGHTS} or {_INDEX}")
