"""A head started by `unlearn cluster start`, and jobs on it; every command is a process, as its user runs it.

One head serves all tests; it has ports, a home and a temporary folder of its own, and never meets another Ray.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from pipelines import local_cluster
from pipelines.local_cluster import Cluster, listening, processes

ROOT = Path(__file__).parents[2]
REMOVED = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class CommandLine:
    """Runs `unlearn` in a folder of its own, against the cluster of one home."""

    def __init__(self, home: Path, temporary: str, folder: Path):
        kept = {name: value for name, value in os.environ.items() if name not in REMOVED}
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.home, self.folder = home, folder
        own = {"UNLEARN_HOME": str(home), "RAY_TMPDIR": temporary, "PYTHONPATH": paths, "COLUMNS": "200"}
        self.environment = kept | own

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "pipelines.cli", *arguments],  # as the console script: not from the folder
            cwd=self.folder, env=self.environment | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        with self.start(*arguments, **environment) as process:
            shown, told = process.communicate(timeout=110)
        return process.returncode, shown, told

    def cluster(self) -> Cluster:
        return Cluster(**json.loads((self.home / "cluster.json").read_text()))


def free_ports(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [str(probe.getsockname()[1]) for probe in probes]


@pytest.fixture(scope="module")
def unlearn(tmp_path_factory):
    """The command line with a running head that asks for its token."""
    temporary = tempfile.mkdtemp(prefix="ur-")  # Ray's sockets lie below it, and their paths must be short
    call = CommandLine(tmp_path_factory.mktemp("home") / "unlearn", temporary, tmp_path_factory.mktemp("elsewhere"))
    (call.folder / "mine.yaml").write_text("# my run\nname: mine\nsteps: [\n")
    port, dashboard = free_ports(2)
    try:
        # In the user's own environment Ray may be told of another cluster.
        code, shown, told = call(
            *("cluster", "start", "--port", port, "--dashboard-port", dashboard, "--num-cpus", "2", "--token"),
            RAY_ADDRESS="127.0.0.1:1",
        )
        assert code == 0, told
        assert f"127.0.0.1:{port}" in shown and "unlearn cluster stop" in shown
        yield call
    finally:
        with contextlib.suppress(FileNotFoundError):
            local_cluster.stop(call.cluster())
        shutil.rmtree(temporary, ignore_errors=True)


def test_nothing_listens_beyond_the_loopback(unlearn):
    cluster = unlearn.cluster()
    assert len(processes(cluster)) > 4  # gcs, raylet, dashboard, agents
    assert listening(cluster) == {"127.0.0.1"}


def test_the_state_is_the_users_alone(unlearn):
    assert unlearn.home.stat().st_mode & 0o777 == 0o700
    for name in ("cluster.json", "cluster.log", "token"):
        assert (unlearn.home / name).stat().st_mode & 0o777 == 0o600
    token = (unlearn.home / "token").read_text()
    assert len(token) == 64
    assert token not in (unlearn.home / "cluster.json").read_text() + (unlearn.home / "cluster.log").read_text()


def test_a_second_start_is_an_error(unlearn):
    code, _, told = unlearn("cluster", "start")
    assert code == 2
    assert "runs already" in told and "unlearn cluster stop" in told


def test_a_job_from_another_folder_shows_its_log_and_succeeds(unlearn):
    shadow = unlearn.folder / "shadowed" / "pipelines" / "__init__.py"  # must not be taken for ours, here nor there
    shadow.parent.mkdir(parents=True)
    shadow.write_text("raise RuntimeError('the wrong package')")
    (unlearn.folder / "shadowed" / "mine.yaml").touch()
    code, shown, told = CommandLine(unlearn.home, unlearn.environment["RAY_TMPDIR"], shadow.parents[1])(
        "submit", "recipes", "demo-ngdiff"
    )
    assert code == 0, told
    assert (ROOT / "pipelines" / "recipes" / "demo-ngdiff.yaml").read_text() in shown
    assert "packed 1 files" in told and "succeeded" in told


def test_a_failing_job_fails_and_says_why(unlearn):
    code, shown, told = unlearn("submit", "logs", "import", "run=mine.yaml", "-o", "out")
    assert code == 1
    assert f"out -> {unlearn.folder}/out: must be reachable there" in told
    assert "mine.yaml" in shown.splitlines()[-1] and "No such file" not in shown  # it was there, and is no log
    assert "failed" in told and "exit code 2" in told


def test_two_at_once_and_the_jobs_commands(unlearn):
    first = unlearn.start("submit", "--job-name", "first", "recipes")
    second = unlearn.start("submit", "--job-name", "second", "--env", "COLUMNS", "recipes", "own-files")
    said = [process.communicate(timeout=100)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert "tofu-ngdiff" in said[0] and "data:" in said[1]

    code, shown, _ = unlearn("jobs", "list", "--json")
    listed = {job["id"]: job for job in json.loads(shown)}
    assert code == 0
    assert {listed[name]["status"] for name in ("first", "second")} == {"succeeded"}
    assert listed["second"]["entrypoint"] == "python -m pipelines.cli recipes own-files"
    assert listed["second"]["command"] == "recipes" and listed["second"]["seconds"] > 0

    code, _, told = unlearn("submit", "--job-name", "first", "recipes")
    assert code == 2 and "A job named first exists" in told
    assert "succeeded" in unlearn("jobs", "status", "first")[1]
    assert "tofu-ngdiff" in unlearn("jobs", "logs", "first")[1]
    code, _, told = unlearn("jobs", "logs", "nobody")
    assert code == 2 and "No job 'nobody'" in told and "unlearn jobs list" in told


def test_a_job_goes_on_without_its_watcher_and_is_stopped(unlearn):
    waits = ["watch", "no-run-yet", "--benchmark", "synthetic:tiny", "-o", "scores"]  # for a run that never comes
    code, shown, told = unlearn("submit", "--no-wait", "--job-name", "long", *waits)
    assert (code, shown) == (0, "long\n")
    assert f"no-run-yet -> {unlearn.folder}/no-run-yet: must be reachable" in told

    follower = unlearn.start("jobs", "logs", "long", "--follow")
    assert follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    _, told = follower.communicate(timeout=30)
    assert follower.returncode == 130
    assert "Job long goes on" in told and "unlearn jobs stop long" in told

    assert json.loads(unlearn("jobs", "status", "long", "--json")[1])["status"] == "running"
    code, shown, _ = unlearn("jobs", "stop", "long")
    assert code == 0 and "stopped" in shown
    assert "ended already" in unlearn("jobs", "stop", "long")[1]


def test_doctor_examines_that_cluster(unlearn):
    code, shown, told = unlearn("doctor", "--output", "new/out", "--data", "mine.yaml", "--need-gib", "0", "--json")
    assert code == 0, told
    found = json.loads(shown)
    assert {check["status"] for check in found["checks"]} <= {"ok", "warning"}
    assert [node["output"] for node in found["nodes"]] == ["ok"]
    assert found["nodes"][0]["name"].startswith("127.0.0.1-")
    assert not (unlearn.folder / "new").exists()


def test_without_the_token_nobody_gets_in(unlearn):
    code, _, told = unlearn("jobs", "list", RAY_AUTH_MODE="disabled")
    assert code == 2 and "wants a token" in told and "Traceback" not in told


def test_stop_leaves_no_process(unlearn):
    cluster = unlearn.cluster()
    before = processes(cluster)
    assert unlearn("cluster", "status")[0] == 0
    start = time.monotonic()
    code, shown, _ = unlearn("cluster", "stop")
    assert code == 0 and "Stopped" in shown and time.monotonic() - start < local_cluster.STOP_SECONDS
    assert not [process for process in before if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert processes(cluster) == []
    assert unlearn("cluster", "status")[0] == 1
    code, _, told = unlearn("submit", "recipes")
    assert code == 2 and "No cluster is known" in told
