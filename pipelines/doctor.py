"""Is a cluster fit for a run: facts from every node, and checks over them.

`examine` asks; each check is a pure function of what came back, so that a test can show it any cluster.
"""

import contextlib
import dataclasses
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipelines import node_facts
from unlearn_core.errors import UserError

ANSWER_SECONDS = 60.0
CLOCK_SECONDS = 5.0
SHARED_MEMORY_GIB = 1.0
Status = Literal["ok", "warning", "failed"]


@dataclasses.dataclass(frozen=True)
class Node:
    """What is known of one node.

    Args:
        name: address and a piece of its Ray id.
        ray_gpus: how many GPUs Ray counts there.
        error: why there are no facts; None if the node answered.
        host: its own name.
        python: version.
        versions: of the packages; None for one that is missing.
        code: digest of unlearn's source there.
        gpus: names of those that torch sees, or why it could not look.
        output: "ok" or what is wrong with the output folder there; None if none was asked for.
        free_output_gib: free disk at the output.
        free_temp_gib: free disk in the folder of temporary files.
        shared_memory_gib: size of /dev/shm.
        model: how the model is reached from there; None if none was asked for.
        data: as `model`.
        clock_difference: seconds that its clock is ahead of the driver's, at least.
    """

    name: str
    ray_gpus: int = 0
    error: str | None = None
    host: str = ""
    python: str = ""
    versions: dict[str, str | None] = dataclasses.field(default_factory=dict)
    code: str | None = None
    gpus: list[str] | str = dataclasses.field(default_factory=list)
    output: str | None = None
    free_output_gib: float | None = None
    free_temp_gib: float = 0.0
    shared_memory_gib: float | None = None
    model: str | None = None
    data: str | None = None
    clock_difference: float = 0.0


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report.

    Args:
        name: what was checked.
        status: ok, warning or failed.
        found: what is so.
        remedy: what to do; empty when ok.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


def checks(driver: Node, nodes: Sequence[Node], unseen: Sequence[str], need_gib: float) -> list[Check]:
    """Everything that the facts allow to say.

    Args:
        driver: facts of the driver's own machine and environment.
        nodes: facts of the nodes.
        unseen: nodes whose file in the output folder the driver does not see.
        need_gib: free disk below which to warn.
    """
    answered = [node for node in nodes if node.error is None]
    found = [check_answers(nodes)]
    if not answered:
        return found
    found += check_versions(driver, answered)
    found += [check_gpus(answered), check_output(answered, unseen), check_disk(answered, need_gib)]
    found += [check_reachable("model", answered), check_reachable("data", answered)]
    found += [check_shared_memory(answered), check_clocks(answered)]
    return [check for check in found if check is not None]  # type: ignore[misc]


def check_answers(nodes: Sequence[Node]) -> Check:
    """Whether every node ran a task."""
    silent = [node for node in nodes if node.error is not None]
    if silent:
        said = "; ".join(f"{node.name}: {node.error}" for node in silent)
        return Check(
            "nodes",
            "failed",
            said,
            "Look into that node's Ray log (raylet.out); restart Ray there or take the node out of the cluster.",
        )
    return Check("nodes", "ok", f"{len(nodes)} answered")


def check_versions(driver: Node, nodes: Sequence[Node]) -> list[Check]:
    """Whether all nodes run what the driver runs."""
    found = []
    wanted: dict[str, tuple[str | None, dict[str, str | None]]] = {
        "Python": (driver.python, {node.name: node.python for node in nodes}),
        **{
            name: (driver.versions.get(name), {node.name: node.versions.get(name) for node in nodes})
            for name in node_facts.PACKAGES
        },
        "unlearn's code": (driver.code, {node.name: node.code for node in nodes}),
    }
    for name, (here, there) in wanted.items():
        other = {node: version for node, version in there.items() if version != here}
        if here is None:
            remedy = "Install unlearn with its constraints in the driver's environment."
            found.append(Check(name, "failed", "missing on the driver", remedy))
        elif other:
            said = ", ".join(f"{node}: {version or 'missing'}" for node, version in other.items())
            remedy = "Install the same on every node: pip install -c constraints.txt -e ."
            if name == "unlearn's code":
                remedy += " Or use `unlearn submit`, which brings its own code."
            found.append(Check(name, "failed", f"driver {here}; {said}", remedy))
        else:
            found.append(Check(name, "ok", here))
    return found


