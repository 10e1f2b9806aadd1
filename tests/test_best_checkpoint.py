"""Watching a run: every export scored once, the best by its rule, nothing lost by a kill or a deletion."""

import csv
import io
import itertools
import json
import math
import threading
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from pipelines import growing_evaluation, run_watcher
from pipelines import train as train_stage
from pipelines import watch as stage
from pipelines.best_checkpoint import Checkpoint, choose, parse_rule
from pipelines.evaluate import ModelPoint
from pipelines.evaluated_models import read_evaluations
from pipelines.model_points import absolute, identity
from pipelines.run_watcher import room_beside
from pipelines.watch import train_and_watch, watch
from unlearn_core.config import RunConfig, WorkersConfig, build_config
from unlearn_core.errors import UserError
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.suite import Aggregates, Suite
from unlearn_core.loop import Outcome
from unlearn_core.publish import publish_folder, write_json, write_text

COLUMNS = ("model_utility", "extraction_strength", "privleak", "other")
CONFIG = build_config(
    RunConfig,
    {
        "name": "npo",
        "model": {"path": "somewhere"},
        "data": {"benchmark": "synthetic:tiny", "forget": ["forget10"], "retain": ["retain90"]},
        "method": {"name": "npo"},
        "batch": {"rows": 4, "micro": 4},
        "steps": 50,
    },
)
# Utility and extraction strength of a model after so many steps; None stands for a missing column.
NUMBERS = {10: (0.6, 0.3), 20: (0.5, 0.1), 30: (0.55, 0.05), 40: (0.4, 0.01), 50: (math.nan, math.nan)}


def make_suite(**changes):
    fields = {
        "name": "small",
        "source": "by hand",
        "forget": "forget10",
        "items": (Item(item_id="1", group="forget", prompt="a", answer="b"),),
        "columns": COLUMNS,
        "aggregate": lambda records, reference, compat: Aggregates({}, {}),
        "headline": ("model_utility",),
    }
    return Suite(**(fields | changes))


SUITE = make_suite()


@pytest.fixture
def run(tmp_path):
    """Folder of a run that has begun and exported nothing."""
    write_status(tmp_path / "run", "running")
    return tmp_path / "run"


def write_status(folder, status, **more):
    record = {"run": "npo", "method": "npo", "status": status, "fingerprint": CONFIG.fingerprint()}
    write_json(folder / "run.json", record | {"config": CONFIG.model_dump(mode="json")} | more)


def export(folder, step):
    return publish_folder(folder / "models" / f"step-{step:05d}", fill_model, {"step": step})


def fill_model(folder):
    """The least that passes for a model; nobody loads it."""
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")


def steps(folder):
    return sorted(int(path.name[5:]) for path in folder.glob("models/step-*"))


@pytest.fixture
def star(tmp_path):
    """Makes a target or reference."""

    def make(role):
        folder = publish_folder(tmp_path / role, fill_model, {})
        return ModelPoint(role, str(folder), role, "finetune", 0, role)

    return make


class Evaluation:
    """Stands in for `evaluate`: writes the numbers of `NUMBERS`, and lets a test act in the middle of a round."""

    def __init__(self):
        self.rounds: list[list[str]] = []
        self.actors: list[int | None] = []
        self.numbers = dict(NUMBERS)
        self.during = lambda output: None

    def __call__(self, models, suite, output, config, *, actors, use_gpu, console):
        self.rounds.append([point.model_id for point in models])
        self.actors.append(actors)
        self.during(output)
        rows, missing = [], {}
        for point in models:
            assert Path(point.path).is_dir()
            (output / "records" / point.model_id).mkdir(exist_ok=True)
            (output / "records" / point.model_id / "forget.parquet").write_text("records")
            utility, strength = self.numbers.get(point.step, (0.9, 0.2))
            rows.append(
                {
                    "model": point.model_id, "run": point.run, "method": point.method, "step": point.step,
                    "role": point.role, "path": absolute(point), "variant": "",
                    **dict(zip(suite.columns, (utility, strength, None, 1 / 3), strict=True)),
                }
            )  # fmt: skip
            missing[point.model_id] = {"privleak": "no holdout rows"}
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(output / "metrics.csv", text.getvalue())
        about = {
            "status": "complete", "suite": suite.name, "benchmark": suite.source, "forget_split": suite.forget,
            "benchmark_fingerprint": suite.fingerprint, "config": config.model_dump(mode="json"),
            "reference": next((p.model_id for p in models if p.role == "reference"), None),
            "target": next((p.model_id for p in models if p.role == "target"), None),
            "models": {point.model_id: identity(point) for point in models},
            "records": {f"{point.model_id}/forget": f"of {point.model_id}" for point in models},
            "missing": missing, "near_ties": {point.model_id: ["1"] for point in models},
        }  # fmt: skip
        write_json(output / "evaluation.json", about)


