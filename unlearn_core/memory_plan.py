"""What a run will take on each GPU, byte by byte and moment by moment, from configs alone.

    between steps     weights, master weights, optimizer state, teacher, tracking buffers
    teacher           + the teacher's forward pass
    backward of k     + gradients that wait, a reduction bucket, activations (activation_plan.py)
    combine           + every gradient
    probe             + the live gradient, a forward pass
    step              + the live gradient in fp32, the optimizer's scratch

The peak is the largest moment, not the sum of all items. Elements of a rank's part are counted in zero_plan.py, layers
that stage 3 gathers in gathered_plan.py. `python -m benchmarks.memory` compares every moment with counted bytes.
"""

from dataclasses import replace

from unlearn_core.activation_plan import pass_bytes
from unlearn_core.gathered_plan import Gathered, gathered
from unlearn_core.plan_setting import (
    GIB,
    Items,
    MemoryPlan,
    Moment,
    Setting,
    gradient_bytes,
    head_numel,
    optimizer_bytes,
    optimizer_scratch,
    share_before_bucket,
    teacher_bytes,
)

CUDA_CONTEXT = GIB
"""Allowance for the CUDA context, NCCL's buffers and cuBLAS workspaces; an estimate, not measured here."""
FRAGMENTATION = 0.05
"""Allowance for blocks that the caching allocator cannot use, as a share of the tensors; an estimate."""
CHUNK = 2**24
"""Elements that elementwise work on shards handles at a time (mean_teacher.py, zero/direction.py)."""
GRAM = {"cpu": (2**17, 8), "cuda": (2**24, 4)}
"""Elements of each gradient that are cast up for the Gram matrix at a time, and bytes of each (zero/engine.py)."""


def plan_memory(setting: Setting) -> MemoryPlan:
    """The plan of one rank."""
    resting = _resting(setting)
    moments: list[Moment] = []
    kept = _teacher_keeps(setting)
    if kept:
        moments += _teacher_pass(setting, resting, kept)
    base = resting | kept
    if setting.composition.combiner.needs_losses_first:
        for k, objective in enumerate(setting.composition.objectives):
            moments += _inference(setting, base, k, f"loss of {objective.name} beforehand")
    moments += _gradients(setting, base)
    moments.append(_combine(setting, base))
    if setting.run.optimizer.schedule == "auto":
        moments += _probe(setting, base)
    moments += _step(setting, base)
    on_gpu = setting.device == "cuda"
    most = max(moment.total for moment in moments)
    allowance = {"CUDA context": CUDA_CONTEXT, "fragmentation": int(FRAGMENTATION * most)} if on_gpu else {}
    host = _host(setting)
    if waiting := _host_waiting(setting):
        host["waiting gradients"] = waiting
    return MemoryPlan(Moment("between steps", resting), tuple(moments), allowance, host)


# -- between steps ---------------------------------------------------------------------------------------------------


def _resting(setting: Setting) -> Items:
    """Everything that outlives a step, on the device; on a CPU the host's too."""
    zero, part, width = setting.run.zero, setting.cut, setting.width
    others = [p for p in setting.shape.parameters if not p.trains]
    frozen = setting.cut_of(others).weights if zero.stage == 3 and others else sum(p.numel for p in others)
    items = {"weights": width * (part.weights + frozen + _whole(setting))}
    separate = zero.stage > 0 or setting.run.model.dtype == "bf16"
    states = {
        "master weights": 4 * part.master if separate else 0,
        "optimizer state": int(optimizer_bytes(setting) * part.master),
    }
    if not zero.offload_optimizer:
        items |= states
    if not zero.teacher_on_host:
        items["teacher"] = teacher_bytes(setting)
    items["tracking buffers"] = 4 * part.pieces * len(setting.composition.combiner.tracked)
    if zero.offload_optimizer and zero.stage < 3:
        items["largest gradient"] = width * _largest(setting)
    if zero.stage == 3 and not zero.offload_optimizer:
        items["live gradient"] = width * part.gradient
    if zero.stage == 3:
        items["reduction bucket"] = width * setting.buckets.reduce
    if setting.device == "cpu":
        for name, size in _host(setting).items():
            items[name] = items.get(name, 0) + size
    return {name: size for name, size in items.items() if size}


def _whole(setting: Setting) -> int:
    """Elements of the parameters that stay whole on every rank at stage 3, beside the rank's part of them."""
    return setting.cut_of(setting.shape.parameters).whole if setting.run.zero.stage == 3 else 0


