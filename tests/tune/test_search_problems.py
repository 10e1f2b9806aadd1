import numpy as np
import pytest

from benchmarks.search_ideal import branches, dense_hypervolume, describe, front_rows
from benchmarks.search_problems import CLOSED_FORMS, closeness, steps_of
from tune.objectives import hypervolume
from tune.random_search import uniform_units
from unlearn_core.errors import UserError

RATE, WEIGHT = "optimizer.learning_rate", "method.settings.retain_weight"
BETA, DELTA = "method.settings.beta", "method.settings.delta"

# At equal rates of forgetting and healing: w = 5/3, f = h = 0.375, z = 10, gap = e^-3.75.
#   D = 3 * 0.375 * 10 * 0.0235177 + 0.2 = 0.4645747,   phi = 0.9764823 / (1 + (5/12)^2) = 0.8320323
TWO_SIDED = ({RATE: 1e-4, WEIGHT: 5 / 3}, 100, (0.628401, 0.335935))
# k = 1, z = 1: phi = 1 - 1/e = 0.6321206, D = 0.4 * 0.3995764 + 0.05 + 0.25 = 0.4598306
BISECTOR = (
    {"method.name": "bisector", RATE: 1e-5, "optimizer.schedule": "constant"},
    100,
    (0.631390, 0.946466),
)
# z = 4 * 0.5 / 2 = 1: phi = 0.6321206 / 1.05, D = 3 * 0.3624276 / 1.6 + 0.03 * (1 + 5 * 0.09) + 0.4 * 0.09
WEIGHTED = (
    {"method.name": "weighted", RATE: 1e-5, BETA: 0.1, WEIGHT: 1.0},
    50,
    (0.468110, 0.996634),
)
# n = 1 at s = 0.5: lag = 1 - 2/e = 0.2642411, phi = 1 - e^(-3 * 0.5 * lag / 2) = 0.1797785
# D = 0.6 * 0.7071068 * phi + 0 + 0 + 2 * 0.02 * 0.5
TEACHER = (
    {
        "method.name": "teacher",
        RATE: 3e-3,
        "method.settings.teacher_rate": 0.02,
        "method.settings.forget_weight": 0.5,
        "method.settings.damping": 2.0,
    },
    50,
    (0.908216, 0.299631),
)
# 8 beta = 1: phi = z / (1 + z); z = 6 * 0.2 / (4/3) = 0.9, phi = 0.4736842
# c = 0.15 + 1.5 * 0.0969100^2 = 0.1640873, D = 3 c 0.3260137 / 1.3 + 0.05 c 0.9 + 0.08 * 3.1622777
IRRELEVANT = (
    {RATE: 1e-4, WEIGHT: 1.0, BETA: 0.125, DELTA: 0.6, "optimizer.weight_decay": 0.01, "optimizer.beta2": 0.95},
    20,
    (0.722640, 0.789474),
)
# w = 2: z = 0.5 at s = 0.5: phi = 1 - e^-0.25 = 0.2211992; D = 1.5 e^(-7/3) + 0.25 + 0 + 0.8 * phi / 3
PATIENCE = ({RATE: 1e-5, WEIGHT: 2.0, "method.settings.temperature": 1.2}, 50, (0.634801, 0.442398))
HAND = [
    ("two_sided", *TWO_SIDED),
    ("methods", *BISECTOR),
    ("methods", *WEIGHTED),
    ("methods", *TEACHER),
    ("irrelevant", *IRRELEVANT),
    ("patience", *PATIENCE),
]


@pytest.mark.parametrize(("name", "config", "step", "values"), HAND)
def test_values_worked_by_hand(name, config, step, values):
    problem = CLOSED_FORMS[name]
    trajectory_T2 = problem.trajectory(config)
    assert trajectory_T2.shape == (20, 2)
    assert trajectory_T2[steps_of(problem).index(step)] == pytest.approx(values, abs=2e-6)


def test_closeness_is_two_sided():
    assert closeness(np.array([0.0, 0.3, 0.6, 0.9, 1.2, 2.0]), 0.6) == pytest.approx([0, 0.5, 1, 0.5, 0, 0])


def test_two_sided_is_smooth_where_the_rates_meet():
    values_32 = [CLOSED_FORMS["two_sided"].trajectory({RATE: 1e-4, WEIGHT: 5 / 3 + d})[9] for d in (-1e-6, 0.0, 1e-6)]
    assert np.ptp(values_32, axis=0) == pytest.approx([0, 0], abs=1e-5)


