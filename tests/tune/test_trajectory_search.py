import logging
import math
from typing import Any

import numpy as np
import pytest
import torch

from tune import trajectory_gp, trajectory_search
from tune.history import History, Point, Status, Trial
from tune.improvement import Front, front_mask
from tune.objectives import hypervolume
from tune.random_search import RandomSearcher, sobol_units
from tune.searcher import TrajectorySearcher
from tune.space import Config, Space
from tune.trajectory_gp import ModelError, cholesky, fit, negative_log_posterior, start
from tune.trajectory_model import PER_TRIAL, TrajectoryModel, TrajectoryModels, chosen, milestone, thinned
from tune.trajectory_search import TrajectoryBayesSearcher, tehvi
from unlearn_core.frontier import non_dominated, staircase_hypervolume

STEPS = (10, 20, 40, 60, 80, 100)
PLANE = Space.from_data({"rate": {"log_uniform": [1e-4, 1.0]}, "other": {"uniform": [0.0, 1.0]}})
METHODS = Space.from_data(
    {
        "method": {"choice": ["slow", "fast"]},
        "rate": {"log_uniform": [1e-4, 1.0]},
        "beta": {"uniform": [0.0, 1.0], "when": {"method": ["fast"]}},
    }
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy(config: Config, step: int) -> tuple[float, float]:
    """What is forgotten grows with rate * step, and so does damage; best at other = 0.7."""
    travelled = config["rate"] * step
    off = (config.get("other", config.get("beta", 0.5)) - 0.7) ** 2
    return 1 - math.exp(-travelled), math.exp(-0.5 * travelled * (0.1 + 5 * off))


def play(history: History, config: Config, status: Status = "finished", steps=STEPS, slack=None) -> Trial:
    trial = Trial(history.next_number, config)
    history.add(trial)
    for step in steps:
        slacks = () if slack is None else (slack(config, step),)
        history.record(Point(trial.number, step, toy(config, step), slacks))
    if status != "running":
        history.end(trial.number, status)
    return trial


def filled(count: int, space: Space = PLANE, seed: int = 0, **how: Any) -> History:
    history = History()
    for unit_D in sobol_units(count, space.dimension, seed):
        play(history, space.decode(unit_D), **how)
    return history


def bayes(history: History, space: Space = PLANE, seed: int = 0) -> TrajectoryBayesSearcher:
    return TrajectoryBayesSearcher(space, history, seed, STEPS[-1])


# Hypervolume of many trajectories at once.


def test_a_trajectory_adds_what_sticks_out_of_the_staircase():
    front = Front(np.array([[1.0, 3.0], [2.0, 2.0], [4.0, 1.0], [0.5, 0.5]]))
    assert front.hypervolume == 3 + 2 + 2
    trajectories_RTM = torch.tensor(
        [[[3.0, 2.0], [0.0, 9.0]], [[3.0, 2.0], [1.0, 4.0]], [[5.0, 5.0], [1.0, 1.0]], [[1.0, 1.0], [-3.0, 9.0]]],
        dtype=torch.float64,
    )
    # (3, 2): one unit of width from 1 to 2. (1, 4): one unit above (1, 3). (5, 5): all of 25 but the 7 there.
    assert front.improvement(trajectories_RTM).tolist() == [1.0, 2.0, 18.0, 0.0]


@pytest.mark.parametrize("size", [0, 1, 9])
@pytest.mark.parametrize("rounded", [False, True])
def test_improvement_is_the_difference_of_hypervolumes(size: int, rounded: bool):
    import moocore

    rng = np.random.default_rng(size)
    points_N2, more_RT2 = rng.uniform(-0.2, 1, (size, 2)), rng.uniform(-0.3, 1.2, (40, 7, 2))
    if rounded:  # ties
        points_N2, more_RT2 = points_N2.round(1), more_RT2.round(1)
    front = Front(points_N2)
    found_R = front.improvement(torch.tensor(more_RT2).reshape(8, 5, 7, 2)).reshape(-1)
    for found, points_T2 in zip(found_R.tolist(), more_RT2, strict=True):
        joined = np.vstack([points_N2, points_T2])
        staircase = staircase_hypervolume(joined, (0, 0), (True, True))
        assert found + front.hypervolume == pytest.approx(staircase, abs=1e-12)
        assert staircase == pytest.approx(moocore.hypervolume(joined, ref=[0, 0], maximise=True), abs=1e-12)


def test_improvement_of_three_objectives():
    rng = np.random.default_rng(3)
    points_N3, more_RT3 = rng.random((6, 3)), rng.uniform(-0.2, 1.2, (5, 4, 3))
    found_R = Front(points_N3).improvement(torch.tensor(more_RT3))
    for found, points_T3 in zip(found_R.tolist(), more_RT3, strict=True):
        gain = hypervolume(np.vstack([points_N3, points_T3])) - hypervolume(points_N3)
        assert found == pytest.approx(gain, abs=1e-12)


@pytest.mark.parametrize("objectives", [2, 3])
def test_front_mask_is_non_dominated(objectives: int):
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 40):
        values_NM = rng.integers(0, 5, (size, objectives)).astype(float)
        assert front_mask(values_NM).tolist() == non_dominated(values_NM, (True,) * objectives).tolist()


