"""The Ray Train stage: the numbers of a plain process, whatever is killed; mistakes found before a worker starts."""

import contextlib
import json
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray.train
from training_runs import exported, relative, small_run, step_lines
from training_runs import train as train_without_ray

from pipelines import train as stage
from pipelines.train import train
from pipelines.wandb_files import history
from unlearn_core.errors import MissingPackageError, UserError
from unlearn_core.events import read_events
from unlearn_core.loop import METRICS
from unlearn_core.models import load_model

# Ray Train 2.60 and its dependencies.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")


def assert_close(found, expected):
    assert relative(found, expected) <= 1e-6
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) <= 1e-6


def assert_logged(output: Path, uri: str):
    """All three loggers have the numbers of metrics.jsonl."""
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    expected = [(line["step"], pytest.approx(line["norm_forget"], rel=1e-6)) for line in step_lines(output)]
    noted = json.loads((output / "logging.json").read_text())
    events, client = EventAccumulator(str(output / "tensorboard")), MlflowClient(tracking_uri=uri)
    events.Reload()
    of_mlflow = client.get_metric_history(noted["mlflow"]["run_id"], "norm/forget")
    of_wandb = history(output, noted["wandb"]["run_id"])
    assert [(one.step, one.value) for one in events.Scalars("norm/forget")] == expected
    assert [(one.step, one.value) for one in of_mlflow] == expected
    assert [(line["_step"], line["norm/forget"]) for line in of_wandb] == expected
    assert client.get_run(noted["mlflow"]["run_id"]).info.status == "FINISHED"


