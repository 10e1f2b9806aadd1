"""What a search checks before anything starts: config, recipe, space, objectives, room; and what it draws."""

import json

import moocore
import numpy as np
import pytest
from typer.testing import CliRunner

from pipelines.cli import app, main
from pipelines.model_points import ModelPoint
from pipelines.search import make_rules, make_searcher, minimum_steps, prepare
from pipelines.search_config import SearchConfig
from pipelines.search_frontier import search_frontier
from pipelines.search_goal import goal_of
from pipelines.search_resources import check_disk
from tune.archive import Archive, TrialLog, read_history
from tune.history import History, Point
from tune.objectives import Goal, Objective
from tune.space import Space
from unlearn_core.config import build_config
from unlearn_core.errors import UserError

RUN = {
    "name": "base",
    "data": {"benchmark": "synthetic:tiny", "forget": ["forget10"], "retain": ["retain90"], "format": "plain"},
    "method": {"name": "ngdiff"},
    "batch": {"rows": 4, "micro": 2},
    "steps": 20,
    "export_every": 5,
    "model": {"dtype": "fp32"},
}


@pytest.fixture
def recipe(tmp_path):
    """A training recipe as a file; returns its path and a function that changes it."""
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(RUN))
    return path


def config(path, **values):
    given = {"recipe": str(path), "methods": ["ngdiff", "npo"], "budget": {"trials": 3}} | values
    return build_config(SearchConfig, given)


def target(taught):
    return ModelPoint("target", str(taught), "target", "finetune", 0, "target")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"budget": {}}, "a search needs an end"),
        ({"methods": []}, "nothing varies"),
        ({"objectives": {"one": {"metric": "a"}}}, "no trade-off"),
        ({"densify": [0.5, 1.5]}, "between 0"),
        ({"searcher": {"name": "guess"}}, "searcher.name"),
        ({"serach": {}}, "unknown key"),
    ],
)
def test_a_config_that_cannot_be_searched(recipe, values, says):
    with pytest.raises(UserError, match=says):
        config(recipe, **values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"methods": ["ngdif"]}, "Did you mean 'ngdiff'"),
        ({"set": {"export_every": 0}}, "export_every"),
        ({"set": {"steps": -1}}, "steps"),
        ({"space": {"optimizer.lerning_rate": {"uniform": [0, 1]}}}, "lerning_rate"),
        ({"space": {"method.settings.beta": {"uniform": [0.1, 1.0]}}}, "beta"),  # NGDiff has none
        ({"methods": ["mean_teacher"]}, "generic"),  # its rows are not in the recipe
        ({"scoring": {"groups": ["strangers"]}}, "the suite has no strangers"),
        ({"recipe": "demo-finetune"}, "no training recipe"),
    ],
)
def test_a_mistake_is_found_before_a_worker_starts(recipe, taught, values, says):
    with pytest.raises(UserError, match=says):
        prepare(config(recipe, **values), target(taught), None)


def test_a_prepared_search_knows_steps_rules_and_searcher(recipe, taught):
    ready = prepare(config(recipe, set={"steps": 30, "optimizer": {"learning_rate": 1e-4}}), target(taught), None)
    assert ready.run.steps == 30 and ready.run.optimizer.learning_rate == 1e-4
    assert ready.run.optimizer.name == "adamw"  # other keys of the group stay
    assert minimum_steps(ready.run) == 10  # a fifth of 30 is 6, the next export 10
    searcher = make_searcher(ready.config, ready.space, History(), 30)
    rules = make_rules(ready.config, ready.run, searcher)
    assert [type(rule).__name__ for rule in rules] == ["OptimisticStop"] and rules[0].minimum == 10
    other = config(recipe, searcher={"name": "sobol"}, stopping={"asha": True, "minimum": 5})
    rules = make_rules(other, ready.run, make_searcher(other, ready.space, History(), 30))
    assert [type(rule).__name__ for rule in rules] == ["MultiObjectiveAsha"] and rules[0].minimum == 5


