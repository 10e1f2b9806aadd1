"""What a plan is made of: the run on one kind of device, sizes that follow from it at once, and the plan's own form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unlearn_core.activation_plan import RowShape
from unlearn_core.config import RunConfig
from unlearn_core.method import Composition, compose
from unlearn_core.model_shapes import ModelShape, Parameter
from unlearn_core.zero_plan import Buckets, Cut, cut

GIB = 2**30

Items = dict[str, int]


@dataclass(frozen=True)
class Moment:
    """Bytes that live at one moment of a step, by item."""

    name: str
    items: Mapping[str, int]

    @property
    def total(self) -> int:
        """All items."""
        return sum(self.items.values())


@dataclass(frozen=True)
class MemoryPlan:
    """What a run takes."""

    resting: Moment
    """Between two steps."""
    moments: tuple[Moment, ...]
    """Of a step, in order."""
    allowance: Mapping[str, int]
    """What is no tensor: CUDA context, fragmentation; empty for a CPU."""
    host: Mapping[str, int]
    """Bytes in host memory of one worker, by item; those of a node are so many times its workers."""

    @property
    def peak(self) -> Moment:
        """The largest moment."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def total(self) -> int:
        """Bytes at the peak, the allowance among them."""
        return self.peak.total + sum(self.allowance.values())

    @property
    def host_total(self) -> int:
        """Bytes in host memory of one worker."""
        return sum(self.host.values())


@dataclass(frozen=True)
class Setting:
    """A run on one kind of device."""

    shape: ModelShape
    run: RunConfig
    rows: RowShape
    device: str = "cuda"
    """`cuda` or `cpu`: the scratch of some steps differs, and host and device memory are one on a CPU."""
    rank: int = 0
    buckets: Buckets = field(default_factory=Buckets)

    @property
    def composition(self) -> Composition:
        """Parts of the method."""
        return compose(self.run.method.name, self.run.method.settings)

    @property
    def width(self) -> int:
        """Bytes of a weight in forward passes."""
        return 2 if self.run.model.dtype == "bf16" else 4

    @property
    def workers(self) -> int:
        """W."""
        return self.run.workers.count

    @property
    def micro_batches(self) -> int:
        """Forward passes of one objective in a step on one worker."""
        return max(1, self.run.batch.rows // (self.run.batch.micro * self.workers))

    @property
    def apart(self) -> bool:
        """Whether each objective's gradient is kept apart (unlearn_core/update.py)."""
        return self.composition.combiner.needs_gradients or self.run.diagnostics

    @property
    def cut(self) -> Cut:
        """This rank's part."""
        return self.cut_of(self.shape.trained)

    def cut_of(self, parameters: Sequence[Parameter], idle: frozenset[str] = frozenset()) -> Cut:
        """This rank's part of some parameters; `idle` are counted apart."""
        zero = self.run.zero
        return cut(parameters, zero.stage, self.workers, self.rank, zero.sub_group, self.buckets, idle)

    def idle(self, number: int) -> frozenset[str]:
        """Names of the trained parameters that an objective does not reach: those behind the block that it reads."""
        objective = self.composition.objectives[number]
        return self.shape.beyond(objective.layer) if objective.kind == "hidden" else frozenset()


def optimizer_bytes(setting: Setting) -> float:
    """Optimizer state, bytes for each element of a master.

    AdamW: two fp32 moments, 8. SGD: one fp32 buffer with momentum, 4, else none. 8-bit AdamW (arXiv 2110.02861): two
    moments of one byte and, for each block of 256, two fp32 scales: 2 + 8 / 256.
    """
    optimizer = setting.run.optimizer
    if optimizer.name == "sgd":
        return 4.0 if optimizer.momentum else 0.0
    return 8.0 if optimizer.name == "adamw" else 2 + 8 / 256


def gradient_bytes(setting: Setting) -> int:
    """One objective's gradient on this rank, as allocated; in fp32 on the host where the optimizer is there."""
    if setting.run.zero.offload_optimizer:
        return 4 * setting.cut.master
    return setting.width * setting.cut.gradient


def teacher_bytes(setting: Setting) -> int:
    """The teacher's shards: fp32 where it moves, in the weights' format where it stands still."""
    rule = setting.composition.teacher
    if rule is None:
        return 0
    return setting.cut.master * (4 if rule.rate > 0 or rule.damping > 0 else setting.width)


def head_numel(setting: Setting) -> int:
    """Elements of the output layer if it trains."""
    shape = setting.shape
    size = (shape.config.vocab_size, shape.config.hidden_size)
    heads = [p for p in shape.trained if p.shape == size]
    return heads[-1].numel if heads else 0


def share_before_bucket(setting: Setting, number: int) -> float:
    """Share of the way from the first block of a backward pass to its last one before the bucket is full once.

    Only then does stage 2 make its buffer. In front of the blocks comes the head, where the objective reaches it.
    """
    objective, shape = setting.composition.objectives[number], setting.shape
    idle = setting.idle(number)
    reached = [parameter for parameter in shape.trained if parameter.name not in idle]
    of_blocks = [p for p in reached if any(part.isdigit() for part in p.name.split("."))]
    deep = min(shape.layers, objective.layer + 1) if objective.kind == "hidden" else shape.layers
    block = sum(parameter.numel for parameter in of_blocks) / deep
    head = shape.output_layer.numel if shape.output_layer in reached and shape.output_layer else 0
    left = setting.buckets.reduce - head
    if left <= 0:
        return 0.0
    return min(1.0, left / block / (deep - 1)) if block and deep > 1 else 1.0


def optimizer_scratch(setting: Setting) -> int:
    """Bytes for each element of the group at hand that torch's optimizers need beside their state.

    AdamW's denominator: sqrt(v), and its quotient by the bias correction, which torch's loop over tensors (CPU) makes
    as a second tensor and its foreach form (GPU) in place. SGD's decay makes g + lambda theta. The 8-bit AdamW is one
    kernel.
    """
    optimizer = setting.run.optimizer
    if optimizer.name == "adamw":
        return 8 if setting.device == "cpu" or setting.run.zero.offload_optimizer else 4
    return 4 if optimizer.name == "sgd" and optimizer.weight_decay else 0
