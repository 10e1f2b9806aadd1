"""Where gradients wait in host memory for the step's last objective, so that the GPU holds one shard of them."""

import torch


def host_copy(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A copy in host memory, page-locked where there is a GPU to copy from; in another dtype if one is given."""
    copy = torch.empty(tensor.shape, dtype=dtype or tensor.dtype, pin_memory=torch.cuda.is_available())
    return copy.copy_(tensor.detach())


class WaitingRoom:
    """Host buffers that each step's gradients are copied to; made in the first step, used again in all others."""

    def __init__(self) -> None:
        self._places: list[list[torch.Tensor]] = []
        self._taken = 0

    def enter(self, gradient: list[torch.Tensor]) -> list[torch.Tensor]:
        """Copy a gradient shard to the host; the GPU goes on meanwhile, and frees it when it is there."""
        if self._taken == len(self._places):
            self._places.append([host_copy(tensor) for tensor in gradient])
        else:
            for place, tensor in zip(self._places[self._taken], gradient, strict=True):
                place.copy_(tensor.detach(), non_blocking=True)
        self._taken += 1
        return self._places[self._taken - 1]

    def leave_in_order(self) -> None:
        """The step has all its gradients: the next step's may take the places of this one's."""
        self._taken = 0
