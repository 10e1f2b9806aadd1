"""Faster kernels for a model's blocks: Liger's (on a GPU), or torch.compile's. Both leave the loss alone.

The loss is the sliced head's (unlearn_core/head.py) in either case, so methods and their numbers stay what they are, up
to rounding. None of it has been timed on a GPU by this project.
"""

from typing import Any

import torch

from unlearn_core.config import ModelConfig
from unlearn_core.errors import MissingPackageError, UserError


def speed_up(model: torch.nn.Module, config: ModelConfig) -> None:
    """Change the model's blocks in place as the config says.

    Args:
        model: with or without adapters.
        config: its `kernels` and `compile`.

    Raises:
        MissingPackageError: `kernels: liger` without liger-kernel.
        UserError: `kernels: liger` without a GPU, or for an architecture that Liger does not have.
    """
    plain: Any = model
    if hasattr(model, "get_base_model"):
        plain = plain.get_base_model()
    if config.kernels == "liger":
        _use_liger(plain)
    if config.compile:
        for block in blocks(plain):
            block.compile(dynamic=True)


def blocks(model: Any) -> list[torch.nn.Module]:
    """The transformer blocks: modules that transformers checkpoints as one."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: list[torch.nn.Module] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not found:
        raise UserError(f"model.compile knows no blocks of {type(model).__name__}; leave it false")
    return found


def _use_liger(model: Any) -> None:
    try:
        from liger_kernel.transformers import monkey_patch  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingPackageError(
            "model.kernels liger needs the package 'liger-kernel' (pip install 'unlearn[liger]')"
        ) from error
    if not torch.cuda.is_available():
        raise UserError("model.kernels liger needs a GPU: its kernels are written in Triton; set model.kernels=torch")
    known = monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN
    if model.config.model_type not in known:
        raise UserError(
            f"Liger has no kernels for '{model.config.model_type}', only for {', '.join(sorted(known))}; "
            "set model.kernels=torch"
        )
    # Norms, rotary positions and MLPs; the fused losses would read the head's weight where ZeRO-3 has not gathered it.
    monkey_patch._apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