# The Gaussian process.


def test_gradient_of_the_posterior_density():
    rng = np.random.default_rng(0)
    x_NF, tau_N, z_N = (torch.tensor(rng.random(shape)) for shape in ((20, 3), 20, 20))
    theta_P = start(3).theta_P.numpy() + 0.3 * rng.standard_normal(9)
    gradient_P = negative_log_posterior(theta_P, x_NF, tau_N, z_N)[1]
    for p, along_P in enumerate(1e-6 * np.eye(9)):
        above, below = (negative_log_posterior(theta_P + s * along_P, x_NF, tau_N, z_N)[0] for s in (1, -1))
        assert gradient_P[p] == pytest.approx((above - below) / 2e-6, abs=1e-6)


def test_the_pace_is_learned():
    # f is a function of log(rate) + log(step) alone: 4 decades of rate over log(10) of tau's unit are a pace of 4.
    rng = np.random.default_rng(0)
    x_NF, tau_N = torch.tensor(rng.random((60, 3))), torch.tensor(rng.random(60))
    y_N = torch.sigmoid(6 * (tau_N + 4 * x_NF[:, 1] - 2.5))
    hyper = fit(x_NF, tau_N, (y_N - y_N.mean()) / y_N.std())
    assert hyper.pace_F.tolist() == pytest.approx([0, 4, 0], abs=0.2)


def test_posterior_passes_through_the_data_and_spreads_away_from_it():
    history = filled(8)
    models = TrajectoryModels(PLANE, 100)
    model = models.model(history)
    assert model is not None
    seen_CF = torch.tensor(models.features(history.trials[3]))[None]
    mean_OCT, covariance_OCTT = model.posterior(seen_CF, STEPS)
    truth_TM = torch.tensor([toy(history.trials[3].config, step) for step in STEPS])
    torch.testing.assert_close(mean_OCT[:, 0].T, truth_TM.double(), atol=0.02, rtol=0)
    corner_CF = torch.tensor(PLANE.features([[0.5, 0.0], [0.5, 1.0]]))
    away_OCTT = model.posterior(corner_CF, STEPS)[1]
    assert (away_OCTT.diagonal(dim1=-2, dim2=-1).amin() > covariance_OCTT.diagonal(dim1=-2, dim2=-1).amin()).all()


def test_a_singular_matrix_gets_jitter_and_says_so(caplog: pytest.LogCaptureFixture):
    hopeless_NN = torch.tensor([[1.0, 1.001], [1.001, 1.0]], dtype=torch.float64)
    with caplog.at_level(logging.WARNING):
        factor_NN = cholesky(hopeless_NN, 1.0, "two points")
    assert "two points" in caplog.text and "0.01" in caplog.text
    assert (factor_NN @ factor_NN.T).diagonal().tolist() == pytest.approx([1.01, 1.01])
    with pytest.raises(ModelError, match="not positive definite"):
        cholesky(-hopeless_NN, 1.0, "two points")


def test_a_fit_that_breaks_down_goes_on_with_the_best_it_had(monkeypatch, caplog):
    rng = np.random.default_rng(0)
    x_NF, tau_N, z_N = (torch.tensor(rng.random(shape)) for shape in ((12, 2), 12, 12))
    calls = []

    def broken(theta_P: Any, *data: Any) -> tuple[float, Any]:
        calls.append(theta_P.copy())
        if len(calls) == 3:
            raise ModelError("no")
        return negative_log_posterior(theta_P, *data)

    monkeypatch.setattr(trajectory_gp, "negative_log_posterior", broken)
    with caplog.at_level(logging.WARNING):
        hyper = fit(x_NF, tau_N, z_N)
    assert "broke down" in caplog.text
    best = min(calls[:2], key=lambda theta_P: negative_log_posterior(theta_P, x_NF, tau_N, z_N)[0])
    assert hyper.theta_P.tolist() == best.tolist()


