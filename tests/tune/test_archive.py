"""The archive: what a kill leaves, what a second search finds, one table of everything; and which weights stay."""

import json
import math

import pytest

from tune.archive import Archive, TrialLog, append_line, read_history, read_lines, read_table
from tune.history import History, Point, Trial, best_contribution, values_of
from tune.kept_models import KeptModels
from tune.objectives import Constraint, Goal, Objective
from unlearn_core.errors import UserError
from unlearn_core.publish import publish_folder

GOAL = Goal(
    (Objective("utility", ("u",), "higher", 0, 1), Objective("forgetting", ("f",), "higher", 0, 1)),
    (Constraint("q", high=0.5),),
)
ABOUT = {"name": "s", "fingerprint": "1", "goal": GOAL.to_data()}


def point(trial, step, u, f, q=0.0):
    metrics = {"u": u, "f": f, "q": q}
    return Point(trial, step, GOAL.values(metrics), GOAL.slacks(metrics), metrics, 1.0, 2.0)


def a_trial(archive, points, config=None, **more):
    trial = archive.start(config or {"rate": 0.1, "kind": None}, 0, **more)
    log = TrialLog(archive.folder, trial.number)
    for step, u, f in points:
        log.add(point(trial.number, step, u, f))
        archive.history.record(point(trial.number, step, u, f))
    return trial.number


def test_a_line_cut_off_by_a_kill_is_dropped_and_the_file_goes_on(tmp_path):
    file = tmp_path / "x.jsonl"
    append_line(file, {"a": 1})
    with open(file, "a") as half:
        half.write('{"a": 2')
    assert read_lines(file) == [{"a": 1}]
    append_line(file, {"a": 3})
    assert read_lines(file) == [{"a": 1}, {"a": 3}]
    assert file.read_text() == '{"a": 1}\n{"a": 3}\n'
    with pytest.raises(ValueError, match="JSON"):
        append_line(file, {"a": math.nan})


