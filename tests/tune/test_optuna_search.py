"""Optuna's samplers over the archive: what the study is told, and that a restart changes nothing."""

import math
import warnings
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tune.history import History, Point, Trial
from tune.optuna_search import POPULATION, OptunaSearcher
from tune.random_search import RandomSearcher
from tune.space import Space
from tune.told import told_trials

NAN = float("nan")
SPACE = Space.from_data(
    {
        "method": {"choice": ["a", "b"]},
        "rate": [
            {"log_uniform": [1e-5, 1e-1], "when": {"method": ["a"]}},
            {"log_uniform": [1e-3, 1e1], "when": {"method": ["b"]}},
        ],
        "layers": {"int_uniform": [1, 8], "when": {"method": ["b"]}},
        "momentum": {"fixed": 0.0, "when": {"method": ["a"]}},
        "what": {"choice": [None, True, [1, 2]]},
        "weight": {"uniform": [0.0, 1.0]},
    }
)


def trajectory(config: dict[str, Any]) -> list[tuple[float, float]]:
    """Forgetting rises and utility falls with rate and step; method b and `what` cost utility, `weight` trades."""
    off = math.log10(config["rate"]) - (-3.0 if config["method"] == "a" else -1.0)
    cost = 0.2 * abs(off) + {"None": 0.0, "True": 0.1}.get(str(config["what"]), 0.2)
    cost += 0.0 if config["method"] == "a" else 0.2 + 0.02 * abs(config["layers"] - 5)
    points = []
    for step in range(1, 6):
        forgotten = 1 - math.exp(-0.6 * step * 10**off)
        kept = 1 - cost - (0.2 + 0.6 * config["weight"]) * forgotten**2
        points.append((max(0.0, forgotten * (0.6 + 0.4 * config["weight"])), max(0.0, kept)))
    return points


def play(make, trials: int, history: History | None = None, fresh: bool = False) -> History:
    history = History() if history is None else history
    searcher = make(history)
    for number in range(history.next_number, trials):
        searcher = make(history) if fresh else searcher
        history.add(Trial(number, searcher.propose(number)))
        for step, values in enumerate(trajectory(history.trials[number].config), start=1):
            history.record(Point(number, step, values))
        history.end(number, "finished")
    return history


def searcher_of(history, seed=0, **settings):
    return OptunaSearcher(SPACE, history, seed, 5, **settings)


def one_trial(history, number, points, status="finished", slacks=(), **config):
    full = {"method": "a", "rate": 1e-3, "momentum": 0.0, "what": None, "weight": 0.5} | config
    history.add(Trial(number, full))
    for step, values in points.items():
        history.record(Point(number, step, values, slacks))
    history.end(number, status)


def test_what_a_trial_is_told():
    history = History()
    # Beside (0.5, 0.5) trial 0 adds at step 1 (0.9-0.5)*0.2 = 0.08, step 2 0.2*0.6 - 0.1 = 0.11 and step 3 nothing.
    one_trial(history, 0, {1: (0.9, 0.2), 2: (0.6, 0.6), 3: (0.4, 0.4)})
    one_trial(history, 1, {1: (0.5, 0.5)})
    one_trial(history, 2, {1: (0.3, 0.3), 2: (NAN, 0.3)}, "diverged")
    one_trial(history, 3, {}, "diverged")
    one_trial(history, 4, {}, "failed")
    one_trial(history, 5, {1: (NAN, 0.1)}, "finished")
    one_trial(history, 6, {}, "out_of_memory")
    one_trial(history, 7, {1: (0.1, 0.1)}, "running")
    best = {one.trial.number: one for one in told_trials(history, "best")}
    zero = (0.0, 0.0)
    expected = {0: (0.6, 0.6), 1: (0.5, 0.5), 2: (0.3, 0.3), 3: zero, 6: zero}
    assert {number: one.values for number, one in best.items()} == expected
    assert [point.step for point in best[0].further] == [1] and not best[1].further
    final = {one.trial.number: one.values for one in told_trials(history, "final")}
    assert final == {0: (0.4, 0.4), 1: (0.5, 0.5), 2: zero, 3: zero, 6: zero}


