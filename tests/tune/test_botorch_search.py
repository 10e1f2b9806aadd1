"""Noisy expected hypervolume improvement over a space with conditions."""

import logging

import numpy as np
import pytest
import torch

import tune.botorch_search
from tune.botorch_search import NoisyHypervolumeSearcher, _columns
from tune.history import History, Point, Trial
from tune.random_search import RandomSearcher
from tune.space import Space

LINE = Space.from_data({"x": {"uniform": [0.0, 1.0]}})
MIXED = Space.from_data(
    {
        "method": {"choice": ["a", "b"]},
        "rate": [
            {"log_uniform": [1e-5, 1e-1], "when": {"method": ["a"]}},
            {"log_uniform": [1e-3, 1e1], "when": {"method": ["b"]}},
        ],
        "layers": {"int_uniform": [1, 8], "when": {"method": ["b"]}},
        "what": {"choice": [None, True, [1, 2]]},
        "weight": {"uniform": [0.0, 1.0]},
    }
)


def trade(unit_D):
    """A front along the last coordinate; every other one costs both objectives away from 0.3."""
    loss = float(np.sum((np.asarray(unit_D)[:-1] - 0.3) ** 2))
    last = float(unit_D[-1])
    return (max(0.0, last - loss), max(0.0, 1 - last**2 - loss))


def play(make, space, trials, slack=None):
    history = History()
    for number in range(trials):
        history.add(Trial(number, make(history).propose(number)))
        unit_D = space.encode(history.trials[number].config)
        history.record(Point(number, 1, trade(unit_D), () if slack is None else (slack(unit_D),)))
        history.end(number, "finished")
    return history


def line_history(xs, values, slacks=None):
    history = History()
    for number, (x, pair) in enumerate(zip(xs, values, strict=True)):
        history.add(Trial(number, {"x": x}))
        history.record(Point(number, 1, pair, () if slacks is None else (slacks[number],)))
        history.end(number, "finished")
    return history


def test_the_first_trials_are_a_sobol_sequence():
    history = History()
    ours = [NoisyHypervolumeSearcher(MIXED, history, 3, 5).propose(n) for n in range(4)]
    assert ours == [RandomSearcher(MIXED, history, 3, 5, kind="sobol").propose(n) for n in range(4)]


def test_restarted_and_uninterrupted_searches_agree_in_a_space_with_conditions():
    torch.manual_seed(1)
    whole = History()
    kept = NoisyHypervolumeSearcher(MIXED, whole, 0, 5, initial=6)
    play_kept = [trial.config for trial in _play_into(kept, whole, 10)]
    torch.manual_seed(2)  # the caller's generator has no part in it
    state = torch.get_rng_state()
    fresh = play(lambda h: NoisyHypervolumeSearcher(MIXED, h, 0, 5, initial=6), MIXED, 10)
    assert torch.equal(state, torch.get_rng_state())
    assert play_kept == [trial.config for trial in fresh]
    assert len({str(config) for config in play_kept}) == 10
    for config in play_kept:
        MIXED.encode(config)  # raises for a config outside the space


def _play_into(searcher, history, trials):
    for number in range(trials):
        history.add(Trial(number, searcher.propose(number)))
        history.record(Point(number, 1, trade(MIXED.encode(history.trials[number].config))))
        history.end(number, "finished")
    return list(history)


def test_it_fills_the_gap_of_a_front_and_leaves_running_trials_their_place():
    # A linear front with a hole from 0.4 to 1: the gain of x there is (1 - x)(x - 0.4), greatest at 0.7.
    xs = [0.0, 0.1, 0.2, 0.3, 0.4, 1.0]
    history = line_history(xs, [(x, 1 - x) for x in xs])
    first = NoisyHypervolumeSearcher(LINE, history, 0, 1).propose(6)["x"]
    assert first == pytest.approx(0.7, abs=0.05)
    history.add(Trial(6, {"x": 0.7}))
    second = NoisyHypervolumeSearcher(LINE, history, 0, 1).propose(7)["x"]
    # With 0.7 taken, two gaps of 0.3 are left, greatest at 0.55 and 0.85.
    assert min(abs(second - 0.55), abs(second - 0.85)) < 0.05