def worker_processes() -> list[psutil.Process]:
    """Training workers of this process's own cluster; another test run on the machine has its own."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            # The system keeps 15 letters of a name.
            if process.name().startswith("ray::RayTrainWo") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class Assassin(threading.Thread):
    """Kills one training worker as soon as metrics.jsonl of `output` has `step` lines."""

    def __init__(self, output: Path, step: int):
        super().__init__(daemon=True)
        self.metrics, self.step = output / METRICS, step
        self.seen, self.file, self.killed = 0, 0, 0
        self.others = {process.pid for process in worker_processes()}  # of an earlier run, on their way out

    def run(self):
        while self.seen < self.step:
            time.sleep(0.005)
            if self.metrics.is_file():
                self.seen = self.metrics.read_bytes().count(b"\n")
        self.file = self.metrics.stat().st_ino
        victim = next(process for process in worker_processes() if process.pid not in self.others)
        self.killed = victim.pid
        victim.send_signal(signal.SIGKILL)


LONG = {"stage": 2, "steps": 40, "checkpoint_every": 5, "export_every": 20, "batch__micro": 4}


@pytest.fixture(scope="module")
def long_run(taught):
    """40 steps on two workers, checkpoints every 5."""
    return small_run(taught, 2, **LONG)


@pytest.fixture(scope="module")
def undisturbed(two_ranks, long_run, tmp_path_factory):
    """The same run in plain processes, without Ray."""
    output = tmp_path_factory.mktemp("undisturbed")
    two_ranks.run(train_without_ray, long_run, output)
    return output


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's, against the newest SQLAlchemy
def test_two_workers_equal_plain_processes(cluster, taught, two_ranks, tmp_path):
    logging = {"tensorboard": True, "mlflow": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}, "wandb": {}}
    config = small_run(taught, 2, 2, 3, steps=4, export_every=2, logging=logging)
    outcome = train(config, tmp_path / "ray")
    assert_logged(tmp_path / "ray", logging["mlflow"]["uri"])
    two_ranks.run(train_without_ray, config, tmp_path / "plain")
    assert (outcome.status, outcome.step) == ("finished", 4)
    for step in (2, 4):
        assert_close(exported(tmp_path / "ray", step), exported(tmp_path / "plain", step))
    assert [line["step"] for line in step_lines(tmp_path / "ray")] == [1, 2, 3, 4]
    record = json.loads((tmp_path / "ray" / "run.json").read_text())
    assert (record["status"], record["step"], record["last_model"]) == ("finished", 4, "models/step-00004")
    assert (record["run"], record["method"], record["steps"]) == ("exactness", "ngdiff", 4)
    assert record["fingerprint"] == config.fingerprint()
    assert not (tmp_path / "ray" / "checkpoints").exists()

    def never(*_):
        raise AssertionError("a finished run was run again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_trainer", never)
        assert train(config, tmp_path / "ray") == outcome
        elsewhere = config.model_copy(update={"workers": config.workers.model_copy(update={"count": 1})})
        assert train(elsewhere, tmp_path / "ray") == outcome
        other = small_run(taught, 2, 2, 3, steps=5, export_every=2)
        with pytest.raises(UserError, match=f"holds the run 'exactness' of another config .*{config.fingerprint()}"):
            train(other, tmp_path / "ray")


def test_a_killed_worker_changes_nothing(cluster, long_run, undisturbed, tmp_path):
    assassin = Assassin(tmp_path, 12)
    assassin.start()
    outcome = train(long_run, tmp_path)
    assassin.join()
    assert 12 <= assassin.seen < 40
    assert assassin.killed
    # A run that starts or restarts writes metrics.jsonl anew: the file that the killed group appended to is gone.
    assert (tmp_path / METRICS).stat().st_ino != assassin.file
    assert (outcome.status, outcome.step) == ("finished", 40)
    assert [line["step"] for line in step_lines(tmp_path)] == list(range(1, 41))
    for step in (20, 40):
        assert_close(exported(tmp_path, step), exported(undisturbed, step))
    for found, expected in zip(step_lines(tmp_path), step_lines(undisturbed), strict=True):
        assert found["loss_forget"] == pytest.approx(expected["loss_forget"], rel=1e-6)


def test_a_run_that_failed_continues_elsewhere_when_called_again(cluster, taught, long_run, undisturbed, tmp_path):
    fragile = long_run.model_copy(update={"workers": long_run.workers.model_copy(update={"max_restarts": 0})})
    assassin = Assassin(tmp_path, 18)
    assassin.start()
    with pytest.raises(ray.train.WorkerGroupError):
        train(fragile, tmp_path)
    assassin.join()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"
    (event,) = read_events(tmp_path)
    assert event["kind"] == "workers_lost"
    assert "not started again: workers.max_restarts is reached" in event["text"]
    before = {line["step"]: line["seconds"] for line in step_lines(tmp_path)}
    elsewhere = small_run(taught, 1, **LONG | {"stage": 3})
    assert train(elsewhere, tmp_path).status == "finished"
    after = {line["step"]: line["seconds"] for line in step_lines(tmp_path)}
    assert list(after) == list(range(1, 41))
    # The seconds tell which steps were not done again: all up to a checkpoint, 10 or a later one.
    kept = [step for step in before if before[step] == after[step]]
    assert kept == list(range(1, len(kept) + 1))
    assert len(kept) >= 15
    assert len(kept) % 5 == 0
    assert_close(exported(tmp_path, 40), exported(undisturbed, 40))


def test_diverging_is_an_outcome(cluster, taught, tmp_path):
    # A step of length 1e30 leaves finite weights and a loss that is not.
    config = small_run(
        taught, 1, 1, 2, steps=6, export_every=1, optimizer__name="sgd", optimizer__learning_rate=1e30,
        optimizer__warmup_steps=0, optimizer__weight_decay=0.0,
    )  # fmt: skip
    outcome = train(config, tmp_path)
    assert outcome.status == "diverged"
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["step"]) == ("diverged", outcome.step)
    assert "non-finite" in record["reason"]
    assert record["last_model"] == f"models/step-{outcome.step:05d}"
    load_model(str(tmp_path / record["last_model"]), "fp32")
    assert train(config, tmp_path) == outcome  # and is not tried again


def test_a_mistake_that_only_workers_can_find_comes_back_as_one(cluster, taught, tmp_path):
    changes = {"model__attention": "flash_attention_2", "workers__max_restarts": 0}
    with pytest.raises(MissingPackageError, match=r"^attention 'flash_attention_2' for .*; or use 'sdpa'$"):
        train(small_run(taught, 1, 1, 2, steps=2, **changes), tmp_path)


def test_mistakes_are_found_at_once(cluster, taught, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("workers were started")

    monkeypatch.setattr(stage, "_trainer", never)

    def attempt(**changes):
        train(small_run(taught, 2, **changes), tmp_path / "out")

    with pytest.raises(UserError, match=r"asks for 2 GPUs \(2 workers\), the Ray cluster has 0.*workers\.gpu=false"):
        attempt(workers__gpu=True)
    with pytest.raises(UserError, match=r"asks for 6 CPUs \(2 workers\), the Ray cluster has 2\. Lower workers\.count"):
        attempt(workers__cpus_per_worker=3)
    with pytest.raises(UserError, match="Unknown method 'ngdif'"):
        attempt(method__name="ngdif")
    with pytest.raises(UserError, match="Valid keys: none"):
        attempt(method__settings={"beta": 1})
    with pytest.raises(UserError, match="does not exist"):
        attempt(model__path=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="forget10"):
        attempt(data__forget=["forget11"])
    with pytest.raises(UserError, match="are also retain rows"):
        attempt(data__retain=["full"])
    with pytest.raises(UserError, match=r"not a multiple of batch\.micro 3 x workers\.count 2"):
        attempt(batch__micro=3)
    assert not (tmp_path / "out").exists()
