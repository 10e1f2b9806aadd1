"""One rank's view of gradients, master weights and optimizer state, the same for every ZeRO layout (`layouts.py`).

Words: the *live* gradient buffers are those the optimizer will read at the next step; to *take* an objective's gradient
is to detach it from them, so that the next objective starts from zero. A *fragment* is a run of elements of one
parameter that lies in a master tensor: what a checkpoint needs to be read by another layout.
"""

import abc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Fragment:
    """Elements of one parameter in a master tensor; both seen flattened."""

    name: str
    """The parameter's name in the model."""
    start: int
    """First element, counted in the whole parameter."""
    length: int
    """Number of elements, at least 1."""
    offset: int
    """Where they begin in the master tensor."""


class GradientShards(abc.ABC):
    """Uniform view of one rank's part of the gradients, master weights and optimizer state."""

    needs: tuple[str, ...] = ()
    """Private attributes of the DeepSpeed optimizer wrapper that the class reads or writes."""
    sharded = True
    """Whether a global dot product needs a sum over ranks; False when each rank holds whole gradients."""
    sums_unused = True
    """Whether a parameter that the last backward before a boundary does not use keeps what earlier ones gave it."""

    def __init__(self, engine: Any):
        self.engine = engine
        self.wrapper = engine.optimizer

    @abc.abstractmethod
    def live(self) -> list[torch.Tensor]:
        """Gradient tensors that the next optimizer step reads; reduced and averaged over ranks."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Forget every gradient, so that the next backward starts from zero."""

    @abc.abstractmethod
    def master(self) -> list[torch.Tensor]:
        """fp32 weights that this rank updates; one tensor for each optimizer (sub-)group or parameter."""

    @abc.abstractmethod
    def push(self, source: Iterable[torch.Tensor]) -> None:
        """Cast `source`, laid out like `master()`, into the weights that forward passes read, on every rank.

        Taken one tensor at a time: a generator's tensors never exist together. Any device.
        """

    @abc.abstractmethod
    def pieces(self) -> list[list[torch.Tensor]]:
        """Live gradient tensors for each tensor of `master()`: flattened one after the other they match its start.

        A master shard may be longer, by padding that has no gradient.
        """

    @abc.abstractmethod
    def fragments(self, names: Mapping[int, str]) -> list[list[Fragment]]:
        """What lies in each tensor of `master()`, in order of offset; what no fragment covers is padding.

        Args:
            names: id of a parameter -> its name in the model.
        """

    def to_master(self, gradient: list[torch.Tensor], names: Mapping[int, str]) -> list[torch.Tensor]:
        """A tensor list laid out like `live()`, as flat tensors laid out like `master()`; zero in the padding.

        Needs no live gradient, so a checkpoint can be written between two steps.
        """
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in gradient])
        found, position = [], 0
        for master, fragments in zip(self.master(), self.fragments(names), strict=True):
            here = torch.zeros(master.numel(), dtype=flat.dtype, device=flat.device)
            count = self.gradient_numel(master, fragments)
            here[:count] = flat[position : position + count]
            position += count
            found.append(here)
        return found

    def from_master(self, flats: list[torch.Tensor]) -> list[torch.Tensor]:
        """The way back from `to_master`, while there is a live gradient to take the shapes from."""
        found = []
        for flat, pieces in zip(flats, self.pieces(), strict=True):
            offset = 0
            for piece in pieces:
                found.append(flat[offset : offset + piece.numel()].view(piece.shape))
                offset += piece.numel()
        return found

    def gradient_numel(self, master: torch.Tensor, fragments: list[Fragment]) -> int:
        """Elements that `live()` has for one master tensor."""
        return master.numel()

    @contextmanager
    def swapped(self, source: Iterable[torch.Tensor]) -> Iterator[None]:
        """Forward passes inside see `source`, laid out like `master()`; afterwards all is as before, bit for bit.

        No copy is kept: the weights are cast again from the fp32 master, as the optimizer does after each step.
        """
        self.push(source)
        try:
            yield
        finally:
            self.push(self.master())

    def gradient_slice(self, index: int, start: int, stop: int) -> torch.Tensor:
        """Elements of the live gradient of `master()[index]`, flattened: a copy in fp32; zero where it is padding."""
        master = self.master()[index]
        flat = torch.zeros(stop - start, dtype=master.dtype, device=master.device)
        offset = 0
        for piece in self.pieces()[index]:
            begin, end = max(start, offset), min(stop, offset + piece.numel())
            if begin < end:
                flat[begin - start : end - start] = piece.detach().reshape(-1)[begin - offset : end - offset].to(flat)
            offset += piece.numel()
        return flat

    def take(self) -> list[torch.Tensor]:
        """This objective's gradient, detached from the live buffers, which are then clean."""
        taken = [tensor.detach().clone() for tensor in self.live()]
        self.reset()
        return taken

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer that does the arithmetic."""
        return self.wrapper.optimizer

    def optimizer_state(self, index: int) -> dict[str, Any]:
        """Optimizer state (moments, step count) of `master()[index]`; empty before the first step."""
        return self.base_optimizer.state[self.master()[index]]

    def set_optimizer_state(self, index: int, state: dict[str, Any]) -> None:
        """Replace the optimizer state of `master()[index]`."""
        self.base_optimizer.state[self.master()[index]] = state

    def set_learning_rate(self, learning_rate: float) -> None:
        """Learning rate of the next step, for every group."""
        for group in self.base_optimizer.param_groups:
            group["lr"] = learning_rate