def _host(setting: Setting) -> Items:
    """Bytes of one worker in host memory, kept from step to step.

    Optimizer offload: master, state and the fp32 gradient that DeepSpeed copies there. Stages 1 and 2 add a buffer in
    the weights' format on the way back, one for the largest gradient, and at stage 2 the sum of several micro-batches;
    at stage 3 the ranks' gradients lie on the host as well.
    """
    zero, part, width = setting.run.zero, setting.cut, setting.width
    items: Items = {}
    if zero.offload_optimizer:
        items["master weights"] = 4 * part.master
        items["optimizer state"] = int(optimizer_bytes(setting) * part.master)
        items["fp32 gradient"] = 4 * part.master
        if zero.stage == 3:
            items["live gradient"] = width * part.gradient
        else:
            items["weights on their way back"] = width * part.master
            items["largest gradient"] = width * _largest(setting)
        if zero.stage == 2 and setting.micro_batches > 1:
            items["sum of micro-batches"] = width * part.gradient
    if zero.park_gradients and setting.apart and not zero.offload_optimizer:
        waiting = len(setting.composition.objectives) - 1
        items["parked gradients"] = waiting * gradient_bytes(setting)
    if zero.teacher_on_host:
        items["teacher"] = teacher_bytes(setting)
    return {name: size for name, size in items.items() if size}


def _host_waiting(setting: Setting) -> int:
    """Gradients of earlier objectives under optimizer offload: copies of the host's fp32 gradient, in a step only."""
    if not setting.run.zero.offload_optimizer or not setting.apart:
        return 0
    return (len(setting.composition.objectives) - 1) * gradient_bytes(setting)


def _largest(setting: Setting) -> int:
    return max(parameter.numel for parameter in setting.shape.trained)


# -- passes ----------------------------------------------------------------------------------------------------------


def _teacher_keeps(setting: Setting) -> Items:
    """What the teacher's passes of a step leave for the student's: states of label tokens, and a copy of the head."""
    wanted = [o for o in setting.composition.objectives if o.needs_teacher]
    if not wanted:
        return {}
    config = setting.shape.config
    label_rows = setting.micro_batches * setting.run.batch.micro * setting.rows.labels
    items = {"teacher's states": len(wanted) * label_rows * config.hidden_size * setting.width}
    head = head_numel(setting)
    if head and any(o.kind == "teacher" for o in wanted):
        items["teacher's head"] = head * setting.width
    return items


def _teacher_pass(setting: Setting, resting: Items, kept: Items) -> list[Moment]:
    numbers = [k for k, o in enumerate(setting.composition.objectives) if o.needs_teacher]
    return [m for k in numbers for m in _inference(setting, resting | kept, k, "teacher's pass")]


def _inference(setting: Setting, base: Items, number: int, name: str) -> list[Moment]:
    """A forward pass without a gradient: its blocks, its head."""
    counted = pass_bytes(setting.shape, setting.run, number, setting.rows, teacher=True)
    layers = _layers(setting, number)
    return [
        Moment(f"{name}: blocks", base | _named(layers.blocks, counted.blocks)),
        Moment(f"{name}: head", base | _named(layers.later, counted.forward)),
    ]


def _layers(setting: Setting, number: int) -> Gathered:
    hidden = setting.composition.objectives[number].kind == "hidden"
    return gathered(setting.shape, setting.run, setting.buckets, setting.width, hidden)


def _named(layers: int, activations: int) -> Items:
    return ({"gathered layers": layers} if layers else {}) | {"activations": activations}


def _gradients(setting: Setting, base: Items) -> list[Moment]:
    """Forward and backward passes, objective by objective, the first micro-batch and the last one of each."""
    found: list[Moment] = []
    objectives = setting.composition.objectives
    for k, objective in enumerate(objectives):
        before = dict(base)
        if k and setting.apart and _waits_here(setting):
            before["waiting gradients"] = sum(_gradient(setting, j) for j in range(k))
        for index in sorted({0, setting.micro_batches - 1}):
            adds = index > 0 or (k > 0 and not setting.apart)
            ends = index == setting.micro_batches - 1 and (setting.apart or k == len(objectives) - 1)
            name = f"backward of {objective.name}" + (f", micro-batch {index + 1}" if index else "")
            found += _one_pass(setting, before, k, name, adds, ends, _gathers(setting, k == 0 and index == 0))
    return found


