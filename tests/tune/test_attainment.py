"""Attainment surfaces, hypervolumes over searches and steps, and re-runs, by hand."""

import numpy as np
import pytest

from tune.attainment import attainment_surfaces, hypervolume_curve, hypervolume_summary, rerun_spread
from tune.history import History, Point, Trial
from unlearn_core.errors import UserError

NAN = float("nan")


def search_of(*values, **more):
    """A search of one trial per value, one step each."""
    history = History()
    for number, one in enumerate(values):
        history.add(Trial(number, {}))
        history.record(Point(number, 1, one, **more))
        history.end(number, "finished")
    return history


def test_attainment_surfaces_of_four_searches():
    searches = [search_of((0.9, 0.2), (0.4, 0.6), (0.3, 0.3)), search_of((0.5, 0.5)), search_of((0.2, 0.9)), History()]
    surfaces = attainment_surfaces(searches)
    # By one of four: the front of all. By two: what two staircases share. By three: what the first three share.
    np.testing.assert_allclose(surfaces[25], [(0.9, 0.2), (0.5, 0.5), (0.4, 0.6), (0.2, 0.9)])
    np.testing.assert_allclose(surfaces[50], [(0.5, 0.2), (0.4, 0.5), (0.2, 0.6)])
    np.testing.assert_allclose(surfaces[75], [(0.2, 0.5)])
    # All four attain nothing, for one has no front.
    assert attainment_surfaces(searches, [100])[100].shape == (0, 2)


def test_attainment_in_three_objectives_and_of_infeasible_points():
    surfaces = attainment_surfaces([search_of((0.9, 0.2, 0.5)), search_of((0.5, 0.5, 0.1))], [50, 75])
    np.testing.assert_allclose(surfaces[75], [(0.5, 0.2, 0.1)])
    np.testing.assert_allclose(surfaces[50], [(0.9, 0.2, 0.5), (0.5, 0.5, 0.1)])
    with pytest.raises(UserError, match="2 or 3 objectives with a front"):
        attainment_surfaces([search_of((0.9, 0.9), slacks=(-1.0,))])
    with pytest.raises(UserError, match=r"with \[2, 3\] objectives"):
        attainment_surfaces([search_of((0.9, 0.9)), search_of((0.9, 0.9, 0.9))])


def test_hypervolume_over_searches():
    # 0.9*0.2 + 0.4*(0.6-0.2) = 0.34; 0.25; nothing.
    searches = [search_of((0.9, 0.2), (0.4, 0.6)), search_of((0.5, 0.5), (0.8, 0.0)), History()]
    found = hypervolume_summary(searches)
    assert found.each == pytest.approx((0.34, 0.25, 0.0))
    assert found.mean == pytest.approx(0.59 / 3)
    # Of 27 equally likely resamples one is three times the worst (3.7 % > 2.5 %), one three times the best.
    assert (found.low, found.high) == pytest.approx((0.0, 0.34))
    assert found == hypervolume_summary(searches)
    # At 60 % the ends are the 20th and 80th percentile of the 27 means: the 6th (5/27 < 0.2 < 6/27) and the 22nd.
    sums = sorted((a + b + c) / 3 for a in found.each for b in found.each for c in found.each)
    middle = hypervolume_summary(searches, level=0.6)
    assert (middle.low, middle.high) == pytest.approx((sums[5], sums[21]))


def test_one_search_has_no_interval_and_none_is_an_error():
    found = hypervolume_summary([search_of((0.5, 0.5))])
    assert (found.each, found.mean, found.low, found.high) == ((0.25,), 0.25, None, None)
    with pytest.raises(UserError, match="at least one"):
        hypervolume_summary([])


def test_hypervolume_against_steps():
    history = History([Trial(0, {}), Trial(1, {}), Trial(2, {}, origin="densify"), Trial(3, {}, origin="rerun")])
    for trial, step, values, time in [
        (0, 5, (0.5, 0.5), 1.0),
        (1, 2, (NAN, 0.9), 2.0),
        (0, 10, (0.4, 0.4), 3.0),
        (2, 1, (0.8, 0.2), 4.0),
        (1, 8, (0.2, 0.9), 5.0),
        (3, 5, (1.0, 1.0), 6.0),
    ]:
        history.record(Point(trial, step, values, time=time))
    history.end(1, "diverged", steps_done=11)
    rows = [
        (0, 0),
        (5, 0.25),
        (7, 0.25),  # not scored: its steps count
        (12, 0.25),  # dominated
        (12, 0.25 + 0.3 * 0.2),  # an edit costs no step
        (18, 0.31 + 0.2 * 0.4),
        (21, 0.39),  # three steps after the last point; the re-run is left out
    ]
    np.testing.assert_allclose(hypervolume_curve(history), rows)
    np.testing.assert_allclose(hypervolume_curve(History()), [(0, 0), (0, 0)])


def test_reruns_of_front_members():
    history = search_of((0.9, 0.2), (0.4, 0.6), (0.1, 0.1))
    history.record(Point(0, 3, (0.3, 0.8)))  # trial 0 has two members
    runs = [
        (3, 0, 1, {1: (0.8, 0.2)}, "finished"),
        (4, 0, 1, {1: (0.6, 0.3)}, "finished"),
        (5, 0, 1, {}, "diverged"),
        (6, 0, 3, {1: (0.0, 0.0), 3: (0.3, 0.7)}, "finished"),
        (7, 1, 1, {}, "running"),
    ]
    for number, parent, step, points, status in runs:
        history.add(Trial(number, {}, origin="rerun", parent=parent, parent_step=step))
        for at, values in points.items():
            history.record(Point(number, at, values))
        history.end(number, status)
    found = rerun_spread(history)
    assert [(one.point.trial, one.point.step) for one in found.members] == [(0, 1), (0, 3)]
    first, second = found.members
    assert first.mean == pytest.approx((0.7, 0.25)) and first.without == 1 and first.infeasible == 0
    assert first.deviation == pytest.approx((0.1 * 2**0.5, 0.05 * 2**0.5))  # half the distance of two, times sqrt 2
    assert second.mean == (0.3, 0.7) and second.deviation is None and second.without == 0
    # 0.7*0.25 + 0.3*(0.7-0.25) and 0.9*0.2 + 0.3*(0.8-0.2).
    assert found.hypervolume == pytest.approx(0.31) and found.hypervolume_seen == pytest.approx(0.36)
    assert rerun_spread(search_of((0.9, 0.2))).members == ()
