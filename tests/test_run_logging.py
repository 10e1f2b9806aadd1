"""Logging of a run's steps: each once in TensorBoard's event files, on a real MLflow server and in W&B's run files."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pipelines import log_sinks, run_logging
from pipelines import train as stage
from pipelines.log_sinks import last_steps, numbers_of
from pipelines.run_logging import check_logging, log_the_rest, logged
from pipelines.score_logging import log_scores
from pipelines.wandb_files import history
from unlearn_core.config import RunConfig, build_config
from unlearn_core.errors import MissingPackageError, UserError
from unlearn_core.events import read_events

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:(mlflow|wandb|tensorboard).*", "ignore::FutureWarning:mlflow.*"
)


def config_with(**logging) -> RunConfig:
    values = {
        "name": "logged",
        "model": {"path": "none"},
        "data": {"forget": ["a.jsonl"], "retain": ["b.jsonl"]},
        "method": {"name": "ngdiff", "settings": {}},
        "steps": 12,
        "logging": logging,
    }
    return build_config(RunConfig, values)


def row(step: int, attempt: int = 0) -> dict:
    """A line of metrics.jsonl; a step that is done again takes other seconds."""
    return {"step": step, "loss_forget": 2 + step / 8, "cosine": -0.5, "learning_rate": 1e-4, "seconds": attempt + 0.5}


def write_rows(output: Path, rows: list[dict]) -> None:
    output.mkdir(exist_ok=True)
    (output / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An `mlflow server` on the loopback address, stopped by its own id."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([*command, *places], stdout=log, stderr=log, cwd=folder, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    for _ in range(1800):
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=5).close()
            break
        except OSError:
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
    yield uri
    os.killpg(process.pid, signal.SIGKILL)  # it and its own worker; nothing of it is kept
    process.wait()


def events_of(output: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    held = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
    held.Reload()
    return {tag: [(one.step, one.value) for one in held.Scalars(tag)] for tag in held.Tags()["scalars"]}


def client_of(uri: str):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


KILLED = """
import json, os, signal, sys, threading, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from test_run_logging import config_with, row, write_rows
from pipelines import run_logging
run_logging.POLL_SECONDS = 0.05
output = Path({output!r})
config = config_with(**json.loads({logging!r}))
with run_logging.logged(config, output) as log:
    write_rows(output, [row(step) for step in range(1, 8)])
    while any(sink.last < 6 for sink in log.sinks):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_each_step_is_logged_once_over_kill_and_resume(server, tmp_path, monkeypatch):
    monkeypatch.setattr(run_logging, "POLL_SECONDS", 0.05)
    output = tmp_path / "run"
    output.mkdir()
    logging = {"tensorboard": True, "mlflow": {"uri": server}, "wandb": {}}
    with logged(config_with(wandb={}), tmp_path / "other"):  # starts a service, which the killed driver must not use
        assert "WANDB_SERVICE" in os.environ
    here = Path(__file__)
    words = {"tests": str(here.parent), "root": str(here.parents[1]), "output": str(output)}
    script = KILLED.format(**words, logging=json.dumps(logging))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=240)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert max(step for step, _ in events_of(output)["cosine"]) >= 6

    # The workers went back to their checkpoint of step 4, a second driver was stopped after step 9, a third went on.
    rows = [row(step) for step in range(1, 5)] + [row(step, attempt=1) for step in range(5, 13)]
    write_rows(output, rows[:4])
    config = config_with(**logging)
    with logged(config, output):
        time.sleep(0.2)
        write_rows(output, rows[:9])
    with logged(config, output) as log:
        write_rows(output, rows)
        log.status = "finished"
    assert read_events(output) == []

    steps = list(range(1, 13))
    losses = [(step, 2 + step / 8) for step in steps]
    found = events_of(output)
    assert set(found) == {"loss/forget", "cosine", "learning_rate", "seconds"}
    assert found["loss/forget"] == losses

    client, run_id = client_of(server), json.loads((output / "logging.json").read_text())["mlflow"]["run_id"]
    assert [(one.step, one.value) for one in client.get_metric_history(run_id, "loss/forget")] == losses
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "logged")
    assert run.data.params["method.name"] == "ngdiff"
    assert run.data.tags["unlearn.fingerprint"] == config.fingerprint()
    experiment = client.get_experiment_by_name("unlearn")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 1

    lines = history(output, json.loads((output / "logging.json").read_text())["wandb"]["run_id"])
    assert [(line["_step"], line["loss/forget"]) for line in lines] == losses

    assert last_steps(config, output) == [12, 12, 12]
    monkeypatch.setattr(run_logging, "open_sinks", None)  # all is logged: nothing is opened again
    log_the_rest(config, output, "finished")


