"""What a search needs before it starts: room on the cluster for a trial, room on disk for the weights it keeps."""

import math
import os
import shutil
from pathlib import Path

import ray

from pipelines.model_points import ModelPoint, weight_bytes
from tune.search import Resources
from unlearn_core.config import RunConfig
from unlearn_core.errors import UserError
from unlearn_core.storage_places import MIRROR_ROOT, uri_of

SCORING_CPUS = 0.1
"""CPUs of the process that scores a multi-worker trial on a CPU: it works while its workers step."""
GIB = 1024**3


def trial_resources(config: RunConfig, score_on_gpu: bool, at_once: int | None) -> Resources:
    """How a trial is placed, and how many run at the same time. Ray is connected.

    Args:
        config: any trial's run.
        score_on_gpu: whether its exports are scored on a GPU.
        at_once: the user's bound; None for as many as fit.

    Raises:
        UserError: not even one fits, or fewer than `at_once`.
    """
    workers, have = config.workers, ray.cluster_resources()
    alone = workers.count == 1
    bundle = {"CPU": workers.cpus_per_worker if alone else (1.0 if score_on_gpu else SCORING_CPUS)}
    if (alone and workers.gpu) or score_on_gpu:
        bundle["GPU"] = 1.0
    need = dict(bundle)
    if not alone:
        need["CPU"] += workers.count * workers.cpus_per_worker
        need["GPU"] = need.get("GPU", 0.0) + (workers.count if workers.gpu else 0)
    fit = min(math.floor(have.get(kind, 0.0) / amount + 1e-9) for kind, amount in need.items() if amount)
    asked = ", ".join(f"{amount:g} {kind}" for kind, amount in need.items() if amount)
    if fit < (at_once or 1):
        raise UserError(
            f"{at_once or 1} trials at once need {at_once or 1} x ({asked}), and the Ray cluster has "
            f"{have.get('CPU', 0):g} CPU, {have.get('GPU', 0):g} GPU, which holds {fit}. Lower at_once, workers.count "
            "or workers.cpus_per_worker, or connect to a larger cluster (RAY_ADDRESS)."
        )
    return Resources(bundle, at_once or fit)


def check_one_place(output: Path) -> None:
    """A search's trials write to one folder: refuse an object store from several nodes, unless they share its mirror.

    Raises:
        UserError: the output lies in an object store and the cluster has more than one node.
    """
    uri = uri_of(output)
    alive = sum(node["Alive"] for node in ray.nodes())
    if uri is not None and alive > 1 and MIRROR_ROOT not in os.environ:
        raise UserError(
            f"'{uri}' is an object store and the cluster has {alive} nodes: the trials of a search write to one. "
            f"Give a shared folder as --output, or set {MIRROR_ROOT} to one on every node."
        )


def check_disk(output: Path, target: ModelPoint, config: RunConfig, keep: int, at_once: int) -> str:
    """What the search may hold on disk at once, in words.

    Args:
        output: the search's folder.
        target: the model; exports are its size or, in fp32, up to twice that.
        config: any trial's run.
        keep: front members whose weights stay.
        at_once: trials at the same time: each has its checkpoints and the export that is being scored.

    Raises:
        UserError: more than is free.
    """
    weights = weight_bytes(target)
    if not weights:
        return f"disk: {target.path} is no local folder, so the search's need is not known before it starts"
    parameters = weights / 2  # bf16 files; fp32 files overstate the need twofold, which errs on the safe side
    export = parameters * (4 if config.model.dtype == "fp32" else 2)
    # Master weights and AdamW's two moments, a teacher or tracking buffer beside them; one more while it is written.
    checkpoint = (config.checkpoints.last + 1) * 16 * parameters
    need = (keep + 2 * at_once) * export + at_once * checkpoint
    probe = next(folder for folder in (output.resolve(), *output.resolve().parents) if folder.exists())
    free = shutil.disk_usage(probe).free
    told = (
        f"disk: up to {need / GIB:.2f} GiB in {output} ({keep} kept models of {export / GIB:.2f} GiB, checkpoints of "
        f"{at_once} running trials); {free / GIB:.1f} GiB are free"
    )
    if need > free:
        raise UserError(f"{told}. Lower `keep` or `at_once`, or choose an --output with more room.")
    return told