@pytest.fixture
def evaluation(monkeypatch):
    fake = Evaluation()
    monkeypatch.setattr(growing_evaluation, "evaluate", fake)
    monkeypatch.setattr(run_watcher.ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return fake


def start(run, **options):
    return watch(run, SUITE, run.parent / "scores", **({"poll_s": 0.01} | options))


def table(run):
    with open(run.parent / "scores" / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def about(run):
    return json.loads((run.parent / "scores" / "evaluation.json").read_text())


def best(run):
    return json.loads((run / "best.json").read_text())


def training_goes_on(run, evaluation, *later):
    """Each round of the evaluation sees the next export appear; the run ends with the last."""
    coming = iter(later)

    def during(_):
        step = next(coming, None)
        if step is not None:
            export(run, step)
        else:
            write_status(run, "finished", last_model="models/step-00040")

    evaluation.during = during


@pytest.mark.parametrize(
    ("criterion", "direction"),
    [
        ("model_utility", "higher"), ("extraction_strength", "lower"), ("privleak", "zero"),
        ("min:model_utility", "lower"),
        ("max:other", "higher"), ("min:other", "lower"), ("zero:other", "zero"),
    ],
)  # fmt: skip
def test_directions(criterion, direction):
    rule = parse_rule(criterion, [], COLUMNS)
    assert (rule.column, rule.direction) == (criterion.partition(":")[2] or criterion, direction)
    assert parse_rule(rule.criterion, [], COLUMNS) == rule


@pytest.mark.parametrize(
    ("criterion", "among", "message"),
    [
        ("other", [], "write max:other or min:other"),
        ("model_utilty", [], "no column 'model_utilty'. Did you mean 'model_utility'"),
        ("max:nothing", [], "It has: model_utility, extraction_strength, privleak, other"),
        ("model_utility", ["extraction_strength=0.1"], "expected COLUMN, one of <= >= < >"),
        ("model_utility", ["strength<=0.1"], "no column 'strength'"),
        ("model_utility", ["other<=much"], "'much' is no finite number"),
        ("model_utility", ["other<=nan"], "'nan' is no finite number"),
        ("model_utility", ["other<=target"], "needs the target's value; give --target"),
    ],
)
def test_mistakes_in_a_rule(criterion, among, message):
    with pytest.raises(UserError, match=message):
        parse_rule(criterion, among, COLUMNS, ["reference"])


def checkpoints(**changes):
    points = []
    for step, (utility, strength) in (NUMBERS | changes.pop("numbers", {})).items():
        metrics = {"model_utility": utility, "extraction_strength": strength, "privleak": (step - 25) / 10}
        points.append(Checkpoint(f"npo-{step}", step, metrics, {}, step not in changes.get("gone", ())))
    return points


STARS = {"reference": Checkpoint("reference", 0, {"extraction_strength": 0.05, "model_utility": None}, {})}


@pytest.mark.parametrize(
    ("criterion", "among", "step"),
    [
        ("model_utility", [], 10),
        ("min:model_utility", [], 40),
        ("model_utility", ["extraction_strength<=0.1"], 30),
        ("model_utility", ["extraction_strength<0.05"], 40),
        ("model_utility", ["extraction_strength<=reference"], 30),
        ("model_utility", ["extraction_strength<reference"], 40),
        ("extraction_strength", ["model_utility>=0.5"], 30),
        ("extraction_strength", ["model_utility>0.5", "extraction_strength>=0.1"], 10),
        ("privleak", [], 20),  # |-0.5| = |0.5|: of two equals, fewer steps
        ("privleak", ["extraction_strength<=0.05"], 30),
    ],
)
def test_the_best(criterion, among, step):
    rule = parse_rule(criterion, among, COLUMNS, ["reference"])
    for points in (checkpoints(), checkpoints()[::-1]):
        choice = choose(rule, points, STARS)
        assert choice.best is not None
        assert (choice.best.step, choice.reason) == (step, "")
        assert choice.beaten == {f"npo-{other}" for other in NUMBERS} - {f"npo-{step}"}


def test_no_model_is_taken_that_misses_a_constraint():
    rule = parse_rule("model_utility", ["extraction_strength<=0.005", "model_utility>=0.5"], COLUMNS)
    choice = choose(rule, checkpoints(), {})
    assert choice.best is None
    assert "extraction_strength<=0.005 is met by 0 of 5, nearest 0.01 (npo-40)" in choice.reason
    assert "model_utility>=0.5 is met by 3 of 5" in choice.reason
    assert "1 of 5 have no finite value of model_utility" in choice.reason
    assert choice.beaten == {f"npo-{step}" for step in NUMBERS}


def test_a_missing_number_decides_nothing():
    rule = parse_rule("model_utility", ["extraction_strength<=0.1"], COLUMNS)
    choice = choose(rule, checkpoints(numbers={10: (None, 0.05), 20: (0.9, None), 30: (None, 0.2)}), {})
    assert choice.best is not None
    assert choice.best.step == 40
    assert choice.beaten == {"npo-30", "npo-50"}  # 0.2 misses the constraint whatever its utility
    rule = parse_rule("extraction_strength", ["model_utility<=reference"], COLUMNS, ["reference"])
    choice = choose(rule, checkpoints(), STARS)
    assert (choice.best, choice.beaten) == (None, {"npo-50"})
    assert "the reference has no value (not finite)" in choice.reason


def test_a_better_model_that_is_gone_is_named():
    choice = choose(parse_rule("model_utility", [], COLUMNS), checkpoints(gone=(10,)), {})
    assert choice.best is not None
    assert (choice.best.step, choice.reason) == (30, "npo-10 has 0.6, but its folder is gone")
    choice = choose(parse_rule("model_utility", [], COLUMNS), checkpoints(gone=tuple(NUMBERS)), {})
    assert choice.best is None
    assert "gone (npo-10, npo-30, npo-20, npo-40)" in choice.reason


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "actors", "use_gpu", "expected"),
    [
        (2, 0, {"count": 1}, None, False, 1),
        (2, 0, {"count": 2}, None, False, 0),
        (2, 0, {"count": 2, "cpus_per_worker": 0.75}, None, False, 1),
        (2, 0, {"count": 2, "cpus_per_worker": 0.8}, None, False, 0),
        (2, 0, {"count": 1}, 3, False, 3),  # three take half of the cluster together, 1 CPU
        (8, 0, {"count": 7}, 4, False, 2),
        (1, 0, {"count": 1, "cpus_per_worker": 0.5}, None, False, 1),
        (16, 4, {"count": 3, "gpu": True}, None, True, 1),
        (16, 4, {"count": 4, "gpu": True}, None, True, 0),
        (16, 4, {"count": 2, "gpu": True}, 3, True, 2),
        (16, 0, {"count": 2}, None, True, 0),
    ],
)
def test_room_beside_the_training(cpus, gpus, workers, actors, use_gpu, expected):
    cluster = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    assert room_beside(cluster, WorkersConfig(**workers), actors, use_gpu) == expected


