"""Rows of `benchmarks.faults`: what may happen to the cluster under a run, and to an evaluation on it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from benchmarks.faults_run import Command, Moment, Row, Workspace, steps_done, wait_for


@contextmanager
def nodes(*cpus: int, **head: Any) -> Iterator[Any]:
    """A cluster on this machine: a head without CPUs and a node for each number of them."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **head})
    try:
        workers = [cluster.add_node(num_cpus=count) for count in cpus]
        yield cluster, workers
    finally:
        cluster.shutdown()


def node_removed_and_replaced(work: Workspace) -> Row:
    """Two nodes with a worker each; one is removed, another comes."""
    with nodes(1, 1) as (cluster, workers):
        command = work.train("node-replaced", {"RAY_ADDRESS": cluster.address})
        try:
            wait_for(lambda: steps_done(command.output) >= 25, command)
            moment = Moment(command.output)
            cluster.remove_node(workers[1], allow_graceful=False)
            cluster.add_node(num_cpus=1)
            moment.until_further(command)
            return work.ended_equal("node removed, another added", command, moment)
        finally:
            command.end()


def node_removed(work: Workspace) -> Row:
    """Two nodes with a worker each; one is removed, and the run goes on with one worker."""
    with nodes(1, 1) as (cluster, workers):
        env = {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
        command = work.train("node-removed", env, workers__minimum=1)
        try:
            wait_for(lambda: steps_done(command.output) >= 25, command)
            moment = Moment(command.output)
            cluster.remove_node(workers[1], allow_graceful=False)
            moment.until_further(command)
            alone = wait_for(lambda: 1 in checkpoint_writers(command.output), command)
            row = work.ended_equal("node removed, workers.minimum=1", command, moment)
            return Row(
                row.fault, f"{row.happened}; on one worker", row.passed and alone, row.recovery, row.lost, row.result
            )
        finally:
            command.end()


def checkpoint_writers(output: Path) -> set[int]:
    """How many workers wrote the checkpoints that lie there."""
    found = set()
    for path in (output / "checkpoints").glob("step-*/manifest.json"):
        with suppress(OSError, ValueError):
            found.add(json.loads(path.read_text(encoding="utf-8"))["world_size"])
    return found


@contextmanager
def ray_head(port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Ray head of two CPUs in a process group of its own, on the loopback address."""
    env = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    env["RAY_AUTH_MODE"] = "disabled"  # as `unlearn cluster start` does on the loopback
    ray = Path(sys.executable).with_name("ray")
    arguments = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    with open(folder / "head.log", "ab") as log:
        head = subprocess.Popen(
            [str(ray), *arguments, "--include-dashboard=false"],
            stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(lambda: _answers(port), None, 60)
        yield head
    finally:
        kill_family(head.pid)
        head.wait()


def kill_family(pid: int) -> None:
    """SIGKILL to a process and all its descendants."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _answers(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def head_restarted(work: Workspace) -> Row:
    """The head dies with all that ran under it; a new head, the same command."""
    port = 6390
    env = {"RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_AUTH_MODE": "disabled"}
    with ray_head(port, work.folder) as head:
        command = work.train("head-restarted", env)
        wait_for(lambda: steps_done(command.output) >= 25, command)
        moment = Moment(command.output)
        kill_family(head.pid)
        started = time.monotonic()
        code = command.wait(120)
        gone = time.monotonic() - started
    if code in (0, 124):
        return Row("head restart", f"the command ended with {code}", False, result=command.said()[-300:])
    with ray_head(port, work.folder):
        again = work.train("head-restarted", env, again=True)
        moment.until_further(again)
        row = work.ended_equal("head restart", again)
    told = f"the command ended with exit code {code} after {gone:.0f} s; on a new head the same command went on"
    return Row(row.fault, told, row.passed, moment.recovery, moment.lost, row.result)


def evaluate(work: Workspace, run: Path, name: str, env: dict[str, str] | None = None) -> Command:
    """`unlearn evaluate` of the undisturbed run, started."""
    arguments = ["evaluate", str(run), "--benchmark", "synthetic:tiny", "--target", str(work.model)]
    arguments += ["--max-new-tokens", "16", "--dtype", "fp32", "--output", str(work.folder / name)]
    return Command(arguments, work.folder / name, work.folder / f"{name}.log", env or {})


def same_metrics(left: Path, right: Path) -> bool:
    """Whether two evaluations give the same table, to 1e-6."""
    tables = [pd.read_csv(folder / "metrics.csv").set_index("model") for folder in (left, right)]
    numbers = [table.select_dtypes("number") for table in tables]
    if not numbers[0].index.equals(numbers[1].index):
        return False
    return bool(((numbers[0] - numbers[1]).abs().fillna(0) <= 1e-6).all(axis=None))


def evaluation_actor_killed(work: Workspace) -> Row:
    """SIGKILL to an actor that scores; then compared with an evaluation that nobody disturbed."""
    plain = evaluate(work, work.folder / "undisturbed", "evaluation")
    if plain.wait():
        return Row("evaluation actor killed", "the undisturbed evaluation failed", False, result=plain.said()[-300:])
    command = evaluate(work, work.folder / "undisturbed", "evaluation-killed")
    actors = wait_for(lambda: command.children("ray::MapWorker") or command.children("ray::_MapWorke"), command)
    started = time.monotonic()
    actors[0].send_signal(signal.SIGKILL)
    code = command.wait()
    same = code == 0 and same_metrics(plain.output, command.output)
    told = f"went on in a new actor, done {time.monotonic() - started:.0f} s after the kill"
    return Row("evaluation actor killed", told, same, result="same table" if same else command.said()[-200:])


def object_store_full(work: Workspace) -> Row:
    """An evaluation on a node whose object store (80 MB) another job keeps full."""
    filler = (
        "import ray, numpy as np, time; ray.init(log_to_driver=False)\n"
        "kept = [ray.put(np.ones(10**6)) for _ in range(9)]; print('full', flush=True); time.sleep(600)"
    )
    with nodes(2, object_store_memory=80 * 10**6) as (cluster, _):
        env = {"RAY_ADDRESS": cluster.address}
        full = subprocess.Popen([sys.executable, "-c", filler], stdout=subprocess.PIPE, env={**os.environ, **env})
        try:
            assert full.stdout is not None
            assert full.stdout.readline().strip() == b"full"
            command = evaluate(work, work.folder / "undisturbed", "evaluation-full", env)
            code = command.wait()
        finally:
            full.kill()
            full.wait()
    same = code == 0 and same_metrics(work.folder / "evaluation", work.folder / "evaluation-full")
    result = "same table" if same else command.said()[-200:]
    return Row("object store full", "Ray moved objects to disk; the evaluation went on", same, result=result)


HEAVY = (node_removed_and_replaced, node_removed, head_restarted, evaluation_actor_killed, object_store_full)
