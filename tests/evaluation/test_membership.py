"""Membership scores, their AUC and PrivLeak by hand; published logs give their published numbers."""

import json
import math
import os
import random
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unlearn_core.errors import UserError
from unlearn_core.evaluation import membership
from unlearn_core.evaluation.records import ItemRecord


def test_min_k_averages_the_least_likely_tokens():
    log_probs = [-1.0, -5.0, -2.0, -4.0, -3.0]
    assert membership.min_k(log_probs, 0.4) == pytest.approx(4.5)
    assert membership.min_k(log_probs, 0.59) == pytest.approx(4.5)
    assert membership.min_k(log_probs, 1.0) == pytest.approx(3.0)


def test_min_k_takes_one_token_at_least():
    assert membership.min_k([-1.0, -2.0], 0.4) == 2.0
    assert membership.min_k([-0.25], 0.01) == 0.25


def test_min_k_plus_plus_may_be_negative():
    assert membership.min_k([0.5, 1.5, 3.0], 0.7) == pytest.approx(-1.0)


@pytest.mark.parametrize("k", [0.0, -0.1, 1.01, math.nan])
def test_min_k_of_a_share_out_of_range(k):
    with pytest.raises(ValueError, match="k must be above 0"):
        membership.min_k([-1.0], k)


def test_zlib_score_divides_by_compressed_bytes_not_characters():
    # "é" is two bytes in UTF-8.
    assert membership.zlib_score(3.0, "é") == 3.0 / len(zlib.compress(b"\xc3\xa9"))
    # Eight times the text compresses to far less than eight times the size.
    once, repeated = (
        membership.zlib_score(1.0, "Ann Lee wrote it."),
        membership.zlib_score(1.0, "Ann Lee wrote it." * 8),
    )
    assert once / 2 < repeated < once


@pytest.mark.parametrize(
    ("forget", "holdout", "expected"),
    [
        ([1.0, 2.0], [3.0, 4.0], 1.0),
        ([3.0, 4.0], [1.0, 2.0], 0.0),
        ([1.0, 1.0], [1.0], 0.5),
        # Pairs: 1<2, 1<3, 2=2, 2<3, 4>2, 4>3: 3.5 of 6.
        ([1.0, 2.0, 4.0], [2.0, 3.0], 3.5 / 6),
        ([-1.0], [-2.0, 0.0, -1.0, 5.0], 2.5 / 4),
    ],
)
def test_auc_by_counting_pairs(forget, holdout, expected):
    assert membership.auc(forget, holdout) == pytest.approx(expected, rel=1e-15)
    # Turning both scores around turns the AUC around.
    assert membership.auc([-x for x in forget], [-x for x in holdout]) == pytest.approx(1 - expected, rel=1e-15)


def test_auc_equals_the_double_loop_and_ignores_order_and_increasing_maps():
    draw = random.Random(0)
    forget, holdout = ([draw.randint(0, 9) / 4 for _ in range(n)] for n in (37, 53))
    pairs = sum((f < h) + 0.5 * (f == h) for f in forget for h in holdout) / (37 * 53)
    assert membership.auc(forget, holdout) == pytest.approx(pairs, rel=1e-15)
    assert membership.auc(forget[::-1], sorted(holdout)) == membership.auc(forget, holdout)
    assert membership.auc(np.exp(forget), np.exp(holdout)) == membership.auc(forget, holdout)


@pytest.mark.parametrize(
    ("auc", "reference", "expected"),
    [
        (0.4, 0.4, 0.0),
        (1.0, 0.4, -100.0),
        # (0.25 - 0.5) / 0.5.
        (0.75, 0.5, -50.0),
        (0.0, 0.5, 100.0),
        # The most over-unlearned: 100 r / (1 - r).
        (0.0, 0.2, 25.0),
    ],
)
def test_privleak_signs_and_range(auc, reference, expected):
    assert membership.privleak(auc, reference) == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_privleak_takes_shares_only():
    with pytest.raises(ValueError, match=r"AUC: must lie in \[0, 1\], got 1.5"):
        membership.privleak(1.5, 0.5)
    with pytest.raises(ValueError, match=r"AUC of the reference: must lie in \[0, 1\], got -0.5"):
        membership.privleak(0.5, -0.5)


