"""Counts the bytes of live tensors while code runs, on any device; on `meta` nothing is computed and nothing allocated.

The planner runs a model's own forward and backward pass under a ledger, on the meta device, to learn what its
activations take: the code that will run is the formula. A storage counts once, from the operation that made it until
the last tensor on it is gone.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class ByteLedger(TorchDispatchMode):
    """Live bytes and their peak, of tensors made while it is entered.

    Scratch memory inside one operation is not seen; nor are tensors made before.

    Args:
        device: count tensors on this kind of device alone.

    Attributes:
        live: bytes now.
        peak: most bytes since `restart` or the start.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.live = self.peak = 0
        self._known: dict[int, tuple[int, Any]] = {}

    def restart(self) -> int:
        """The peak so far; the next one counts from the bytes that live now."""
        peak, self.peak = self.peak, self.live
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What an operation is given without having been seen was there before: weights, inputs. Views cost nothing.
        self._note((args, kwargs), counts=False)
        result = func(*args, **(kwargs or {}))
        self._note(result, counts=True)
        return result

    def _note(self, values: Any, counts: bool) -> None:
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor) and value.device.type == self.device:
                self._note_storage(value.untyped_storage(), counts)

    def _note_storage(self, storage: Any, counts: bool) -> None:
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes() if counts else 0
        self._known[key] = (size, weakref.ref(storage, lambda _: self._forget(key)))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int) -> None:
        self.live -= self._known.pop(key)[0]


@contextmanager
def fused_attention() -> Iterator[None]:
    """Scaled dot-product attention as the fused kernels keep it, where the meta device would take the plain formula.

    They save queries, keys, values, the result and one fp32 number a token and head (its log-sum-exp); the T x T scores
    never exist. So do FlashAttention on GPUs (arXiv 2205.14135) and torch's fused kernel on CPUs.

    torch's function is replaced while this is entered: its own modes are left in a backward pass, where checkpointed
    blocks run again.
    """
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda *tensors, **_: _Fused.apply(*tensors[:3])
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_BHTd: torch.Tensor, key_BHTd: torch.Tensor, value_BHTd: torch.Tensor) -> torch.Tensor:
        rows, heads, tokens, _ = query_BHTd.shape
        # The kernels lay the result out as (B, T, H, d), so that what follows needs no copy.
        attended_BHTd = query_BHTd.new_empty(rows, tokens, heads, value_BHTd.shape[-1]).transpose(1, 2)
        log_sums_BHT = query_BHTd.new_empty(rows, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query_BHTd, key_BHTd, value_BHTd, attended_BHTd, log_sums_BHT)
        return attended_BHTd

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        query, key, value, _, _ = ctx.saved_tensors
        return tuple(torch.empty_like(tensor) for tensor in (query, key, value))
