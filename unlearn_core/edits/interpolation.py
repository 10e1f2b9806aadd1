"""theta(a) = (1 - a) theta_unlearned + a theta_target: the straight line from an unlearned model back to its target.

a = 0 is the unlearned model, a = 1 the target, both to the bit where their dtypes agree. Every point costs a read of
two models and no training, so one unlearned model becomes a whole trade-off curve; mixing until a fixed level of
retention is reached makes methods comparable at that level (calibration of UWC, arXiv 2406.09179, which counts its
weight from the target; this one counts from the unlearned model).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unlearn_core.edits.streamed_weights import StreamedWeights, check_same_tensors, check_weight


def interpolated(unlearned: torch.Tensor, target: torch.Tensor, weight: float) -> torch.Tensor:
    """One tensor of theta(a).

    Args:
        unlearned: any shape and float dtype; a tensor that is not floating point is taken from here.
        target: same shape, any float dtype.
        weight: a, in [0, 1].

    Returns:
        fp32 tensor of the same shape (fp64 for fp64), exact at both ends.
    """
    if not unlearned.is_floating_point():
        return unlearned
    dtype = torch.float64 if unlearned.dtype == torch.float64 else torch.float32
    return (1.0 - weight) * unlearned.to(dtype) + weight * target.to(dtype)


def write_interpolation(
    unlearned: StreamedWeights,
    target: StreamedWeights,
    weight: float,
    final: Path,
    marker: dict[str, Any],
    advance: Callable[[int], None] | None = None,
) -> None:
    """Write theta(a) as a model folder with the unlearned model's config, tokenizer and dtypes.

    Args:
        unlearned: model at a = 0.
        target: model at a = 1, of the same architecture.
        weight: a, in [0, 1].
        final: the new folder.
        marker: content of its `complete.json`.
        advance: called with the bytes written after each tensor.

    Raises:
        UserError: a outside [0, 1], or models that do not match.
    """
    check_weight(weight, "interpolation weight", most=1.0)
    check_same_tensors(unlearned, target)
    unlearned.write(final, lambda name, old: interpolated(old, target.tensor(name), weight), marker, advance)