def test_a_damaged_line_in_the_middle_is_told_with_its_place(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": 1}\n{"a" 2}\n{"a": 3}\n')
    with pytest.raises(UserError, match=r"x\.jsonl, line 2 is damaged"):
        read_lines(file)


def test_what_is_read_back_is_what_was_recorded(tmp_path):
    archive = Archive(tmp_path, ABOUT)
    first = a_trial(archive, [(1, 0.9, 0.1), (2, 0.8, 0.5)])
    archive.end(first, "pruned", "rank 3 of 4", steps_done=2)
    archive.end(first, "finished")  # too late
    a_trial(archive, [])
    history = read_history(tmp_path)
    assert [vars(trial) for trial in history] == [vars(trial) for trial in archive.history]
    assert history.trials[0].status == "pruned" and history.trials[1].status == "running"
    assert Archive(tmp_path, ABOUT).history.next_number == 2


def test_a_step_told_twice_counts_once(tmp_path):
    archive = Archive(tmp_path, ABOUT)
    number = a_trial(archive, [(1, 0.9, 0.1)])
    TrialLog(tmp_path, number).add(point(number, 1, 0.9, 0.1))
    assert not archive.history.record(point(number, 1, 0.9, 0.1))
    assert len(read_history(tmp_path).trials[number].points) == 1
    assert [p.step for p in TrialLog(tmp_path, number).points()] == [1]


def test_another_search_in_the_folder_is_refused(tmp_path):
    Archive(tmp_path, ABOUT)
    with pytest.raises(UserError, match="other settings"):
        Archive(tmp_path, ABOUT | {"fingerprint": "2"})
    with pytest.raises(UserError, match="holds no search"):
        read_table(tmp_path / "elsewhere")


def test_the_table_has_a_row_for_every_step_and_for_trials_without_one(tmp_path):
    archive = Archive(tmp_path, ABOUT)
    first = a_trial(archive, [(1, 0.9, 0.1), (2, 0.8, 0.5), (3, 0.7, 0.4)], {"rate": 0.1, "kind": "a"})
    archive.end(first, "finished")
    second = a_trial(archive, [], {"rate": 3, "kind": None})
    archive.end(second, "out_of_memory", "too large")
    third = a_trial(archive, [], {"rate": 0.2})
    archive.history.record(Point(third, 1, (math.nan, 0.5), (0.5,), {"f": 0.5}))
    table = read_table(tmp_path)
    assert table["status"].tolist() == ["finished"] * 3 + ["out_of_memory", "running"]
    assert table["step"].tolist()[:3] == [1, 2, 3] and table["step"].isna().tolist()[3]
    assert table["on_front"].tolist() == [True, True, False, False, False]
    assert table["config/rate"].tolist() == [0.1, 0.1, 0.1, 3.0, 0.2]
    assert table["value/forgetting"].tolist()[:3] == [0.1, 0.5, 0.4]
    import pandas as pd

    kept = pd.read_parquet(archive.write_table())
    assert len(kept) == 5 and kept["config/kind"].tolist()[:3] == ["a"] * 3
    assert kept["feasible"].tolist() == [True, True, True, False, False]


def test_infeasible_unscored_and_rerun_points_are_not_on_the_front():
    history = History([Trial(0, {}), Trial(1, {}, origin="rerun", parent=0)])
    for one in (point(0, 1, 0.5, 0.5), point(0, 2, 0.9, 0.9, q=0.6), point(1, 1, 0.99, 0.99), point(0, 3, 0.0, 1.0)):
        history.record(one)
    assert [(p.trial, p.step) for p in history.front()] == [(0, 1)]
    assert history.hypervolume() == pytest.approx(0.25)


def test_best_contribution_by_hand():
    trial = Trial(0, {}, points=[point(0, 1, 0.9, 0.1), point(0, 2, 0.6, 0.6), point(0, 3, 0.1, 0.9)])
    others_NM = values_of([point(1, 1, 0.5, 0.7)])
    # Alone: 0.09, 0.36, 0.09. Beside (0.5, 0.7): 0.9*0.1-0.5*0.1 = 0.04, 0.06, 0.1*0.2 = 0.02.
    assert best_contribution(trial, others_NM).step == 2
    better_NM = values_of([point(1, 1, 0.7, 0.7)])
    assert best_contribution(trial, better_NM).step in (1, 3)  # 0.02 each
    assert best_contribution(trial, values_of([point(1, 1, 1.0, 1.0)])).step == 2  # none adds: the largest product
    assert best_contribution(Trial(1, {}), others_NM) is None


def export(models, one):
    publish_folder(models.folder(one), lambda folder: (folder / "w").write_text("w"), {"step": one.step})
    return models.folder(one)


def test_weights_off_the_front_go_and_running_trials_keep_what_is_not_scored(tmp_path):
    archive = Archive(tmp_path, ABOUT)
    number = a_trial(archive, [(1, 0.9, 0.1), (2, 0.5, 0.05), (3, 0.5, 0.5), (4, 0.1, 0.9)])
    models = KeptModels(archive, 2)
    folders = [export(models, one) for one in archive.history.trials[number].points]
    unscored = export(models, point(number, 5, 1, 1))
    models.sweep()
    # Front: steps 1, 3, 4. Step 3 alone covers 0.25; 1 and 4 then add 0.04 each, the earlier one stays.
    assert [folder.exists() for folder in folders] == [True, False, True, False] and unscored.exists()
    archive.end(number, "finished")
    models.sweep()
    assert not unscored.exists()
    child = archive.start({}, 0, "densify", number, 1)
    better = a_trial(archive, [(1, 0.95, 0.95)])
    export(models, archive.history.trials[better].points[0])
    models.sweep()
    assert folders[0].exists() and not folders[2].exists()  # a running trial starts from the first
    archive.end(child.number, "finished")
    models.sweep()
    assert not folders[0].exists() and len(models.existing()) == 1


def test_hours_are_those_of_all_calls(tmp_path):
    archive = Archive(tmp_path, ABOUT)
    lines = [
        {"event": "session", "time": 100.0},
        {"event": "start", "trial": 0, "config": {}, "seed": 0, "origin": "search", "parent": None, "parent_step": None,
         "time": 130.0},
        {"event": "session", "time": 1000.0},
        {"event": "end", "trial": 0, "status": "finished", "reason": "", "steps_done": 1, "time": 1010.0},
    ]  # fmt: skip
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert archive.seconds_used() == 40.0