@pytest.mark.parametrize("name", ["trajectory", "random", "sobol", "tpe", "nsga2", "qlognehvi"])
def test_every_searcher_proposes_a_run_that_is_valid(recipe, taught, name):
    from pipelines.trial import run_config

    ready = prepare(config(recipe, searcher={"name": name}), target(taught), None)
    proposed = make_searcher(ready.config, ready.space, History(), 20).propose(0)
    assert run_config(ready.base, proposed, 0, 0).method.name in ("ngdiff", "npo")


class Suite:
    name = "tofu"
    columns = ("extraction_strength", "retain_Q_A_Prob", "retain_Truth_Ratio", "model_utility")


SCORES = {
    "target": {"extraction_strength": 0.9, "retain_Q_A_Prob": 0.8, "retain_Truth_Ratio": 0.4},
    "reference": {"extraction_strength": 0.1, "retain_Q_A_Prob": 0.7, "retain_Truth_Ratio": 0.5},
}


def test_objectives_take_their_scale_from_target_and_reference(recipe):
    usual = goal_of(config(recipe), Suite, SCORES).objectives
    assert [(one.name, one.direction, one.worst, one.best) for one in usual] == [
        ("utility", "higher", 0.0, pytest.approx(2 / (1 / 0.8 + 1 / 0.4))),
        ("forgetting", "target", 0.9, 0.1),
    ]
    alone = goal_of(config(recipe), Suite, {"target": SCORES["target"]}).objectives[1]
    assert (alone.direction, alone.worst, alone.best) == ("lower", 0.9, 0.0)
    own = {
        "kept": {"metric": "retain_Q_A_Prob", "worst": 0.5, "best": 0.75},
        "gone": {"metric": "extraction_strength", "direction": "lower"},
    }
    found = goal_of(
        config(recipe, objectives=own, constraints=[{"metric": "retain_Q_A_Prob", "low": 0.6}]), Suite, SCORES
    )
    assert found.values({"retain_Q_A_Prob": 0.6, "extraction_strength": 0.45}) == pytest.approx((0.4, 0.5))
    assert found.slacks({"retain_Q_A_Prob": 0.5}) == pytest.approx((-0.1,))


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("model_utility", "scoring.generate: true"),
        ("extraction_strength@nf4", r"scoring.quantised: \[nf4\]"),
        ("extraction", "name one of these"),
    ],
)
def test_a_metric_that_is_not_scored_says_how_to_have_it(recipe, metric, says):
    own = {"a": {"metric": metric}, "b": {"metric": "retain_Q_A_Prob"}}
    with pytest.raises(UserError, match=says):
        goal_of(config(recipe, objectives=own), Suite, SCORES)


def test_the_need_of_disk_is_told_and_refused_where_there_is_none(recipe, taught, tmp_path, monkeypatch):
    ready = prepare(config(recipe), target(taught), None)
    assert "free" in check_disk(tmp_path / "new" / "folder", target(taught), ready.run, 10, 2)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="Lower `keep`"):
        check_disk(tmp_path, target(taught), ready.run, 10, 2)