def _gathers(setting: Setting, first: bool) -> bool:
    """Stage 3: whether a pass has its layers to gather, or finds them gathered.

    Where a pass without a gradient comes before those with one, DeepSpeed takes it for the first half of the pass that
    it has learnt and keeps what it gathered from then on, until the optimizer step; a teacher's swap gives it back.
    """
    composition = setting.composition
    if any(objective.needs_teacher for objective in composition.objectives):
        return first
    return not composition.combiner.needs_losses_first


def _on_host(setting: Setting) -> bool:
    return setting.run.zero.offload_optimizer


def _waits_here(setting: Setting) -> bool:
    """Whether earlier gradients wait in the memory that is planned: on the device, or on a CPU's own host."""
    if _on_host(setting):
        return setting.device == "cpu"
    return not setting.run.zero.park_gradients


def _one_pass(
    setting: Setting, base: Items, number: int, name: str, adds: bool, ends: bool, gathers: bool
) -> list[Moment]:
    """The moments of one micro-batch's pass.

    Stages 0 and 1: autograd keeps the whole gradients, and adds to them; the last pass reduces them: stage 0 by way of
    a flat copy, stage 1 through the bucket into a buffer of this rank's part. Stage 2: a gradient is copied into the
    bucket as it is made; a full bucket is reduced, and this rank's part copied into a buffer made new for each backward
    pass, when backward first comes to that part. Stage 3: the rank's part has its place from the start.

    Args:
        setting: the run.
        base: bytes of before.
        number: of the objective.
        name: of the pass.
        adds: whether an earlier pass has left a gradient to add to.
        ends: whether the gradient is reduced at the end of it (stages 0 and 1; the others reduce always).
        gathers: whether it has layers to gather (stage 3).
    """
    stage, part = setting.run.zero.stage, setting.cut
    whole = setting.width * _reached(setting, number)
    counted = pass_bytes(setting.shape, setting.run, number, setting.rows, keeps_gradients=stage < 2 and not adds)
    layers = _layers(setting, number)
    items = dict(base)
    own = 0 if stage in (0, 3) or _on_host(setting) else gradient_bytes(setting)
    if adds and stage < 3:
        items["live gradient"] = whole if stage < 2 else own + _zeros(setting, number if setting.apart else 0)
    bucket = setting.width * setting.buckets.reduce * (2 if setting.run.zero.overlap_comm else 1)

    def moment(where: str, live: int, activations: int, bucketed: bool = False, buffer: int = 0) -> Moment:
        here = dict(items) | _named(live, activations)
        if (stage == 1 and adds) or (stage == 2 and bucketed):
            here["reduction bucket"] = bucket
        if stage == 2 and bucketed:
            here["live gradient"] = here.get("live gradient", 0) + buffer
        return Moment(f"{name}: {where}", here)

    # A gradient larger than the bucket stays where it is until the next one comes: the head's. Offload copies it first.
    head = head_numel(setting)
    large = setting.width * head if stage == 2 and head > setting.buckets.reduce else 0
    first = counted.first_block + large * (2 if _on_host(setting) else 1)
    # Where backward comes to this rank's part, and the bucket has been full.
    filled = share_before_bucket(setting, number)
    share = min(part.reached, 1 - filled)
    reached = counted.last_block + int((counted.first_block - counted.last_block) * share)
    found = [
        moment("forward", layers.blocks if gathers else layers.later, counted.blocks),
        moment("head and loss", layers.later, counted.forward),
        moment("head, backward", layers.later, counted.head, bool(head)),
        moment("first block, backward", layers.later, first, True, own if share == 1 else 0),
        moment("this worker's part, backward", layers.later, reached, True, own),
        moment("last block, backward", layers.later, counted.last_block, True, own),
    ]
    zeros = _zeros(setting, number)
    if stage == 2 and zeros:
        found.append(moment("what it does not reach", 0, 0, True, own + zeros))
    if stage == 0 and ends:
        here = dict(base) | {
            "live gradient": setting.width * _trained(setting),
            "reduction copy": setting.width * min(500_000_000, _trained(setting)),
        }
        found.append(Moment(f"{name}: reduction", here))
    if stage == 1 and ends:
        # Gradients go through the bucket in the parameters' order; those before this rank's part are gone by then.
        gone = int(whole * part.begins)
        here = dict(base) | {"live gradient": whole - gone + own + zeros, "reduction bucket": bucket}
        if len(part.masters) > 1 and setting.workers > 1:
            here["reduction copy"] = setting.width * min(_trained(setting), setting.buckets.reduce)
        found.append(Moment(f"{name}: reduction", here))
    return found


