"""Successive forget requests in one run: what is carried over, what starts anew."""

import pytest
import torch
from method_cases import CASES, config_of
from training_runs import exported, relative, step_lines, train

from benchmarks.exactness_methods import write_generic_text
from unlearn_core.data.batches import PairedBatches
from unlearn_core.errors import UserError
from unlearn_core.loop import REFERENCES, model_folder
from unlearn_core.publish import is_complete
from unlearn_core.references import load_references

TWO = {"data__forget": [], "data__sequential": ["forget10", "holdout10"], "steps": 3}


@pytest.fixture
def run_case(two_ranks, taught, tmp_path):
    write_generic_text(tmp_path)

    def run(name, rate, output, **changes):
        config = config_of(CASES[name], taught, tmp_path, rate, **changes)
        two_ranks.run(train, config, tmp_path / output)
        return config

    return run


def test_a_model_and_checkpoint_for_each_request(run_case, tmp_path):
    config = run_case("npo", 1e-3, "run", **TWO)
    assert config.total_steps == 6
    assert [line["step"] for line in step_lines(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert all(is_complete(model_folder(tmp_path / "run", step)) for step in (3, 6))
    assert not model_folder(tmp_path / "run", 4).exists()


def test_the_second_request_compares_with_the_model_that_the_first_left(run_case, tmp_path):
    run_case("npo", 3e-3, "run", **TWO)
    lines = step_lines(tmp_path / "run")
    start = 2 / 0.1 * 0.6931471805599453  # (2/beta) log 2: student and reference are equal
    assert lines[0]["loss_forget"] == pytest.approx(start, rel=1e-6)
    assert lines[2]["loss_forget"] < start - 1e-3
    assert lines[3]["loss_forget"] == pytest.approx(start, rel=1e-6)
    first, second = (load_references(tmp_path / "run" / REFERENCES / f"request-{k}.json") for k in (0, 1))
    assert {name for name, _ in first} == {name for name, _ in second} == {"forget"}
    assert all(item.startswith("forget10/") for _, item in first)
    assert all(item.startswith("holdout10/") for _, item in second)


def test_the_teacher_starts_again_from_the_student(run_case, tmp_path):
    run_case("mean_teacher", 4.0, "run", **TWO, data__retain=[])
    lines = step_lines(tmp_path / "run")
    assert lines[0]["loss_generic"] == pytest.approx(0.0, abs=1e-6)
    assert lines[2]["loss_generic"] > 1e-4
    assert lines[3]["loss_generic"] == pytest.approx(0.0, abs=1e-6)


def test_momentum_is_carried_and_the_schedule_starts_again(run_case, two_ranks, tmp_path):
    schedule = {"optimizer__schedule": "linear"}
    run_case("grad_diff", 0.05, "run", **TWO, **schedule)
    rates = [line["learning_rate"] for line in step_lines(tmp_path / "run")]
    assert rates == pytest.approx(2 * [0.05, 0.05 * 2 / 3, 0.05 / 3])
    # The second request alone, from the first one's model: same rows of the forget set, but no momentum.
    alone = {"data__forget": ["holdout10"], "steps": 3, "model__path": str(model_folder(tmp_path / "run", 3))}
    run_case("grad_diff", 0.05, "alone", **alone, **schedule)
    assert relative(exported(tmp_path / "run", 6), exported(tmp_path / "alone", 3)) > 1e-3


def test_a_request_that_cannot_be_read_is_found_before_the_first_step(taught, tmp_path):
    from unlearn_core.preflight import preflight

    write_generic_text(tmp_path)
    config = config_of(CASES["npo"], taught, tmp_path, 1e-3, **(TWO | {"data__sequential": ["forget10", "forget77"]}))
    with pytest.raises(UserError, match=r"request 2 \(forget77\): .*has no split 'forget77'"):
        preflight(config)


def test_forget_rows_are_paired_anew(taught):
    from unlearn_core.data.tokenization import Example

    rows = [Example(f"r/{k}", (1, 2, 3), 1) for k in range(5)]
    batches = PairedBatches({"forget": rows, "refusal": rows, "retain": rows}, 2, 1, 0, 1, 0, 0)
    for step in range(6):
        assert batches.item_ids(step, "forget") == batches.item_ids(step, "refusal")
    assert any(batches.item_ids(s, "forget") != batches.item_ids(s, "retain") for s in range(6))
    assert isinstance(batches.micro_batches(0, "forget")[0].input_ids_BT, torch.Tensor)
