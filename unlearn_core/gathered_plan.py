"""Stage 3: bytes of the layers that are gathered at the moments of a pass.

DeepSpeed's coordinator (0.19.8) gathers what a module needs and, ahead of time, up to `prefetch` elements more, never
above `live` in all; it gives a module's parameters back after its use unless they are used again within `reuse`
elements, which in a forward pass they are, in its backward pass. So up to `live` elements, or the whole model, stay
gathered from the forward pass of the last blocks on. What is gathered together lies in one flat tensor, which is cut
into parameters by copying, and lives until the last of them has come up: until the head's turn at the latest. One
worker gathers nothing.
"""

from dataclasses import dataclass

from unlearn_core.config import RunConfig
from unlearn_core.model_shapes import ModelShape
from unlearn_core.zero_plan import Buckets


@dataclass(frozen=True)
class Gathered:
    """Bytes of gathered parameters; those that are always whole are not among them."""

    blocks: int = 0
    """While the blocks run forward, flat tensor included."""
    later: int = 0
    """In the head and in the backward pass."""


def gathered(shape: ModelShape, run: RunConfig, buckets: Buckets, width: int, hidden: bool = False) -> Gathered:
    """What one rank has gathered; nothing below stage 3 or with one worker.

    Args:
        shape: of the model.
        run: stage and workers.
        buckets: of the engine.
        width: bytes of a weight.
        hidden: whether the objective reads a block's output, so that the head does not run.
    """
    if run.zero.stage < 3 or run.workers.count == 1:
        return Gathered()
    head = shape.output_layer
    used = [p for p in shape.parameters if p.numel > buckets.persistent and not (hidden and p is head)]
    numel = sum(p.numel for p in used)
    # Backward does not come to what lies before the first parameter that trains: it is given back after its forward.
    first = next(index for index, p in enumerate(shape.parameters) if p.trains)
    early = sum(p.numel for p in shape.parameters[:first] if p.numel > buckets.persistent)
    most = min(numel - early, buckets.live) * width
    return Gathered(most + min(numel, buckets.prefetch) * width, most)
