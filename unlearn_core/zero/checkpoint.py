"""What a restart needs, on any number of workers and at any ZeRO stage: one safetensors file a rank, and `state.json`.

No pickle: DeepSpeed's own checkpoints are pickled, ours are tensors plus one JSON file. A checkpoint holds

    rank-00000-of-00002.safetensors   master/<i>, optimizer/<i>/<name>, rng/cpu, rng/cuda, and what the method carries:
                                      teacher/<i>, tracked/<objective>/<i>; in its metadata, the layout: which elements
                                      of which parameter lie where in each of these flat tensors
    state.json                        step, ZeRO stage, world size, scalars of optimizer and method, fingerprint

Read by the same number of workers at the same stage, each rank takes its own file back, bit for bit. Read by others,
each rank looks up the fragments of its own shards, by parameter name, in the files of all ranks (`saved_shards.py`):
the values are the same, only their place differs. Two things cannot be carried over: the random state of a rank that
was not there (nothing here draws from it after the start), and the 8-bit AdamW's blocks, which are refused.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from unlearn_core.errors import UserError
from unlearn_core.update import Update
from unlearn_core.zero.engine import ZeroEngine
from unlearn_core.zero.saved_shards import LAYOUT, SavedShards, encode_layout

STATE = "state.json"


def save_checkpoint(engine: ZeroEngine, update: Update, folder: Path, step: int, fingerprint: str) -> None:
    """Write this rank's file into `folder`; rank 0 also writes `state.json`, after its tensors.

    Where ranks hold whole copies (stage 0), the others write their random state alone.

    Args:
        engine: the run's engine, between two steps.
        update: what the method carries from step to step.
        folder: existing folder, the same or another one on each rank.
        step: optimizer steps done; the data position follows from it.
        fingerprint: of the run's config, compared on resume.
    """
    tensors: dict[str, torch.Tensor] = {"rng/cpu": torch.get_rng_state()}
    if engine.device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(engine.device)
    scalars: dict[str, float] = {}
    if engine.shards.sharded or engine.rank == 0:
        tensors |= {name: _flat(tensor) for name, tensor in update.tensors().items()}
        for index, master in enumerate(engine.shards.master()):
            tensors[f"master/{index}"] = _flat(master)
            for name, value in engine.shards.optimizer_state(index).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer/{index}/{name}"] = _flat(value) if value.ndim else value.detach().cpu().clone()
                elif value is not None:
                    scalars[f"optimizer/{index}/{name}"] = value
    layout = encode_layout(engine.shards.fragments(engine.parameter_names()))
    save_file(tensors, folder / rank_file(engine.rank, engine.world_size), metadata={LAYOUT: layout})
    if engine.rank == 0:
        state = {
            "step": step,
            "stage": engine.engine.zero_optimization_stage(),
            "world_size": engine.world_size,
            "sharded": engine.shards.sharded,
            "scalars": scalars,
            "method": update.state(),
            "fingerprint": fingerprint,
        }
        (folder / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")


def load_checkpoint(engine: ZeroEngine, update: Update, folder: Path, fingerprint: str) -> int:
    """Put a checkpoint's state into a fresh engine of any stage and number of ranks.

    Args:
        engine: built from the same config, but for workers, micro-batch and ZeRO stage.
        update: fresh, of the same config.
        folder: a whole checkpoint, with the files of every rank that wrote it.
        fingerprint: of the config now in force.

    Returns:
        Optimizer steps already done.

    Raises:
        UserError: made by another config, incomplete, or with state that only its own layout can read.
    """
    state = read_state(folder)
    if state["fingerprint"] != fingerprint:
        raise UserError(
            f"The checkpoint {folder} was made by another config (fingerprint {state['fingerprint']}, now "
            f"{fingerprint}). Use another --output, or restore the config."
        )
    writers = [rank_file(rank, state["world_size"]) for rank in range(state["world_size"])]
    if not state["sharded"]:
        writers = writers[:1]
    for name in writers:
        if not (folder / name).is_file():
            raise UserError(f"The checkpoint {folder} lacks {name}: it was not written whole.")
    mine = engine.shards.fragments(engine.parameter_names())
    saved = SavedShards([folder / name for name in writers], mine, engine.rank if state["sharded"] else 0)
    masters = engine.shards.master()
    with torch.no_grad():
        for index, master in enumerate(masters):
            master.data.copy_(saved.read("master/{}", index, master.numel()).view(master.shape))
            engine.shards.set_optimizer_state(index, _optimizer_state(saved, index, state["scalars"], master))
    engine.shards.push(masters)
    update.load_tensors(saved, [master.numel() for master in masters])
    update.load_state(state["method"])
    _load_random_state(engine, folder / rank_file(engine.rank, state["world_size"]))
    return int(state["step"])


def read_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's `state.json`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a whole checkpoint: {STATE} cannot be read ({error}).") from error


def rank_file(rank: int, world_size: int) -> str:
    """Name of one rank's file."""
    return f"rank-{rank:05d}-of-{world_size:05d}.safetensors"


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).to("cpu", copy=True)


def _optimizer_state(saved: SavedShards, index: int, scalars: dict[str, float], master: torch.Tensor) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for key, value in scalars.items():  # of rank 0's shards; equal for all of them, as they step together
        name = key.split("/", 2)[2]
        state[name] = value
    for name in saved.names("optimizer/{}/"):
        value = saved.read(f"optimizer/{{}}/{name}", index, master.numel())
        # torch keeps AdamW's step count on the host unless the optimizer is fused or capturable
        if value.ndim == 0:
            state[name] = value
        else:
            state[name] = (value.view(master.shape) if value.numel() == master.numel() else value).to(master.device)
    return state


def _load_random_state(engine: ZeroEngine, path: Path) -> None:
    from safetensors import safe_open

    if not path.is_file():
        return
    with safe_open(path, framework="pt") as file:
        torch.set_rng_state(file.get_tensor("rng/cpu"))
        names = set(file.keys())
        if "rng/cuda" in names and engine.device.type == "cuda":
            torch.cuda.set_rng_state(file.get_tensor("rng/cuda"), engine.device)
