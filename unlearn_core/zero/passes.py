"""What the engine is asked for: one objective's forward passes of a step and their loss. Imports no DeepSpeed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unlearn_core.data.packing import PassInputs

LossSum = Callable[[Any, PassInputs, int], torch.Tensor]
"""(readout, inputs on its device, number of the micro-batch) -> scalar sum over label tokens or rows."""


@dataclass(frozen=True)
class Pass:
    """One objective's part of a step on this rank: forward passes and their loss."""

    loss: LossSum
    micro_batches: Sequence[PassInputs]
    """This rank's part of the global batch; every rank has the same number."""
    normaliser: float
    """Label tokens or rows of the whole global batch: the one divisor of every micro-batch and rank."""
    weight: float = 1.0
    """Factor of its gradient where several passes are summed."""
    layer: int | None = None
    """The block whose hidden states the loss reads; None for the output layer."""
