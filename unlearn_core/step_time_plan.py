"""How long a step takes: an estimate from operations, memory traffic and messages. Nothing here was measured on a GPU.

    matrix products     6 N T (forward 2, backward 4), 8 N T with activation checkpointing, a forward pass more for each
                        objective that looks at a teacher; attention 6 L D S T beside each 6 N T (causal: half of
                        12 L D S T), at `mfu` of the GPU's rate
    AutoLR              two forward passes of the retain rows every `every` steps: m / (6 k) of a step, m = 2
    combining           each gradient read once for the Gram matrix and once more for the sum
    optimizer           gradient, master and state read and written, weights written, at the memory's bandwidth
    messages            ring: a reduction or gather of B bytes over W ranks moves B (W - 1) / W through each link

N is the weights that a token meets (the input embedding is a look-up), T tokens of one set on one worker.
"""

from dataclasses import dataclass

from unlearn_core.gpus import HOST_LINK, NETWORK, NODE, Gpu
from unlearn_core.plan_setting import Setting, gradient_bytes, optimizer_bytes, teacher_bytes

MFU = 0.40
"""Share of the datasheet's rate that matrix products reach. An assumption: published runs of 7B and 8B models in bf16
report 0.33 to 0.50."""
MEMORY_SHARE = 0.80
"""Share of the memory bandwidth that elementwise kernels reach; an assumption."""
LINK_SHARE = 0.75
"""Share of a link's rate that collectives reach; an assumption."""
CPU_STEP = 1.5e9
"""Elements a second that torch's AdamW steps on the host, a worker; an assumption, and why offload is slow."""


