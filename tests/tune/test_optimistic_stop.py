import logging
import math
from typing import Any

import pytest

from tests.tune.test_trajectory_search import PLANE, STEPS, filled, one_thread, play  # noqa: F401
from tune.history import History, Point, Trial
from tune.optimistic_stop import OptimisticStop, remaining
from tune.trajectory_gp import ModelError
from tune.trajectory_model import TrajectoryModels
from unlearn_core.errors import UserError

GOOD = {"rate": 0.02, "other": 0.7}
HOPELESS = {"rate": 2e-4, "other": 0.1}
"""So slow that nothing of it is off the front's left end."""


def stop(minimum: int = 20, **settings: Any) -> OptimisticStop:
    return OptimisticStop(TrajectoryModels(PLANE, STEPS[-1]), minimum, **settings)


def asked(history: History, config: dict, rule: OptimisticStop) -> list[str | None]:
    """What the rule says after each point of a running trial."""
    trial = play(history, config, status="running", steps=())
    answers = []
    for step in STEPS:
        done = play_point(history, trial, step)
        answers.append(rule.reason(history, done))
    return answers


def play_point(history: History, trial: Trial, step: int) -> Trial:
    from tests.tune.test_trajectory_search import toy

    history.record(Point(trial.number, step, toy(trial.config, step)))
    return trial


def with_a_front() -> History:
    history = filled(12)
    for other in (0.6, 0.7, 0.8):
        for rate in (0.01, 0.03, 0.1):
            play(history, {"rate": rate, "other": other})
    return history


def test_a_hopeless_trial_stops_and_a_promising_one_does_not():
    hopeless = asked(with_a_front(), HOPELESS, stop())
    assert any(hopeless) and hopeless[0] is None
    reason = next(answer for answer in hopeless if answer)
    assert "optimistic" in reason and "at step" in reason


def test_what_it_cuts_off_would_have_added_next_to_nothing():
    history = filled(8)
    answers = asked(history, GOOD, stop())
    # Half way through it is the best there is, and goes on.
    assert answers[:4] == [None] * 4
    for config in (GOOD, HOPELESS, {"rate": 0.005, "other": 0.9}, {"rate": 0.3, "other": 0.2}):
        history = with_a_front()
        stopped = [n for n, answer in enumerate(asked(history, config, stop())) if answer]
        if stopped:
            cut = History(history.searched()[:-1])
            play(cut, config, steps=STEPS[: stopped[0] + 1])
            assert history.hypervolume() <= 1.001 * cut.hypervolume()


def test_never_before_the_minimum():
    answers = asked(with_a_front(), HOPELESS, stop(minimum=80))
    assert answers[:4] == [None] * 4 and any(answers[4:])


def test_two_hits_in_a_row(monkeypatch):
    history = with_a_front()
    trial = play(history, HOPELESS, status="running", steps=STEPS[:3])
    gains = {20: 0.5, 40: 0.0}
    monkeypatch.setattr(OptimisticStop, "_gain", lambda rule, history, trial, last: gains[last.step])
    assert stop().reason(history, trial) is None
    gains[20] = 1e-4
    assert stop().reason(history, trial) is not None
    gains[40] = 2e-3
    assert stop().reason(history, trial) is None


def test_without_finished_trials_it_never_stops():
    assert asked(History(), HOPELESS, stop()) == [None] * len(STEPS)
    assert asked(filled(4), HOPELESS, stop(epsilon=0.99)) == [None] * len(STEPS)


def test_the_answer_is_the_history_alone():
    history = with_a_front()
    trial = play(history, HOPELESS, status="running", steps=STEPS[:4])
    rule = stop()
    assert rule.reason(history, trial) == rule.reason(history, trial) == stop().reason(history, trial)


def test_remaining_steps_are_recorded_ones_and_the_trials_own_stride():
    history = filled(2)
    trial = play(history, GOOD, status="running", steps=(10, 20))
    assert remaining(history, trial, trial.points[-1], 100) == [30, 40, 50, 60, 70, 80, 90, 100]
    alone = History()
    trial = play(alone, GOOD, status="running", steps=(30, 60))
    assert remaining(alone, trial, trial.points[-1], 100) == [90, 100]
    assert remaining(alone, trial, Point(trial.number, 100, (0.0, 0.0)), 100) == []


def test_a_model_that_fails_lets_the_trial_go_on(monkeypatch, caplog):
    def broken(*data: object) -> None:
        raise ModelError("singular")

    history = with_a_front()
    trial = play(history, HOPELESS, status="running", steps=STEPS[:3])
    monkeypatch.setattr(TrajectoryModels, "model", broken)
    with caplog.at_level(logging.WARNING):
        assert stop().reason(history, trial) is None
    assert "singular" in caplog.text


@pytest.mark.parametrize("wrong", [{"minimum": 0}, {"beta": -1.0}, {"beta": math.inf}, {"epsilon": 1.0}])
def test_settings_out_of_bounds(wrong: dict):
    with pytest.raises(UserError, match="optimistic stop"):
        stop(**wrong)