def test_a_constraint_is_kept():
    # The same hole, but x above 0.5 breaks the constraint, by thousands.
    xs = [0.0, 0.1, 0.2, 0.3, 0.4, 0.8, 1.0]
    history = line_history(xs, [(x, 1 - x) for x in xs], [1e3 * (0.5 - x) for x in xs])
    assert 0.4 < NoisyHypervolumeSearcher(LINE, history, 0, 1).propose(7)["x"] <= 0.51


def test_no_feasible_trial_yet():
    xs = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    history = line_history(xs, [(x, 1 - x) for x in xs], [0.4 - x for x in xs])
    assert NoisyHypervolumeSearcher(LINE, history, 0, 1).propose(6)["x"] < 0.5


def test_diverged_trials_push_away_and_failed_ones_are_left_out():
    xs = [0.0, 0.15, 0.3, 0.45, 0.6]
    history = line_history(xs, [(0.5 + 0.3 * x, 0.9 - 0.2 * x) for x in xs])
    for number, (x, status) in enumerate([(0.7, "diverged"), (0.8, "out_of_memory"), (0.9, "diverged")], start=5):
        history.add(Trial(number, {"x": x}))
        history.end(number, status)
    history.add(Trial(8, {"x": 0.2}))
    history.record(Point(8, 1, (float("nan"), 0.4)))
    history.end(8, "failed")
    assert NoisyHypervolumeSearcher(LINE, history, 0, 1).propose(9)["x"] < 0.7


@pytest.mark.parametrize("values", [[(0.0, 0.0)] * 6, [(0.5, 0.5)] * 6])
def test_constant_objectives_do_not_stop_it(values):
    history = line_history([0.0, 0.1, 0.2, 0.3, 0.4, 1.0], values)
    assert 0 <= NoisyHypervolumeSearcher(LINE, history, 0, 1).propose(6)["x"] <= 1


def test_three_objectives():
    xs = [0.0, 0.1, 0.2, 0.5, 0.8, 1.0]
    history = line_history(xs, [(x, 1 - x, 0.5 + x * (1 - x)) for x in xs])
    assert 0 <= NoisyHypervolumeSearcher(LINE, history, 0, 1).propose(6)["x"] <= 1


def test_a_small_space_is_searched_through():
    space = Space.from_data({"k": {"int_uniform": [1, 7]}, "c": {"choice": ["only"]}})
    history = play(lambda h: NoisyHypervolumeSearcher(space, h, 0, 1, initial=3), space, 8)
    assert {trial.config["k"] for trial in history} >= {5, 6, 7}
    assert len({trial.config["k"] for trial in history if trial.number >= 3} | {1}) >= 5


def test_a_fit_that_breaks_down_is_said_and_the_sobol_point_taken(monkeypatch, caplog):
    def broken(*_):
        raise torch.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr(tune.botorch_search, "_fitted", broken)
    xs = [0.0, 0.1, 0.2, 0.3, 0.4, 1.0]
    history = line_history(xs, [(x, 1 - x) for x in xs])
    with caplog.at_level(logging.WARNING):
        config = NoisyHypervolumeSearcher(LINE, history, 0, 1).propose(6)
    assert config == RandomSearcher(LINE, history, 0, 1, kind="sobol").propose(6)
    assert "trial 6: no model of 6 trials (not positive definite)" in caplog.text


def test_columns_of_the_features():
    assert _columns(MIXED) == [None, 2, 3, 4, None, 8]
    assert MIXED.features(np.full((1, 6), 0.5)).shape == (1, 9)


def test_better_than_random_on_a_toy():
    space = Space.from_data({name: {"uniform": [0.0, 1.0]} for name in ("a", "b", "c")})
    ours = play(lambda h: NoisyHypervolumeSearcher(space, h, 0, 1), space, 18).hypervolume()
    random = max(play(lambda h, s=s: RandomSearcher(space, h, s, 1), space, 18).hypervolume() for s in range(5))
    assert ours > random
