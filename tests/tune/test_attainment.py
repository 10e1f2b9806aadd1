"""What is reported of searches, by hand."""

import numpy as np
import pytest

from tune.attainment import (
    attainment_surfaces,
    bootstrap_interval,
    hypervolume_curve,
    reported_hypervolume,
    rerun_spread,
)
from tune.history import History, Point, Trial


def point(trial, step, x, y, time=0.0, slack=0.0):
    return Point(trial, step, (x, y), (slack,), {}, 0.0, time)


def test_surfaces_of_two_searches():
    """A attains (1, 1) and (2, 0.5); B attains (0.5, 2) and (1.5, 0.7)."""
    a, b = np.array([[1.0, 1.0], [2.0, 0.5]]), np.array([[0.5, 2.0], [1.5, 0.7]])
    surfaces = attainment_surfaces([a, b], (50, 100))
    # Half the searches: what either attained. All: what both did.
    assert surfaces[50].tolist() == [[0.5, 2.0], [1.0, 1.0], [1.5, 0.7], [2.0, 0.5]]
    assert surfaces[100].tolist() == [[0.5, 1.0], [1.0, 0.7], [1.5, 0.5]]


def test_the_curve_counts_steps_of_all_trials_in_the_order_recorded():
    history = History([Trial(0, {}), Trial(1, {}), Trial(2, {}, origin="rerun", parent=0)])
    told = [
        point(0, 2, 0.5, 0.5, time=1),
        point(1, 2, 0.2, 0.9, time=2),
        point(0, 4, 0.9, 0.1, time=3, slack=-1.0),  # breaks a bound: its steps count, its values do not
        point(1, 4, 0.6, 0.6, time=4),
        point(2, 4, 1.0, 1.0, time=2.5),
    ]
    for one in reversed(told):
        history.record(one)
    history.end(0, "diverged", steps_done=5)
    steps, volume = hypervolume_curve(history)
    assert steps.tolist() == [2, 4, 6, 8, 9]
    assert volume == pytest.approx([0.25, 0.25 + 0.2 * 0.4, 0.33, 0.36 + 0.2 * 0.3, 0.42])
    assert reported_hypervolume(history.points()) == pytest.approx(0.42)
    empty = hypervolume_curve(History())
    assert empty[0].tolist() == [0.0] and empty[1].tolist() == [0.0]


def test_spread_of_reruns_leaves_the_member_itself_out():
    member = point(0, 4, 0.9, 0.9)
    reruns = [Trial(n, {}, n, "rerun", 0, 4, [point(n, 4, x, 0.5)], "finished") for n, x in ((1, 0.4), (2, 0.6))]
    lost = Trial(3, {}, 3, "rerun", 0, 4, [], "diverged")
    other = Trial(4, {}, 4, "rerun", 0, 2, [point(4, 2, 0.1, 0.1)], "finished")
    history = History([Trial(0, {}, points=[member]), *reruns, lost, other])
    found = rerun_spread(history, member)
    assert found["mean"] == pytest.approx([0.5, 0.5]) and found["deviation"] == pytest.approx([0.02**0.5, 0.0])
    assert (found["seeds"], found["failed"]) == (2, 1)
    assert rerun_spread(history, point(0, 3, 0.5, 0.5)) is None


def test_bootstrap_interval():
    assert bootstrap_interval([0.5]) == (0.5, 0.5)
    low, high = bootstrap_interval([0.0, 1.0] * 50)
    assert low == pytest.approx(0.4, abs=0.02) and high == pytest.approx(0.6, abs=0.02)
