"""Published logs give their published aggregates; malformed ones say what is wrong."""

import json
import os
from pathlib import Path

import pytest

from unlearn_core.errors import UserError
from unlearn_core.evaluation.open_unlearning_log import Log, evaluate_log

FULL, RETAIN = "tofu_llama-3.2-1b_full_forget10.json", "tofu_llama-3.2-1b_retain90.json"
MUSE_TARGET, MUSE_RETRAIN = "muse_llama-2-7b_books_target_numbers.json", "muse_llama-2-7b_books_retrain_numbers.json"


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


@pytest.mark.parametrize(
    ("name", "reference", "of_a_reference"),
    [
        (FULL, RETAIN, set()),
        (RETAIN, None, {"privleak", "forget_quality"}),
        (MUSE_TARGET, MUSE_RETRAIN, set()),
        (MUSE_RETRAIN, None, {"privleak"}),
    ],
)
def test_every_logged_aggregate_is_recomputed(golden, name, reference, of_a_reference):
    result = evaluate_log(golden / name, reference and golden / reference)
    names = set(json.loads((golden / name).read_text()))
    assert set(result.logged) == names and result.not_read == ()
    assert set(result.relative_difference) == names - of_a_reference
    assert all(name in result.missing for name in of_a_reference)
    assert result.largest_difference <= 1e-9


@pytest.mark.parametrize(("name", "value"), [(RETAIN, 23.4775), (MUSE_RETRAIN, 8.16)])
def test_privleak_against_a_constant_is_asked_for_and_says_so(golden, name, value):
    assert "reference" in evaluate_log(golden / name).missing["privleak"]
    result = evaluate_log(golden / name, compat=True)
    assert "privleak" not in result.recomputed
    assert result.recomputed["privleak_without_reference"] == pytest.approx(value, rel=1e-8)
    assert result.relative_difference["privleak_without_reference"] <= 1e-9
    assert any("constant AUC 0.5" in note for note in result.notes)


@pytest.mark.parametrize(
    ("name", "reference", "value"), [(FULL, RETAIN, -99.457391), (MUSE_TARGET, MUSE_RETRAIN, -57.340976)]
)
def test_privleak_against_the_retrained_log(golden, name, reference, value):
    result = evaluate_log(golden / name, golden / reference, compat=True)
    assert result.recomputed["privleak"] == pytest.approx(value, rel=1e-7)
    assert "privleak_without_reference" not in result.recomputed | result.missing


def test_records_of_the_published_logs(golden):
    sizes = {group: len(rows) for group, rows in Log(golden / FULL).records.items()}
    assert sizes == {"forget": 400, "retain": 400, "ra": 100, "wf": 117, "holdout": 400}
    log = Log(golden / MUSE_TARGET)
    assert {group: len(rows) for group, rows in log.records.items()} == dict.fromkeys(
        ("verbmem", "knowmem_forget", "knowmem_retain", "privleak_forget", "privleak_holdout"), 100
    )
    first = log.records["privleak_forget"][0]
    assert (first.item_id, first.min_k_score, first.min_k_plus_plus_score) == (
        "privleak_forget/00000",
        8.651679039001465,
        22.937877655029297,
    )
    assert (first.gradient_norm, first.reference_score) == (0.84765625, 0.553300142288208)


def test_rouge_of_every_text_equals_the_log(full):
    assert full.rouge_items == 400 + 400 + 100 + 117
    assert (full.rouge_compared, full.rouge_mismatches) == (1017, ())


def test_items_that_follow_from_others(full):
    for name, difference in full.item_difference.items():
        # Logged probabilities are float32 exponentials of the losses.
        assert difference <= (2e-7 if name.endswith("_Prob") else 1e-12), name


def test_a_model_is_its_own_perfect_reference(golden):
    assert evaluate_log(golden / RETAIN, golden / RETAIN).recomputed["forget_quality"] == 1.0


