"""Which parameters train: parts frozen by what they are, names that match, or LoRA adapters.

Every method means by "parameters" the trainable ones: norms, Gram matrices, teachers and optimizer state cover them
alone.
"""

import re
import warnings
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from unlearn_core.config import LoraConfig, RunConfig
from unlearn_core.errors import MissingPackageError, UserError
from unlearn_core.method import Composition

PARTS = ("embeddings", "head", "norms")


def choose_trainable(model: PreTrainedModel, config: RunConfig, composition: Composition) -> torch.nn.Module:
    """The model with what does not train frozen, or with adapters; dropout off.

    Raises:
        UserError: a name or expression that fits nothing in the model.
    """
    without_dropout(model)
    if config.model.lora is not None:
        return add_adapters(model, config.model.lora, config.seed)
    only = (*config.model.train_only, *composition.train_only)
    set_trainable(model, (*config.model.freeze, *composition.freeze), only)
    return model


def set_trainable(model: PreTrainedModel, freeze: Sequence[str], only: Sequence[str]) -> None:
    """Freeze parts of a model in place.

    Args:
        model: a causal language model.
        freeze: any of embeddings, head, norms. Tied embeddings and head are one tensor: either name freezes it.
        only: regular expressions; when given, a parameter trains only if one of them is found in its name.

    Raises:
        UserError: an expression that matches no parameter, or nothing is left to train.
    """
    for part in freeze:
        for parameter in _part(model, part):
            parameter.requires_grad_(False)
    if only:
        names = [name for name, _ in model.named_parameters()]
        for pattern in only:
            if not any(re.search(pattern, name) for name in names):
                raise UserError(
                    f"'{pattern}' matches no parameter; names look like {', '.join(names[1:4])}. "
                    "Give a regular expression that is found in a name."
                )
        for name, parameter in model.named_parameters():
            if not any(re.search(pattern, name) for pattern in only):
                parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"nothing is left to train: freeze {list(freeze)}, train_only {list(only)}")


def add_adapters(model: PreTrainedModel, config: LoraConfig, seed: int) -> torch.nn.Module:
    """LoRA (arXiv 2106.09685): each chosen weight W becomes W + (alpha / rank) B A, and only A and B train.

    B starts at zero, so the adapted model starts as the model itself; A is drawn from `seed`, equal on every rank.

    Args:
        model: a causal language model; changed in place.
        config: rank, alpha and the names of the linear layers.
        seed: of A.

    Returns:
        The model with adapters, everything else frozen.

    Raises:
        MissingPackageError: peft is not installed.
        UserError: no layer has one of the names.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingPackageError("model.lora needs the package 'peft' (pip install 'unlearn[lora]')") from error
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        bias="none",
        target_modules=list(config.layers) if config.layers else "all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        # peft 0.21 reads a property that transformers 5 has renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        try:
            adapted = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
        except ValueError as error:
            raise UserError(f"model.lora.layers {list(config.layers)}: {error}") from error
    return adapted


def without_dropout(model: torch.nn.Module) -> None:
    """Switch dropout off: probes, teachers and references must see the same function as the step's own pass."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout_p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _part(model: PreTrainedModel, part: str) -> list[torch.nn.Parameter]:
    if part == "embeddings":
        names = ("wpe", "position_embeddings", "embed_positions")
        positions = [child for name, child in model.named_modules() if name.rsplit(".", 1)[-1] in names]
        return [p for module in (model.get_input_embeddings(), *positions) for p in module.parameters()]
    if part == "head":
        head = model.get_output_embeddings()
        return list(head.parameters()) if head is not None else []
    if part == "norms":
        norms = (child for child in model.modules() if "norm" in type(child).__name__.lower())
        return [p for child in norms for p in child.parameters(recurse=False)]
    raise UserError(f"cannot freeze '{part}'; expected any of {', '.join(PARTS)}")