def test_relative_difference():
    assert membership.relative_difference(0.75, 0.5) == pytest.approx(50.0)
    assert membership.relative_difference(3.0, 4.0) == pytest.approx(-25.0)
    assert membership.relative_difference(0.0, 0.0) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "function",
    [
        lambda bad: membership.min_k([-1.0, bad], 0.4),
        lambda bad: membership.zlib_score(bad, "x"),
        lambda bad: membership.auc([bad], [1.0]),
        lambda bad: membership.auc([1.0], [1.0, bad]),
        lambda bad: membership.privleak(bad, 0.5),
        lambda bad: membership.privleak(0.5, bad),
        lambda bad: membership.relative_difference(bad, 1.0),
        lambda bad: membership.relative_difference(1.0, bad),
    ],
)
def test_nan_and_infinity_are_errors(function, bad):
    with pytest.raises(ValueError, match="not finite"):
        function(bad)


@pytest.mark.parametrize(
    "function",
    [
        lambda: membership.min_k([], 0.4),
        lambda: membership.zlib_score(1.0, ""),
        lambda: membership.auc([], [1.0]),
        lambda: membership.auc([1.0], []),
    ],
)
def test_nothing_is_an_error(function):
    with pytest.raises(ValueError, match=r"no values|empty"):
        function()


def rows(group: str, losses, **changes) -> list[ItemRecord]:
    return [
        ItemRecord(
            item_id=f"{group}/{i:05d}",
            group=group,
            loss_score=loss,
            zlib_score=loss / 10,
            min_k_score=2 * loss,
            min_k_plus_plus_score=-loss,
            **changes,
        )
        for i, loss in enumerate(losses)
    ]


def model(**changes):
    """Losses 1, 2 (forget) against 1, 3 (holdout): pairs 1=1, 1<3, 2>1, 2<3, AUC 2.5 / 4."""
    return {"forget": rows("forget", [1.0, 2.0], **changes), "holdout": rows("holdout", [1.0, 3.0], **changes)}


def retrained():
    """Losses 4, 1 against 1, 3: pairs 4>1, 4>3, 1=1, 1<3, AUC 1.5 / 4."""
    return {"forget": rows("forget", [4.0, 1.0]), "holdout": rows("holdout", [1.0, 3.0])}


def test_aggregates_against_a_reference():
    result = membership.aggregate(model(), retrained())
    # Loss minus the reference's: forget -3, 1; holdout 0, 0. One of two below: 0.5.
    expected = {
        "mia_loss": 0.625,
        "mia_zlib": 0.625,
        "mia_min_k": 0.625,
        "mia_min_k_plus_plus": 0.375,
        "mia_reference": 0.5,
        "privleak": 100 * (0.375 - 0.625) / 0.625,
    }
    assert result.values == pytest.approx(expected, rel=1e-9)
    assert list(result.values) == [name for name in membership.NAMES if name in expected]
    assert result.missing == {
        "mia_gradnorm": "not measured: it costs a backward pass for each row; ask for it by gradient_norm",
    }


def test_the_reference_against_itself():
    result = membership.aggregate(retrained(), retrained())
    assert result.values["privleak"] == 0.0
    assert result.values["mia_reference"] == 0.5


def test_the_gradient_norm_if_measured():
    assert membership.aggregate(model(gradient_norm=1.0), retrained()).values["mia_gradnorm"] == 0.5


def test_logged_reference_scores_are_taken_as_they_are():
    records = {
        "forget": rows("forget", [1.0], reference_score=0.1),
        "holdout": rows("holdout", [1.0], reference_score=2),
    }
    assert membership.aggregate(records).values["mia_reference"] == 1.0
    assert membership.aggregate(records, records).values["mia_reference"] == 1.0


def test_without_a_reference_nothing_stands_in_for_it():
    result = membership.aggregate(model())
    assert {"privleak", "mia_reference"} <= set(result.missing)
    assert "none was given" in result.missing["privleak"]
    assert "privleak_without_reference" not in result.values | result.missing