def test_each_export_is_scored_once_as_it_appears(run, evaluation, star):
    (run / "models" / "step-00005").mkdir(parents=True)  # half-written: no marker
    training_goes_on(run, evaluation, 10, 20, 30)
    seen = []
    during = evaluation.during

    def look(output):  # what a reader finds in the middle of a round
        during(output)
        if evaluation.rounds[1:]:
            models, _, _ = read_evaluations([run.parent / "scores"], ["model_utility"])
            seen.append([model.model for model in models])

    evaluation.during = look
    target, reference = star("target"), star("reference")
    choice = start(run, target=target, reference=reference)
    stars = ["target", "reference"]
    assert evaluation.rounds == [stars, *([*stars, f"npo-step-000{step}"] for step in (10, 20, 30))]
    assert choice is None
    names = [*stars, "npo-step-00010", "npo-step-00020", "npo-step-00030"]
    assert seen == [names[:2], names[:3], names[:4]]
    assert [row["model"] for row in table(run)] == names
    assert [row["other"] for row in table(run)] == ["0.3333333333333333"] * 5
    assert list(about(run)["models"]) == names
    assert sorted(about(run)["records"]) == sorted(f"{name}/forget" for name in names)
    assert not (run / "best.json").exists()
    assert sorted(path.name for path in (run.parent / "scores").iterdir()) == [
        ".watch.lock", "evaluation.json", "metrics.csv", "records",
    ]  # fmt: skip
    assert len(list((run.parent / "scores" / "records").iterdir())) == 5
    start(run, target=target, reference=reference)
    assert len(evaluation.rounds) == 4  # nothing is left to do
    with pytest.raises(UserError, match=r"holds another evaluation \(reference .*/reference has changed\)"):
        start(run, target=target, reference=star("reference"))