def check_gpus(nodes: Sequence[Node]) -> Check:
    """Whether torch sees the GPUs that Ray counts, and whether nodes are alike."""
    said = "; ".join(f"{node.name}: {_gpu_names(node)}" for node in nodes)
    broken = [node for node in nodes if isinstance(node.gpus, str) or len(node.gpus) < node.ray_gpus]
    if broken:
        names = ", ".join(f"{node.name} (Ray counts {node.ray_gpus})" for node in broken)
        return Check(
            "GPUs",
            "failed",
            said,
            f"On {names} torch does not see them all: check nvidia-smi, the driver, and that torch is a CUDA build.",
        )
    unused = [node for node in nodes if len(node.gpus) > node.ray_gpus]
    if unused:
        names = ", ".join(f"{node.name} (Ray counts {node.ray_gpus})" for node in unused)
        return Check("GPUs", "warning", said, f"Ray leaves GPUs unused on {names}: start Ray there with --num-gpus.")
    if len({tuple(node.gpus) for node in nodes if node.gpus}) > 1:
        return Check("GPUs", "warning", said, "The slowest GPU sets the pace of a run; use nodes that are alike.")
    return Check("GPUs", "ok", said if any(node.gpus for node in nodes) else "none; runs need workers.gpu=false")


def check_output(nodes: Sequence[Node], unseen: Sequence[str]) -> Check | None:
    """Whether the output is one folder that every node can write."""
    bad = {node.name: node.output for node in nodes if node.output not in (None, "ok")}
    bad |= {name: "is another folder: its file does not arrive here" for name in unseen if name not in bad}
    if bad:
        said = "; ".join(f"{name}: {reason}" for name, reason in bad.items())
        return Check(
            "output", "failed", said, "Put --output on storage that all nodes mount under one path, writable for Ray."
        )
    return Check("output", "ok", "one folder everywhere, writable") if any(node.output for node in nodes) else None


def check_disk(nodes: Sequence[Node], need_gib: float) -> Check:
    """Whether there is room at the output and for temporary files."""
    free: dict[str, float] = {}
    for node in nodes:
        free[f"{node.name} temporary files"] = node.free_temp_gib
        if node.free_output_gib is not None:
            free[f"{node.name} output"] = node.free_output_gib
    short = {where: gib for where, gib in free.items() if gib < need_gib}
    if short:
        said = ", ".join(f"{where}: {gib:.1f} GiB" for where, gib in short.items())
        return Check(
            "free disk", "warning", said, f"Below {need_gib:g} GiB (--need-gib): free some, or mount a larger disk."
        )
    return Check("free disk", "ok", f"at least {min(free.values()):.0f} GiB")


def check_reachable(name: Literal["model", "data"], nodes: Sequence[Node]) -> Check | None:
    """Whether each node reaches the model or the data."""
    reached = {node.name: getattr(node, name) for node in nodes if getattr(node, name) is not None}
    if not reached:
        return None
    bad = {node: how for node, how in reached.items() if how not in ("found", "cached", "hub", "not checked offline")}
    if bad:
        said = "; ".join(f"{node}: {how}" for node, how in bad.items())
        return Check(name, "failed", said, "Put it on shared storage, or name one that each node can download.")
    unsure = [node for node, how in reached.items() if how == "not checked offline"]
    if unsure:
        remedy = "HF_HUB_OFFLINE is set and the cache there lacks it: download it first, or unset the variable."
        return Check(name, "warning", f"not checked offline: {', '.join(unsure)}", remedy)
    ways = {"found": "a path", "cached": "in the cache", "hub": "on the hub"}
    return Check(name, "ok", ", ".join(sorted({ways[how] for how in reached.values()})))


def check_shared_memory(nodes: Sequence[Node]) -> Check:
    """Whether /dev/shm has room for Ray's object store and NCCL."""
    small = {n.name: n.shared_memory_gib for n in nodes if n.shared_memory_gib is None or n.shared_memory_gib < 1}
    if small:
        said = ", ".join(f"{name}: {'none' if gib is None else f'{gib:.2f} GiB'}" for name, gib in small.items())
        remedy = "Give containers --shm-size (Kubernetes: an emptyDir of medium Memory at /dev/shm)."
        return Check("shared memory", "warning", said, remedy)
    return Check("shared memory", "ok", f"at least {min(n.shared_memory_gib or 0 for n in nodes):.0f} GiB")


