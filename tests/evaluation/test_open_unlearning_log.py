"""Published logs give their published aggregates; malformed ones say what is wrong."""

import json
import os
from pathlib import Path

import pytest

from unlearn_core.errors import UserError
from unlearn_core.evaluation import tofu
from unlearn_core.evaluation.open_unlearning_log import evaluate_log

FULL, RETAIN = "tofu_llama-3.2-1b_full_forget10.json", "tofu_llama-3.2-1b_retain90.json"


@pytest.fixture(scope="module")
def golden() -> Path:
    folder = os.environ.get("GOLDEN_DIR")
    if not folder:
        pytest.skip("GOLDEN_DIR is not set: the folder of published evaluation logs")
    return Path(folder)


@pytest.fixture(scope="module")
def full(golden):
    return evaluate_log(golden / FULL, golden / RETAIN, require_forget_quality=True)


def test_the_two_published_headline_numbers(full):
    assert full.recomputed["forget_quality"] == pytest.approx(3.9054713571083378e-22, rel=1e-9)
    assert full.recomputed["model_utility"] == pytest.approx(0.5991534707368931, rel=1e-9)


def test_every_logged_aggregate_is_recomputed(full):
    assert full.missing == {}
    assert set(full.relative_difference) == set(tofu.NAMES) - {"forget_quality_log10"}
    assert full.largest_difference <= 1e-9
    assert "privleak" in full.not_read


def test_rouge_of_every_text_equals_the_log(full):
    assert full.rouge_items == 400 + 400 + 100 + 117
    assert full.rouge_mismatches == ()


def test_items_that_follow_from_others(full):
    for name, difference in full.item_difference.items():
        # Logged probabilities are float32 exponentials of the losses.
        assert difference <= (2e-7 if name.endswith("_Prob") else 1e-12), name


def test_the_retrained_log_without_a_reference(golden):
    log = evaluate_log(golden / RETAIN)
    assert set(log.missing) == {"forget_quality", "forget_quality_log10"}
    assert log.logged["forget_quality"] is None
    assert log.largest_difference <= 1e-9


def test_a_model_is_its_own_perfect_reference(golden):
    assert evaluate_log(golden / RETAIN, golden / RETAIN).recomputed["forget_quality"] == 1.0


def test_a_muse_log_is_refused(golden):
    with pytest.raises(UserError, match=r"MUSE log \(forget_knowmem_ROUGE.*not supported yet.*forget_Q_A_Prob"):
        evaluate_log(golden / "muse_llama-2-7b_books_target_numbers.json")


def small() -> dict:
    """A log of one forget item, with its loss metrics and ROUGE."""
    texts = {"ground_truth": "Ann Lee", "generation": "Ann", "rougeL_recall": 0.5}
    return {
        "forget_Q_A_Prob": {"agg_value": 0.5, "value_by_index": {"0": {"prob": 0.5, "avg_loss": 0.6931471805599453}}},
        "forget_Q_A_PARA_Prob": {"value_by_index": {"0": {"prob": 0.25, "avg_loss": 1.3862943611198906}}},
        "forget_Q_A_PERT_Prob": {"value_by_index": {"0": {"prob": [0.125], "avg_loss": [2.0794415416798357]}}},
        "forget_Q_A_ROUGE": {"agg_value": 0.4, "value_by_index": {"0": texts}},
        "forget_quality": {"agg_value": None},
    }


def write(folder: Path, log, name: str = "log.json") -> Path:
    path = folder / name
    path.write_text(log if isinstance(log, str) else json.dumps(log), encoding="utf-8")
    return path


def test_a_partial_log_gives_what_it_has(tmp_path):
    path = write(tmp_path, small())
    log = evaluate_log(path, path)
    assert log.recomputed["forget_truth_ratio"] == pytest.approx(0.5, rel=1e-8)
    assert log.recomputed["forget_quality"] == 1.0
    assert log.relative_difference == pytest.approx({"forget_Q_A_Prob": 0.0, "forget_Q_A_ROUGE": 0.25})
    assert "there are no ra records" in log.missing["ra_Q_A_Prob"]
    assert "no extraction_strength" in log.missing["extraction_strength"]


