"""Stop rules: who stops at a rung, worked out by hand."""

import pytest

from tune.history import History, Point, Trial
from tune.stopping import MultiObjectiveAsha, StopRule
from unlearn_core.errors import UserError

NAN = float("nan")


def history_of(trajectories, slacks=None):
    """Trials from {number: {step: values}}; slacks from {number: slack}."""
    history = History()
    for number, points in trajectories.items():
        history.add(Trial(number, {}))
        for step, values in points.items():
            slack = () if slacks is None else (slacks[number],)
            history.record(Point(number, step, values, slack, time=100.0 + step))
    return history


def answers(rule: StopRule, history: History):
    return {trial.number: rule.reason(history, trial) for trial in history}


def test_the_lower_two_thirds_of_a_rung_stop():
    # Front 0: trials 0 and 1, which lose (0.9-0.5)*0.2 = 0.08 and (0.8-0.2)*0.5 = 0.30; fronts 1 to 4: 2, 3, 4, 5.
    at_5 = {0: (0.9, 0.2), 1: (0.5, 0.8), 2: (0.4, 0.4), 3: (0.3, 0.3), 4: (0.2, 0.2), 5: (0.1, 0.1)}
    history = history_of({number: {5: values} for number, values in at_5.items()})
    assert answers(MultiObjectiveAsha(5), history) == {
        0: None,
        1: None,
        2: "rank 3 of 6 at step 5 (kept: 2)",
        3: "rank 4 of 6 at step 5 (kept: 2)",
        4: "rank 5 of 6 at step 5 (kept: 2)",
        5: "rank 6 of 6 at step 5 (kept: 2)",
    }
    # One goes on of six when of six one does: the contribution decides between the two of front 0.
    assert MultiObjectiveAsha(5, reduction=6).reason(history, history.trials[0]) == "rank 2 of 6 at step 5 (kept: 1)"
    assert MultiObjectiveAsha(5, reduction=6).reason(history, history.trials[1]) is None


def test_the_best_so_far_counts_not_the_last_value():
    # Trial 0 has passed its best at step 2 and is worst at the rung.
    history = history_of({0: {2: (0.9, 0.9), 5: (0.1, 0.1)}, 1: {5: (0.5, 0.5)}, 2: {5: (0.4, 0.4)}})
    assert answers(MultiObjectiveAsha(5), history) == {
        0: None,
        1: "rank 2 of 3 at step 5 (kept: 1)",
        2: "rank 3 of 3 at step 5 (kept: 1)",
    }


def test_what_comes_after_the_rung_does_not_count_there():
    later = {5: (0.5, 0.5), 6: (1.0, 1.0)}
    history = history_of({0: later, 1: later, 2: {5: (0.6, 0.6)}})
    assert MultiObjectiveAsha(5).reason(history, history.trials[2]) is None


def test_trials_are_judged_only_where_they_first_reach_a_rung():
    history = history_of({n: {4: (0.9, 0.9), 5: (0.9, 0.9)} for n in range(6)} | {6: {}})
    rule, judged = MultiObjectiveAsha(5, reduction=3), []
    for step in range(1, 50):
        history.record(Point(6, step, (0.1, 0.1)))
        for other in range(6):
            history.record(Point(other, step, (0.9, 0.9)))
        if rule.reason(history, history.trials[6]):
            judged.append(step)
    assert judged == [5, 15, 45]


def test_a_grid_that_misses_the_rung_is_judged_at_the_next_point():
    history = history_of({n: {4: (0.9, 0.9), 8: (0.9, 0.9)} for n in range(3)} | {3: {4: (0.1, 0.1), 8: (0.2, 0.2)}})
    rule = MultiObjectiveAsha(5)
    assert rule.reason(history, history.trials[3]) == "rank 4 of 4 at step 5 (kept: 1)"
    # One point that passes 5 and 15: judged at 15, where it is alone.
    history.add(Trial(4, {}))
    history.record(Point(4, 20, (0.1, 0.1)))
    assert rule.reason(history, history.trials[4]) is None
    assert MultiObjectiveAsha(5, fewest=1).reason(history, history.trials[4]) is None  # the only one is kept


def test_too_few_trials_pass():
    history = history_of({0: {5: (0.9, 0.9)}, 1: {5: (0.1, 0.1)}})
    assert MultiObjectiveAsha(5).reason(history, history.trials[1]) is None
    assert MultiObjectiveAsha(5, fewest=2).reason(history, history.trials[1]) == "rank 2 of 2 at step 5 (kept: 1)"
    history.record(Point(0, 6, (1.0, 1.0)))
    history.add(Trial(2, {}, origin="densify"))
    history.record(Point(2, 5, (1.0, 1.0)))
    assert MultiObjectiveAsha(5).reason(history, history.trials[1]) is None  # edits are no competitors


def test_ties_are_to_the_judged_trials_good():
    history = history_of({n: {5: (0.5, 0.5)} for n in range(9)})
    assert set(answers(MultiObjectiveAsha(5), history).values()) == {None}


def test_infeasible_unscored_and_volumeless_trials_come_last():
    values = {0: (0.3, 0.3), 1: (1.0, 0.0), 2: (0.9, 0.9), 3: (0.9, 0.9), 4: (NAN, 0.9), 5: (NAN, NAN)}
    slacks = {0: 0.1, 1: 0.1, 2: -0.2, 3: -0.5, 4: 0.1, 5: 0.1}
    history = history_of({number: {5: point} for number, point in values.items()}, slacks)
    assert answers(MultiObjectiveAsha(5, reduction=6), history) == {
        0: None,
        1: "rank 2 of 6 at step 5 (kept: 1)",
        2: "rank 3 of 6 at step 5 (kept: 1)",
        3: "rank 4 of 6 at step 5 (kept: 1)",
        4: "rank 5 of 6 at step 5 (kept: 1)",
        5: "rank 5 of 6 at step 5 (kept: 1)",
    }


def test_a_trials_own_dominated_steps_push_nobody_down():
    # Sorted with 0's step 1 among the points, trial 1 would stand in the third front and trial 2 in the second.
    trajectories = {0: {1: (0.8, 0.8), 5: (0.9, 0.9)}, 1: {5: (0.7, 0.7)}, 2: {5: (0.85, 0.1)}, 3: {5: (0.6, 0.6)}}
    history = history_of(trajectories)
    # Both 1 and 2 in front 1: losses (0.7*0.7 - 0.07) = 0.42 and (0.85-0.7)*0.1 = 0.015.
    assert MultiObjectiveAsha(5, reduction=2).reason(history, history.trials[1]) is None
    assert MultiObjectiveAsha(5, reduction=2).reason(history, history.trials[2]) == "rank 3 of 4 at step 5 (kept: 2)"


def test_three_objectives():
    at_5 = {0: (0.9, 0.5, 0.5), 1: (0.5, 0.9, 0.5), 2: (0.4, 0.4, 0.4)}
    history = history_of({number: {5: values} for number, values in at_5.items()})
    assert answers(MultiObjectiveAsha(5), history) == {0: None, 1: None, 2: "rank 3 of 3 at step 5 (kept: 1)"}


@pytest.mark.parametrize("wrong", [{"minimum": 0}, {"minimum": 1, "reduction": 1}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UserError, match="ASHA with minimum"):
        MultiObjectiveAsha(**wrong)
