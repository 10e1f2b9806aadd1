"""Importance of hyper-parameters: who matters, who does not, and when nothing can be said."""

import numpy as np
import pytest

from tune.history import History, Point, Trial
from tune.importance import importance
from tune.objectives import Goal, Objective
from tune.space import Space

SPACE = Space.from_data(
    {
        "kind": {"choice": ["a", "b"]},
        "x": {"uniform": [0.0, 1.0]},
        "y": {"log_uniform": [0.01, 1.0]},
        "only_b": {"uniform": [0.0, 1.0], "when": {"kind": ["b"]}},
    }
)
GOAL = Goal((Objective("utility", ("u",), "higher", 0, 1), Objective("forgetting", ("f",), "higher", 0, 1)))


def history(count, utility=lambda c: c["x"], forgetting=lambda c: np.log10(c["y"]) / 2 + 1):
    trials = []
    for n in range(count):
        config = SPACE.decode(np.random.default_rng([5, n]).random(SPACE.dimension))
        values = (float(utility(config)), float(forgetting(config)))
        trials.append(Trial(n, config, points=[Point(n, 1, values)], status="finished"))
    return History(trials)


def test_the_parameter_that_moves_an_objective_has_the_share():
    shares, why_not = importance([history(40), history(40)], SPACE, GOAL)
    assert why_not == "" and set(shares) == {"utility", "forgetting", "hypervolume"}
    assert shares["utility"]["x"] > 0.8 and shares["forgetting"]["y"] > 0.8
    for found in shares.values():
        assert sum(found.values()) == pytest.approx(1.0) and set(found) == {"kind", "x", "y", "only_b [b]"}
    assert importance([history(40), history(40)], SPACE, GOAL)[0] == shares


def test_too_few_trials_or_equal_ones_say_why():
    assert importance([history(9)], SPACE, GOAL) == ({}, "9 trials have a scored step, and fewer than 10 say little")
    flat = history(20, lambda c: 0.5, lambda c: 0.5)
    assert importance([flat], SPACE, GOAL) == ({}, "all trials are worth the same")
    one = Space.from_data({"x": {"uniform": [0.0, 1.0]}})
    trials = [Trial(n, {"x": n / 20}, points=[Point(n, 1, (0.5, 0.5))]) for n in range(20)]
    assert importance([History(trials)], one, GOAL)[1].startswith("one hyper-parameter")