def run_cli(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_the_space_of_methods_is_printed_as_yaml_to_edit():
    import yaml

    result = run_cli("space", "composed", "npo")
    assert result.exit_code == 0
    data = yaml.safe_load(result.stdout)
    assert {"fixed"} != set(data["method.name"]) and data["method.name"]["choice"] == ["composed", "npo"]
    beta = data["method.settings.forget.settings.beta"]
    assert beta["when"] == {"method.name": ["composed"], "method.settings.forget.loss": ["npo"]}


def test_both_search_recipes_are_listed_and_valid(monkeypatch):
    from pipelines.runs import recipe_summary, recipes
    from unlearn_core.config import load_config

    for name in ("demo-search", "tofu-search"):
        assert recipe_summary(recipes()[name])[0] == "search"
        assert load_config(SearchConfig, recipes()[name]).methods


def test_the_command_line_tells_a_mistake_without_a_traceback(recipe, tmp_path, monkeypatch, capsys):
    command = ["unlearn", "search", "demo-search", "--target", "./nowhere", "-o", str(tmp_path / "o")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert "nowhere" in capsys.readouterr().err and not (tmp_path / "o").exists()


GOAL = Goal((Objective("utility", ("u",), "higher", 0, 1), Objective("forgetting", ("f",), "target", 1.0, 0.2)))


def a_search(folder, seed, searcher="random", goal=GOAL):
    about = {
        "name": folder.name,
        "fingerprint": folder.name,
        "goal": goal.to_data(),
        "searcher": {"name": searcher, "seed": seed, "told": "best"},
        "space": {
            "method.name": {"choice": ["ngdiff", "npo"]},
            "optimizer.learning_rate": {"log_uniform": [1e-5, 1e-3]},
            "method.settings.beta": {"uniform": [0, 1], "when": {"method.name": ["npo"]}},
        },
        "baseline": {"reference": {"u": 0.95, "f": 0.2}},
    }
    archive, space = Archive(folder, about), Space.from_data(about["space"])
    for number in range(12):
        trial = archive.start(space.decode(np.random.default_rng([seed, number]).random(3)), 0)
        pace = 1e4 * trial.config["optimizer.learning_rate"]
        for step in (2, 4, 6):
            metrics = {"u": float(np.exp(-0.05 * pace * step)), "f": float(np.exp(-0.3 * pace * step))}
            point = Point(number, step, GOAL.values(metrics), (), metrics, 1.0, 100.0 * number + step)
            TrialLog(folder, number).add(point)
            archive.history.record(point)
        archive.end(number, "finished")
    return folder


def test_searches_are_drawn_together_with_evaluated_runs(tmp_path):
    made = (("a", 0, "random"), ("b", 1, "random"), ("c", 2, "trajectory"))
    folders = [a_search(tmp_path / name, seed, who) for name, seed, who in made]
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    about = {"status": "complete", "suite": "tofu", "benchmark": "x", "forget_split": "forget10", "missing": {}}
    (evaluation / "evaluation.json").write_text(json.dumps(about))
    table = "model,run,method,step,role,path,variant,u,f\nr-1,r,npo,1,checkpoint,p,,0.9,0.5\n"
    (evaluation / "metrics.csv").write_text(table)
    summary = search_frontier([*folders, evaluation], tmp_path / "out")
    everything = [point.values for folder in folders for trial in read_history(folder) for point in trial.points]
    assert summary["hypervolume"] == pytest.approx(moocore.hypervolume(np.array(everything), ref=[0, 0], maximise=True))
    assert set(summary["searchers"]) == {"random", "trajectory"}
    low, high = summary["searchers"]["random"]["interval"]
    assert low <= summary["searchers"]["random"]["mean"] <= high
    assert set(summary["importance"]) == {"utility", "forgetting", "hypervolume"}
    for name in ("frontier", "hypervolume", "parallel", "importance"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000
        assert (tmp_path / "out" / f"{name}.svg").is_file()
    assert len((tmp_path / "out" / "frontier.csv").read_text().splitlines()) == 1 + 3 * 12 * 3


def test_searches_of_other_goals_are_not_drawn_together(tmp_path):
    other = Goal((GOAL.objectives[0], Objective("forgetting", ("f",), "target", 1.0, 0.3)))
    folders = [a_search(tmp_path / "a", 0), a_search(tmp_path / "b", 1, goal=other)]
    with pytest.raises(UserError, match="other objectives or scales"):
        search_frontier(folders, tmp_path / "out")
    result = run_cli("frontier", str(folders[0]), "--forgetting", "extraction_strength", "-o", str(tmp_path / "out"))
    assert isinstance(result.exception, UserError) and "own objectives" in str(result.exception)
    assert not (tmp_path / "out").exists()