def test_a_tofu_log_is_no_reference_of_a_muse_log(golden):
    with pytest.raises(UserError, match=r"cannot serve as the reference: it is a log of tofu, and .* one of muse"):
        evaluate_log(golden / MUSE_TARGET, golden / RETAIN)


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
        ('{"a": 1}', "no log of TOFU or MUSE: it has a; expected metrics such as"),
        ("{}", "it has no metric"),
        ('{"mia_loss": {"agg_value": 1}}', "mia_loss may be of TOFU or of MUSE.*the file name TOFU_EVAL.json"),
        ('{"forget_Q_A_Prob": 0.5}', "forget_Q_A_Prob is 0.5; expected an object.*give the EVAL.json beside it"),
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
    with pytest.raises(UserError, match="no forget_truth_ratio: there are no forget records; no mia_min_k"):
        evaluate_log(path, write(tmp_path, only_authors, "authors.json"))


def attacked(forget, holdout) -> dict:
    """A membership metric with these scores."""
    parts = {"forget": forget, "holdout": holdout}
    return {"agg_value": None} | {
        part: {"value_by_index": {str(k): {"score": score} for k, score in enumerate(scores)}}
        for part, scores in parts.items()
    }


def muse_log(generation: str = "cats running", **extra) -> dict:
    """A log of two verbatim and one knowledge item with texts, and one attack: 3 of 4 pairs won, AUC 0.75."""
    texts = {"ground_truth": "cat runs", "generation": generation, "rougeL_f1": 1.0, "rougeL_recall": 1.0}
    return {
        "forget_knowmem_ROUGE": {"agg_value": 1.0, "value_by_index": {"0": texts | {"input": "Question: who?"}}},
        "forget_verbmem_ROUGE": {"value_by_index": {"0": {"rougeL_f1": 0.5}, "1": {"rougeL_f1": 0.25}}},
        "extraction_strength": {"agg_value": 0.3, "value_by_index": {"0": {"score": 0.2}, "1": {"score": 0.4}}},
        "mia_min_k": attacked([1.0, 3.0], [2.0, 4.0]) | {"agg_value": 0.75},
        **extra,
    }


def test_a_small_muse_log(tmp_path):
    result = evaluate_log(write(tmp_path, muse_log(forget_gibberish={"agg_value": 0.1})))
    assert result.suites == ("muse",)
    assert result.recomputed["forget_verbmem_ROUGE"] == pytest.approx(0.375)
    assert result.recomputed["extraction_strength"] == pytest.approx(0.3)
    assert result.recomputed["mia_min_k"] == 0.75
    assert result.relative_difference["mia_min_k"] == 0.0
    assert result.not_read == ("forget_gibberish",)
    assert "there are no knowmem_retain records" in result.missing["retain_knowmem_ROUGE"]
    assert "privleak" in result.missing


def test_privleak_of_a_small_log_by_hand(tmp_path):
    reference = muse_log() | {"mia_min_k": attacked([3.0, 1.0], [2.0, 0.0])}  # one pair of four: AUC 0.25
    path, other = write(tmp_path, muse_log()), write(tmp_path, reference, "retrain.json")
    assert evaluate_log(path, other).recomputed["privleak"] == pytest.approx(100 * (0.25 - 0.75) / 0.75)
    alone = evaluate_log(path, compat=True)
    assert alone.recomputed["privleak_without_reference"] == pytest.approx(100 * (0.25 - 0.5) / 0.5)


@pytest.mark.parametrize(("compat", "f1", "compared"), [(False, 0.0, 0), (True, 0.5, 1)])
def test_the_stemmer_of_muse(tmp_path, compat, f1, compared):
    # "cats" and "cat" share a stem, "running" and "bark" none.
    result = evaluate_log(write(tmp_path, muse_log("cats bark")), compat=compat)
    assert result.recomputed["forget_knowmem_ROUGE"] == f1
    assert (result.rouge_items, result.rouge_compared, len(result.rouge_mismatches)) == (1, compared, compared)
    assert ("forget_knowmem_ROUGE" in result.relative_difference) == compat
    notes = " ".join(result.notes)
    assert ("forget_knowmem_ROUGE: recomputed without stemmer" in notes) == (not compat)
    assert ("forget_verbmem_ROUGE: the log's own numbers" in notes) == (not compat)