# Which points enter.


def test_chosen_are_front_last_first_then_the_most_apart():
    points = [Point(0, step, (0.0, 0.0)) for step in (1, 2, 4, 8, 16, 32, 64, 100)]
    steps = [point.step for point in chosen(points, {16})]
    assert steps[:4] == [16, 100, 1, 4] and len(steps) == PER_TRIAL
    assert len(chosen(points, {1, 2, 4, 8, 16, 32, 64})) == 8


def test_milestones_grow_by_a_tenth():
    assert [milestone(n) for n in (0, 7, 20, 21, 22, 23, 31, 40)] == [0, 7, 20, 20, 22, 22, 30, 39]


def test_thinned_keeps_both_ends():
    assert thinned([5, 10]) == [5, 10]
    steps = thinned(list(range(5, 501, 5)))
    assert len(steps) == 12 and steps[0] == 5 and steps[-1] == 500 and steps == sorted(steps)


def test_the_cap_takes_from_every_trial():
    history = filled(12)
    data = TrajectoryModels(PLANE, 100)._observations(history.searched(), 30)
    rows = [tuple(x_F.tolist()) for x_F in data.x_NF]
    assert len(rows) == 30 and {rows.count(row) for row in set(rows)} <= {2, 3} and len(set(rows)) == 12


# TEHVI.


def test_tehvi_of_a_candidate_is_the_brute_force_mean():
    history = filled(5)
    model = TrajectoryModels(PLANE, 100).model(history)
    assert model is not None
    front = Front(np.array([point.values for point in history.points()]))
    mean_OCT, covariance_OCTT = model.posterior(torch.tensor(PLANE.features([[0.6, 0.7], [0.4, 0.2]])), STEPS)
    rng = np.random.default_rng(0)
    base_OST = torch.tensor(rng.standard_normal((2, 2000, len(STEPS))))
    found_C = tehvi(model, front, mean_OCT, covariance_OCTT, base_OST)
    for candidate in range(2):
        draws = [
            rng.multivariate_normal(mean_OCT[o, candidate].numpy(), covariance_OCTT[o, candidate].numpy(), 2000)
            for o in range(2)
        ]
        gains = [
            staircase_hypervolume(np.vstack([front.values_NM, trajectory_T2]), (0, 0), (True, True)) - front.hypervolume
            for trajectory_T2 in np.stack(draws, axis=-1)
        ]
        error = float(np.std(gains)) / math.sqrt(1000)
        assert float(found_C[candidate]) == pytest.approx(np.mean(gains), abs=4 * error)
        assert np.mean(gains) > 4 * error


def test_points_that_break_a_constraint_add_nothing():
    history = filled(6, slack=lambda config, step: 1.0 if config["other"] < 0.5 else -1.0)
    model = TrajectoryModels(PLANE, 100).model(history)
    assert isinstance(model, TrajectoryModel)
    outputs_OT = torch.tensor([[0.9, 0.9], [0.8, 0.8], [0.1, -0.1]], dtype=torch.float64)
    assert model.points(outputs_OT).tolist() == [[0.9, 0.8], [0.0, 0.0]]


# Proposals.


def test_the_first_are_a_sobol_design():
    searcher = bayes(History())
    assert searcher.initial == 5
    first = [searcher.propose(n) for n in range(1)]
    assert first == [PLANE.decode(unit_D) for unit_D in sobol_units(1, 2, 0)]
    running = History()
    for n in range(8):  # none has ended: Sobol goes on
        config = bayes(running).propose(n)
        assert config == PLANE.decode(sobol_units(1, 2, 0, n)[0])
        play(running, config, status="running", steps=())


def test_a_restarted_search_proposes_the_same_bit_for_bit():
    history, again = filled(9), filled(9)
    old = bayes(history)
    for _ in range(2):
        number = history.next_number
        config = old.propose(number)
        assert bayes(again).propose(number) == config
        play(history, config)
        play(again, config)
    assert bayes(again, seed=1).propose(11) != bayes(again).propose(11)