def test_what_a_server_that_was_away_has_missed_is_logged_later(server, tmp_path, monkeypatch):
    monkeypatch.setattr(run_logging, "POLL_SECONDS", 0.02)
    config, output = config_with(mlflow={"uri": server, "experiment": "away"}), tmp_path / "run"
    write_rows(output, [row(1)])
    sent = log_sinks.Mlflow.add

    def lost(sink, step, numbers):
        sent(sink, step, numbers)
        if step == 2:  # the server took it, the answer was lost
            sink.last, sink._unsure = 1, True
            raise ConnectionResetError("no answer")
        if step == 4:
            raise ConnectionResetError("no answer")

    monkeypatch.setattr(log_sinks.Mlflow, "add", lost)
    with logged(config, output) as log:
        write_rows(output, [row(1), row(2)])
        time.sleep(0.2)
        write_rows(output, [row(step) for step in range(1, 4)])
        log.status = "diverged"
    (event,) = read_events(output)
    assert (event["kind"], "ConnectionResetError: no answer" in event["text"]) == ("logging_failed", True)
    monkeypatch.setattr(log_sinks.Mlflow, "add", sent)
    write_rows(output, [row(step) for step in range(1, 6)])
    log_the_rest(config, output, "diverged")
    run_id = json.loads((output / "logging.json").read_text())["mlflow"]["run_id"]
    client = client_of(server)
    assert [one.step for one in client.get_metric_history(run_id, "cosine")] == [1, 2, 3, 4, 5]
    assert client.get_run(run_id).info.status == "FAILED"
    assert last_steps(config_with(mlflow={"uri": "sqlite:///elsewhere.db"}), output) == [0]


def test_scores_of_an_evaluation_are_logged_once_too(server, tmp_path, monkeypatch):
    output, evaluation = tmp_path / "run", tmp_path / "evaluation"
    config = config_with(tensorboard=True, mlflow={"uri": server, "experiment": "scores"}, wandb={})
    write_rows(output, [row(step) for step in range(1, 9)])
    with logged(config, output) as log:
        log.status = "finished"
    record = {"status": "finished", "config": config.model_dump(mode="json")}
    (output / "run.json").write_text(json.dumps(record | {"status": "running"}))
    evaluation.mkdir()
    lines = ["model,run,method,step,role,path,variant,model_utility,privleak", "t,,,0,target,/elsewhere/models/m,,1,1"]
    lines += [
        f"logged-{step},logged,npo,{step},checkpoint,{output}/models/step-{step},,0.{step},nan" for step in (4, 8)
    ]
    (evaluation / "metrics.csv").write_text("\n".join(lines))
    assert log_scores(evaluation) == []
    assert "eval/model_utility" not in events_of(output)  # its own log is at work
    (output / "run.json").write_text(json.dumps(record))
    for _ in range(2):
        assert log_scores(evaluation) == []

    expected = [(4, pytest.approx(0.4)), (8, pytest.approx(0.8))]
    events, noted = events_of(output), json.loads((output / "logging.json").read_text())
    assert events["eval/model_utility"] == expected
    assert "eval/privleak" not in events
    client = client_of(server)
    scored = client.get_metric_history(noted["mlflow"]["run_id"], "eval/model_utility")
    assert [(one.step, one.value) for one in scored] == expected
    assert client.get_run(noted["mlflow"]["run_id"]).info.status == "FINISHED"
    scores = [line for line in history(output, noted["wandb"]["run_id"]) if "eval/step" in line]
    assert [(line["eval/step"], line["eval/model_utility"]) for line in scores] == expected
    assert [line["_step"] for line in scores] == [9, 10]  # W&B takes no step twice
    assert last_steps(config, output) == [8, 8, 8]  # of the training

    (evaluation / "metrics.csv").write_text("\n".join(lines).replace("0.8", "0.9"))
    monkeypatch.setattr(log_sinks, "find_spec", lambda asked: None)
    (problem,) = log_scores(evaluation)
    assert f"{output}: scores not logged: logging.tensorboard needs the package" in problem


