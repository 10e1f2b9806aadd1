"""How DeepSpeed cuts the trained parameters over ranks, in numbers of elements; read in the source of 0.19.8.

stage 0        nothing is cut
stages 1, 2    parameters of a group one behind the other, padded to 2 W elements, cut in W equal parts; the gradient
               of a parameter that straddles a cut is kept whole by both ranks
stage 3        each parameter is cut in W equal parts, the last one padded
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from unlearn_core.model_shapes import Parameter


@dataclass(frozen=True)
class Buckets:
    """Sizes that DeepSpeed's communication works in, elements; the engine leaves DeepSpeed's defaults."""

    reduce: int = 500_000_000
    """`reduce_bucket_size`: a buffer of so many gradients exists at stages 1 to 3, filled or not."""
    prefetch: int = 50_000_000
    """`stage3_prefetch_bucket_size`: parameters gathered ahead of their use."""
    live: int = 1_000_000_000
    """`stage3_max_live_parameters`: parameters that are kept gathered."""
    reuse: int = 1_000_000_000
    """`stage3_max_reuse_distance`: one that is used again within so many elements is not given back."""
    persistent: int = 100_000
    """`stage3_param_persistence_threshold`: smaller parameters stay whole on every rank."""


def groups_of(parameters: Sequence[Parameter], most: int) -> list[list[Parameter]]:
    """The optimizer's groups: of at most `most` elements, or one parameter; all in one for 0. As in zero/engine.py."""
    groups: list[list[Parameter]] = [[]]
    size = 0
    for parameter in parameters:
        if most and groups[-1] and size + parameter.numel > most:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.numel
    return groups


@dataclass(frozen=True)
class Cut:
    """One rank's part."""

    weights: int
    """Elements of trained weights in the number format of forward passes."""
    masters: tuple[int, ...]
    """Elements of each fp32 master tensor, one for a group or sub-group."""
    gradient: int
    """Elements of a whole objective's gradient, as allocated."""
    pieces: int
    """Elements of it that the optimizer reads."""
    whole: int
    """Elements of parameters that stay whole on the rank beside its part (stage 3)."""
    idle: int = 0
    """Stages 1 and 2: elements of its parameters that were said to be idle, those that straddle a cut whole."""
    begins: float = 0.0
    """Stages 1 and 2: share of the parameters that come before this rank's first part."""
    reached: float = 1.0
    """Stages 1 and 2: share of the parameters that backward still has before it when it comes to this rank's part."""

    @property
    def master(self) -> int:
        """Elements of all masters."""
        return sum(self.masters)


def cut(
    parameters: Sequence[Parameter],
    stage: int,
    workers: int,
    rank: int,
    sub_group: int,
    buckets: Buckets,
    idle: frozenset[str] = frozenset(),
) -> Cut:
    """What one rank holds of the trained parameters.

    Args:
        parameters: those that train, in the optimizer's order.
        stage: of ZeRO.
        workers: W.
        rank: from 0.
        sub_group: elements of a group at most (stages 1, 2), of a sub-group at least (stage 3); 0 for one group.
        buckets: of the engine.
        idle: names of parameters to count apart.
    """
    numel = sum(parameter.numel for parameter in parameters)
    if stage == 0:
        return Cut(numel, tuple(parameter.numel for parameter in parameters), numel, numel, 0)
    if stage == 3:
        return _cut_each(parameters, workers, sub_group, buckets)
    weights = gradient = pieces = before = unused = 0
    masters, last, begins = [], 0, -1
    for group in groups_of(parameters, sub_group):
        size = sum(parameter.numel for parameter in group)
        padded = size + -size % (2 * workers)
        part = padded // workers
        first, past, position, here = rank * part, (rank + 1) * part, 0, 0
        for parameter in group:
            if first < position + parameter.numel and position < past:
                here += parameter.numel
                unused += parameter.numel if parameter.name in idle else 0
                last = before + position + parameter.numel
                begins = before + position if begins < 0 else begins
            position += parameter.numel
        before += size
        weights += padded
        gradient += here
        pieces += part
        masters.append(part)
    return Cut(weights, tuple(masters), gradient, pieces, 0, unused, max(begins, 0) / numel, last / numel)


def _cut_each(parameters: Sequence[Parameter], workers: int, sub_group: int, buckets: Buckets) -> Cut:
    masters, here = [], 0
    for parameter in parameters:
        here += math.ceil(parameter.numel / workers)
        if here >= sub_group > 0:
            masters.append(here)
            here = 0
    masters += [here] if here else []
    total = sum(masters)
    # One worker's part of a parameter is the parameter.
    small = [parameter.numel for parameter in parameters if parameter.numel <= buckets.persistent]
    whole = sum(small) if workers > 1 else 0
    return Cut(total, tuple(masters), total, total, whole)
