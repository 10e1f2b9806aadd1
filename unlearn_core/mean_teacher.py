"""Mean teacher: a second set of weights v beside the student's w, kept as shards (arXiv 2504.13388).

One step, in the order of the author's code (g is the gradient of the summed losses, mu the damping, delta the rate):

    c = min(1, clip / |g|);   g <- c g
    g <- g + mu c (w - v)                      after clipping, scaled by the same factor, not part of the norm
    w <- optimizer(w, g)
    v <- (1 - delta c) v + delta c w           after every optimizer step

So clipping slows the whole system down, objective and teacher alike. v lies in this rank's shards, laid out like the
fp32 master weights: both updates are local, without communication. The teacher's forward pass puts v into the weights
that the student's passes read and afterwards casts those from the student's master again: no second engine, no copy.

With delta = 0 and mu = 0 the teacher is a frozen copy of the start model, the reference of KL and UNDIAL. It is never
added to anything, so it is kept in the model's own dtype.

Where we differ from the author's code: losses are sums over all label tokens of the global batch divided by their
number, not means of micro-batch means; the damping term is added to gradients in the dtype of the gradient buffer (bf16
when training in bf16 without offload).
"""

import torch

from unlearn_core.head import slices
from unlearn_core.method import TeacherRule
from unlearn_core.zero.shards import GradientShards
from unlearn_core.zero.waiting_room import host_copy

CHUNK = 2**24
"""Elements that go from host to GPU and back at a time, where v lies in host memory."""


class Teacher:
    """This rank's shards of v.

    Args:
        shards: access to the student's; v starts equal to w.
        rule: rate and damping.
        bf16: whether the model trains in bf16: a frozen teacher is then kept in bf16, which loses nothing, because
            forward passes read bf16.
        on_host: keep v in host memory.
    """

    def __init__(self, shards: GradientShards, rule: TeacherRule, bf16: bool, on_host: bool = False):
        self.shards, self.rule = shards, rule
        self.moves = rule.rate > 0 or rule.damping > 0
        dtype = torch.bfloat16 if bf16 and not self.moves else torch.float32
        self.at_student = True
        """Whether v equals w: at the start of a request, before its first step."""
        masters = [master.detach() for master in shards.master()]
        self.weights = [host_copy(w, dtype) if on_host else w.to(dtype, copy=True) for w in masters]

    def reset(self) -> None:
        """Start again from the student: v <- w."""
        for mine, master in zip(self.weights, self.shards.master(), strict=True):
            mine.copy_(master.detach())
        self.at_student = True

    @torch.no_grad()
    def damp(self, clip: float) -> None:
        """Add mu c (w - v) to the live gradient; `clip` is c in (0, 1]."""
        if self.rule.damping == 0:
            return
        factor = self.rule.damping * clip
        for master, mine, pieces in zip(self.shards.master(), self.weights, self.shards.pieces(), strict=True):
            offset = 0
            flat_master, flat_mine = master.detach().view(-1), mine.view(-1)
            for piece in pieces:
                end = min(offset + piece.numel(), flat_master.numel())
                here = piece.view(-1)[: end - offset]
                for part in slices(end - offset, CHUNK):
                    there = slice(offset + part.start, offset + part.stop)
                    gap = flat_master[there] - flat_mine[there].to(flat_master.device, non_blocking=True)
                    here[part].add_(gap.to(piece.device), alpha=factor)
                offset = end

    @torch.no_grad()
    def follow(self, clip: float) -> None:
        """V <- v + delta c (w - v), after the optimizer step."""
        if self.rule.rate == 0:
            return
        for mine, master in zip(self.weights, self.shards.master(), strict=True):
            if mine.device == master.device:
                mine.lerp_(master.detach(), self.rule.rate * clip)
                continue
            flat_mine, flat_master = mine.view(-1), master.detach().view(-1)
            for part in slices(flat_mine.numel(), CHUNK):
                there = flat_mine[part].to(master.device, non_blocking=True)
                flat_mine[part].copy_(there.lerp_(flat_master[part], self.rule.rate * clip), non_blocking=True)

    @torch.no_grad()
    def gap(self) -> torch.Tensor:
        """This rank's part of |w - v|^2, for the log: fp64, on the device; accumulated in fp32 over chunks."""
        masters = [master.detach().view(-1) for master in self.shards.master()]
        total = torch.zeros((), dtype=torch.float64, device=masters[0].device)
        for mine, master in zip(self.weights, masters, strict=True):
            for part in slices(master.numel(), CHUNK):
                there = mine.view(-1)[part].to(master.device, non_blocking=True)
                total += torch.dist(master[part], there).double().square()
        return total
