"""Checkpoints to resume from: one safetensors file a rank with its shards of master weights and optimizer state.

No pickle: DeepSpeed's own checkpoints are pickled, ours are tensors plus one JSON file. A checkpoint holds

    rank-00000-of-00002.safetensors   master/<i>, optimizer/<i>/<name>, rng/cpu, rng/cuda, and what the method carries:
                                      teacher/<i>, tracked/<objective>/<i>
    state.json                        step, ZeRO stage, world size, scalars of optimizer and method, fingerprint; last

It resumes with the same number of workers and the same ZeRO stage; anything else is refused with that said.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from unlearn_core.errors import UserError
from unlearn_core.update import Update
from unlearn_core.zero.engine import ZeroEngine

STATE = "state.json"


def save_checkpoint(engine: ZeroEngine, update: Update, folder: Path, step: int, fingerprint: str) -> None:
    """Write this rank's file into `folder`; rank 0 also writes `state.json`, after its tensors.

    Args:
        engine: the run's engine, between two steps.
        update: what the method carries from step to step.
        folder: existing folder, the same or another one on each rank (Ray merges them).
        step: optimizer steps done; the data position follows from it.
        fingerprint: of the run's config, compared on resume.
    """
    tensors: dict[str, torch.Tensor] = {"rng/cpu": torch.get_rng_state()}
    if engine.device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(engine.device)
    tensors |= {name: tensor.detach().to("cpu", copy=True) for name, tensor in update.tensors().items()}
    scalars: dict[str, float] = {}
    for index, master in enumerate(engine.shards.master()):
        tensors[f"master/{index}"] = master.detach().to("cpu", copy=True)
        for name, value in engine.shards.optimizer_state(index).items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{index}/{name}"] = value.detach().to("cpu", copy=True)
            elif value is not None:
                scalars[f"optimizer/{index}/{name}"] = value
    save_file(tensors, folder / _rank_file(engine))
    if engine.rank == 0:
        state = {
            "step": step,
            "stage": engine.engine.zero_optimization_stage(),
            "world_size": engine.world_size,
            "scalars": scalars,
            "method": update.state(),
            "fingerprint": fingerprint,
        }
        (folder / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")


def load_checkpoint(engine: ZeroEngine, update: Update, folder: Path, fingerprint: str) -> int:
    """Put a checkpoint's state into a fresh engine, bit for bit.

    Args:
        engine: built from the same config.
        update: fresh, of the same config.
        folder: a whole checkpoint.
        fingerprint: of the config now in force.

    Returns:
        Optimizer steps already done.

    Raises:
        UserError: made by another config, number of workers or ZeRO stage, or incomplete.
    """
    state = _read_state(folder)
    if state["fingerprint"] != fingerprint:
        raise UserError(
            f"The checkpoint {folder} was made by another config (fingerprint {state['fingerprint']}, now "
            f"{fingerprint}). Use another --output, or restore the config."
        )
    now = {"world_size": engine.world_size, "stage": engine.engine.zero_optimization_stage()}
    for key, expected in now.items():
        if state[key] != expected:
            raise UserError(
                f"The checkpoint {folder} was made with {key} {state[key]}, this run has {expected}. "
                f"Resume with {key} {state[key]}, or start again in another --output."
            )
    path = folder / _rank_file(engine)
    if not path.is_file():
        raise UserError(f"The checkpoint {folder} lacks {path.name}: it was not written whole.")
    tensors = load_file(path)
    masters = engine.shards.master()
    with torch.no_grad():
        for index, master in enumerate(masters):
            saved = tensors[f"master/{index}"]
            if saved.shape != master.shape:
                raise UserError(f"{path}: shard {index} has shape {tuple(saved.shape)}, expected {tuple(master.shape)}")
            master.data.copy_(saved)
            engine.shards.set_optimizer_state(index, _optimizer_state(index, tensors, state["scalars"], master))
    engine.shards.push(masters)
    update.load_tensors(tensors)
    update.load_state(state["method"])
    torch.set_rng_state(tensors["rng/cpu"])
    if "rng/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng/cuda"], engine.device)
    return int(state["step"])


def _optimizer_state(
    index: int, tensors: dict[str, torch.Tensor], scalars: dict[str, float], master: torch.Tensor
) -> dict[str, Any]:
    prefix = f"optimizer/{index}/"
    state: dict[str, Any] = {name.removeprefix(prefix): v for name, v in scalars.items() if name.startswith(prefix)}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            # torch keeps AdamW's step count on the host unless the optimizer is fused or capturable
            scalar = tensor.ndim == 0
            state[name.removeprefix(prefix)] = tensor if scalar else tensor.to(master.device)
    return state


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder} is not a whole checkpoint: {STATE} cannot be read ({error}).") from error


def _rank_file(engine: ZeroEngine) -> str:
    return f"rank-{engine.rank:05d}-of-{engine.world_size:05d}.safetensors"
