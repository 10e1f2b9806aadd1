"""Records of the TOFU suite to aggregates, by hand; what is missing; which rows are needed."""

import math
from dataclasses import replace

import pytest

from unlearn_core.data.rows import Row
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.errors import UserError
from unlearn_core.evaluation import tofu
from unlearn_core.evaluation.records import (
    ItemRecord,
    from_table,
    read_metadata,
    read_parquet,
    to_table,
    write_parquet,
)
from unlearn_core.evaluation.rouge import rouge
from unlearn_core.evaluation.scorer import Score

HALF, QUARTER, EIGHTH = math.log(2), math.log(4), math.log(8)


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
    )
    return replace(base, **changes)


def everything() -> dict[str, list[ItemRecord]]:
    return {group: [made(group)] for group in tofu.GROUPS}


def test_all_aggregates_by_hand():
    result = tofu.aggregate(everything(), {"forget/00000": 0.5})
    expected = {
        "forget_quality": 1.0,
        "forget_quality_log10": 0.0,
        # Nine terms: 1/2, 2/3, 2/3 (0.5 / (0.5 + 0.25)); ROUGE 0.6 x 3; truth ratios 1/2, 3/4, 3/4.
        "model_utility": 9 / (2 + 1.5 + 1.5 + 3 / 0.6 + 2 + 4 / 3 + 4 / 3),
        "forget_Q_A_Prob": 0.5,
        "forget_Q_A_PARA_Prob": 0.25,
        "forget_Q_A_PERT_Prob": 0.125,
        "forget_Q_A_ROUGE": 0.6,
        "forget_truth_ratio": 0.5,
        "extraction_strength": 0.25,
        "exact_memorization": 0.75,
        "retain_Q_A_Prob": 0.5,
        "retain_Q_A_PARA_Prob": 0.25,
        "retain_Q_A_PERT_Prob": 0.125,
        "retain_Q_A_ROUGE": 0.6,
        "retain_Truth_Ratio": 0.5,
        **{f"{group}_Q_A_Prob": 0.5 for group in ("ra", "wf")},
        **{f"{group}_Q_A_PERT_Prob": 0.125 for group in ("ra", "wf")},
        **{f"{group}_Q_A_Prob_normalised": 2 / 3 for group in ("ra", "wf")},
        **{f"{group}_Q_A_ROUGE": 0.6 for group in ("ra", "wf")},
        **{f"{group}_Truth_Ratio": 0.75 for group in ("ra", "wf")},
    }
    assert result.missing == {}
    assert tuple(result.values) == tofu.NAMES
    assert result.values == pytest.approx(expected, rel=1e-8)


def test_forget_truth_ratio_folds_and_utility_truth_ratio_clips():
    # Paraphrase 1/16 against 1/8: ratio 2, as far from 1 as 1/2; its true_better is 0, so utility is 0.
    changed = {"paraphrased_loss": math.log(16), "paraphrased_prob": 1 / 16}
    records = everything() | {"forget": [made("forget", **changed)], "retain": [made("retain", **changed)]}
    values = tofu.aggregate(records).values
    assert values["forget_truth_ratio"] == pytest.approx(0.5, rel=1e-8)
    assert values["retain_Truth_Ratio"] == 0.0
    assert values["model_utility"] == 0.0


def test_without_a_reference_only_forget_quality_is_missing():
    result = tofu.aggregate(everything())
    assert set(result.missing) == {"forget_quality", "forget_quality_log10"}
    assert "reference" in result.missing["forget_quality"]


def test_a_missing_group_takes_utility_along_and_says_so():
    records = everything()
    del records["ra"]
    result = tofu.aggregate(records)
    assert result.missing["ra_Q_A_ROUGE"] == "there are no ra records"
    assert "3 of its nine terms" in result.missing["model_utility"]
    assert set(result.values) | set(result.missing) == set(tofu.NAMES)


def test_a_missing_measurement_names_the_record():
    records = everything() | {"wf": [made("wf"), made("wf", 1, rougeL_recall=None)]}
    result = tofu.aggregate(records)
    assert result.missing["wf_Q_A_ROUGE"] == "1 of 2 records have no rougeL_recall, the first is 'wf/00001'"