def test_the_best_is_written_after_each_round(run, evaluation):
    found = []
    later = iter((20, 30, 40))

    def during(_):
        found.append(best(run)["step"] if (run / "best.json").exists() else "none")
        step = next(later, None)
        export(run, step) if step else write_status(run, "finished", last_model="models/step-00040")

    evaluation.during = during
    export(run, 10)
    choice = start(run, criterion="model_utility", among=["extraction_strength<=0.1"])
    assert found == ["none", None, 20, 30]
    assert choice.best.model_id == "npo-step-00030"
    assert steps(run) == [10, 20, 30, 40]
    written = best(run)
    assert written.pop("metrics") == {
        "model_utility": 0.55, "extraction_strength": 0.05, "privleak": None, "other": 1 / 3,
    }  # fmt: skip
    assert written == {
        "status": "found", "model": "models/step-00030", "model_id": "npo-step-00030", "step": 30, "reason": "",
        "criterion": "max:model_utility", "among": ["extraction_strength<=0.1"], "evaluated": 4,
        "evaluation": str(run.parent / "scores"),
    }  # fmt: skip


def test_no_best_is_said(run, evaluation):
    export(run, 10)
    write_status(run, "diverged")
    choice = start(run, criterion="model_utility", among=["extraction_strength<=0.1"])
    assert choice.best is None
    assert best(run)["status"] == "none"
    assert best(run)["model"] is None
    assert "met by 0 of 1, nearest 0.3 (npo-step-00010)" in best(run)["reason"]


def test_keeping_the_best_alone(run, evaluation, star):
    training_goes_on(run, evaluation, 20, 30, 40)
    export(run, 10)
    there = []
    during = evaluation.during

    def look(output):
        there.append(steps(run))
        during(output)

    evaluation.during = look
    reference = star("reference")
    start(run, reference=reference, criterion="model_utility", among=["extraction_strength<=0.1"], keep="best")
    # At the start of each round: 10 misses the constraint and went when 20 was there, 20 when 30 was better.
    assert there == [[10], [20], [20, 30], [30, 40]]
    assert steps(run) == [30, 40]
    assert best(run)["model"] == "models/step-00030"
    names = ["reference", *(f"npo-step-000{step}" for step in (10, 20, 30, 40))]
    assert [row["model"] for row in table(run)] == names
    for key in ("models", "missing", "near_ties"):
        assert sorted(about(run)[key]) == sorted(names)
    assert len(list((run.parent / "scores" / "records").iterdir())) == 5
    rounds = len(evaluation.rounds)
    export(run, 50)  # a longer training of the same folder, seen by a watch that is started anew
    start(run, reference=reference, criterion="model_utility", among=["extraction_strength<=0.1"], keep="best")
    assert evaluation.rounds[rounds:] == [["reference", "npo-step-00050"]]
    assert steps(run) == [30, 40, 50]  # run.json names 40 as the last model
    assert [row["model"] for row in table(run)] == [*names, "npo-step-00050"]


def test_a_model_without_a_value_is_never_deleted(run, evaluation):
    evaluation.numbers |= {10: (None, 0.3), 20: (None, 0.1)}
    for step in (10, 20, 30, 40):
        export(run, step)
    write_status(run, "finished")
    start(run, criterion="model_utility", keep="best")
    assert steps(run) == [10, 20, 30, 40]  # 40 is the newest, 30 the best
    start(run, criterion="model_utility", among=["extraction_strength<0.3"], keep="best")
    assert steps(run) == [20, 30, 40]


def test_the_target_is_not_deleted(run, evaluation):
    folder = export(run, 10)
    export(run, 30)
    export(run, 40)
    write_status(run, "finished")
    target = ModelPoint("target", str(folder), "npo", "npo", 10, "target")
    start(run, target=target, criterion="extraction_strength", keep="best")
    assert steps(run) == [10, 40]


