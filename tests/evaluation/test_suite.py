"""Records of the TOFU suite to aggregates, by hand; what is missing; which rows are needed."""

import math
from dataclasses import replace

import pytest

from unlearn_core.data.rows import Row
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.errors import UserError
from unlearn_core.evaluation import tofu, tofu_legacy
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.records import (
    SCHEMA_VERSION,
    ItemRecord,
    from_table,
    read_metadata,
    read_parquet,
    to_table,
    write_parquet,
)

HALF, QUARTER, EIGHTH = math.log(2), math.log(4), math.log(8)


SCORES: dict[str, dict[str, float]] = {group: {} for group in tofu.GROUPS}
for _group, _score in (("forget", 1.0), ("holdout", 2.0)):
    SCORES[_group] = dict.fromkeys(
        ("loss_score", "zlib_score", "min_k_score", "min_k_plus_plus_score", "gradient_norm"), _score
    )


def made(group: str, index: int = 0, **changes) -> ItemRecord:
    """Answer 1/2, paraphrase 1/4, wrong answers 1/8 and 1/8: truth ratio 1/2 (1/4 without a paraphrase)."""
    paraphrased = group in ("forget", "retain")
    base = ItemRecord(
        item_id=f"{group}/{index:05d}",
        group=group,
        avg_loss=HALF,
        prob=0.5,
        extraction_strength=0.25,
        exact_memorization=0.75,
        paraphrased_loss=QUARTER if paraphrased else None,
        paraphrased_prob=0.25 if paraphrased else None,
        perturbed_losses=(EIGHTH, EIGHTH),
        perturbed_probs=(0.125, 0.125),
        rougeL_recall=0.6,
        **SCORES[group],
    )
    return replace(base, **changes)


def everything() -> dict[str, list[ItemRecord]]:
    return {group: [made(group)] for group in tofu.GROUPS}


def retrained(**changes) -> dict[str, list[ItemRecord]]:
    """As the model, but its min-k scores tie: AUC 1/2."""
    return everything() | {"forget": [made("forget", min_k_score=2.0, **changes)]}