def check_clocks(nodes: Sequence[Node]) -> Check:
    """Whether the clocks agree to within seconds; which files are newest hangs on it."""
    differences = [0.0, *(node.clock_difference for node in nodes)]
    apart = max(differences) - min(differences)
    if apart > CLOCK_SECONDS:
        said = ", ".join(f"{node.name}: {node.clock_difference:+.1f} s" for node in nodes)
        return Check("clocks", "warning", said, "Run a time service (chrony or systemd-timesyncd) on every node.")
    return Check("clocks", "ok", f"within {max(apart, 0.1):.1f} s")


def examine(
    output: str | None, model: str | None, data: str | None, seconds: float = ANSWER_SECONDS
) -> tuple[Node, list[Node], list[str]]:
    """Ask the driver's machine and every alive node of the connected cluster.

    Args:
        output: folder that must be one and the same everywhere.
        model: path or hub name.
        data: path or hub name.
        seconds: how long nodes may take.

    Returns:
        (the driver's facts, the nodes', the nodes whose file in the output does not arrive here).

    Raises:
        UserError: the driver itself cannot write the output, or it is no folder.
    """
    question = {"output": output, "model": model, "data": data, "secret": secrets.token_hex(16)}
    question["nonce"] = f".unlearn-doctor-{secrets.token_hex(6)}"
    with _driver_file(output, question):
        driver = Node("driver", **node_facts.collect(question | {"node": "driver"}))
        nodes = _ask(question, seconds)
        unseen = []
        if output is not None:
            wrote = [node.name for node in nodes if node.output == "ok"]
            unseen = [
                name for name in wrote if not (Path(output) / f"{question['nonce']}-{_file_name(name)}").is_file()
            ]
    return driver, nodes, unseen


def _ask(question: dict[str, Any], seconds: float) -> list[Node]:
    import ray
    from ray import cloudpickle
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cloudpickle.register_pickle_by_value(node_facts)  # a node without unlearn can answer too
    collect, clock = ray.remote(node_facts.collect), ray.remote(node_facts.clock)
    alive = {f"{node['NodeManagerAddress']}-{node['NodeID'][:6]}": node for node in ray.nodes() if node["Alive"]}
    patience = time.monotonic() + seconds
    pinned = {name: NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for name, node in alive.items()}
    options = {name: {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": one} for name, one in pinned.items()}
    asked = {
        name: collect.options(**options[name]).remote(question | {"node": _file_name(name)})  # type: ignore[arg-type]
        for name in alive
    }
    answers = []
    for name, answer in asked.items():
        gpus = int(alive[name]["Resources"].get("GPU", 0))
        try:
            facts = ray.get(answer, timeout=max(0.1, patience - time.monotonic()))
            before = time.time()
            there = ray.get(clock.options(**options[name]).remote(), timeout=seconds)  # type: ignore[arg-type]
            ahead = max(0.0, there - time.time()) - max(0.0, before - there)
            answers.append(Node(name, gpus, clock_difference=ahead, **facts))
        except GetTimeoutError:
            answers.append(Node(name, gpus, error=f"does not answer within {seconds:.0f} s"))
        except RayError as error:
            answers.append(Node(name, gpus, error=str(error).strip().splitlines()[-1]))
    return answers


@contextlib.contextmanager
def _driver_file(output: str | None, question: dict[str, Any]) -> Any:
    """The driver's file in the output folder; afterwards all of the nodes' files and folders made here are gone."""
    if output is None:
        yield
        return
    folder = Path(output)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / question["nonce"]).write_text(question["secret"], encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--output {output} cannot be written from here ({error.strerror}). Give a folder that this machine and "
            "all nodes can write."
        ) from error
    try:
        yield
    finally:
        for path in folder.glob(f"{question['nonce']}*"):
            path.unlink(missing_ok=True)
        for path in made:
            with contextlib.suppress(OSError):  # somebody has put something there meanwhile
                path.rmdir()


def _gpu_names(node: Node) -> str:
    if isinstance(node.gpus, str):
        return node.gpus
    counted = {name: node.gpus.count(name) for name in node.gpus}
    return ", ".join(f"{count} x {name}" for name, count in counted.items()) or "none"


def _file_name(node: str) -> str:
    return node.replace(os.sep, "-").replace(":", "-")