def test_a_reference_of_other_items_is_an_error():
    with pytest.raises(UserError, match=r"2 ids are in one only, such as 'forget/00000'"):
        tofu.aggregate(everything(), {"forget/00001": 0.5})


def test_a_non_finite_measurement_is_an_error():
    with pytest.raises(ValueError, match="not finite"):
        tofu.aggregate(everything() | {"forget": [made("forget", prob=math.nan)]})


def test_record_leaves_the_end_token_out_of_memorisation():
    item = tofu.Item("forget", Row("forget10_perturbed/00000", "Who?", "Ann Lee", "It is Ann Lee", ("Bo", "Cy")))
    scores = [
        Score(HALF, 4, (False, True, True, False)),
        Score(QUARTER, 5, (True,) * 5),
        Score(EIGHTH, 2, (True, True)),
        Score(HALF, 2, (True, True)),
    ]
    record = tofu.record(item, scores, "Ann")
    assert (record.extraction_strength, record.exact_memorization) == (2 / 3, 2 / 3)
    assert (record.paraphrased_loss, record.perturbed_losses) == (QUARTER, (EIGHTH, HALF))
    assert record.perturbed_probs == pytest.approx((0.125, 0.5))
    assert (record.rouge1_recall, record.rougeL_recall, record.rougeL_f1) == pytest.approx((0.5, 0.5, 2 / 3))


def test_record_without_a_paraphrase_has_wrong_answers_only():
    item = tofu.Item("ra", Row("real_authors_perturbed/00000", "Who?", "Ann", None, ("Bo",)))
    assert item.answers == ("Ann", "Bo")
    record = tofu.record(item, [Score(HALF, 2, (True, True)), Score(EIGHTH, 2, (True, True))], "")
    assert (record.paraphrased_loss, record.perturbed_losses) == (None, (EIGHTH,))
    assert (record.rouge1_recall, record.rougeL_recall, record.rougeL_f1) == (0.0, 0.0, 0.0)


def test_an_answer_of_the_end_token_alone_is_an_error():
    item = tofu.Item("ra", Row("x/00000", "Who?", "Ann", None, ("Bo",)))
    with pytest.raises(UserError, match="x/00000: the answer 'Ann' has no token before the end token"):
        tofu.record(item, [Score(HALF, 1, (True,)), Score(HALF, 1, (True,))], "Ann")


def test_rouge_stems_and_ignores_case():
    assert rouge("He writes novels", "a novel he wrote").rouge1_recall == pytest.approx(2 / 3)
    assert rouge("He writes novels", "a novel he wrote").rougeL_recall == pytest.approx(1 / 3)


def test_tasks_cover_the_four_groups_once():
    benchmark = open_benchmark("synthetic:tiny")
    items = tofu.tasks(benchmark, "forget10")
    per_group = {group: [item.row for item in items if item.group == group] for group in tofu.GROUPS}
    assert {group: len(rows) for group, rows in per_group.items()} == {
        group: len(benchmark.split(split)) for group, split in tofu.splits("forget10").items()
    }
    assert per_group["forget"] == benchmark.split("forget10_perturbed")
    assert len({item.row.item_id for item in items}) == len(items)
    forget, author = per_group["forget"][0], per_group["ra"][0]
    assert next(item for item in items if item.row == forget).answers == (
        forget.answer,
        forget.paraphrased_answer,
        *forget.perturbed_answers,
    )
    assert len(next(item for item in items if item.row == author).answers) == 1 + len(author.perturbed_answers)


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
        tofu.tasks(benchmark, "forget10")


def test_records_survive_parquet(tmp_path):
    records = [made("forget", matches=(True, False), tokens=2, generation=""), made("ra", prob=math.nan)]
    path = tmp_path / "deep" / "forget.parquet"
    write_parquet(path, records, {"fingerprint": "abc"})
    assert read_metadata(path) == {"fingerprint": "abc", "schema_version": "1"}
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
    with pytest.raises(UserError, match="expected a records file of schema version 1, found none"):
        read_parquet(path)
