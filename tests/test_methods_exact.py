"""Methods that keep state take the steps of the plain reference; the benchmark does this for all at every layout."""

import pytest
from method_cases import CASES, config_of, reference, train_probed

from benchmarks.exactness_methods import broken, errors

STATEFUL = (
    "mean_teacher",
    "mean_teacher, qkl, clipped",
    "ngdiff, AutoLR",
    "ngdiff, AutoLR, AdamW",
    "grad_diff",
    "grad_diff, diagnostics",
    "three objectives",
    "mollm",
    "moco",
    "gru",
    "famo",
    "pdu",
    "pgu",
    "rmu",
    "idk_dpo",
    "undial",
)


@pytest.fixture
def broken_bounds(two_ranks, taught, start, tmp_path):
    """Bounds that a case breaks at a layout, with the errors."""

    def measure(name, **layout):
        case = CASES[name]
        truth = reference(case, taught, tmp_path)
        two_ranks.run(train_probed, config_of(case, taught, tmp_path, truth.rate, **layout), tmp_path / "run")
        row = errors(case, truth, tmp_path / "run", start)
        return broken(case, row), row

    return measure


@pytest.mark.parametrize("name", STATEFUL)
def test_three_steps_equal_the_reference(name, broken_bounds):
    found, row = broken_bounds(name)
    assert found == [], row


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", ["mean_teacher", "ngdiff, AutoLR, AdamW", "moco", "mollm"])
def test_offload_changes_nothing(name, stage, broken_bounds):
    found, row = broken_bounds(name, stage=stage, zero__offload_optimizer=True)
    assert found == [], row


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", ["mean_teacher", "ngdiff, AutoLR, AdamW", "idk_dpo"])
def test_activation_checkpointing_changes_nothing(name, stage, broken_bounds):
    found, row = broken_bounds(name, stage=stage, zero__activation_checkpointing=True)
    assert found == [], row


FRUGAL = {
    "zero__park_gradients": True,
    "zero__teacher_on_host": True,
    "zero__sub_group": 3000,
    "batch__logit_rows": 5,
}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["mean_teacher", "ngdiff, AutoLR, AdamW", "moco", "idk_dpo", "undial"])
def test_what_saves_memory_changes_nothing(name, stage, broken_bounds):
    found, row = broken_bounds(name, stage=stage, **FRUGAL)
    assert found == [], row


@pytest.mark.parametrize("name", ["mean_teacher", "ngdiff", "idk_dpo", "rmu"])
def test_padded_rows_change_nothing(name, broken_bounds):
    found, row = broken_bounds(name, batch__packed=False)
    assert found == [], row


def test_a_reference_of_another_method_is_told_apart(two_ranks, taught, start, tmp_path):
    """The comparison can fail: PCGrad's steps are not NGDiff's."""
    truth = reference(CASES["ngdiff"], taught, tmp_path)
    two_ranks.run(train_probed, config_of(CASES["pcgrad"], taught, tmp_path, truth.rate), tmp_path / "run")
    assert set(broken(CASES["ngdiff"], errors(CASES["ngdiff"], truth, tmp_path / "run", start))) >= {"gradient"}
