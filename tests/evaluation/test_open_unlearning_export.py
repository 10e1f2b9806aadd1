"""Records written as an open-unlearning log: its shape, and the same aggregates when it is read back."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from unlearn_core.errors import UserError
from unlearn_core.evaluation import tofu
from unlearn_core.evaluation.open_unlearning_export import write_log
from unlearn_core.evaluation.open_unlearning_log import Log, compare, evaluate_log
from unlearn_core.evaluation.records import ItemRecord

FULL, RETAIN = "tofu_llama-3.2-1b_full_forget10.json", "tofu_llama-3.2-1b_retain90.json"
MUSE_TARGET, MUSE_RETRAIN = "muse_llama-2-7b_books_target_numbers.json", "muse_llama-2-7b_books_retrain_numbers.json"


@pytest.fixture(scope="module")
def golden() -> Path:
    folder = os.environ.get("GOLDEN_DIR")
    if not folder:
        pytest.skip("GOLDEN_DIR is not set: the folder of published evaluation logs")
    return Path(folder)


def differing(ours, theirs, where="") -> list[str]:
    """Places where two JSON values differ by more than rounding, float32 rounding for means of a part."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return [f"{where}: {sorted(ours.keys() ^ theirs.keys())}"]
        return [found for key in theirs for found in differing(ours[key], theirs[key], f"{where}.{key}")]
    if isinstance(theirs, list):
        return [
            found
            for k, pair in enumerate(zip(ours, theirs, strict=True))
            for found in differing(*pair, f"{where}[{k}]")
        ]
    if isinstance(theirs, float):
        tolerance = 1e-6 if where.endswith((".forget.agg_value", ".holdout.agg_value")) else 1e-9
        return [] if math.isclose(ours, theirs, rel_tol=tolerance) else [f"{where}: {ours} {theirs}"]
    return [] if ours == theirs else [f"{where}: {ours!r} {theirs!r}"]


@pytest.mark.parametrize(("name", "retrained", "suite"), [(FULL, RETAIN, "tofu"), (MUSE_TARGET, MUSE_RETRAIN, "muse")])
def test_a_published_log_comes_out_as_it_went_in(golden, tmp_path, name, retrained, suite):
    log, reference = Log(golden / name), Log(golden / retrained)
    before = compare(log, reference)
    written = write_log(tmp_path / "EVAL.json", suite, log.records, before.recomputed)
    assert differing(json.loads(written.path.read_text()), json.loads((golden / name).read_text())) == []
    again = compare(Log(written.path), reference)
    assert again.recomputed.keys() == before.recomputed.keys()
    for column, value in before.recomputed.items():
        assert again.recomputed[column] == pytest.approx(value, rel=1e-12), column
    assert again.largest_difference <= 1e-12


def forget(number: int, loss: float, **extra) -> ItemRecord:
    """A forget record with every measurement that a TOFU log holds."""
    values = {
        "answer": "Ann Lee",
        "generation": "Ann",
        "question": "Who?",
        "avg_loss": loss,
        "prob": math.exp(-loss),
        "paraphrased_loss": loss + 1,
        "paraphrased_prob": math.exp(-loss - 1),
        "perturbed_losses": (loss + 2, loss + 4),
        "perturbed_probs": (math.exp(-loss - 2), math.exp(-loss - 4)),
        "extraction_strength": 0.0,
        "exact_memorization": 0.5,
        "rouge1_recall": 0.5,
        "rougeL_recall": 0.5,
        "rougeL_f1": 2 / 3,
        "loss_score": loss,
        "min_k_score": 2 * loss,
    }
    return ItemRecord(item_id=f"forget10_perturbed/{number:05d}", group="forget", **values | extra)


def holdout(number: int, loss: float) -> ItemRecord:
    return ItemRecord(item_id=f"holdout10/{number:05d}", group="holdout", loss_score=loss, min_k_score=2 * loss)


RECORDS = {"forget": [forget(0, 0.5), forget(1, 1.5)], "holdout": [holdout(0, 1.0), holdout(1, 2.0)]}
REFERENCE = {"forget": [forget(0, 1.25), forget(1, 1.75)], "holdout": [holdout(0, 1.0), holdout(1, 2.5)]}


def write(path: Path, records, reference=None):
    return write_log(path, "tofu", records, tofu.aggregate(records, reference).values, reference)


def test_the_shape_by_hand(tmp_path):
    written = write(tmp_path / "deep" / "TOFU_EVAL.json", RECORDS, REFERENCE)
    log = json.loads(written.path.read_text())
    assert list(log) == sorted(log) == list(written.metrics)
    assert log["forget_Q_A_Prob"]["value_by_index"]["1"] == {"prob": math.exp(-1.5), "avg_loss": 1.5}
    assert log["forget_Q_A_PERT_Prob"]["value_by_index"]["0"]["avg_loss"] == [2.5, 4.5]
    # exp(-mean(loss + 2, loss + 4)) over exp(-(loss + 1)) is exp(-2) for every item.
    scores = [entry["score"] for entry in log["forget_truth_ratio"]["value_by_index"].values()]
    assert scores == pytest.approx([math.exp(-2)] * 2, rel=1e-8)
    assert log["forget_Q_A_ROUGE"]["agg_value"] == 0.5
    assert log["forget_Q_A_ROUGE"]["value_by_index"]["0"]["generation"] == "Ann"
    # Of the pairs 0.5 < 1, 0.5 < 2, 1.5 > 1, 1.5 < 2 three are won.
    assert (log["mia_min_k"]["agg_value"], log["mia_min_k"]["auc"]) == (0.75, 0.75)
    assert log["mia_min_k"]["holdout"] == {
        "agg_value": 3.0,
        "value_by_index": {"0": {"score": 2.0}, "1": {"score": 4.0}},
    }
    # The reference attack: losses minus the retrained model's.
    parts = (log["mia_reference"][part]["value_by_index"] for part in ("forget", "holdout"))
    assert [[entry["score"] for entry in part.values()] for part in parts] == [[-0.75, -0.25], [0.0, -0.5]]
    assert log["mia_reference"]["agg_value"] == 0.75
    assert "forget_quality_log10" not in log
    assert "no such metric" in written.left_out["forget_quality_log10"]
    assert "zlib_score" in written.left_out["mia_zlib"]
    assert "there are no ra records" in written.left_out["ra_Q_A_Prob"]


