"""Trials that train: in their own process, on workers of their own, stopped, interrupted, without training."""

import os
import time

import pytest

from pipelines.model_scoring import ModelScorer, ScoringPlan
from pipelines.trial import TrainedTrial, run_config
from tune.archive import Archive, read_history
from tune.objectives import Goal, Objective
from tune.random_search import RandomSearcher
from tune.search import Budget, Resources, Search
from tune.space import Space
from unlearn_core.errors import UserError
from unlearn_core.evaluation.config import EvaluationConfig

STEPS, EVERY = 6, 2
SPACE = Space.from_data({"optimizer.learning_rate": {"log_uniform": [1e-4, 1e-2]}})
GOAL = Goal(
    (
        Objective("utility", ("retain_Q_A_Prob",), "higher", 0.0, 1.0),
        Objective("forgetting", ("forget_Q_A_Prob",), "lower", 1.0, 0.0),
    )
)
PLAN = ScoringPlan(
    suite={"benchmark": "synthetic:tiny", "forget_split": "forget10"},
    config=EvaluationConfig(style="plain", max_length=128),
    rows=4,
    groups=("forget", "retain"),
)


def base_of(taught, workers):
    return {
        "name": "base",
        "model": {"path": str(taught), "dtype": "fp32"},
        "data": {
            "benchmark": "synthetic:tiny",
            "forget": ["forget10"],
            "retain": ["retain90"],
            "format": "plain",
            "max_length": 128,
        },
        "method": {"name": "ngdiff"},
        "batch": {"rows": 4, "micro": 2},
        "steps": STEPS,
        "export_every": EVERY,
        "zero": {"stage": 2},
        "workers": {"count": workers, "cpus_per_worker": 0.4 if workers > 1 else 1},
    }


def a_search(folder, taught, workers=1, trials=1, rules=(), keep=10):
    archive = Archive(folder, {"name": "trained", "fingerprint": "1", "goal": GOAL.to_data()})
    searcher = RandomSearcher(SPACE, archive.history, 0, STEPS)
    runner = TrainedTrial(base_of(taught, workers), PLAN, str(taught), os.getcwd())
    return Search(archive, searcher, rules, Budget(trials), runner, keep)


def free_cpus():
    import ray

    for _ in range(200):
        free = ray.available_resources().get("CPU", 0.0)
        if free == ray.cluster_resources()["CPU"]:
            break
        time.sleep(0.1)
    return free


class StopAt:
    minimum = 1

    def __init__(self, step):
        self.step = step

    def reason(self, history, trial):
        return "far enough" if trial.last_step >= self.step else None


@pytest.fixture(scope="module")
def one_worker(cluster, taught, tmp_path_factory):
    """A search of one trial in its own process."""
    folder = tmp_path_factory.mktemp("search") / "one"
    a_search(folder, taught).run(Resources({"CPU": 1}, 2))
    return folder


def test_a_trial_is_scored_at_every_export_and_only_the_front_keeps_weights(one_worker, taught):
    history = read_history(one_worker)
    (trial,) = history
    assert trial.status == "finished" and [point.step for point in trial.points] == [2, 4, 6]
    kept = {int(path.parent.name[5:]) for path in one_worker.glob("trials/0000/models/*/complete.json")}
    assert kept == {point.step for point in history.front()} and kept
    assert not (one_worker / "trials/0000/checkpoints").exists()


def test_two_workers_of_a_nested_run_measure_what_one_process_does(one_worker, cluster, taught, tmp_path):
    """Two trials at once, each with workers of its own, which are freed when the trial is stopped."""
    folder = tmp_path / "two"
    a_search(folder, taught, workers=2, trials=2, rules=[StopAt(4)]).run(Resources({"CPU": 0.1}, 2))
    alone, trials = next(iter(read_history(one_worker))), list(read_history(folder))
    assert [(trial.status, trial.reason) for trial in trials] == [("pruned", "far enough")] * 2
    first = trials[0]
    assert first.config == alone.config
    for ours, theirs in zip(first.points, alone.points, strict=False):
        assert ours.step == theirs.step
        assert ours.values == pytest.approx(theirs.values, rel=1e-5)
    assert free_cpus() == 2.0
    assert not (folder / "trials/0000/checkpoints").exists()