def _trained(setting: Setting) -> int:
    return setting.shape.trained_numel


def _reached(setting: Setting, number: int) -> int:
    """Trained elements that the gradient has so far: of this objective, or of those summed up to it."""
    numbers = [number] if setting.apart else range(number + 1)
    idle = frozenset.intersection(*(setting.idle(k) for k in numbers))
    return sum(parameter.numel for parameter in setting.shape.trained if parameter.name not in idle)


def _zeros(setting: Setting, number: int) -> int:
    """Bytes of zeros that DeepSpeed makes at stages 1 and 2 for parameters of this rank which a pass does not reach."""
    if setting.run.zero.stage not in (1, 2) or _on_host(setting):
        return 0
    return setting.width * setting.cut_of(setting.shape.trained, setting.idle(number)).idle


def _gradient(setting: Setting, number: int) -> int:
    """One objective's whole gradient on this rank, zeros included."""
    return gradient_bytes(setting) + _zeros(setting, number)


# -- combine, probe, step --------------------------------------------------------------------------------------------


def _live(setting: Setting) -> Items:
    if setting.run.zero.stage == 3 or _on_host(setting):
        return {}
    last = len(setting.composition.objectives) - 1
    return {"live gradient": _gradient(setting, last if setting.apart else 0)}


def _combine(setting: Setting, base: Items) -> Moment:
    composition = setting.composition
    items = base | _live(setting)
    vectors = 1
    if setting.apart:
        waiting = sum(_gradient(setting, k) for k in range(len(composition.objectives) - 1))
        if waiting and _waits_here(setting):
            items["waiting gradients"] = waiting
        vectors = len(composition.objectives) + len(composition.combiner.tracked)
    size, wide = GRAM[setting.device]
    items["chunks of the Gram matrix"] = vectors * wide * min(size, setting.cut.pieces)
    return Moment("combining the gradients", items)


def _probe(setting: Setting, base: Items) -> list[Moment]:
    """AutoLR's points are made one master tensor at a time; at stage 0 in fp32 they take the weights' place."""
    k = setting.composition.retain_objective
    assert k is not None
    part = setting.cut
    items = base | _live(setting)
    replicated = setting.run.zero.stage == 0 and setting.run.model.dtype == "fp32"
    largest = max(part.masters)
    # AdamW's direction needs two tensors a chunk, its first and second moment; SGD's one.
    chunks = 2 if setting.run.optimizer.name == "adamw" else 1
    scratch = 4 * (part.master if replicated else largest) + chunks * 4 * min(CHUNK, largest)
    point = Moment("AutoLR's point", items | {"points of the probe": scratch})
    here = items | ({"points of the probe": 4 * part.master} if replicated else {})
    return [point, *_inference(setting, here, k, "AutoLR's pass")]


def _step(setting: Setting, base: Items) -> list[Moment]:
    """The optimizer step of the largest group: its gradient in fp32 and the optimizer's scratch."""
    stage, part, width = setting.run.zero.stage, setting.cut, setting.width
    items = base | _live(setting)
    largest = max(part.masters)
    if stage == 3:  # what is whole otherwise is given back for the step
        items["weights"] -= width * _whole(setting)
    if stage in (1, 2) and len(part.masters) == 1 and not _on_host(setting):
        items.pop("live gradient", None)  # given back when the only group has its copy
    copied = 0
    if not _on_host(setting):
        if stage in (1, 2, 3):
            copied = 4 * largest
        elif width == 2:
            copied = 4 * part.master
    here = items | ({"fp32 gradient at the step": copied} if copied else {})
    # On a GPU torch steps all tensors that it is given together: every parameter at stage 0, a group's part elsewhere.
    together = part.master if stage == 0 and setting.device == "cuda" else largest
    here["optimizer's scratch"] = optimizer_scratch(setting) * together
    moments = [Moment("optimizer step", here)]
    if stage in (1, 2) and not _on_host(setting):
        flat = base | _live(setting) | {"fp32 gradient at the step": copied + (width * largest if width < 4 else 0)}
        moments.insert(0, Moment("gradient to fp32", flat))
    return moments


def lower_bound(setting: Setting) -> int:
    """Bytes that the run takes at least: no activation, no bucket, no allowance; needs no pass on the meta device."""
    bare = replace(setting, buckets=replace(setting.buckets, reduce=0))
    resting = _resting(bare)
    return max(moment.total for moment in (_combine(bare, resting), *_step(bare, resting)))