def test_muse_texts_of_some_items_only_are_not_mixed_with_numbers_of_others(tmp_path):
    log = muse_log("cats bark")
    log["forget_knowmem_ROUGE"]["value_by_index"]["1"] = {"rougeL_f1": 0.5}
    result = evaluate_log(write(tmp_path, log))
    assert (result.rouge_items, result.recomputed["forget_knowmem_ROUGE"]) == (0, 0.75)


def test_texts_of_a_log_are_kept(tmp_path):
    row = Log(write(tmp_path, muse_log())).records["knowmem_forget"][0]
    assert (row.item_id, row.question, row.answer, row.generation) == (
        "knowmem_forget/00000",
        "Question: who?",
        "cat runs",
        "cats running",
    )


def test_a_log_of_both_suites(tmp_path):
    both = small() | muse_log()
    # What both suites call by one name belongs to the first, whose forget items it must cover.
    both["extraction_strength"] = {"agg_value": 0.2, "value_by_index": {"0": {"score": 0.2}}}
    both["mia_min_k"] = attacked([1.0], [2.0])
    result = evaluate_log(write(tmp_path, both))
    assert result.suites == ("tofu", "muse")
    assert result.recomputed["forget_Q_A_Prob"] == 0.5
    assert result.recomputed["forget_verbmem_ROUGE"] == 0.375
    assert result.recomputed["extraction_strength"] == 0.2
    assert result.recomputed["mia_min_k"] == 1.0
    assert result.not_read == ()


@pytest.mark.parametrize(
    ("name", "suite", "group"), [("TOFU_EVAL.json", "tofu", "forget"), ("MUSE_EVAL.json", "muse", "privleak_forget")]
)
def test_the_file_name_decides_where_the_metrics_do_not(tmp_path, name, suite, group):
    log = Log(write(tmp_path, {"mia_loss": attacked([1.0], [2.0])}, name))
    assert (log.suites, [row.loss_score for row in log.records[group]]) == ((suite,), [1.0])
    assert log.aggregates().values["mia_loss"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: log["mia_min_k"].pop("holdout"), "mia_min_k.holdout has no 'value_by_index'"),
        (
            lambda log: log["mia_min_k"]["forget"]["value_by_index"].update({"1": None}),
            r"mia_min_k.forget is null for 1",
        ),
        (
            lambda log: log["mia_min_k"]["forget"]["value_by_index"]["0"].update(score=float("inf")),
            r"mia_min_k.forget\[0\].score is Infinity",
        ),
        (
            lambda log: log.update(mia_loss=attacked([1.0], [2.0, 3.0])),
            "mia_loss.forget and mia_min_k.forget cover different items; 1 are in one only, such as '1'",
        ),
        (
            lambda log: log["forget_verbmem_ROUGE"]["value_by_index"].update({"1": {"rougeL_recall": 1.0}}),
            r"forget_verbmem_ROUGE\[1\] has neither texts nor rougeL_f1",
        ),
        (
            lambda log: log["extraction_strength"].update(value_by_index=[0.2]),
            "extraction_strength has no 'value_by_index'",
        ),
    ],
)
def test_malformed_muse_logs(tmp_path, change, message):
    log = muse_log()
    change(log)
    with pytest.raises(UserError, match=message):
        evaluate_log(write(tmp_path, log))


def test_a_reference_without_its_attack_cannot_serve_muse(tmp_path):
    other = muse_log()
    del other["mia_min_k"]
    with pytest.raises(UserError, match=r"retrain\.json cannot serve as the reference: no mia_min_k"):
        evaluate_log(write(tmp_path, muse_log()), write(tmp_path, other, "retrain.json"))
