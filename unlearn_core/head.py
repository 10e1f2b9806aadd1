"""The output layer and the loss behind it, a slice of label rows at a time: logits of all rows never exist at once.

    z_n = W h_n + b                       for the N label tokens alone, `slice_rows` of them at a time
    dL/dh_n = W' dL/dz_n                  both gradients are taken in the forward pass, slice by slice,
    dL/dW  += dL/dz_n h_n'                so that a slice's logits are gone before the next one's are made

Exact: every loss is a sum over label tokens, or a function of the rows' log-probabilities, whose gradient is known once
they are (they need a second pass over the slices). dL/dW is added up in fp32. It runs inside the head's own forward,
where ZeRO-3 has gathered W.

A readout is what an objective reads of a forward pass. Besides the sliced one there is that of models which do
something to their logits (scale or cap them): those go through the model's own forward, all label rows at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from unlearn_core.data.packing import PassInputs
from unlearn_core.objectives.likelihood import row_log_probs, sum_by_row, wide

TokenLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits_NV, targets_N) -> scalar sum."""
BesideLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits_NV, teacher_NV, targets_N) -> scalar sum."""
RowLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(log_prob_B, count_B) -> scalar sum."""


@dataclass(frozen=True)
class KeptHead:
    """What a teacher's logits are made of again: its label tokens' states and its output layer."""

    hidden_ND: torch.Tensor
    weight_VD: torch.Tensor | None
    """None where the head does not train: the student's is the same."""
    bias_V: torch.Tensor | None

    def logits(self, part: slice, weight_VD: torch.Tensor, bias_V: torch.Tensor | None) -> torch.Tensor:
        """The teacher's logits of some rows; the head given is the student's."""
        if self.weight_VD is not None:
            weight_VD, bias_V = self.weight_VD, self.bias_V
        return F.linear(self.hidden_ND[part], weight_VD, bias_V)


class WholeLogits:
    """A readout that has every label row's logits.

    Args:
        logits_NV: of the label rows.
        inputs: of the pass.
    """

    def __init__(self, logits_NV: torch.Tensor, inputs: PassInputs):
        self.logits_NV, self.inputs = logits_NV, inputs

    def token_sum(self, loss: TokenLoss) -> torch.Tensor:
        """The loss over label tokens."""
        return loss(self.logits_NV, self.inputs.targets_N)

    def beside_sum(self, loss: BesideLoss, teacher: torch.Tensor) -> torch.Tensor:
        """The loss over label tokens, against a teacher's logits from `keep`."""
        return loss(self.logits_NV, teacher, self.inputs.targets_N)

    def row_sum(self, loss: RowLoss) -> torch.Tensor:
        """The loss over rows."""
        return loss(*self.row_log_probs())

    def row_log_probs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As in `unlearn_core.objectives.likelihood`."""
        inputs = self.inputs
        return row_log_probs(self.logits_NV, inputs.targets_N, inputs.rows_N, len(inputs.item_ids))

    def keep(self, head: KeptHead | None = None) -> torch.Tensor:
        """What a student's pass will read of this one."""
        return self.logits_NV.detach()