def test_numbers_of_a_line():
    line = {"step": 3, "loss_retain": 0.5, "learning_rate": 1, "note": "x", "off": True, "cosine": float("nan")}
    assert numbers_of(line | {"auto_probes": {"kept": 2}}) == {
        "loss_retain": 0.5,
        "learning_rate": 1.0,
        "auto_probes/kept": 2.0,
    }


def test_logging_makes_no_other_run():
    plain = config_with()
    assert config_with(tensorboard=True, wandb={}).fingerprint() == plain.fingerprint()
    with pytest.raises(UserError, match="mlfow"):
        config_with(mlfow={"uri": "x"})


@pytest.mark.parametrize(
    ("name", "value"), [("tensorboard", True), ("mlflow", {"uri": "http://127.0.0.1:1"}), ("wandb", {})]
)
def test_a_missing_package_is_told_before_any_worker_starts(name, value, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(log_sinks, "find_spec", lambda asked: None if asked == name else True)
    monkeypatch.setattr(stage, "start_ray", never)
    monkeypatch.setattr(stage, "preflight", lambda config: None)
    with pytest.raises(MissingPackageError, match=rf"logging\.{name} .* pip install 'unlearn\[{name}\]'"):
        stage.train(config_with(**{name: value}), tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_a_server_that_does_not_answer_is_told_before_any_worker_starts():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound, never listening
        with pytest.raises(UserError, match=rf"logging\.mlflow\.uri {uri}: .*`mlflow server`"):
            check_logging(config_with(mlflow={"uri": uri}).logging)


def test_a_run_that_the_service_still_holds_is_waited_for(tmp_path, monkeypatch):
    import wandb
    from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

    answers = [ServerResponseError("run ID 1 is in use"), ServerResponseError("run ID 1 is in use"), "run"]

    def init(**_):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(wandb, "init", init)
    assert log_sinks._patient_init(id="1") == "run" and answers == []
    answers[:] = [ServerResponseError("something else")]
    with pytest.raises(ServerResponseError, match="something else"):
        log_sinks._patient_init(id="1")
    monkeypatch.setattr(log_sinks, "_LETTING_GO_SECONDS", -1)
    answers[:] = [ServerResponseError("run ID 1 is in use")]
    with pytest.raises(ServerResponseError, match="in use"):
        log_sinks._patient_init(id="1")


def test_runs_that_begin_in_one_second_are_all_read(tmp_path):
    config = config_with(wandb={})
    write_rows(tmp_path, [row(step) for step in range(1, 4)])
    with logged(config, tmp_path) as log:
        log.status = "finished"
    run_id = json.loads((tmp_path / "logging.json").read_text())["wandb"]["run_id"]
    (first,) = (tmp_path / "wandb").glob(f"offline-run-*-{run_id}")
    first.rename(first.with_name(first.name + "-1"))
    assert [line["_step"] for line in history(tmp_path, run_id)] == [1, 2, 3]
