"""Refuses a run that cannot fit, on the machine that would run it and before the model is loaded.

Against the plan's lower bound: weights, optimizer state and gradients, without activations, buffers and allowances. So
what is refused here would fail for certain; what passes may still fail, and `unlearn plan` says by how much.
"""

import os
from pathlib import Path

import torch

from unlearn_core.activation_plan import RowShape
from unlearn_core.config import RunConfig
from unlearn_core.errors import UserError
from unlearn_core.gpus import GPUS
from unlearn_core.memory_plan import lower_bound
from unlearn_core.method import compose
from unlearn_core.model_shapes import find_config, model_shape
from unlearn_core.plan_remedies import remedies
from unlearn_core.plan_setting import GIB, Setting
from unlearn_core.step_time_plan import Rates

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def check_memory(config: RunConfig, workers: int, workers_here: int) -> None:
    """Whether the run can fit this machine.

    Args:
        config: of the run.
        workers: that it has in all.
        workers_here: that share this node.

    Raises:
        UserError: the lower bound is more than the GPU has, or without GPUs the node; with what would fit.
    """
    if config.workers.skip_memory_check:
        return
    run = config.model_copy(update={"workers": config.workers.model_copy(update={"count": workers})})
    composition = compose(run.method.name, run.method.settings)
    shape = model_shape(*find_config(run.model.path), run, composition)
    kind = "cuda" if run.workers.gpu else "cpu"
    setting = Setting(shape, run, RowShape(run.data.max_length, run.data.max_length - 1), kind)
    need, have = lower_bound(setting), gpu_memory() if kind == "cuda" else node_memory() // workers_here
    if need > have:
        raise UserError(_refusal(setting, need, have, workers_here))


def _refusal(setting: Setting, need: int, have: int, workers_here: int) -> str:
    on_gpu = setting.device == "cuda"
    place = "this GPU has" if on_gpu else f"this node has for each of its {workers_here} workers"
    what = f"{setting.run.method.name} on {setting.run.model.path} at ZeRO stage {setting.run.zero.stage}"
    told = (
        f"{what} with {setting.workers} workers takes at least {need / GIB:.1f} GiB a worker for weights, optimizer "
        f"state and gradients alone; {place} {have / GIB:.1f} GiB. "
    )
    nearest = min(GPUS.values(), key=lambda gpu: abs(gpu.memory - have))
    found = remedies(setting, Rates(nearest), have) if on_gpu else []
    if found:
        told += "Set " + ", or ".join(
            " and ".join(f"{key}={value}" for key, value in one.changes.items()) for one in found[:3]
        )
    else:
        told += "Use more workers on more nodes, a higher zero.stage, or a smaller model"
    return told + ". `unlearn plan` shows all items; workers.skip_memory_check=true tries nonetheless."


def gpu_memory() -> int:
    """Bytes of this process's GPU."""
    return torch.cuda.mem_get_info()[1]


def node_memory() -> int:
    """Bytes of this node's memory, or of what its container may use."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(physical, int(_CGROUP.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no container, or one without a limit
        return physical
