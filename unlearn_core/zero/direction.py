"""The step an optimizer would take, worked out from its state without touching it.

For each fp32 master shard theta and the live gradient g, the direction d such that the optimizer's step at rate eta is
theta <- theta - eta d:

    SGD     d = buffer' = momentum x buffer + (g + lambda theta)            (the buffer starts as the first gradient)
    AdamW   d = m' / (1 - beta1^t) / ( sqrt(v' / (1 - beta2^t)) + epsilon ) + lambda theta
            m' = beta1 m + (1 - beta1) g,   v' = beta2 v + (1 - beta2) g^2

AutoLR probes along d; the optimizer then steps once, at the rate found, so its state advances once. No shard of d is
kept: a point theta + s d is made for one master tensor at a time, a chunk of it at a time.
"""

from collections.abc import Iterator

import torch

from unlearn_core.zero.shards import GradientShards

CHUNK = 2**24
"""Elements of d that exist at a time: 64 MiB."""


@torch.no_grad()
def points_beside(shards: GradientShards, masters: list[torch.Tensor], span: float) -> Iterator[torch.Tensor]:
    """Theta + span x d, d that of the next optimizer step: one fp32 tensor for each of `shards.master()`.

    Args:
        shards: with the live gradient that the step will take.
        masters: detached `shards.master()`, theta: a swap may have pointed the parameters elsewhere meanwhile.
        span: any sign; the step itself goes to -rate.

    Raises:
        TypeError: the optimizer is neither torch's SGD nor torch's AdamW.
    """
    optimizer = shards.base_optimizer
    if type(optimizer) not in (torch.optim.SGD, torch.optim.AdamW):
        raise TypeError(f"no update direction for {type(optimizer).__name__}; known: SGD, AdamW")
    rule = _sgd if type(optimizer) is torch.optim.SGD else _adamw
    settings = optimizer.param_groups[0]  # every group has the same hyper-parameters
    for index, master in enumerate(masters):
        state = shards.optimizer_state(index)
        point, flat = torch.empty_like(master), master.view(-1)
        for start in range(0, flat.numel(), CHUNK):
            stop = min(start + CHUNK, flat.numel())
            part = {
                name: value.view(-1)[start:stop] if torch.is_tensor(value) and value.dim() else value
                for name, value in state.items()
            }
            d = rule(shards.gradient_slice(index, start, stop), flat[start:stop], part, settings)
            torch.add(flat[start:stop], d, alpha=span, out=point.view(-1)[start:stop])
        yield point


def _sgd(gradient: torch.Tensor, master: torch.Tensor, state: dict, group: dict) -> torch.Tensor:
    if group["weight_decay"]:
        gradient.add_(master, alpha=group["weight_decay"])
    if state.get("momentum_buffer") is not None:
        gradient.add_(state["momentum_buffer"], alpha=group["momentum"])
    return gradient


def _adamw(gradient: torch.Tensor, master: torch.Tensor, state: dict, group: dict) -> torch.Tensor:
    beta1, beta2 = group["betas"]
    step = float(state["step"]) + 1 if "step" in state else 1.0
    second = gradient.square().mul_(1 - beta2)
    first = gradient.mul_(1 - beta1)
    if "exp_avg" in state:
        first.add_(state["exp_avg"], alpha=beta1)
        second.add_(state["exp_avg_sq"], alpha=beta2)
    second.div_(1 - beta2**step).sqrt_().add_(group["eps"])
    first.div_(1 - beta1**step).div_(second)
    if group["weight_decay"]:
        first.add_(master, alpha=group["weight_decay"])
    return first