class SlicedHead:
    """A readout that makes logits slice by slice.

    Args:
        hidden_ND: states that predict the labels.
        weight_VD: of the output layer, gathered.
        bias_V: likewise, or None.
        inputs: of the pass.
        slice_rows: most label rows whose logits exist at a time.
    """

    def __init__(
        self,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        inputs: PassInputs,
        slice_rows: int,
    ):
        self.hidden_ND, self.weight_VD, self.bias_V = hidden_ND, weight_VD, bias_V
        self.inputs, self.slice_rows = inputs, slice_rows

    def token_sum(self, loss: TokenLoss) -> torch.Tensor:
        """The loss over label tokens."""
        targets_N = self.inputs.targets_N
        return self._sum(lambda logits_nV, part: loss(logits_nV, targets_N[part]))

    def beside_sum(self, loss: BesideLoss, teacher: KeptHead) -> torch.Tensor:
        """The loss over label tokens, against a teacher's states from `keep`."""
        weight_VD, bias_V, targets_N = self.weight_VD.detach(), self.bias_V, self.inputs.targets_N
        bias_V = None if bias_V is None else bias_V.detach()
        return self._sum(
            lambda logits_nV, part: loss(logits_nV, teacher.logits(part, weight_VD, bias_V), targets_N[part])
        )

    def row_sum(self, loss: RowLoss) -> torch.Tensor:
        """The loss over rows; with more than one slice the head runs twice."""
        inputs = self.inputs
        targets_N, rows_N, rows = inputs.targets_N, inputs.rows_N, len(inputs.item_ids)
        if len(targets_N) <= self.slice_rows:
            return self._sum(lambda logits_NV, _: loss(*row_log_probs(logits_NV, targets_N, rows_N, rows)))
        log_prob_B, count_B = self.row_log_probs()
        with torch.enable_grad():
            value = loss(log_prob_B.requires_grad_(), count_B)
        (pull_B,) = torch.autograd.grad(value, log_prob_B)

        def pulled(logits_nV: torch.Tensor, part: slice) -> torch.Tensor:
            loss_n = F.cross_entropy(wide(logits_nV), targets_N[part], reduction="none")
            return -(pull_B[rows_N[part]] * loss_n.double()).sum()

        linear = self._sum(pulled)
        return linear - linear.detach() + value.detach()

    @torch.no_grad()
    def row_log_probs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As in `unlearn_core.objectives.likelihood`, without a gradient."""
        inputs = self.inputs
        parts = [
            -F.cross_entropy(
                wide(F.linear(self.hidden_ND[part], self.weight_VD, self.bias_V)),
                inputs.targets_N[part],
                reduction="none",
            ).double()
            for part in slices(len(inputs.targets_N), self.slice_rows)
        ]
        log_prob_N = torch.cat(parts) if parts else self.hidden_ND.new_zeros(0, dtype=torch.float64)
        return sum_by_row(log_prob_N, inputs.rows_N, len(inputs.item_ids))

    def keep(self, head: KeptHead | None = None) -> KeptHead:
        """What a student's pass will read of this one; `head` lends its copy of the output layer, made once a step."""
        weight_VD, bias_V = (head.weight_VD, head.bias_V) if head is not None else (None, None)
        if head is None and self.weight_VD.requires_grad:
            weight_VD = self.weight_VD.detach().clone()
            bias_V = None if self.bias_V is None else self.bias_V.detach().clone()
        return KeptHead(self.hidden_ND.detach(), weight_VD, bias_V)

    def _sum(self, loss: Callable[[torch.Tensor, slice], torch.Tensor]) -> torch.Tensor:
        found: Any = _SlicedSum.apply(self.hidden_ND, self.weight_VD, self.bias_V, loss, self.slice_rows)
        return found


@dataclass(frozen=True)
class HiddenRows:
    """A readout of one layer's states *at* the label tokens, not at those that predict them, as in RMU's own code."""

    hidden_ND: torch.Tensor

    def keep(self, head: Any = None) -> torch.Tensor:
        """What a student's pass will read of this one."""
        return self.hidden_ND.detach()


class _SlicedSum(torch.autograd.Function):
    """sum over slices of loss(W h + b), with its gradients taken on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        loss: Callable[[torch.Tensor, slice], torch.Tensor],
        slice_rows: int,
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad[:3]
        parts = list(slices(hidden_ND.shape[0], slice_rows))
        ctx.gradients = gradients = _zeros((hidden_ND, weight_VD, bias_V), wanted, exact=len(parts) > 1)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden_ND, weight_VD, bias_V)]
        total = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
        dtype = torch.float32 if hidden_ND.dtype != torch.float64 else torch.float64
        for part in parts:
            hidden_nD = hidden_ND[part]
            logits_nV = F.linear(hidden_nD, weight_VD, bias_V)
            if not any(wanted):
                total += loss(logits_nV, part).double()
                continue
            with torch.enable_grad():
                value = loss(logits_nV.requires_grad_(), part)
            (pull_nV,) = torch.autograd.grad(value, logits_nV)
            total += value.detach().double()
            _add(gradients, pull_nV, hidden_nD, weight_VD, part)
            del logits_nV, pull_nV, value
        return total.to(dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (factor,) = outputs
        found = [
            None if gradient is None else gradient.mul_(factor.to(gradient.dtype)).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return (*found, None, None)


def _zeros(
    tensors: tuple[torch.Tensor | None, ...], wanted: tuple[bool, ...], exact: bool
) -> list[torch.Tensor | None]:
    """Buffers for the gradients of hidden states, weight and bias; the latter two in fp32 where slices are added up."""
    hidden, *head = tensors
    assert hidden is not None
    buffers = [torch.empty_like(hidden) if wanted[0] else None]
    for tensor, needed in zip(head, wanted[1:], strict=True):
        dtype = None if tensor is None else torch.promote_types(tensor.dtype, torch.float32) if exact else tensor.dtype
        buffers.append(torch.zeros_like(tensor, dtype=dtype) if tensor is not None and needed else None)
    return buffers


def _add(
    gradients: list[torch.Tensor | None],
    pull_nV: torch.Tensor,
    hidden_nD: torch.Tensor,
    weight_VD: torch.Tensor,
    part: slice,
) -> None:
    hidden, weight, bias = gradients
    if hidden is not None:
        torch.mm(pull_nV, weight_VD, out=hidden[part])
    if weight is not None and weight.dtype == pull_nV.dtype:
        weight.addmm_(pull_nV.T, hidden_nD)
    elif weight is not None:
        weight.add_(pull_nV.T @ hidden_nD)
    if bias is not None:
        bias.add_(pull_nV.sum(dim=0, dtype=bias.dtype))


def slices(rows: int, size: int) -> Iterator[slice]:
    """0 to `rows` in parts of `size`."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
