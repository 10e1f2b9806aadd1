import math

import numpy as np
import pytest

from unlearn_core.errors import UserError
from unlearn_core.frontier import AXES, LOG10_FLOOR, axis, contributions, non_dominated, staircase_hypervolume

UP = (True, True)


def test_non_dominated_by_hand():
    # (1, 1) loses to (2, 2); (3, 1) and (2, 2) trade; (3, 0.5) loses to (3, 1) with a tie in the first objective.
    points = [(1, 1), (2, 2), (3, 1), (3, 0.5)]
    assert non_dominated(points, UP).tolist() == [False, True, True, False]
    assert non_dominated(points, (False, False)).tolist() == [True, False, False, True]
    assert non_dominated(points, (True, False)).tolist() == [False, False, False, True]


def test_non_dominated_keeps_all_copies_and_takes_three_objectives():
    points = [(1, 0, 0), (0, 1, 0), (0, 1, 0), (0, 0, 0), (0, 0.5, 0)]
    assert non_dominated(points, (True, True, True)).tolist() == [True, True, True, False, False]


def test_non_dominated_takes_none_and_one():
    assert non_dominated(np.zeros((0, 2)), UP).shape == (0,)
    assert non_dominated([], UP).shape == (0,)
    assert non_dominated([(0, 0)], UP).tolist() == [True]


def test_nan_is_refused_and_named():
    with pytest.raises(ValueError, match=r"points \[1\] hold NaN"):
        non_dominated([(1, 1), (math.nan, 1)], UP)
    for measure in (staircase_hypervolume, contributions):
        with pytest.raises(ValueError, match="NaN"):
            measure([(1, math.nan)], (0, 0), UP)
        with pytest.raises(ValueError, match="NaN"):
            measure([(1, 1)], (0, math.nan), UP)
        with pytest.raises(ValueError, match="infinite"):
            measure([(1, math.inf)], (0, 0), UP)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        non_dominated(np.zeros((2, 3)), UP)
    with pytest.raises(ValueError, match="directions"):
        staircase_hypervolume(np.zeros((2, 3)), (0, 0), UP)
    with pytest.raises(ValueError, match="two objectives"):
        staircase_hypervolume(np.zeros((2, 3)), (0, 0, 0), (True, True, True))


def test_staircase_by_hand():
    # Columns of width 1 at x = 0..1, 1..2, 2..3 with heights 3, 2, 1.
    points = [(1, 3), (2, 2), (3, 1)]
    assert staircase_hypervolume(points, (0, 0), UP) == 6.0
    assert staircase_hypervolume(points, (1, 0), UP) == 3.0  # (1, 3) is no longer beyond the reference
    assert staircase_hypervolume([*points, (1, 1), (2, 2)], (0, 0), UP) == 6.0
    assert staircase_hypervolume([(1, 3), (2, 2)], (4, 4), (False, False)) == 3 * 1 + 2 * 2 - 2 * 1
    assert staircase_hypervolume([(2, -1)], (0, 0), (True, False)) == 2.0


def test_points_not_beyond_the_reference_add_nothing():
    assert staircase_hypervolume([(5, 0), (0, 5), (-1, 9), (-2, -3)], (0, 0), UP) == 0.0
    assert staircase_hypervolume([], (0, 0), UP) == 0.0


def test_contributions_by_hand():
    # Without (2, 2) the dominated (1.5, 1.5) shows: 6 - 5.25 by columns 3, 1.5 (half wide), 1, 1.
    points = [(1, 3), (2, 2), (3, 1), (1.5, 1.5)]
    assert contributions(points, (0, 0), UP).tolist() == [1.0, 0.75, 1.0, 0.0]
    assert contributions([(1, 1), (1, 1)], (0, 0), UP).tolist() == [0.0, 0.0]
    assert contributions([], (0, 0), UP).shape == (0,)


@pytest.mark.parametrize("maximise", [(True, True), (False, False), (True, False), (False, True)])
def test_equals_moocore_on_random_sets(maximise):
    moocore = pytest.importorskip("moocore")
    rng = np.random.default_rng(20)
    for trial in range(50):
        points = rng.normal(size=(int(rng.integers(1, 40)), 2))
        if trial % 2:
            points = np.round(points, 1)  # ties and copies
        reference = rng.normal(size=2) * 0.5
        assert staircase_hypervolume(points, reference, maximise) == pytest.approx(
            moocore.hypervolume(points, ref=reference, maximise=maximise), abs=1e-12
        )
        np.testing.assert_allclose(
            contributions(points, reference, maximise),
            moocore.hv_contributions(points, reference, maximise=maximise, ignore_dominated=False),
            atol=1e-12,
        )
        np.testing.assert_array_equal(
            non_dominated(points, maximise), moocore.is_nondominated(points, maximise=maximise, keep_weakly=True)
        )


def test_axis_values_by_hand():
    assert AXES["extraction_strength"].value(0.25) == 0.75
    assert AXES["forget_Q_A_ROUGE"].value(1.0) == 0.0
    assert AXES["forget_truth_ratio"].value(0.6) == 0.6
    assert AXES["model_utility"].value(0.59) == 0.59
    quality = AXES["forget_quality"]
    assert quality.value(0.01) == pytest.approx(-2.0)
    assert quality.value(1e-239) == quality.value(0.0) == LOG10_FLOOR == quality.reference
    assert quality.value(1.0) == 0.0


@pytest.mark.parametrize("column", sorted(AXES))
def test_every_axis_rises_towards_better_within_its_limits(column):
    side = AXES[column]
    if side.direction == "zero":
        values = [side.value(number) for number in (-100.0, -60.0, 40.0, -1.0, 0.0)]
        assert values == pytest.approx([0.0, 0.4, 0.6, 0.99, 1.0])
        assert side.value(1e6) == 0.0
        return
    raw = np.linspace(*side.raw_limits, 7)
    values = [side.value(number) for number in (raw if side.direction == "higher" else raw[::-1])]
    assert values == sorted(values) and values[0] < values[-1]
    assert (values[0], values[-1]) == side.limits
    assert side.limits[0] <= side.reference < side.limits[1]


@pytest.mark.parametrize("raw", [math.nan, math.inf, -0.1, 1.1])
def test_axis_refuses_what_is_no_value(raw):
    with pytest.raises(ValueError, match=r"model_utility = .* is not a number in \[0, 1\]"):
        AXES["model_utility"].value(raw)


def test_rounding_beyond_the_limits_is_taken():
    assert AXES["extraction_strength"].value(1 + 1e-12) == 0.0


def test_unknown_axis_lists_the_valid_ones():
    with pytest.raises(UserError, match=r"'extraction_strenght'.*exact_memorization.*mean 'extraction_strength'"):
        axis("extraction_strenght", "forgetting")
    with pytest.raises(UserError, match="not a utility axis") as caught:
        axis("extraction_strength", "utility")
    assert "model_utility" in str(caught.value) and "forget_quality" not in str(caught.value)