@pytest.mark.parametrize("where", ["before", "table", "about", "deletion"])
def test_a_killed_watch_continues(run, evaluation, monkeypatch, where):
    for step in (10, 20):
        export(run, step)
    options = {"criterion": "extraction_strength", "keep": "best"}
    stop = threading.Event()
    stop.set()
    start(run, stop=stop, **options)
    assert steps(run) == [20]
    export(run, 30)
    write_status(run, "finished")

    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    def killed_after_the_round(path, value):
        if evaluation.rounds[1:]:
            raise Killed
        write_json(path, value)

    def killed_in_a_deletion(path, **_):
        if Path(path).name.endswith(".dropped"):
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if where == "before":
            patch.setattr(growing_evaluation, "evaluate", killed)
        elif where == "table":
            patch.setattr(growing_evaluation, "write_json", killed)
        elif where == "about":
            patch.setattr(run_watcher, "write_json", killed_after_the_round)
        else:
            patch.setattr(run_watcher.shutil, "rmtree", killed_in_a_deletion)
        start(run, **options)
    rounds = len(evaluation.rounds)
    if where == "before":
        models, _, _ = read_evaluations([run.parent / "scores"], ["model_utility"])
        assert [model.model for model in models] == ["npo-step-00010", "npo-step-00020"]
    start(run, **options)
    assert len(evaluation.rounds) - rounds == {"before": 1, "table": 1, "about": 0, "deletion": 0}[where]
    assert [row["model"] for row in table(run)] == ["npo-step-00010", "npo-step-00020", "npo-step-00030"]
    assert list(about(run)["models"]) == ["npo-step-00010", "npo-step-00020", "npo-step-00030"]
    assert best(run)["step"] == 30
    assert [path.name for path in (run / "models").iterdir()] == ["step-00030"]


def test_an_export_written_anew_is_scored_anew(run, evaluation):
    export(run, 10)
    stop = threading.Event()
    stop.set()
    start(run, stop=stop)
    export(run, 10)
    evaluation.numbers[10] = (0.7, 0.7)
    start(run, stop=stop)
    assert evaluation.rounds == [["npo-step-00010"]] * 2
    assert [row["model_utility"] for row in table(run)] == ["0.7"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": make_suite(name="wide", columns=(*COLUMNS[:3], "else"))}, r"suite was small, now wide; columns was"),
        ({"suite": make_suite(items=(Item(item_id="2", group="g", answer="c"),))}, "rows of the benchmark was"),
        ({"config": EvaluationConfig(max_length=100)}, "max_length was 512, now 100"),
        ({"reference": True}, r"reference was none, now .*/reference"),
    ],
)
def test_numbers_of_two_settings_are_not_mixed(run, evaluation, star, change, message):
    export(run, 10)
    write_status(run, "finished")
    start(run)
    before = (run.parent / "scores" / "metrics.csv").read_bytes()
    if "reference" in change:
        change = {"reference": star("reference")}
    with pytest.raises(UserError, match=message):
        watch(run, **({"suite": SUITE} | change), output=run.parent / "scores")
    assert (run.parent / "scores" / "metrics.csv").read_bytes() == before
    watch(run, SUITE, run.parent / "scores", EvaluationConfig(token_budget=100))  # moves numbers by rounding only
    assert len(evaluation.rounds) == 1


