"""A search on Ray Tune with closed-form trials: ends, stops, restarts, trials that go wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import closed_form_trials
import pytest
import ray.cloudpickle
from closed_form_trials import GOAL, SPACE, STEPS, ClosedFormTrial, metrics_of

from tune.archive import Archive, read_history, read_table
from tune.random_search import RandomSearcher
from tune.search import Budget, Resources, Search

# Workers of a cluster cannot import the tests' modules.
ray.cloudpickle.register_pickle_by_value(closed_form_trials)
ABOUT = {"name": "closed-form", "fingerprint": "1", "goal": GOAL.to_data()}


def a_search(folder, *, trials=None, steps=None, hours=None, wrong=None, rules=(), **more):
    archive = Archive(folder, ABOUT)
    searcher = RandomSearcher(SPACE, archive.history, 0, STEPS)
    runner = ClosedFormTrial(wrong or {}, more.pop("pause", 0.0), more.pop("touched", None))
    return Search(archive, searcher, rules, Budget(trials, steps, hours), runner, **more)


def free_cpus():
    import ray

    for _ in range(100):
        free = ray.available_resources().get("CPU", 0.0)
        if free == ray.cluster_resources()["CPU"]:
            break
        time.sleep(0.1)
    return free


def test_every_step_of_every_trial_is_a_row_and_more_trials_can_be_added(cluster, tmp_path):
    search = a_search(tmp_path, trials=2)
    search.run(Resources({"CPU": 1}, 2))
    history = read_history(tmp_path)
    assert [trial.status for trial in history] == ["finished", "finished"]
    assert all([point.step for point in trial.points] == list(range(1, STEPS + 1)) for trial in history)
    for trial in history:
        for point in trial.points:
            measured = metrics_of(trial.config, point.step)
            assert point.values == pytest.approx((measured["u"], 1 - abs(measured["f"] - 0.8) / 0.8))
    first = read_table(tmp_path)
    assert len(first) == 2 * STEPS

    more = a_search(tmp_path, trials=3)
    more.run(Resources({"CPU": 1}, 2))
    table = read_table(tmp_path)
    assert len(table) == 3 * STEPS
    same = ["trial", "step", "value/utility", "value/forgetting", "config/rate", "time"]
    assert table[same].head(len(first)).equals(first[same])
    import pandas as pd

    assert len(pd.read_parquet(tmp_path / "archive.parquet")) == 3 * STEPS


def test_trials_that_go_wrong_are_named_rows_and_harm_nobody(cluster, tmp_path):
    wrong = {0: "diverge", 1: "memory", 2: "hang", 3: "killed", 4: "error"}
    search = a_search(tmp_path, trials=7, wrong=wrong, result_seconds=2.0)
    search.run(Resources({"CPU": 1}, 2))
    history = read_history(tmp_path)
    statuses = [trial.status for trial in history]
    assert statuses == ["diverged", "out_of_memory", "hung", "failed", "failed", "finished", "finished"]
    reasons = [trial.reason for trial in history]
    assert reasons[0] == "the loss is NaN"
    assert "MemoryError" in reasons[1] and "no result for 2 s" in reasons[2]
    assert "process died" in reasons[3] and "RuntimeError: a wheel came off" in reasons[4]
    assert [len(trial.points) for trial in history] == [1, 1, 1, 1, 1, STEPS, STEPS]
    assert free_cpus() == 2.0  # the hung one's too
    table = read_table(tmp_path)
    assert set(table["status"]) == set(statuses)


class StopAt:
    """A rule that ends every trial at one step."""

    minimum = 1

    def __init__(self, step):
        self.step = step

    def reason(self, history, trial):
        return "far enough" if trial.last_step >= self.step else None


def test_a_rule_stops_a_trial_and_its_reason_is_kept(cluster, tmp_path):
    search = a_search(tmp_path, trials=3, rules=[StopAt(2)])
    search.run(Resources({"CPU": 1}, 2))
    assert [(t.status, t.reason, t.last_step) for t in read_history(tmp_path)] == [("pruned", "far enough", 2)] * 3
    assert free_cpus() == 2.0


def test_a_budget_of_steps_is_kept(cluster, tmp_path):
    search = a_search(tmp_path, steps=2 * STEPS + 3)
    search.run(Resources({"CPU": 1}, 2))
    history = read_history(tmp_path)
    assert history.steps_spent == 2 * STEPS + 3
    assert Counter(trial.status for trial in history) == {"finished": 2, "budget": 1}


def test_reruns_and_given_trials_stand_apart_from_the_front(cluster, tmp_path):
    search = a_search(tmp_path, trials=2)
    search.run(Resources({"CPU": 1}, 2))
    before = search.history.front()
    for seed in (1, 2):
        search.give(search.history.trials[before[0].trial].config, "rerun", before[0], seed)
    search.give(search.history.trials[before[0].trial].config, "rerun", before[0], 2)  # the same one again
    search.run(Resources({"CPU": 1}, 2), propose=False)
    reruns = [trial for trial in read_history(tmp_path) if trial.origin == "rerun"]
    assert [(t.parent, t.seed, [p.step for p in t.points]) for t in reruns] == [
        (before[0].trial, seed, [before[0].step]) for seed in (1, 2)
    ]
    assert read_history(tmp_path).front() == before
    assert search.history.steps_spent == 2 * STEPS


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_search_run import a_search
from pipelines.ray_session import start_ray
from tune.search import Resources
start_ray(num_cpus=2)
a_search(Path({folder!r}), trials=6, pause=0.3, touched=Path({touched!r})).run(Resources({{"CPU": 1}}, 2))
"""


def test_a_killed_driver_loses_nothing_and_repeats_nothing(tmp_path):
    """SIGKILL in the middle of trials, twice; then the same command to the end."""
    folder, touched = tmp_path / "search", tmp_path / "touched"
    touched.mkdir()
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(path=sys.path, folder=str(folder), touched=str(touched)))
    environment = {**os.environ, "RAY_ADDRESS": ""}
    seen = 0
    for kill_after in (5, 14, None):
        driver = subprocess.Popen([sys.executable, script], env=environment, cwd=Path.cwd(), start_new_session=True)
        if kill_after is None:
            assert driver.wait(timeout=300) == 0
            break
        deadline = time.monotonic() + 120
        while len(list(touched.iterdir())) < kill_after:
            assert time.monotonic() < deadline and driver.poll() is None
            time.sleep(0.05)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        time.sleep(1.0)  # Ray's own processes notice and go
        points = sum(len(trial.points) for trial in read_history(folder))
        assert points >= seen
        seen = points
    history = read_history(folder)
    assert [trial.number for trial in history] == list(range(6))
    assert all(trial.status == "finished" for trial in history)
    assert sum(len(trial.points) for trial in history) == 6 * STEPS
    recorded = [json.loads(line) for file in folder.glob("trials/*/steps.jsonl") for line in file.open()]
    assert len(recorded) == 6 * STEPS  # on disk, too, no step stands twice
    evaluated = Counter(tuple(path.name.split("-")[:2]) for path in touched.iterdir())
    # A step that was being evaluated when the kill came is not recorded and is evaluated again; no other is.
    assert sum(evaluated.values()) - len(evaluated) <= 4
    fresh = RandomSearcher(SPACE, history, 0, STEPS)
    assert [trial.config for trial in history] == [fresh.propose(number) for number in range(6)]
