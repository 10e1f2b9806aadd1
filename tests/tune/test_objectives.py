"""Objectives and constraints: hand-worked values, and hypervolume against moocore."""

import json
import math

import moocore
import numpy as np
import pytest

from tune.objectives import Constraint, Goal, Objective, hypervolume
from unlearn_core.errors import UserError

UTILITY = Objective("utility", ("a", "b"), "higher", 0.2, 0.7)
LOWER = Objective("leak", ("c",), "lower", 0.9, 0.1)
TARGET = Objective("forgetting", ("d",), "target", 1.0, 0.2)


def test_values_by_hand():
    assert UTILITY.value({"a": 0.6, "b": 0.3}) == pytest.approx((0.4 - 0.2) / 0.5)  # harmonic mean 0.4
    assert UTILITY.value({"a": 0.6, "b": 0.0}) == 0.0
    assert UTILITY.value({"a": 0.9, "b": 0.9}) == pytest.approx(1.4)
    assert LOWER.value({"c": 0.5}) == pytest.approx(0.5) and LOWER.value({"c": 1.0}) == 0.0
    assert [TARGET.value({"d": d}) for d in (1.0, 0.2, 0.6, 0.0)] == pytest.approx([0.0, 1.0, 0.5, 0.75])
    assert math.isnan(UTILITY.value({"a": 0.6})) and math.isnan(TARGET.value({"d": math.inf}))


@pytest.mark.parametrize(
    ("direction", "worst", "best"), [("higher", 1, 1), ("higher", 1, 0), ("lower", 0, 1), ("target", 1, 1)]
)
def test_a_scale_that_spans_nothing_is_refused(direction, worst, best):
    with pytest.raises(UserError, match="span nothing"):
        Objective("x", ("a",), direction, worst, best)


def test_constraints_by_hand():
    bound = Constraint("q", 0.2, 0.5)
    assert [bound.slack({"q": q}) for q in (0.1, 0.25, 0.6)] == pytest.approx([-0.1, 0.05, -0.1])
    assert math.isnan(bound.slack({}))
    with pytest.raises(UserError, match="low, high or both"):
        Constraint("q")
    with pytest.raises(UserError, match="holds no number"):
        Constraint("q", 1.0, 0.0)


def test_a_goal_survives_json():
    goal = Goal((UTILITY, TARGET), (Constraint("q", high=0.5),))
    assert Goal.from_data(json.loads(json.dumps(goal.to_data(), allow_nan=False))) == goal
    assert goal.columns == ("a", "b", "d", "q")
    assert goal.missing({"a": 1.0, "b": math.nan, "d": 1.0}) == ["b", "q"]
    with pytest.raises(UserError, match="two objectives"):
        Goal((UTILITY,))


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_is_moocores(objectives):
    rng = np.random.default_rng(objectives)
    for count in (1, 2, 30):
        points_NM = rng.uniform(-0.2, 1.2, (count, objectives))
        inside_NM = points_NM[(points_NM > 0).all(axis=1)]
        expected = moocore.hypervolume(inside_NM, ref=np.zeros(objectives), maximise=True) if len(inside_NM) else 0.0
        assert hypervolume(points_NM) == pytest.approx(expected, rel=1e-12)
    assert hypervolume(np.zeros((0, objectives))) == 0.0
