"""The original harness's aggregates by hand, its 300 rows, and a published log by its formulas as they were written."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unlearn_core.errors import UserError
from unlearn_core.evaluation import tofu_legacy
from unlearn_core.evaluation.records import ItemRecord

HALF, QUARTER = math.log(2), math.log(4)
GROUPS = ("forget", "retain", "ra", "wf")


def made(group: str, index: int = 0, **changes) -> ItemRecord:
    """Answer 1/2, paraphrase 1/4, wrong answers 1/2 and 1/32, their geometric mean 1/8."""
    base = ItemRecord(
        item_id=f"{group}/{index:05d}",
        group=group,
        avg_loss=HALF,
        paraphrased_loss=QUARTER if group in ("forget", "retain") else None,
        perturbed_losses=(HALF, math.log(32)),
        rougeL_recall=0.6,
    )
    return replace(base, **changes)


def everything() -> dict[str, list[ItemRecord]]:
    return {group: [made(group)] for group in GROUPS}


def test_all_columns_by_hand():
    result = tofu_legacy.legacy(everything(), everything())
    share = 0.5 / (0.5 + 0.5 + 1 / 32)
    expected = {
        "legacy_forget_quality": 1.0,
        "legacy_forget_quality_log10": 0.0,
        "legacy_forget_quality_statistic": 0.0,
        # Right over wrong: 2 for forget and retain, 4 for the others.
        "legacy_forget_Truth_Ratio": 0.5,
        "legacy_retain_Truth_Ratio": 0.5,
        "legacy_ra_Truth_Ratio": 0.75,
        "legacy_wf_Truth_Ratio": 0.75,
        "legacy_forget_Prob": 0.5,
        "legacy_retain_Prob": 0.5,
        "legacy_ra_Prob": share,
        "legacy_wf_Prob": share,
        **{f"legacy_{group}_ROUGE": 0.6 for group in GROUPS},
        "legacy_model_utility": 9 / (2 + 2 / share + 3 / 0.6 + 2 + 2 / 0.75),
    }
    assert result.missing == {}
    assert tuple(result.values) == tofu_legacy.NAMES
    assert result.values == pytest.approx(expected, rel=1e-12)


def test_forget_folds_and_utility_clips_a_preference_for_wrong_answers():
    # Paraphrase 1/16 under wrong answers of 1/8: ratio 1/2.
    changed = {"paraphrased_loss": math.log(16)}
    values = tofu_legacy.legacy({group: [made(group, **changed)] for group in ("forget", "retain")}).values
    assert values["legacy_forget_Truth_Ratio"] == pytest.approx(0.5)
    assert values["legacy_retain_Truth_Ratio"] == 0.0


def test_no_epsilon_where_probabilities_are_of_its_size():
    # Answer e^-30, wrong answers e^-31: with 1e-10 in the denominators all of these would be near 0.
    tiny = {"avg_loss": 30.0, "perturbed_losses": (31.0,)}
    values = tofu_legacy.legacy({"wf": [made("wf", **tiny)]}).values
    assert values["legacy_wf_Prob"] == pytest.approx(1 / (1 + math.exp(-1)))
    assert values["legacy_wf_Truth_Ratio"] == pytest.approx(1 - math.exp(-1))


def test_impossible_answers_have_values():
    impossible = {"avg_loss": 5000.0, "paraphrased_loss": 5000.0, "perturbed_losses": (4000.0, 4000.0)}
    records = {group: [made(group, **impossible)] for group in GROUPS}
    values = tofu_legacy.legacy(records, everything()).values
    assert [values[f"legacy_{group}_Truth_Ratio"] for group in GROUPS] == [0.0] * 4
    assert values["legacy_wf_Prob"] == 0.0
    assert values["legacy_model_utility"] == 0.0
    assert values["legacy_forget_quality_statistic"] == 1.0
    # The other way round the ratio is beyond the largest double.
    known = {"paraphrased_loss": 0.0, "perturbed_losses": (4000.0,)}
    values = tofu_legacy.legacy({"forget": [made("forget", **known)]}, everything()).values
    assert values["legacy_forget_Truth_Ratio"] == 0.0
    assert values["legacy_forget_quality_statistic"] == 1.0


@pytest.mark.parametrize(("group", "counted"), [("forget", 300), ("retain", 300), ("ra", 310), ("wf", 310)])
def test_the_first_300_rows_of_forget_and_retain(group, counted):
    # Recall 1 for the first 300 rows of the file, 0 for the rest; the records come in another order.
    rows = [made(group, i, rougeL_recall=float(i < 300)) for i in range(310)]
    values = tofu_legacy.legacy({group: rows[::-1]}).values
    assert values[f"legacy_{group}_ROUGE"] == pytest.approx(300 / counted)


def test_forget_quality_sees_the_first_300_rows_only():
    rows = [made("forget", i, paraphrased_loss=i / 100) for i in range(320)]
    later = [replace(row, paraphrased_loss=9.0) if i >= 300 else row for i, row in enumerate(rows)]
    assert tofu_legacy.legacy({"forget": rows}, {"forget": later}).values["legacy_forget_quality"] == 1.0


def test_separated_samples():
    # All 3 ratios of one model below the other's: 2 of the C(6, 3) = 20 orders are as extreme.
    low = {"forget": [made("forget", i, paraphrased_loss=5.0 + i) for i in range(3)]}
    high = {"forget": [made("forget", i, paraphrased_loss=1.0 + i / 10) for i in range(3)]}
    values = tofu_legacy.legacy(low, high).values
    assert values["legacy_forget_quality"] == pytest.approx(0.1)
    assert values["legacy_forget_quality_log10"] == pytest.approx(-1.0)
    assert values["legacy_forget_quality_statistic"] == 1.0


QUALITY = ("legacy_forget_quality", "legacy_forget_quality_log10", "legacy_forget_quality_statistic")


def test_missing_values_say_why():
    result = tofu_legacy.legacy(everything())
    assert set(result.missing) == set(QUALITY)
    assert "none was given" in result.missing["legacy_forget_quality"]
    no_authors = {group: rows for group, rows in everything().items() if group != "ra"}
    result = tofu_legacy.legacy(no_authors, {})
    assert result.missing["legacy_ra_Prob"] == "there are no ra records"
    assert "3 of its nine terms" in result.missing["legacy_model_utility"]
    assert result.missing["legacy_forget_quality"] == "the reference cannot serve: there are no forget records"
    assert set(result.values) | set(result.missing) == set(tofu_legacy.NAMES)
    unanswered = everything() | {"wf": [made("wf", rougeL_recall=None)]}
    assert "no rougeL_recall" in tofu_legacy.legacy(unanswered).missing["legacy_wf_ROUGE"]


def test_a_reference_of_other_items_is_an_error():
    with pytest.raises(UserError, match="2 ids are in one only, such as 'forget/00000'"):
        tofu_legacy.legacy(everything(), {"forget": [made("forget", 1)]})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("changes", ["avg_loss", "paraphrased_loss", "perturbed_losses", "rougeL_recall"])
@pytest.mark.parametrize("group", ["retain", "wf"])
def test_a_non_finite_measurement_is_an_error(group, changes, bad):
    if (group, changes) == ("wf", "paraphrased_loss"):
        group = "forget"
    row = made(group, **{changes: (1.0, bad) if changes == "perturbed_losses" else bad})
    with pytest.raises(ValueError, match="not finite"):
        tofu_legacy.legacy(everything() | {group: [row]})


def test_a_published_log():
    """The formulas in the order and with the operations of the original, on plain arrays."""
    from scipy.stats import hmean, ks_2samp

    logs = [_log(name) for name in ("tofu_llama-3.2-1b_full_forget10.json", "tofu_llama-3.2-1b_retain90.json")]
    records, reference = [{group: _records(log, group) for group in GROUPS} for log in logs]
    values = tofu_legacy.legacy(records, reference).values
    terms = []
    ratios = {}
    for group in GROUPS:
        size = 300 if group in ("forget", "retain") else None
        answer, wrong, rouge = (
            _column(logs[0], f"{group}_{metric}", key)[:size]
            for metric, key in (("Q_A_Prob", "avg_loss"), ("Q_A_PERT_Prob", "avg_loss"), ("Q_A_ROUGE", "rougeL_recall"))
        )
        correct = answer if size is None else _column(logs[0], f"{group}_Q_A_PARA_Prob", "avg_loss")[:size]
        ratios[group] = np.exp(wrong.mean(axis=1) - correct)
        probability = np.exp(-answer)
        if size is None:
            probability /= np.exp(-answer) + np.exp(-wrong).sum(axis=1)
        if group == "forget":
            ratio = np.minimum(ratios[group], 1 / ratios[group]).mean()
        else:
            ratio = np.maximum(0, 1 - 1 / ratios[group]).mean()
            terms += [probability.mean(), rouge.mean(), ratio]
        assert values[f"legacy_{group}_Prob"] == pytest.approx(probability.mean(), rel=1e-12)
        assert values[f"legacy_{group}_ROUGE"] == pytest.approx(rouge.mean(), rel=1e-12)
        assert values[f"legacy_{group}_Truth_Ratio"] == pytest.approx(ratio, rel=1e-12)
    assert values["legacy_model_utility"] == pytest.approx(hmean(terms), rel=1e-12)
    wrong = _column(logs[1], "forget_Q_A_PERT_Prob", "avg_loss")[:300]
    other = np.exp(wrong.mean(axis=1) - _column(logs[1], "forget_Q_A_PARA_Prob", "avg_loss")[:300])
    test = ks_2samp(ratios["forget"], other)
    assert values["legacy_forget_quality"] == pytest.approx(test.pvalue, rel=1e-9)
    assert values["legacy_forget_quality_statistic"] == pytest.approx(test.statistic, rel=1e-12)
    # 100 rows fewer than today's test: a smaller sample tells less apart.
    assert 1e-22 < values["legacy_forget_quality"] < 1e-10


def _log(name: str) -> dict:
    folder = os.environ.get("GOLDEN_DIR")
    if not folder:
        pytest.skip("GOLDEN_DIR is not set: the folder of published evaluation logs")
    return json.loads((Path(folder) / name).read_text(encoding="utf-8"))


def _column(log: dict, metric: str, key: str) -> np.ndarray:
    return np.array([item[key] for item in log[metric]["value_by_index"].values()])


def _records(log: dict, group: str) -> list[ItemRecord]:
    paraphrases = log.get(f"{group}_Q_A_PARA_Prob", {}).get("value_by_index", {})
    return [
        ItemRecord(
            item_id=f"{group}/{int(index):05d}",
            group=group,
            avg_loss=item["avg_loss"],
            paraphrased_loss=paraphrases[index]["avg_loss"] if paraphrases else None,
            perturbed_losses=tuple(log[f"{group}_Q_A_PERT_Prob"]["value_by_index"][index]["avg_loss"]),
            rougeL_recall=log[f"{group}_Q_A_ROUGE"]["value_by_index"][index]["rougeL_recall"],
        )
        for index, item in log[f"{group}_Q_A_Prob"]["value_by_index"].items()
    ]
