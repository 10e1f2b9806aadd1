"""A model's shape from its config alone: the modules on the meta device, without weights; and built-in configs.

Well-known models are built in, so that a plan needs neither network nor licence. The numbers are those of their
published config.json files.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from unlearn_core.config import RunConfig
from unlearn_core.data.sources import looks_like_path, on_this_node
from unlearn_core.errors import UserError
from unlearn_core.method import Composition
from unlearn_core.trainable import choose_trainable

_LLAMA_2: dict[str, Any] = {"model_type": "llama", "vocab_size": 32000, "tie_word_embeddings": False}
_LLAMA_3: dict[str, Any] = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8, "head_dim": 128}


def _size(hidden: int, mlp: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
    }


BUILT_IN: dict[str, dict[str, Any]] = {
    "Llama-2-7B": _LLAMA_2 | _size(4096, 11008, 32, 32),
    "Llama-2-13B": _LLAMA_2 | _size(5120, 13824, 40, 40),
    "Llama-2-70B": _LLAMA_2 | _size(8192, 28672, 80, 64, num_key_value_heads=8),
    "Llama-3.1-8B": _LLAMA_3 | _size(4096, 14336, 32, 32, tie_word_embeddings=False),
    "Llama-3.1-70B": _LLAMA_3 | _size(8192, 28672, 80, 64, tie_word_embeddings=False),
    "Llama-3.2-1B": _LLAMA_3 | _size(2048, 8192, 16, 32, tie_word_embeddings=True, head_dim=64),
    "Llama-3.2-3B": _LLAMA_3 | _size(3072, 8192, 28, 24, tie_word_embeddings=True),
    "Mistral-7B": _size(
        4096, 14336, 32, 32, model_type="mistral", vocab_size=32000, num_key_value_heads=8, sliding_window=4096
    ),
    "Phi-1.5": _size(2048, 8192, 24, 32, model_type="phi", vocab_size=51200, partial_rotary_factor=0.5),
    "Qwen2.5-1.5B": _size(
        1536, 8960, 28, 12, model_type="qwen2", vocab_size=151936, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "Qwen2.5-7B": _size(
        3584, 18944, 28, 28, model_type="qwen2", vocab_size=152064, num_key_value_heads=4, tie_word_embeddings=False
    ),
}
"""Name -> config; a hub name is looked up by its last part, case and suffixes such as -chat-hf left aside."""

_SUFFIXES = ("-hf", "-chat", "-instruct", "-v0.1", "-v0.2", "-v0.3", "_chat", "_instruct")


@dataclass(frozen=True)
class Parameter:
    """One tensor of weights; tied ones appear once."""

    name: str
    numel: int
    shape: tuple[int, ...]
    trains: bool
    module: str
    """Name of the module that owns it."""


@dataclass(frozen=True)
class ModelShape:
    """Everything about a model that a plan needs."""

    config: PreTrainedConfig
    source: str
    """Where the config came from, in words."""
    parameters: tuple[Parameter, ...]
    """In the order in which the optimizer sees them, frozen ones among them."""

    @property
    def numel(self) -> int:
        """Number of weights."""
        return sum(parameter.numel for parameter in self.parameters)

    @property
    def trained(self) -> tuple[Parameter, ...]:
        """Those that train."""
        return tuple(parameter for parameter in self.parameters if parameter.trains)

    @property
    def trained_numel(self) -> int:
        """Number of weights that train."""
        return sum(parameter.numel for parameter in self.trained)

    def beyond(self, layer: int) -> frozenset[str]:
        """Names of trained parameters that come after block `layer`: its output does not depend on them."""
        names = [parameter.name for parameter in self.parameters]
        of_block = [index for index, name in enumerate(names) if f".{layer}." in name]
        last = of_block[-1] if of_block else len(names)
        return frozenset(parameter.name for parameter in self.parameters[last + 1 :] if parameter.trains)

    @property
    def output_layer(self) -> Parameter | None:
        """The head's weight; None where it is the embedding's."""
        size = (self.config.vocab_size, self.config.hidden_size)
        found = [parameter for parameter in self.parameters if parameter.shape == size]
        return found[-1] if len(found) > 1 else None

    @property
    def layers(self) -> int:
        """Transformer blocks."""
        return int(self.config.num_hidden_layers)


def built_in(name: str) -> PreTrainedConfig | None:
    """The built-in config of a model by its short or hub name; None for others."""
    short = name.rsplit("/", 1)[-1].lower().removeprefix("meta-")
    while (cut := next((short.removesuffix(s) for s in _SUFFIXES if short.endswith(s)), short)) != short:
        short = cut
    found = next((values for known, values in BUILT_IN.items() if known.lower() == short), None)
    return None if found is None else config_of(found)


def config_of(values: Mapping[str, Any]) -> PreTrainedConfig:
    """A transformers config from plain values with a `model_type`."""
    values = dict(values)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def find_config(name_or_folder: str) -> tuple[PreTrainedConfig, str]:
    """A model's config and where it was found: a folder, the local cache, the built-in ones, or else the hub.

    Raises:
        UserError: none of them has it.
    """
    place = on_this_node(name_or_folder)
    if looks_like_path(place):
        folder = Path(place).expanduser().absolute()  # a relative name would be looked up on the hub
        if not (folder / "config.json").is_file():
            raise UserError(f"'{name_or_folder}' has no config.json; give a model's folder, a hub or a built-in name")
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False), str(place)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"cannot read the model's config from '{name_or_folder}': {error}") from error
    try:
        return AutoConfig.from_pretrained(place, trust_remote_code=False, local_files_only=True), "the local cache"
    except (OSError, ValueError, KeyError):
        known = built_in(place)
    if known is not None:
        return known, "the built-in shape; the model's own config was not read"
    try:
        return AutoConfig.from_pretrained(place, trust_remote_code=False), "the hub"
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot read the config of '{name_or_folder}': {str(error).splitlines()[0]} "
            f"Give a folder with a config.json, or a built-in name: {', '.join(BUILT_IN)}."
        ) from error


def with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The same config with another number of blocks."""
    changed = copy.deepcopy(config)
    kinds = getattr(changed, "layer_types", None)
    changed.num_hidden_layers = layers
    if kinds is not None:
        changed.layer_types = [kinds[i % len(kinds)] for i in range(layers)]
    return changed


def build_on_meta(config: PreTrainedConfig, run: RunConfig, composition: Composition, dtype: torch.dtype) -> Any:
    """The model with what the run freezes frozen, or with its adapters; no memory is allocated.

    Raises:
        UserError: a config that no causal language model has, or names in the run that fit nothing in it.
    """
    try:
        with torch.device("meta"):
            # Without a choice transformers takes fused attention where the architecture has it.
            attention = {"attn_implementation": "eager"} if run.model.attention == "eager" else {}
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=dtype, **attention)
    except (ValueError, KeyError) as error:
        raise UserError(f"no causal language model has this config: {error}") from error
    with torch.device("meta"):
        return choose_trainable(model, run, composition)


def model_shape(config: PreTrainedConfig, source: str, run: RunConfig, composition: Composition) -> ModelShape:
    """Parameters of the whole model, as the run trains them."""
    model = build_on_meta(config, run, composition, torch.bfloat16 if run.model.dtype == "bf16" else torch.float32)
    parameters = tuple(
        Parameter(name, value.numel(), tuple(value.shape), value.requires_grad, name.rpartition(".")[0])
        for name, value in model.named_parameters()
    )
    return ModelShape(config, source, parameters)