def test_what_open_unlearning_reads_of_a_retrained_log(tmp_path):
    log = json.loads(write(tmp_path / "TOFU_EVAL.json", REFERENCE).path.read_text())
    assert [entry["score"] for entry in log["forget_truth_ratio"]["value_by_index"].values()]
    assert isinstance(log["mia_min_k"]["agg_value"], float)
    assert log["forget_quality"] == {"agg_value": None}
    assert "privleak" not in log


@pytest.mark.parametrize("with_reference", [True, False])
def test_our_own_reader_finds_the_same_aggregates(tmp_path, with_reference):
    theirs = write(tmp_path / "retrained_tofu.json", REFERENCE, REFERENCE).path
    reference = REFERENCE if with_reference else None
    expected = tofu.aggregate(RECORDS, reference).values
    written = write(tmp_path / "tofu.json", RECORDS, reference)
    result = evaluate_log(written.path, theirs if with_reference else None)
    assert result.recomputed == pytest.approx(expected, rel=1e-12)
    assert result.largest_difference <= 1e-12
    assert ("privleak" in result.recomputed) == with_reference


def test_the_constant_reference_keeps_its_label(tmp_path):
    values = tofu.aggregate(RECORDS, None, True).values
    log = json.loads(write_log(tmp_path / "EVAL.json", "tofu", RECORDS, values).path.read_text())
    # AUC 0.75 against 0.5: (0.25 - 0.5) / 0.5.
    assert log["privleak"] == {"agg_value": pytest.approx(-50.0), "reference_auc": 0.5}
    assert evaluate_log(tmp_path / "EVAL.json", compat=True).largest_difference <= 1e-12


def muse_records() -> dict:
    def said(group, f1, **extra):
        return ItemRecord(item_id=f"{group}/00000", group=group, rougeL_f1=f1, **extra)

    return {
        # Without stemmer "cats" is not "cat".
        "verbmem": [said("verbmem", 0.5, answer="cat runs", generation="cats runs", extraction_strength=0.0)],
        "knowmem_forget": [said("knowmem_forget", 1.0, answer="Ann", generation="Ann")],
        "privleak_forget": [ItemRecord(item_id="privleak/forget/00000", group="privleak_forget", min_k_score=1.0)],
        "privleak_holdout": [ItemRecord(item_id="privleak/holdout/00000", group="privleak_holdout", min_k_score=2.0)],
    }


def test_muse_from_our_records(tmp_path):
    aggregates = {
        "forget_verbmem_ROUGE": 0.5,
        "forget_knowmem_ROUGE": 1.0,
        "extraction_strength": 0.0,
        "mia_min_k": 1.0,
    }
    written = write_log(tmp_path / "MUSE_EVAL.json", "muse", muse_records(), aggregates)
    assert written.metrics == tuple(sorted(aggregates))
    result = evaluate_log(written.path)
    assert {name: result.recomputed[name] for name in aggregates} == aggregates


def test_row_numbers_without_numbers_in_the_ids(tmp_path):
    records = {"forget": [replace(forget(0, 0.5), item_id="a"), replace(forget(0, 1.5), item_id="b")]}
    log = json.loads(write(tmp_path / "EVAL.json", records).path.read_text())
    assert list(log["forget_Q_A_Prob"]["value_by_index"]) == ["0", "1"]
    records = {"forget": [forget(7, 0.5)]}
    log = json.loads(write(tmp_path / "EVAL.json", records).path.read_text())
    assert list(log["forget_truth_ratio"]["value_by_index"]) == ["7"]


def test_half_an_attack_is_left_out(tmp_path):
    written = write(tmp_path / "EVAL.json", {"forget": RECORDS["forget"]})
    assert "mia_min_k" not in json.loads(written.path.read_text())
    assert "no holdout records" in written.left_out["mia_min_k"]


def test_a_measurement_that_some_rows_lack_is_left_out(tmp_path):
    records = {"forget": [forget(0, 0.5), forget(1, 0.5, paraphrased_prob=None, paraphrased_loss=None)]}
    written = write(tmp_path / "EVAL.json", records)
    assert {"forget_Q_A_PARA_Prob", "forget_truth_ratio"}.isdisjoint(written.metrics)
    assert "1 of 2 records have no paraphrased_prob" in written.left_out["forget_Q_A_PARA_Prob"]


@pytest.mark.parametrize(
    ("suite", "records", "message"),
    [
        ("own", RECORDS, "no logs of the suite 'own'; expected tofu or muse"),
        ("tofu", {"other": RECORDS["forget"]}, "hold no metric of the suite 'tofu'"),
        ("tofu", {"forget": [forget(0, math.nan)]}, r"forget_Q_A_Prob of 'forget10_perturbed/00000': prob is nan"),
        ("tofu", {"forget": [forget(0, math.inf, prob=0.0)]}, "avg_loss is inf; .*export another checkpoint"),
    ],
)
def test_what_cannot_be_written(tmp_path, suite, records, message):
    with pytest.raises(UserError, match=message):
        write_log(tmp_path / "EVAL.json", suite, records, {})
    assert list(tmp_path.iterdir()) == []