def test_the_study_holds_ended_running_and_failed_trials():
    history = History()
    one_trial(history, 0, {1: (0.9, 0.2), 2: (0.6, 0.6)})
    one_trial(history, 1, {}, "failed", method="b", rate=0.1, layers=3, what=[1, 2])
    one_trial(history, 2, {}, "diverged")
    one_trial(history, 3, {1: (0.3, 0.3)}, "running", what=True)
    history.trials[1].config.pop("momentum")
    frozen = searcher_of(history)._study().get_trials()
    assert [(t.state, t.values) for t in frozen] == [
        (TrialState.COMPLETE, [0.6, 0.6]),
        (TrialState.COMPLETE, [0.9, 0.2]),
        (TrialState.FAIL, None),
        (TrialState.COMPLETE, [0.0, 0.0]),
        (TrialState.RUNNING, None),
    ]
    # A choice is its place among the options; only active domains are there, fixed ones are not.
    assert frozen[2].params == {"method": 1, "rate [b]": 0.1, "layers [b]": 3, "what": 2, "weight": 0.5}
    assert frozen[4].params == {"method": 0, "rate [a]": 1e-3, "what": 1, "weight": 0.5}
    states = [t.state for t in searcher_of(history, sampler="nsga2")._study().get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE, TrialState.RUNNING]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_constraints_reach_optuna_turned_round(sampler):
    history = History()
    one_trial(history, 0, {1: (0.9, 0.9), 2: (0.8, 0.8)}, slacks=(-0.5, 0.1))
    one_trial(history, 1, {1: (0.1, 0.1)}, slacks=(0.2, 0.0))
    one_trial(history, 2, {}, "diverged")
    frozen = searcher_of(history, sampler=sampler)._study().get_trials()
    assert [tuple(t.constraints.values()) for t in frozen] == [(0.5, -0.1), (-0.2, 0.0), (1.0, 1.0)]
    assert [t.values for t in searcher_of(history, sampler=sampler)._study().best_trials] == [[0.1, 0.1]]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
@pytest.mark.parametrize("told", ["best", "final"])
def test_a_restarted_search_goes_on_as_if_it_had_not_stopped(sampler, told):
    def make(history):
        return searcher_of(history, seed=3, sampler=sampler, told=told)

    whole = [trial.config for trial in play(make, 26)]
    assert whole == [trial.config for trial in play(make, 26, fresh=True)]
    assert len({str(config) for config in whole}) == 26
    assert whole[:3] != [trial.config for trial in play(lambda h: searcher_of(h, seed=4, sampler=sampler), 3)]
    for config in whole:
        SPACE.encode(config)  # raises for a config outside the space


def test_generations_evolve_in_a_rebuilt_study():
    history = play(lambda h: searcher_of(h, sampler="nsga2"), 3 * POPULATION + 2)
    study = searcher_of(history, sampler="nsga2")._study()
    key = "NSGAIISampler:generation"
    generations = [trial.system_attrs[key] for trial in study.get_trials()]
    assert generations == [n // POPULATION for n in range(3 * POPULATION + 2)]
    # What every trial has is inherited from the parents, mutation and first draws apart.
    first = {history.trials[n].config["weight"] for n in range(POPULATION)}
    second = [history.trials[n].config["weight"] for n in range(POPULATION, 2 * POPULATION)]
    assert sum(weight in first for weight in second) >= POPULATION // 3


def test_a_running_trial_changes_the_next_proposal_of_tpe():
    history = play(searcher_of, 14)
    number = history.next_number
    alone = searcher_of(history).propose(number)
    # A neighbour of it, so that the proposal is not merely avoided as known; with the same draws it is now bad ground.
    history.add(Trial(number, alone | {"weight": min(1.0, alone["weight"] + 1e-6)}))
    assert searcher_of(history).propose(number) != alone


def test_a_configuration_is_not_run_twice():
    space = Space.from_data({"k": {"int_uniform": [1, 6]}})
    history = History()
    searcher = OptunaSearcher(space, history, 0, 1)
    for number in range(6):
        history.add(Trial(number, searcher.propose(number)))
        history.record(Point(number, 1, (0.1 * history.trials[number].config["k"], 0.5)))
        history.end(number, "finished")
    assert sorted(trial.config["k"] for trial in history) == [1, 2, 3, 4, 5, 6]
    assert searcher.propose(6)["k"] in range(1, 7)  # nothing new is left


def test_three_objectives_and_no_objective_yet():
    history = History()
    one_trial(history, 0, {}, "failed")
    assert SPACE.encode(searcher_of(history).propose(1)).shape == (6,)
    for number in range(1, 14):
        one_trial(history, number, {1: (0.1 * number, 0.5, 1 - 0.05 * number)}, weight=0.05 * number)
    for sampler in ("tpe", "nsga2"):
        assert SPACE.encode(searcher_of(history, sampler=sampler).propose(14)).shape == (6,)


def test_it_says_nothing_and_leaves_optunas_verbosity_alone(capsys):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play(searcher_of, 12)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    output = capsys.readouterr()
    assert output.out == "" and output.err == ""


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 40), ("nsga2", 60)])
def test_better_than_random_on_a_toy(sampler, trials):
    seeds = range(4)
    ours = sum(play(lambda h, s=s: searcher_of(h, s, sampler=sampler), trials).hypervolume() for s in seeds)
    random = sum(play(lambda h, s=s: RandomSearcher(SPACE, h, s, 5), trials).hypervolume() for s in seeds)
    assert ours > random