def test_all_aggregates_by_hand():
    result = tofu.aggregate(everything(), retrained())
    expected = {
        "forget_quality": 1.0,
        "forget_quality_log10": 0.0,
        # Nine terms: 1/2, 2/3, 2/3 (0.5 / (0.5 + 0.25)); ROUGE 0.6 x 3; truth ratios 1/2, 3/4, 3/4.
        "model_utility": 9 / (2 + 1.5 + 1.5 + 3 / 0.6 + 2 + 4 / 3 + 4 / 3),
        # AUC 1 against 1/2: (0 - 0.5) / 0.5. Every loss equals the reference's.
        "privleak": -100.0,
        **{f"mia_{attack}": 1.0 for attack in ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm")},
        "mia_reference": 0.5,
        "forget_Q_A_Prob": 0.5,
        "forget_Q_A_PARA_Prob": 0.25,
        "forget_Q_A_PERT_Prob": 0.125,
        "forget_Q_A_ROUGE": 0.6,
        "forget_truth_ratio": 0.5,
        "forget_truth_ratio_arithmetic": 0.5,
        "forget_truth_ratio_prob_mean": 2 / 3,
        "extraction_strength": 0.25,
        "exact_memorization": 0.75,
        "retain_Q_A_Prob": 0.5,
        "retain_Q_A_PARA_Prob": 0.25,
        "retain_Q_A_PERT_Prob": 0.125,
        "retain_Q_A_ROUGE": 0.6,
        "retain_Truth_Ratio": 0.5,
        "retain_Truth_Ratio_arithmetic": 0.5,
        "retain_Truth_Ratio_prob_mean": 2 / 3,
        **{f"{group}_Q_A_Prob": 0.5 for group in ("ra", "wf")},
        **{f"{group}_Q_A_PERT_Prob": 0.125 for group in ("ra", "wf")},
        **{f"{group}_Q_A_Prob_normalised": 2 / 3 for group in ("ra", "wf")},
        **{f"{group}_Q_A_ROUGE": 0.6 for group in ("ra", "wf")},
        **{f"{group}_Truth_Ratio": 0.75 for group in ("ra", "wf")},
        **{f"{group}_Truth_Ratio_arithmetic": 0.75 for group in ("ra", "wf")},
        # 1/2 beside 1/8.
        **{f"{group}_Truth_Ratio_prob_mean": 0.8 for group in ("ra", "wf")},
    }
    assert result.missing == {}
    assert tuple(result.values) == tuple(name for name in tofu.NAMES if name != "privleak_without_reference")
    assert result.values == pytest.approx(expected, rel=1e-8)


def test_the_two_averages_over_wrong_answers():
    # Wrong answers 1/2 and 1/8: geometric mean 1/4, arithmetic 5/16. Correct 1/2 (paraphrase and answer).
    changes = {"perturbed_losses": (HALF, EIGHTH), "paraphrased_loss": HALF}
    records = everything() | {group: [made(group, **changes)] for group in ("forget", "retain")}
    records["wf"] = [made("wf", perturbed_losses=(HALF, EIGHTH))]
    values = tofu.aggregate(records).values
    for name, wrong in (("", 1 / 4), ("_arithmetic", 5 / 16)):
        assert values[f"forget_truth_ratio{name}"] == pytest.approx(wrong / 0.5, rel=1e-8)
        assert values[f"retain_Truth_Ratio{name}"] == pytest.approx(1 - wrong / 0.5, rel=1e-8)
        assert values[f"wf_Truth_Ratio{name}"] == pytest.approx(1 - wrong / 0.5, rel=1e-8)
    assert values["forget_truth_ratio_prob_mean"] == pytest.approx(2 / 3, rel=1e-8)
    assert list(tofu.truth_ratios(records["wf"], "arithmetic").values()) == pytest.approx([5 / 8], rel=1e-8)


def test_forget_truth_ratio_folds_and_utility_truth_ratio_clips():
    # Paraphrase 1/16 against 1/8: ratio 2, as far from 1 as 1/2; its true_better is 0, so utility is 0.
    changed = {"paraphrased_loss": math.log(16), "paraphrased_prob": 1 / 16}
    records = everything() | {"forget": [made("forget", **changed)], "retain": [made("retain", **changed)]}
    values = tofu.aggregate(records).values
    assert values["forget_truth_ratio"] == pytest.approx(0.5, rel=1e-8)
    assert values["retain_Truth_Ratio"] == 0.0
    assert values["model_utility"] == 0.0


def test_without_a_reference_what_compares_with_it_is_missing():
    result = tofu.aggregate(everything())
    assert set(result.missing) == {"forget_quality", "forget_quality_log10", "privleak", "mia_reference"}
    assert all("none was given" in reason for reason in result.missing.values())


def test_compat_adds_the_labelled_constant_and_changes_nothing_else():
    plain, compat = tofu.aggregate(everything()), tofu.aggregate(everything(), None, True)
    assert compat.values == plain.values | {"privleak_without_reference": pytest.approx(-100.0)}
    assert compat.missing == plain.missing
    assert tofu.aggregate(everything(), retrained(), True) == tofu.aggregate(everything(), retrained())


def test_without_holdout_records_the_attacks_are_missing():
    records = everything()
    del records["holdout"]
    result = tofu.aggregate(records, retrained())
    assert {name for name in result.missing if "no holdout records" in result.missing[name]} == set(result.missing)
    assert set(result.missing) == {name for name in tofu.NAMES if name.startswith("mia_")} | {"privleak"}


def test_a_missing_group_takes_utility_along_and_says_so():
    records = everything()
    del records["ra"]
    result = tofu.aggregate(records)
    assert result.missing["ra_Q_A_ROUGE"] == "there are no ra records"
    assert "3 of its nine terms" in result.missing["model_utility"]
    assert set(result.values) | set(result.missing) == set(tofu.NAMES) - {"privleak_without_reference"}
    assert not set(result.values) & set(result.missing)


def test_a_missing_measurement_names_the_record():
    records = everything() | {"wf": [made("wf"), made("wf", 1, rougeL_recall=None)]}
    result = tofu.aggregate(records)
    assert result.missing["wf_Q_A_ROUGE"] == "1 of 2 records have no rougeL_recall, the first is 'wf/00001'"


def test_a_reference_of_other_items_is_an_error():
    other = everything() | {"forget": [made("forget", 1)]}
    with pytest.raises(UserError, match=r"forget quality.*2 ids are in one only, such as 'forget/00000'"):
        tofu.aggregate(everything(), other)


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ({}, "the reference cannot serve: there are no forget records"),
        (
            retrained(paraphrased_loss=None),
            "the reference cannot serve: 1 of 1 records have no paraphrased_loss, the first is 'forget/00000'",
        ),
    ],
)
def test_a_reference_that_lacks_what_is_compared_is_no_reference(reference, reason):
    result = tofu.aggregate(everything(), reference)
    assert result.missing["forget_quality"] == result.missing["forget_quality_log10"] == reason


def test_a_non_finite_measurement_is_an_error():
    with pytest.raises(ValueError, match="not finite"):
        tofu.aggregate(everything() | {"forget": [made("forget", prob=math.nan)]})
    with pytest.raises(ValueError, match="not finite"):
        tofu.aggregate(everything() | {"holdout": [made("holdout", zlib_score=math.inf)]})