def test_an_interrupted_trial_scores_what_it_exported_and_goes_on(one_worker, cluster, taught, tmp_path):
    """The state a kill leaves: step 2 recorded; step 4 exported and checkpointed, not scored."""
    import shutil

    folder = tmp_path / "search"
    search = a_search(folder, taught, rules=[StopAt(2)], keep=10)
    search.run(Resources({"CPU": 1}, 1))
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (folder / "trials.jsonl").write_text("".join(line for line in lines if '"end"' not in line))
    shutil.rmtree(folder / "trials/0000/models", ignore_errors=True)
    shutil.copytree(one_worker / "trials/0000/models/step-00004", folder / "trials/0000/models/step-00004")
    before = (folder / "trials/0000/steps.jsonl").read_text()
    a_search(folder, taught).run(Resources({"CPU": 1}, 1))
    (trial,), (whole,) = read_history(folder), read_history(one_worker)
    assert trial.status == "finished"
    assert (folder / "trials/0000/steps.jsonl").read_text().startswith(before)
    assert [point.step for point in trial.points] == [2, 4, 6]
    for ours, theirs in zip(trial.points, whole.points, strict=True):
        assert ours.values == pytest.approx(theirs.values, rel=1e-6)


def test_edits_and_lines_to_the_target_are_points_too(cluster, taught, tmp_path):
    folder = tmp_path / "search"
    search = a_search(folder, taught)
    search.job.runner.slug = {"threshold": 0.02, "layers": 1, "iterations": 2}
    search.give({"method.name": "slug"}, "warm_start")
    search.run(Resources({"CPU": 1}, 2))
    member = next(p for p in search.models.existing() if search.history.trials[p.trial].origin == "search")
    weights = [0.5, 1.0]
    search.give({"method.name": "interpolation", "interpolation.weights": weights}, "densify", member)
    search.run(Resources({"CPU": 1}, 2), propose=False)
    slug, trained, line = read_history(folder)
    assert (slug.origin, trained.origin, line.origin) == ("warm_start", "search", "densify")
    assert [trial.status for trial in (slug, trained, line)] == ["finished"] * 3
    assert [point.step for point in slug.points] == [1, 2] and [point.step for point in line.points] == [1, 2]
    # At weight 1 the line has arrived at the target, which knows the forget rows best.
    knows = [point.metrics["forget_Q_A_Prob"] for point in (member, *line.points)]
    assert knows[0] < knows[1] < knows[2]
    assert search.history.steps_spent == STEPS


def test_settings_of_the_recipe_hold_for_its_own_method_alone(taught):
    base = base_of(taught, 1) | {"method": {"name": "npo", "settings": {"beta": 0.3}}}
    assert run_config(base, {}, 0, 1).method.settings == {"beta": 0.3}
    assert run_config(base, {"method.settings.retain_weight": 2.0}, 0, 1).method.settings["retain_weight"] == 2.0
    assert run_config(base, {"method.name": "ngdiff"}, 5, 1).method.settings == {}
    assert run_config(base, {"method.name": "ngdiff"}, 5, 1).seed == 5
    with pytest.raises(UserError, match="learning_rate"):
        run_config(base, {"optimizer.learning_rate": -1.0}, 0, 1)


def test_rounded_weights_are_measured_beside_the_model(taught):
    plan = ScoringPlan(**{**vars(PLAN), "quantised": ("nf4",)})
    found = ModelScorer(plan).score(taught)
    for column in ("forget_Q_A_Prob", "retain_Q_A_Prob"):
        assert found[column] != found[f"{column}@nf4"]
    knows, after = found["extraction_strength"], found["extraction_strength@nf4"]
    assert found["robustness@nf4"] == pytest.approx(1.0 if after <= knows else knows / after)


def test_a_plan_measures_the_groups_and_rows_it_is_asked_for():
    suite = PLAN.build()
    assert {group: len(items) for group, items in suite.groups.items()} == {"forget": 4, "retain": 4}
    assert not any(item.generate for item in suite.items)
    with pytest.raises(UserError, match="no strangers"):
        ScoringPlan(**{**vars(PLAN), "groups": ("strangers",)}).build()