def test_a_wrong_logged_rouge_is_found(tmp_path):
    log = small()
    log["forget_Q_A_ROUGE"]["value_by_index"]["0"]["rougeL_recall"] = 0.51
    result = evaluate_log(write(tmp_path, log))
    assert (result.rouge_items, result.rouge_mismatches) == (1, ("forget_Q_A_ROUGE[0]",))
    assert result.recomputed["forget_Q_A_ROUGE"] == 0.5


def test_without_texts_the_logged_rouge_is_averaged(tmp_path):
    log = small()
    log["forget_Q_A_ROUGE"]["value_by_index"]["0"] = {"rougeL_recall": 0.4}
    result = evaluate_log(write(tmp_path, log))
    assert (result.rouge_items, result.recomputed["forget_Q_A_ROUGE"]) == (0, 0.4)


def test_a_required_reference_must_be_given(tmp_path):
    with pytest.raises(UserError, match="without a reference"):
        evaluate_log(write(tmp_path, small()), require_forget_quality=True)


def broken(change) -> dict:
    log = small()
    change(log)
    return log


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "log.json:1: invalid JSON"),
        ("[1]", "expected a JSON object of metrics"),
        ('{"a": 1}', "expected a JSON object of metrics"),
        ('{"mia_loss": {"agg_value": 1}}', "no TOFU log; missing every per-item TOFU metric"),
        (broken(lambda log: log["forget_Q_A_Prob"].pop("value_by_index")), "forget_Q_A_Prob has no 'value_by_index'"),
        (
            broken(lambda log: log["forget_Q_A_Prob"]["value_by_index"].update({"0": None})),
            r"forget_Q_A_Prob is null for 1 of 1 items \(0\)",
        ),
        (
            broken(lambda log: log["forget_Q_A_Prob"]["value_by_index"]["0"].update(avg_loss=None)),
            r"forget_Q_A_Prob\[0\].avg_loss is null",
        ),
        (
            broken(lambda log: log["forget_Q_A_Prob"]["value_by_index"]["0"].update(avg_loss=float("nan"))),
            r"forget_Q_A_Prob\[0\].avg_loss is NaN",
        ),
        (
            broken(lambda log: log["forget_Q_A_Prob"]["value_by_index"]["0"].update(avg_loss=-1.0)),
            "at least 0, got -1.0",
        ),
        (
            broken(lambda log: log["forget_Q_A_PERT_Prob"]["value_by_index"]["0"].update(prob=0.1)),
            r"forget_Q_A_PERT_Prob\[0\].prob is 0.1; expected a list",
        ),
        (
            broken(lambda log: log["forget_Q_A_PARA_Prob"]["value_by_index"].update({"1": {}})),
            "forget_Q_A_Prob and forget_Q_A_PARA_Prob cover different items; 1 are in one only, such as '1'",
        ),
        (
            broken(lambda log: log["forget_Q_A_ROUGE"]["value_by_index"].update({"0": {}})),
            "neither texts nor rougeL_recall",
        ),
        (broken(lambda log: log["forget_Q_A_Prob"]["value_by_index"].update(x={})), "expected a row number"),
    ],
)
def test_malformed_logs(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        evaluate_log(write(tmp_path, content))


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        evaluate_log(tmp_path / "absent.json")


def test_a_reference_that_cannot_serve(tmp_path):
    path = write(tmp_path, small())
    other = small()
    del other["forget_Q_A_PARA_Prob"]
    with pytest.raises(UserError, match=r"other.json cannot serve as the reference.*no paraphrased_loss"):
        evaluate_log(path, write(tmp_path, other, "other.json"))
    shifted = {
        name: {"value_by_index": {"7": value["value_by_index"]["0"]}}
        for name, value in small().items()
        if "value_by_index" in value
    }
    with pytest.raises(UserError, match="2 ids are in one only"):
        evaluate_log(path, write(tmp_path, shifted, "shifted.json"))
    only_authors = {"ra_Q_A_Prob": small()["forget_Q_A_Prob"]}
    with pytest.raises(UserError, match="no per-item forget metrics"):
        evaluate_log(path, write(tmp_path, only_authors, "authors.json"))