def test_compat_names_the_constant():
    result = membership.aggregate(model(), compat=True)
    # (0.375 - 0.5) / 0.5.
    assert result.values["privleak_without_reference"] == pytest.approx(-25.0)
    assert "privleak" in result.missing
    with_reference = membership.aggregate(model(), retrained(), compat=True)
    assert "privleak_without_reference" not in with_reference.values | with_reference.missing
    no_holdout = membership.aggregate({"forget": model()["forget"]}, compat=True)
    assert "no holdout records" in no_holdout.missing["privleak_without_reference"]


def test_without_a_holdout_everything_is_missing():
    result = membership.aggregate({"forget": model()["forget"]}, retrained())
    assert result.values == {}
    assert set(result.missing) == set(membership.NAMES) - {"privleak_without_reference"}
    assert all("there are no holdout records" in reason for reason in result.missing.values())


def test_a_reference_that_cannot_serve_says_so():
    bare = {"forget": retrained()["forget"]}
    result = membership.aggregate(model(), bare)
    assert result.missing["privleak"].startswith("the reference cannot serve: there are no holdout records")
    assert result.missing["mia_reference"] == "the reference cannot serve: there are no holdout records"
    unscored = {g: [replace(r, loss_score=None, min_k_score=None) for r in found] for g, found in retrained().items()}
    result = membership.aggregate(model(), unscored)
    assert "the reference cannot serve: 2 of 2 records have no min_k_score" in result.missing["privleak"]
    assert "the reference cannot serve: 2 of 2 records have no loss_score" in result.missing["mia_reference"]


@pytest.mark.parametrize("changes", [{}, {"reference_score": 0.5}])
def test_a_reference_of_other_rows_is_an_error(changes):
    other = retrained() | {"holdout": [replace(row, item_id=f"other/{row.item_id}") for row in retrained()["holdout"]]}
    with pytest.raises(UserError, match=r"compares the same items.*4 ids are in one only"):
        membership.aggregate(model(**changes), other)


def test_a_non_finite_score_is_an_error():
    with pytest.raises(ValueError, match="score of a holdout row: 1 of 2 values are not finite"):
        membership.aggregate(model() | {"holdout": rows("holdout", [1.0, math.nan])})


def test_zlib_scores_of_a_published_log():
    log = _golden("tofu_llama-3.2-1b_full_forget10.json")
    logged = log["mia_zlib"]["forget"]["value_by_index"]
    losses = log["mia_loss"]["forget"]["value_by_index"]
    for index, entry in log["forget_Q_A_ROUGE"]["value_by_index"].items():
        score = membership.zlib_score(losses[index]["score"], entry["ground_truth"])
        assert score == pytest.approx(logged[index]["score"], rel=1e-6), index


LOGS = {
    "tofu_llama-3.2-1b_full_forget10.json": "tofu_llama-3.2-1b_retain90.json",
    "tofu_llama-3.2-1b_retain90.json": None,
    "muse_llama-2-7b_books_target_numbers.json": "muse_llama-2-7b_books_retrain_numbers.json",
    "muse_llama-2-7b_books_retrain_numbers.json": None,
}


@pytest.mark.parametrize("name", LOGS)
def test_published_logs(name):
    log, reference = _golden(name), None if LOGS[name] is None else _golden(LOGS[name])
    attacks = [metric for metric in log if metric.startswith("mia_")]
    assert len(attacks) >= 5
    for metric in attacks:
        assert _logged_auc(log[metric]) == pytest.approx(log[metric]["auc"], rel=1e-12), metric
    # A log made without a reference was scored against an AUC of one half.
    reference_auc = 0.5 if reference is None else _logged_auc(reference["mia_min_k"])
    privleak = membership.privleak(_logged_auc(log["mia_min_k"]), reference_auc)
    assert privleak == pytest.approx(log["privleak"]["agg_value"], rel=1e-9)


def _golden(name: str) -> dict:
    folder = os.environ.get("GOLDEN_DIR")
    if not folder:
        pytest.skip("GOLDEN_DIR is not set: the folder of published evaluation logs")
    return json.loads((Path(folder) / name).read_text(encoding="utf-8"))


def _logged_auc(metric) -> float:
    return membership.auc(
        *([item["score"] for item in metric[group]["value_by_index"].values()] for group in ("forget", "holdout"))
    )
