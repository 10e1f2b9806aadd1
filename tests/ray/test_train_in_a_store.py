"""A run whose output lies in an object store: killed on one machine, it goes on from another and ends the same."""

import os
import shutil

from safetensors.torch import load_file
from training_runs import relative
from training_runs import train as train_without_ray

from benchmarks.faults_cluster import kill_family
from benchmarks.faults_run import STEPS, Command, Workspace, step_lines, steps_done, wait_for
from unlearn_core.loop import model_folder
from unlearn_core.storage import mirror_folder, pull


def test_killed_here_and_ended_elsewhere(bucket, two_ranks, taught, tmp_path, monkeypatch):
    shutil.copytree(taught, tmp_path / "model")
    work = Workspace(tmp_path)
    config = work.config()
    two_ranks.run(train_without_ray, config, tmp_path / "plain")
    uri = bucket.uri("runs/stored")

    def start(machine):
        monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path / machine))
        recipe = work.recipe("stored")
        env = {name: os.environ[name] for name in (*bucket.environment, "UNLEARN_MIRROR")}
        output = mirror_folder(uri)
        return Command(["train", str(recipe), "--output", uri], output, tmp_path / f"{machine}.log", env)

    first = start("here")
    try:
        wait_for(lambda: "checkpoints/step-00020/manifest.json" in bucket.keys("runs/stored"), first)
    finally:
        kill_family(first.process.pid)
    done = steps_done(first.output)
    assert done < STEPS
    second = start("there")
    try:
        assert second.wait() == 0, second.said()
    finally:
        second.end()
    seconds = [{line["step"]: line["seconds"] for line in step_lines(command.output)} for command in (first, second)]
    assert list(seconds[1]) == list(range(1, STEPS + 1))
    # The steps of the first machine up to a checkpoint were not done again.
    assert sum(seconds[1][step] == spent for step, spent in seconds[0].items()) >= 20
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path / "reader"))
    final = load_file(model_folder(pull(uri), STEPS) / "model.safetensors")
    assert relative(final, load_file(model_folder(tmp_path / "plain", STEPS) / "model.safetensors")) <= 1e-6
    assert not list((mirror_folder(uri) / "checkpoints").glob("*"))
    assert not (mirror_folder(uri) / "owner.json").exists()
    assert f"in the store: {uri}" in second.said()
    secret = bucket.environment["AWS_SECRET_ACCESS_KEY"].encode()
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size < 10**7]
    assert len(written) > 20
    assert not [path for path in written if secret in path.read_bytes()]
    assert not second.output.stat().st_mode & 0o077
