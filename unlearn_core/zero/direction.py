"""The step an optimizer would take, worked out from its state without touching it.

For each fp32 master shard theta and the live gradient g, the direction d such that the optimizer's step at rate eta is
theta <- theta - eta d:

    SGD     d = buffer' = momentum x buffer + (g + lambda theta)            (the buffer starts as the first gradient)
    AdamW   d = m' / (1 - beta1^t) / ( sqrt(v' / (1 - beta2^t)) + epsilon ) + lambda theta
            m' = beta1 m + (1 - beta1) g,   v' = beta2 v + (1 - beta2) g^2

AutoLR probes along d; the optimizer then steps once, at the rate found, so its state advances once.
"""

import torch

from unlearn_core.zero.shards import GradientShards


@torch.no_grad()
def update_direction(shards: GradientShards) -> list[torch.Tensor]:
    """D of the next optimizer step, laid out like `shards.master()`: fp32, one shard of memory.

    Raises:
        TypeError: the optimizer is neither torch's SGD nor torch's AdamW.
    """
    optimizer = shards.base_optimizer
    if type(optimizer) not in (torch.optim.SGD, torch.optim.AdamW):
        raise TypeError(f"no update direction for {type(optimizer).__name__}; known: SGD, AdamW")
    rule = _sgd if type(optimizer) is torch.optim.SGD else _adamw
    group = optimizer.param_groups[0]  # one group: every shard has the same hyper-parameters
    directions = []
    for index, master in enumerate(shards.master()):
        gradient = shards.flat_gradient(index)
        directions.append(rule(gradient, master.detach(), shards.optimizer_state(index), group))
    return directions


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
