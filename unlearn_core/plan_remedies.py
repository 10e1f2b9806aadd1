"""What to change when a run does not fit, and how layouts compare: each answer is a config that was itself planned.

A remedy is one override, or two together; those that fit are ranked by the estimated GPU time of a step.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from unlearn_core.config import RunConfig, build_config
from unlearn_core.errors import UserError
from unlearn_core.memory_plan import plan_memory
from unlearn_core.plan_setting import MemoryPlan, Setting
from unlearn_core.step_time_plan import Rates, StepTime, plan_step_time

Changes = dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """A run, its bytes and its time."""

    changes: Changes
    """Dotted config keys that lead to it."""
    setting: Setting
    memory: MemoryPlan
    time: StepTime

    def fits(self, gpu_bytes: int, host_bytes: int | None = None) -> bool:
        """Whether it fits the GPU, and the host's memory where that is known (bytes for one worker)."""
        return self.memory.total <= gpu_bytes and (host_bytes is None or self.memory.host_total <= host_bytes)


def planned(setting: Setting, rates: Rates, changes: Changes | None = None) -> Planned:
    """The plan of a run with some keys changed.

    Raises:
        UserError: the changed config is not valid.
    """
    changes = changes or {}
    run = build_config(RunConfig, setting.run.model_dump(mode="json"), changes) if changes else setting.run
    setting = replace(setting, run=run)
    return Planned(changes, setting, plan_memory(setting), plan_step_time(setting, rates))


def single_changes(setting: Setting) -> list[Changes]:
    """Overrides that can lower the peak of this run, each by itself."""
    run = setting.run
    zero, workers = run.zero, run.workers.count
    found: list[Changes] = []
    if not zero.activation_checkpointing:
        found.append({"zero.activation_checkpointing": True})
    micro = run.batch.micro
    while micro % 2 == 0:
        micro //= 2
        found.append({"batch.micro": micro})
    if run.batch.logit_rows > 256:
        found.append({"batch.logit_rows": 256})
    stages = (1, 2, 3) if workers > 1 or zero.offload_optimizer else (0, 1, 2, 3)
    found += [{"zero.stage": stage} for stage in stages if stage != zero.stage]
    if zero.sub_group > 100_000_000 and zero.stage:
        found.append({"zero.sub_group": 100_000_000})
    if setting.apart and len(setting.composition.objectives) > 1 and not zero.park_gradients:
        found.append({"zero.park_gradients": True})
    if setting.composition.teacher and not zero.teacher_on_host:
        found.append({"zero.teacher_on_host": True})
    if run.optimizer.name == "adamw" and run.optimizer.schedule != "auto":
        found.append({"optimizer.name": "adamw_8bit"})
    if not zero.offload_optimizer and zero.stage:
        found.append({"zero.offload_optimizer": True})
    for more in (2, 4, 8):
        rows = run.batch.rows // (workers * more)
        if rows:
            found.append({"workers.count": workers * more, "batch.micro": min(run.batch.micro, rows)})
    return found


def remedies(setting: Setting, rates: Rates, gpu_bytes: int, host_bytes: int | None = None) -> list[Planned]:
    """Changes, one or two at a time, with which the run fits; the fastest first.

    A pair is left out when one of its two is enough.
    """
    singles = single_changes(setting)
    found: list[Planned] = []
    enough: list[Changes] = []
    for changes in singles:
        done = _tried(setting, rates, changes)
        if done is not None and done.fits(gpu_bytes, host_bytes):
            found.append(done)
            enough.append(changes)
    for one, other in itertools.combinations(singles, 2):
        if set(one) & set(other) or one in enough or other in enough:
            continue
        done = _tried(setting, rates, one | other)
        if done is not None and done.fits(gpu_bytes, host_bytes):
            found.append(done)
    # More workers are a greater cost than more time.
    return sorted(found, key=lambda p: p.time.seconds * p.setting.workers)


def _tried(setting: Setting, rates: Rates, changes: Changes) -> Planned | None:
    try:
        return planned(setting, rates, changes)
    except UserError:
        return None


def layouts(setting: Setting, rates: Rates) -> Iterator[Planned]:
    """The run at each ZeRO stage, with and without offload, 8-bit state and checkpointing, where that is possible."""
    stages = (0, 1, 2, 3)
    eight = (False, True) if setting.run.optimizer.name == "adamw" else (False,)
    for stage, offload, bits, checkpointing in itertools.product(stages, (False, True), eight, (False, True)):
        if bits and offload:
            continue  # bitsandbytes' 8-bit step runs on GPUs
        changes: Changes = {
            "zero.stage": stage,
            "zero.offload_optimizer": offload,
            "zero.activation_checkpointing": checkpointing,
        }
        if bits:
            changes["optimizer.name"] = "adamw_8bit"
        done = _tried(setting, rates, changes)
        if done is not None:
            yield done
