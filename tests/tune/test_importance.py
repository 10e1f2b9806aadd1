"""Importance of hyper-parameters where it is known beforehand."""

import numpy as np
import pytest

from tune.history import History, Point, Trial
from tune.importance import _counts_for, importance
from tune.random_search import uniform_units
from tune.space import Space

NAN = float("nan")
FLAT = Space.from_data({"x": {"uniform": [0, 1]}, "y": {"log_uniform": [1, 10]}, "c": {"choice": [None, [1], "z"]}})
CONDITIONAL = Space.from_data(
    {
        "method": {"choice": ["a", "b"]},
        "rate": [
            {"uniform": [0, 1], "when": {"method": ["a"]}},
            {"uniform": [0, 1], "when": {"method": ["b"]}},
        ],
        "other": {"uniform": [0, 1]},
    }
)


def history_of(space, values, trials=60):
    history = History()
    for number, unit_D in enumerate(uniform_units(trials, space.dimension, 1)):
        config = space.decode(unit_D)
        history.add(Trial(number, config))
        history.record(Point(number, 1, values(config)))
        history.end(number, "finished")
    return history


def test_each_objective_names_what_moves_it():
    history = history_of(FLAT, lambda c: (0.1 + 0.8 * c["x"], 0.9 if c["c"] == [1] else 0.2))
    found = importance(history, FLAT, ("utility", "forgetting"))
    assert found.trials == 60 and found.reason == ""
    assert set(found.shares) == {"utility", "forgetting", "hypervolume"}
    for shares in found.shares.values():
        assert set(shares) == {"x", "y", "c"} and sum(shares.values()) == pytest.approx(1)
        assert min(shares.values()) >= 0
    assert found.shares["utility"]["x"] > 0.9
    assert found.shares["forgetting"]["c"] > 0.9
    assert found.shares["hypervolume"]["y"] < 0.1
    assert found == importance(history, FLAT, ("utility", "forgetting"))


def test_a_conditional_parameter_counts_where_it_is_active():
    # Method a: 0.2 + 0.6 rate, 0.5 on average; method b: 0.5 whatever its rate. So the method itself moves nothing.
    history = history_of(CONDITIONAL, lambda c: (0.2 + 0.6 * c["rate"] if c["method"] == "a" else 0.5, 0.5), 80)
    shares = importance(history, CONDITIONAL, ("utility", "forgetting")).shares["utility"]
    assert set(shares) == {"method", "rate [a]", "rate [b]", "other"}
    assert shares["rate [a]"] > 0.7
    assert max(shares["rate [b]"], shares["other"], shares["method"]) < 0.2


def test_an_objective_that_does_not_move_is_absent_with_a_reason():
    found = importance(history_of(FLAT, lambda c: (c["x"], 0.5)), FLAT, ("utility", "forgetting"))
    assert set(found.shares) == {"utility", "hypervolume"}
    assert found.reason == "no parameter moved forgetting"


def test_too_few_trials_give_a_reason():
    found = importance(history_of(FLAT, lambda c: (c["x"], 0.5), 9), FLAT, ("utility", "forgetting"))
    assert found.shares == {} and found.trials == 9
    assert found.reason == "9 trials count so far; 10 are needed"


def trial_of(points, status="finished", slacks=()):
    trial = Trial(0, {}, status=status)
    trial.points = [Point(0, step, values, slacks) for step, values in points.items()]
    return trial


def test_what_a_trial_counts_for():
    # Products 0.18, 0.36, 0.16; volume of the staircase 0.9*0.2 + 0.6*(0.6-0.2) + 0.2*(0.8-0.6) = 0.46.
    row = _counts_for(trial_of({1: (0.9, 0.2), 2: (0.6, 0.6), 3: (0.2, 0.8)}), 2)
    assert row == pytest.approx([0.6, 0.6, 0.46])
    assert _counts_for(trial_of({1: (0.9, 0.9)}, slacks=(-0.1,)), 2) == [0, 0, 0]
    assert _counts_for(trial_of({}, "diverged"), 2) == [0, 0, 0]
    assert _counts_for(trial_of({1: (NAN, 0.9)}, "failed"), 2) is None
    assert _counts_for(trial_of({1: (0.5, 0.9)}, "running"), 2) is None
    assert np.isfinite(_counts_for(trial_of({1: (NAN, 0.9), 2: (0.5, 0.5)}, "diverged"), 2)).all()