@pytest.mark.parametrize("problem", CLOSED_FORMS.values(), ids=CLOSED_FORMS)
def test_most_configurations_are_best_before_their_last_step(problem):
    about = describe(problem, count=800)
    assert about["best_not_last"] > 0.5
    assert about["best_step_10"] < about["best_step_50"] < about["best_step_90"]
    assert about["random_share"] < 0.95


@pytest.mark.parametrize("problem", CLOSED_FORMS.values(), ids=CLOSED_FORMS)
def test_forgetting_rises_and_falls_within_one_run(problem):
    found = 0
    for unit_D in uniform_units(200, problem.space.dimension, 1):
        forgetting_T = problem.trajectory(problem.space.decode(unit_D))[:, 1]
        top = int(forgetting_T.argmax())
        found += (
            0 < top < 19 and forgetting_T[top] > forgetting_T[0] + 0.2 and forgetting_T[top] > forgetting_T[-1] + 0.2
        )
    assert found >= 5


def test_utility_recovers_where_damage_heals():
    utility_T = CLOSED_FORMS["two_sided"].trajectory({RATE: 1e-4, WEIGHT: 2.0})[:, 0]
    assert utility_T.argmin() == 4
    assert utility_T[-1] > 2 * utility_T.min()


def test_values_lie_between_0_and_1_and_are_finite_at_the_corners_of_the_space():
    for problem in CLOSED_FORMS.values():
        dimension = problem.space.dimension
        for corner in range(2**dimension):
            unit_D = [corner >> k & 1 for k in range(dimension)]
            values_T2 = problem.trajectory(problem.space.decode(unit_D))
            assert np.isfinite(values_T2).all()
            assert values_T2.min() >= 0
            assert values_T2.max() <= 1


def test_irrelevant_keys_do_nothing_and_the_others_do_something():
    problem = CLOSED_FORMS["irrelevant"]
    config, *_ = IRRELEVANT
    before_T2 = problem.trajectory(config)
    for key, value in config.items():
        same = np.array_equal(problem.trajectory(config | {key: value * 0.95}), before_T2)
        assert same == (key in problem.irrelevant)


def test_patient_configurations_look_bad_early():
    """At a fifth of the way the configurations that end best are behind most of the others."""
    problem = CLOSED_FORMS["patience"]
    values_NT2 = np.array(
        [problem.trajectory(problem.space.decode(unit_D)) for unit_D in uniform_units(1000, problem.space.dimension, 2)]
    )
    whole_N = np.array([hypervolume(values_T2) for values_T2 in values_NT2])
    early_N = np.array([hypervolume(values_T2[:4]) for values_T2 in values_NT2])
    best_N = np.argsort(-whole_N)[:20]
    ahead = [np.mean(early_N > early_N[n]) for n in best_N]
    assert np.median(ahead) > 0.15


def test_a_config_of_another_space_is_refused():
    with pytest.raises(UserError, match="retain_weight"):
        CLOSED_FORMS["two_sided"].trajectory({RATE: 1e-4})


def test_branches_are_the_combinations_of_choices_that_can_be():
    found = {
        tuple(config.values()): [one.key for one in ranges] for config, ranges in branches(CLOSED_FORMS["methods"])
    }
    assert set(found) == {("bisector", "constant"), ("bisector", "auto"), ("weighted",), ("teacher",)}
    assert found["weighted",] == [RATE, BETA, WEIGHT]
    ((_, ranges),) = branches(CLOSED_FORMS["irrelevant"])
    assert [one.key for one in ranges] == [RATE, WEIGHT, BETA, DELTA]


def test_front_rows_keeps_the_staircase_and_leaves_no_gap():
    values_N2 = np.array([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1], [0.4, 0.5], [0.2, 0.8]])
    assert front_rows(values_N2).tolist() == [2, 0, 4]
    # A thousand points crowd one end: of ten members kept, the lone ones at the other end are not lost.
    crowd_N = np.linspace(0.9, 0.91, 1000)
    values_N2 = np.vstack([np.stack([crowd_N, 1 - crowd_N], axis=1), [[0.1, 0.9], [0.5, 0.5]]])
    kept = front_rows(values_N2, 10)
    assert {1000, 1001} <= set(kept.tolist())
    assert len(kept) <= 11


@pytest.mark.parametrize("problem", CLOSED_FORMS.values(), ids=CLOSED_FORMS)
def test_no_search_covers_more_than_the_ideal_and_a_dense_one_nearly_all(problem):
    found = dense_hypervolume(problem, cells=5000, rounds=30)
    assert problem.ideal - 2e-3 < found <= problem.ideal
    units_ND = uniform_units(500, problem.space.dimension, 3)
    sample_N2 = np.concatenate([problem.trajectory(problem.space.decode(unit_D)) for unit_D in units_ND])
    assert hypervolume(sample_N2) < found