@dataclass(frozen=True)
class StepTime:
    """Estimated seconds of one optimizer step, by what they go to, on one worker; all run side by side."""

    parts: dict[str, float]
    flops: float
    """Operations of one worker's matrix products in a step, recomputation not counted."""
    tokens: int
    """Tokens of the global batch that go through forward and backward."""

    @property
    def seconds(self) -> float:
        """Of the step."""
        return sum(self.parts.values())

    @property
    def tokens_per_second(self) -> float:
        """Of all workers together."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Rates:
    """What the estimate assumes."""

    gpu: Gpu
    mfu: float = MFU
    network: float = NETWORK
    node: int = NODE


def plan_step_time(setting: Setting, rates: Rates) -> StepTime:
    """The estimate of one step."""
    composition, run, shape = setting.composition, setting.run, setting.shape
    objectives = composition.objectives
    passes = [_pass_tokens(setting, objective.kind == "pair") for objective in objectives]
    per_token = forward_flops(setting)
    forward_backward = 8 if run.zero.activation_checkpointing else 6
    useful = sum(3 * per_token * tokens for tokens in passes)
    spent = sum(forward_backward / 2 * per_token * tokens for tokens in passes)
    teacher = sum(per_token * t for o, t in zip(objectives, passes, strict=True) if o.needs_teacher)
    if composition.combiner.needs_losses_first:
        spent += sum(per_token * tokens for tokens in passes)
    if composition.combiner.needs_losses_after:
        spent += sum(per_token * tokens for tokens in passes)
    rate = rates.mfu * rates.gpu.flops
    parts = {"forward and backward": spent / rate}
    if teacher:
        parts["teacher's forward passes"] = teacher / rate
    if run.optimizer.schedule == "auto":
        k = composition.retain_objective or 0
        parts["AutoLR's probes"] = 2 * per_token * passes[k] / run.optimizer.auto.every / rate
    parts |= _elementwise(setting, rates)
    parts |= _messages(setting, rates)
    parts = {name: seconds for name, seconds in parts.items() if seconds}
    tokens = sum(passes) * setting.workers
    assert shape.numel > 0
    return StepTime(parts, useful + teacher, tokens)


def _pass_tokens(setting: Setting, pair: bool) -> int:
    """Tokens of one objective on one worker in a step."""
    rows = setting.micro_batches * setting.run.batch.micro * (2 if pair else 1)
    return rows * setting.rows.tokens


def forward_flops(setting: Setting) -> float:
    """Operations of a forward pass for a token: 2 for each weight but the embedding's, 2 L D S for causal attention.

    The output layer counts for label tokens alone. Attention: scores and mixing are 2 S D each for every layer, half of
    which a causal mask leaves (PaLM, arXiv 2204.02311, appendix B, counts 12 L D S for forward and backward without the
    half).
    """
    config, rows = setting.shape.config, setting.rows
    width = config.hidden_size * config.vocab_size
    tied = bool(getattr(config, "tie_word_embeddings", False))
    blocks = setting.shape.numel - (1 if tied else 2) * width
    labels = rows.labels / rows.tokens
    return 2.0 * blocks + 2.0 * width * labels + 2.0 * config.num_hidden_layers * config.hidden_size * rows.tokens


def _elementwise(setting: Setting, rates: Rates) -> dict[str, float]:
    """Seconds of work that is bound by memory traffic."""
    part, zero, width = setting.cut, setting.run.zero, setting.width
    speed = MEMORY_SHARE * rates.gpu.bandwidth
    kept = len(setting.composition.objectives) if setting.apart else 1
    size = gradient_bytes(setting)
    found = {"combining the gradients": (kept * size + (kept + 1) * size * (kept > 1)) / speed}
    if zero.offload_optimizer:
        found["optimizer on the host"] = part.master / CPU_STEP
        found["gradients to the host and weights back"] = (size + width * part.master) / HOST_LINK
    else:
        # The gradient is read, copied to fp32, read again; master and state are read and written; weights are written.
        traffic = width + 8 + 8 + 2 * optimizer_bytes(setting) + width
        found["optimizer"] = traffic * part.master / speed
    if zero.park_gradients and setting.apart:
        found["gradients to the host and back"] = 2 * (kept - 1) * size / HOST_LINK
    rule = setting.composition.teacher
    if rule is not None:
        swaps = 2 * (4 + width) * part.master / speed
        follows = 12 * part.master / speed if rule.rate else 0.0
        found["teacher's weights in, out and after"] = swaps + follows
        if zero.teacher_on_host:
            found["teacher's weights from the host and back"] = 3 * teacher_bytes(setting) / HOST_LINK
    return found


def _messages(setting: Setting, rates: Rates) -> dict[str, float]:
    """Seconds of collectives, none of them hidden behind computation."""
    volume = message_bytes(setting)
    return {name: size / link_rate(setting.workers, rates) for name, size in volume.items()}


def link_rate(workers: int, rates: Rates) -> float:
    """Bytes a second that a collective moves through each GPU.

    Within a node the GPU's link. A ring over nodes leaves each of them once; NCCL lays rings through all of a node's
    adapters at the same time, so the node's network together counts, where it is less.
    """
    link = rates.gpu.link if workers <= rates.node else min(rates.gpu.link, rates.node * rates.network)
    return LINK_SHARE * link


def message_bytes(setting: Setting) -> dict[str, float]:
    """Bytes that each GPU sends in a step, by purpose; a ring moves (W - 1) / W of a message, an all-reduce twice that.

    Stages 0 and 1 all-reduce gradients, as stage 2 does with DeepSpeed's default `use_multi_rank_bucket_allreduce`;
    stage 3 reduce-scatters them. Stages 1 and 2 gather the weights after the step and at each swap. Stage 3 gathers
    them for each forward and each backward pass.
    """
    run, shape, workers, width = setting.run, setting.shape, setting.workers, setting.width
    composition = setting.composition
    if workers == 1:
        return {}
    ring = (workers - 1) / workers
    stage = run.zero.stage
    trained, whole = width * shape.trained_numel * ring, width * shape.numel * ring
    # Stages 0 and 1 reduce at the last micro-batch, of each objective where they are kept apart; 2 and 3 reduce each.
    count = len(composition.objectives)
    reductions = (count if setting.apart else 1) if stage < 2 else count * setting.micro_batches
    found = {"reducing gradients": reductions * trained * (2 if stage < 3 else 1)}
    swaps = 2 if any(o.needs_teacher for o in composition.objectives) else 0
    if run.optimizer.schedule == "auto":
        swaps += 3 / run.optimizer.auto.every
    if stage in (1, 2):
        found["gathering weights"] = (1 + swaps) * trained
    if stage == 3:
        forwards = 2 * count + sum(o.needs_teacher for o in composition.objectives)
        forwards += count if run.zero.activation_checkpointing else 0
        if run.optimizer.schedule == "auto":
            forwards += 2 / run.optimizer.auto.every
        found["gathering weights"] = forwards * setting.micro_batches * whole
    return found