def test_the_suite_covers_its_groups_once():
    benchmark = open_benchmark("synthetic:tiny")
    suite = tofu.suite(benchmark, "forget10")
    assert (suite.name, suite.source, suite.forget, suite.notes) == ("tofu", "synthetic:tiny", "forget10", ())
    assert suite.columns == tofu.NAMES
    assert set(suite.headline) <= set(suite.columns)
    assert tuple(suite.groups) == tofu.GROUPS
    for group, split in tofu.splits("forget10").items():
        rows = benchmark.split(split)
        assert [(item.item_id, item.prompt, item.answer) for item in suite.groups[group]] == [
            (row.item_id, row.question, row.answer) for row in rows
        ]


def test_what_is_measured_of_each_group():
    benchmark = open_benchmark("synthetic:tiny")
    groups = tofu.suite(benchmark, "forget10").groups
    row = benchmark.split("forget10_perturbed")[0]
    assert row.paraphrased_answer is not None
    assert groups["forget"][0] == Item(
        item_id="forget10_perturbed/00000",
        group="forget",
        prompt=row.question,
        answer=row.answer,
        paraphrase=row.paraphrased_answer,
        wrong=row.perturbed_answers,
        token_scores=True,
        samples=True,
        paraphrased_question=row.paraphrased_question,
    )
    assert row.paraphrased_question
    assert groups["forget"][0].answers == (row.answer, row.paraphrased_answer, *row.perturbed_answers)
    for group in ("retain", "ra", "wf"):
        assert all(item.score and item.generate and item.wrong for item in groups[group])
        assert not any(item.token_scores or item.samples for item in groups[group])
        assert all((item.paraphrase is not None) == (group == "retain") for item in groups[group])
    holdout = groups["holdout"][0]
    assert holdout.score and holdout.token_scores
    assert not holdout.generate and not holdout.samples
    assert holdout.answers == (holdout.answer,)


def test_without_a_holdout_split_the_suite_says_so():
    benchmark = open_benchmark("synthetic:tiny")
    del benchmark._generated["holdout10"]
    suite = tofu.suite(benchmark, "forget10")
    assert "holdout" not in suite.groups
    (note,) = suite.notes
    assert "synthetic:tiny has no split 'holdout10'" in note
    assert "privleak" in note


def test_a_broken_holdout_split_is_no_missing_one(tmp_path):
    benchmark = open_benchmark("synthetic:tiny")
    benchmark._generated["holdout10"] = [{"question": "Who?"}]
    with pytest.raises(UserError, match="holdout10, row 0"):
        tofu.suite(benchmark, "forget10")


def test_the_legacy_columns_are_appended():
    benchmark = open_benchmark("synthetic:tiny")
    plain, legacy = (tofu.suite(benchmark, "forget10", legacy=flag) for flag in (False, True))
    assert legacy.columns == (*tofu.NAMES, *tofu_legacy.NAMES)
    assert (legacy.name, legacy.items) == (plain.name, plain.items)
    result = legacy.aggregate(everything(), retrained(), False)
    assert result.missing == {}
    assert (
        result.values
        == tofu.aggregate(everything(), retrained()).values | tofu_legacy.legacy(everything(), retrained()).values
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([Row("a/0", "q", "a", "p", ("w",)), Row("a/0", "q", "a", "p", ("w",))], "'a/0' appears twice"),
        ([Row("a/0", "q", "a", "p", ())], "a/0: no 'perturbed_answer'"),
        ([Row("a/0", "q", "a", None, ("w",))], "a/0: no 'paraphrased_answer'"),
    ],
)
def test_unfit_rows_are_errors(rows, message):
    benchmark = open_benchmark("synthetic:tiny")
    benchmark._read["forget10_perturbed"] = rows
    with pytest.raises(UserError, match=message):
        tofu.suite(benchmark, "forget10")


def test_records_survive_parquet(tmp_path):
    records = [made("forget", matches=(True, False), tokens=2, generation=""), made("ra", prob=math.nan)]
    path = tmp_path / "deep" / "forget.parquet"
    write_parquet(path, records, {"fingerprint": "abc"})
    assert read_metadata(path) == {"fingerprint": "abc", "schema_version": str(SCHEMA_VERSION)}
    back = read_parquet(path)
    assert back[0] == records[0]
    assert math.isnan(back[1].prob or 0.0)
    assert [entry.name for entry in path.parent.iterdir()] == ["forget.parquet"]
    assert from_table(to_table(records[:1], model_id="m")) == records[:1]


def test_no_or_damaged_records_are_not_read(tmp_path):
    path = tmp_path / "forget.parquet"
    assert read_metadata(path) == {}
    path.write_bytes(b"PAR1 cut off")
    assert read_metadata(path) == {}
    with pytest.raises(UserError, match=rf"expected a records file of schema version {SCHEMA_VERSION}, found none"):
        read_parquet(path)
