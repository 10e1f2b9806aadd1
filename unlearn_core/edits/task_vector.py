"""theta(a) = theta - a (theta_reinforced - theta): away from a model that was trained further on the forget set.

The difference of the two models is the task vector of the forget set; subtracting it is task negation (Ilharco et al.
2023, arXiv 2212.04089). Reinforce the model by plain fine-tuning on the forget split first. Deviation: the task vector
starts at the model being edited, where that paper's starts at the pre-trained one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unlearn_core.edits.streamed_weights import StreamedWeights, check_same_tensors, check_weight


def negated(start: torch.Tensor, reinforced: torch.Tensor, weight: float) -> torch.Tensor:
    """One tensor of theta(a).

    Args:
        start: theta, any shape and float dtype; a tensor that is not floating point is left as it is.
        reinforced: same shape, any float dtype.
        weight: a >= 0; 0 gives theta, 1 mirrors the reinforced model at theta.

    Returns:
        fp32 tensor of the same shape (fp64 for fp64).
    """
    if not start.is_floating_point():
        return start
    dtype = torch.float64 if start.dtype == torch.float64 else torch.float32
    return start.to(dtype) - weight * (reinforced.to(dtype) - start.to(dtype))


def write_task_vector(
    start: StreamedWeights,
    reinforced: StreamedWeights,
    weight: float,
    final: Path,
    marker: dict[str, Any],
    advance: Callable[[int], None] | None = None,
) -> None:
    """Write theta(a) as a model folder with the edited model's config, tokenizer and dtypes.

    Args:
        start: the model to edit.
        reinforced: the same model, trained further on what is to be forgotten.
        weight: a, at least 0.
        final: the new folder.
        marker: content of its `complete.json`.
        advance: called with the bytes written after each tensor.

    Raises:
        UserError: a negative or not finite, models that do not match, or weights that overflow their dtype.
    """
    check_weight(weight, "task-vector weight")
    check_same_tensors(start, reinforced)
    start.write(final, lambda name, old: negated(old, reinforced.tensor(name), weight), marker, advance)