def steps_to(target: float, searcher: TrajectorySearcher, trials: int) -> float:
    """Trials until the hypervolume is reached."""
    for n in range(trials):
        play(searcher.history, searcher.propose(n))
        if searcher.history.hypervolume() >= target:
            return n + 1
    return trials


def test_it_is_sooner_where_random_ends():
    ratios = []
    for seed in range(3):
        chance = RandomSearcher(PLANE, History(), seed, 100)
        steps_to(math.inf, chance, 30)
        ratios.append(steps_to(chance.history.hypervolume(), bayes(History(), seed=seed), 30) / 30)
    assert np.prod(ratios) ** (1 / 3) < 0.6


def test_running_trials_are_not_proposed_again():
    history = filled(8)
    searcher, proposed = bayes(history), []
    for _ in range(4):
        config = searcher.propose(history.next_number)
        proposed.append(PLANE.encode(config))
        play(history, config, status="running", steps=STEPS[: len(proposed) - 1])
    gaps = [np.abs(one - other).max() for n, one in enumerate(proposed) for other in proposed[:n]]
    assert min(gaps) > 0.02


def test_constraints_are_respected():
    # Without the constraint the best is at other = 0.7 (`toy`).
    history = filled(10, slack=lambda config, step: 50 * (0.4 - config["other"]))
    searcher = bayes(history)
    others = []
    for _ in range(4):
        config = searcher.propose(history.next_number)
        others.append(config["other"])
        play(history, config, slack=lambda config, step: 50 * (0.4 - config["other"]))
    assert np.mean(np.array(others) < 0.43) >= 0.75
    assert history.hypervolume() > 0


def test_conditional_spaces():
    history = filled(10, METHODS)
    searcher = bayes(history, METHODS)
    for _ in range(3):
        config = searcher.propose(history.next_number)
        assert METHODS.decode(METHODS.encode(config)).keys() == config.keys()
        assert ("beta" in config) == (config["method"] == "fast")
        play(history, config)


def test_it_turns_away_from_what_diverges():
    history = History()
    for unit_D in sobol_units(12, 2, 0):
        config = PLANE.decode(unit_D)
        hot = config["rate"] > 0.03
        play(history, config, "diverged" if hot else "finished", STEPS[:1] if hot else STEPS)
    model = TrajectoryModels(PLANE, 100).model(history)
    assert model is not None
    mean_OCT = model.posterior(torch.tensor(PLANE.features([[0.95, 0.6]])), [60, 100])[0]
    assert mean_OCT.abs().max() < 0.15
    assert bayes(history).propose(12)["rate"] < 0.1


def test_a_history_of_failures_alone_is_no_crash():
    history = History()
    for unit_D in sobol_units(8, 2, 0):
        play(history, PLANE.decode(unit_D), "out_of_memory", ())
    assert bayes(history).propose(8) == PLANE.decode(sobol_units(1, 2, 0, 8)[0])


def test_a_model_that_fails_is_a_warning_and_a_sobol_point(monkeypatch, caplog):
    def broken(*data: Any) -> None:
        raise ModelError("singular")

    monkeypatch.setattr(trajectory_search.TrajectoryModels, "model", broken)
    with caplog.at_level(logging.WARNING):
        config = bayes(filled(8)).propose(8)
    assert "singular" in caplog.text and config == PLANE.decode(sobol_units(1, 2, 0, 8)[0])


def test_three_objectives():
    history = History()
    for unit_D in sobol_units(8, 2, 0):
        trial = Trial(history.next_number, PLANE.decode(unit_D))
        history.add(trial)
        for step in (20, 100):
            values = (*toy(trial.config, step), 1 - trial.config["other"] / 2)
            history.record(Point(trial.number, step, values))
        history.end(trial.number, "finished")
    assert bayes(history).propose(8).keys() == {"rate", "other"}


def test_nothing_new_left_is_no_crash():
    space = Space.from_data({"method": {"choice": ["a", "b"]}})
    history = History()
    for n in range(6):
        trial = Trial(n, space.decode([n % 2]))
        history.add(trial)
        history.record(Point(n, 10, (0.5, 0.2 + 0.3 * (n % 2))))
        history.end(n, "finished")
    assert TrajectoryBayesSearcher(space, history, 0, 10).propose(6)["method"] in ("a", "b")