def test_waiting_for_the_run_s_end_when_there_is_no_room(run, evaluation, monkeypatch):
    cluster = {"CPU": 1.0}
    monkeypatch.setattr(run_watcher.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(run_watcher.ray, "cluster_resources", lambda: cluster)
    export(run, 10)
    output, stop = io.StringIO(), threading.Event()
    watcher = threading.Thread(target=start, args=(run,), kwargs={"stop": stop, "console": Console(file=output)})
    watcher.start()
    watcher.join(0.3)
    assert evaluation.rounds == []
    assert watcher.is_alive()
    assert output.getvalue().count("1 training workers leave no CPU of the cluster's 1 free") == 1
    cluster["CPU"] = 2.0  # a node joined
    while not evaluation.rounds:
        watcher.join(0.01)
    export(run, 20)
    cluster["CPU"] = 1.0
    watcher.join(0.1)
    write_status(run, "finished")
    watcher.join(10)
    assert not watcher.is_alive()
    assert sorted(itertools.chain(*evaluation.rounds)) == ["npo-step-00010", "npo-step-00020"]
    assert evaluation.actors[0] == 1  # beside the training; `evaluate` would take one for each CPU
    assert evaluation.actors[-1] in (None, 1)


def test_stop_ends_a_watch_of_a_run_that_goes_on(run, evaluation):
    export(run, 10)
    stop = threading.Event()
    evaluation.during = lambda _: (stop.set(), export(run, 20) if 20 not in steps(run) else None)
    start(run, stop=stop)
    assert evaluation.rounds == [["npo-step-00010"], ["npo-step-00020"]]


def test_mistakes_are_found_before_anything_is_written(run, evaluation, star, monkeypatch, tmp_path):
    for options, message in (
        ({"keep": "some"}, "expected 'all' or 'best'"),
        ({"keep": "best"}, "need a criterion"),
        ({"among": ["other<=1"]}, "need a criterion"),
        ({"criterion": "other"}, "write max:other"),
        ({"actors": 0}, "actors is 0"),
        ({"reference": star("target")}, "has the role 'target'"),
        ({"target": ModelPoint("target", str(tmp_path / "no"), "t", "finetune", 0, "target")}, "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            start(run, **options)
    assert not (tmp_path / "scores").exists()
    monkeypatch.setattr(stage, "APPEARS_SECONDS", 0.02)
    with pytest.raises(UserError, match=r"no run at .*/nowhere after"):
        watch(tmp_path / "nowhere", SUITE, tmp_path / "scores", poll_s=0.01)
    assert not (tmp_path / "nowhere").exists()


def test_two_watches_do_not_work_on_one_folder(run, evaluation, tmp_path):
    write_status(tmp_path / "other", "finished")
    refused = []

    def during(_):
        for folder, output in ((tmp_path / "other", tmp_path / "scores"), (run, tmp_path / "more")):
            with pytest.raises(UserError, match="another watch is at work on"):
                watch(folder, SUITE, output, poll_s=0.01)
            refused.append(folder)

    evaluation.during = during
    export(run, 10)
    write_status(run, "finished")
    start(run)
    assert refused == [tmp_path / "other", run]


@pytest.fixture
def training(monkeypatch):
    """Stands in for `train`: what it does is the test's."""
    monkeypatch.setattr(stage, "start_ray", lambda: None)
    monkeypatch.setattr(run_watcher, "start_ray", lambda: None)
    monkeypatch.setattr(run_watcher.ray, "cluster_resources", lambda: {"CPU": 2.0})

    def set_to(function):
        monkeypatch.setattr(train_stage, "train", function)

    return set_to


def both(run, **options):
    return train_and_watch(CONFIG, run, SUITE, run.parent / "scores", poll_s=0.01, **options)


def test_training_and_watching_together(run, evaluation, training):
    order = []

    def train(config, output, console):
        export(run, 10)
        while not evaluation.rounds:  # the evaluation runs while this function does
            threading.Event().wait(0.01)
        order.append(list(evaluation.rounds))
        export(run, 20)
        write_status(run, "finished", last_model="models/step-00020")
        return Outcome("finished", 20)

    training(train)
    done = both(run, criterion="extraction_strength", keep="best")
    assert order == [[["npo-step-00010"]]]
    assert (done.outcome, done.error) == (Outcome("finished", 20), None)
    assert done.choice is not None
    assert done.choice.best is not None
    assert done.choice.best.step == 20
    assert steps(run) == [20]


def test_a_failed_evaluation_leaves_the_training_alone(run, evaluation, training):
    failed = threading.Event()

    def during(_):
        failed.set()
        raise RuntimeError("an actor died")

    evaluation.during = during

    def train(config, output, console):
        export(run, 10)
        assert failed.wait(10)
        export(run, 20)
        write_status(run, "finished")
        return Outcome("finished", 20)

    training(train)
    text = io.StringIO()
    done = both(run, console=Console(file=text))
    assert done.outcome.step == 20
    assert isinstance(done.error, RuntimeError)
    assert "evaluation ended with an error, the training is left alone: an actor died" in text.getvalue()


def test_a_failed_training_ends_the_watch(run, evaluation, training):
    def train(config, output, console):
        export(run, 10)
        while not evaluation.rounds:
            threading.Event().wait(0.01)
        raise RuntimeError("workers died")

    training(train)
    with pytest.raises(RuntimeError, match="workers died"):
        both(run)
    assert not any(thread.name == "watch" for thread in threading.enumerate())
    assert [row["model"] for row in table(run)] == ["npo-step-00010"]


def test_another_run_s_exports_are_not_touched(run, evaluation, training):
    write_status(run, "finished", fingerprint="another")
    for step in (10, 20):
        export(run, step)

    def train(config, output, console):
        threading.Event().wait(0.1)
        raise UserError("holds another run")

    training(train)
    with pytest.raises(UserError, match="holds another run"):
        both(run, criterion="extraction_strength", keep="best")
    assert (evaluation.rounds, steps(run)) == ([], [10, 20])
