"""Recovery ratios on numbers worked out by hand, and what a relearning attack is made of."""

import json

import pytest

from pipelines.robustness_relearn import (
    CORRELATED,
    FORGET,
    UNRELATED,
    Lessons,
    RelearnConfig,
    _fitting,
    lessons,
)
from unlearn_core.config import BatchConfig, build_config
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.errors import UserError
from unlearn_core.evaluation.robustness import (
    ATTACKS,
    Measured,
    attacks_named,
    knowledge_metrics,
    leakages,
    ratio,
    recoveries,
    scores,
    variant_id,
)

COLUMNS = ("model_utility", "forget_Q_A_ROUGE", "forget_Q_A_Prob", "extraction_strength", "exact_memorization")


@pytest.mark.parametrize("kind", ["relearning", "prompt"])
@pytest.mark.parametrize(
    ("before", "after", "reference_before", "reference_after", "expected"),
    [
        (0.1, 0.5, 0.2, 0.3, 0.25),  # (0.3 - 0.2) / (0.5 - 0.1)
        (0.1, 0.2, 0.2, 0.4, 1.0),  # 2, cut at 1: it relearns slower than the reference
        (0.1, 0.3, 0.2, 0.1, 0.0),  # the reference loses, the model gains
        (0.1, 0.1, 0.2, 0.4, 1.0),  # nothing comes back
        (0.1, 0.1, 0.2, 0.1, 1.0),
        (0.3, 0.1, 0.2, 0.1, 1.0),  # less than nothing
        (0.0, 0.5, 0.2, 0.2, 0.0),  # the reference gains nothing
    ],
)
def test_relearning_and_prompt_ratio(kind, before, after, reference_before, reference_after, expected):
    assert ratio(kind, before, after, reference_before, reference_after) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(0.1, 0.4, 0.25), (0.4, 0.1, 1.0), (0.2, 0.2, 1.0), (0.0, 0.1, 0.0), (0.0, 0.0, 1.0)],
)
def test_quantisation_ratio_is_of_the_model_alone(before, after, expected):
    assert ratio("quantisation", before, after, 0.9, 0.0) == pytest.approx(expected)
    assert ratio("quantisation", before, after, 0.0, 0.9) == pytest.approx(expected)


def measured(**changes):
    """One model and the reference; `changes` are whole models, None for no such model."""
    values = {
        "a": {"extraction_strength": 0.1, "forget_Q_A_ROUGE": 0.3, "forget_opening_ROUGE": 0.5},
        "a.relearn-forget": {"extraction_strength": 0.5, "forget_Q_A_ROUGE": 0.6},
        "a.nf4": {"extraction_strength": 0.2, "forget_Q_A_ROUGE": 0.3},
        "r": {"extraction_strength": 0.2, "forget_Q_A_ROUGE": 0.35, "forget_opening_ROUGE": 0.4},
        "r.relearn-forget": {"extraction_strength": 0.4, "forget_Q_A_ROUGE": 0.65},
        "r.nf4": {"extraction_strength": 0.15, "forget_Q_A_ROUGE": 0.3},
    } | {name.replace("__", "."): value for name, value in changes.items()}
    return Measured({name: value for name, value in values.items() if value is not None}, {}, {})


CHOSEN = attacks_named(["opening", "nf4", "relearn-forget"])
BOTH = ["extraction_strength", "forget_Q_A_ROUGE"]


def test_every_model_attack_and_measure_has_a_row():
    rows = recoveries(["a"], "r", CHOSEN, BOTH, measured())
    found = {(row.attack, row.metric): row.ratio for row in rows}
    assert found == pytest.approx(
        {
            ("relearn-forget", "extraction_strength"): 0.5,  # 0.2 / 0.4
            ("relearn-forget", "forget_Q_A_ROUGE"): 1.0,  # 0.3 / 0.3
            ("nf4", "extraction_strength"): 0.5,  # 0.1 / 0.2
            ("nf4", "forget_Q_A_ROUGE"): 1.0,
            ("opening", "forget_opening_ROUGE"): 0.25,  # 0.05 / 0.2, from the plain question's 0.3 and 0.35
        }
    )
    opening = rows[-1]
    assert (opening.before, opening.after) == (0.3, 0.5)
    assert (opening.reference_before, opening.reference_after) == (0.35, 0.4)
    assert [row.reason for row in rows] == ["", "", "", "nothing comes back", ""]


def test_scores():
    rows = recoveries(["a"], "r", CHOSEN, BOTH, measured())
    (strength,), (rouge,) = scores(rows, BOTH[0]), scores(rows, BOTH[1])
    assert (strength.before, strength.relearning, strength.quantisation) == pytest.approx((0.1, 0.5, 0.5))
    assert strength.robustness == pytest.approx(0.5)
    assert (strength.lowest, strength.lowest_attack) == (pytest.approx(0.25), "opening")
    assert (rouge.before, rouge.relearning, rouge.quantisation, rouge.robustness) == pytest.approx((0.3, 1, 1, 1))
    # R 0.5 and Q 1 have the harmonic mean 2 * 0.5 * 1 / 1.5.
    held = scores(recoveries(["a"], "r", CHOSEN, BOTH, measured(a__nf4={"extraction_strength": 0.0})), BOTH[0])[0]
    assert held.robustness == pytest.approx(2 / 3)


def test_what_was_not_measured_is_missing_and_says_why():
    odd = measured(a__nf4={"extraction_strength": float("nan")}, r__nf4=None, a__relearn_forget=None)
    values = {name: value for name, value in odd.values.items() if name != "a.relearn-forget"}
    missing = {"a.nf4": {"extraction_strength": "3 of 4 rows have a NaN or infinite loss"}}
    holes = Measured(values, missing, {"a.relearn-forget": "the fine-tune diverged: at step 2"})
    rows = {row.attack: row for row in recoveries(["a"], "r", CHOSEN, BOTH[:1], holes)}
    assert rows["relearn-forget"].ratio is None
    assert rows["relearn-forget"].reason == "the fine-tune diverged: at step 2"
    assert (rows["relearn-forget"].before, rows["relearn-forget"].reference_after) == (0.1, 0.4)
    assert rows["nf4"].ratio is None
    assert rows["nf4"].reason.startswith("3 of 4 rows have a NaN")
    (score,) = scores(list(rows.values()), BOTH[0])
    assert (score.relearning, score.quantisation, score.robustness) == (None, None, None)
    assert score.lowest_attack == "opening"


def test_a_ratio_of_relearning_needs_the_reference_and_one_of_quantisation_does_not():
    alone = measured(r__nf4=None)
    values = {name: value for name, value in alone.values.items() if name != "r.relearn-forget"}
    lost = Measured(values, {}, {"r.relearn-forget": "the fine-tune diverged: at step 1"})
    rows = {row.attack: row for row in recoveries(["a"], "r", CHOSEN, BOTH[:1], lost)}
    assert rows["relearn-forget"].ratio is None
    assert rows["relearn-forget"].reason == "the reference: the fine-tune diverged: at step 1"
    assert rows["nf4"].ratio == pytest.approx(0.5)
    assert rows["nf4"].reason == "the reference: extraction_strength was not measured"


def test_sampled_leakage_lists_the_reference_last():
    values = {"a": {"sampled_mean_bound": 0.4}, "r": {"sampled_mean_bound": 0.3}}
    columns = (*COLUMNS, "sampled_mean_bound")
    rows = leakages(["a"], "r", columns, Measured(values, {}, {}))
    assert [(row.model, row.column, row.value) for row in rows] == [
        ("a", "sampled_mean_bound", 0.4),
        ("r", "sampled_mean_bound", 0.3),
    ]
    assert leakages(["a"], "r", COLUMNS, Measured(values, {}, {})) == []
    assert leakages(["a"], "r", columns, Measured({"a": {}, "r": {}}, {}, {})) == []


def test_attacks_by_name():
    assert [attack.name for attack in attacks_named(["nf4", "int8", "nf4"])] == ["int8", "nf4"]
    assert variant_id("a", ATTACKS["nf4"]) == "a.nf4"
    assert variant_id("a", ATTACKS["opening"]) == "a"
    with pytest.raises(UserError, match=r"unknown attack 'relearn-forgets'\. Did you mean 'relearn-forget'\?"):
        attacks_named(["relearn-forgets"])
    with pytest.raises(UserError, match="no attack was given"):
        attacks_named([])


def test_measures_of_knowledge():
    assert knowledge_metrics(COLUMNS) == ["extraction_strength", "forget_Q_A_Prob", "forget_Q_A_ROUGE"]
    assert knowledge_metrics(COLUMNS, "exact_memorization")[0] == "exact_memorization"
    assert knowledge_metrics(("forget_verbmem_ROUGE", "privleak")) == ["forget_verbmem_ROUGE"]
    with pytest.raises(UserError, match="'forget_quality' is no measure of knowledge"):
        knowledge_metrics((*COLUMNS, "forget_quality"), "forget_quality")
    with pytest.raises(UserError, match="measures no knowledge"):
        knowledge_metrics(("model_utility",))


TINY = "synthetic:tiny"


def test_rows_of_the_relearning_attacks(tmp_path):
    found = lessons(TINY, "forget10")
    assert [row.item_id for row in found.rows[FORGET]] == [f"forget10/{n:05d}" for n in range(4)]
    assert len(found.rows[UNRELATED]) == 8
    assert list(found.skipped) == [CORRELATED]
    text = tmp_path / "lives.jsonl"
    text.write_text(json.dumps({"text": "The people of this book write in the morning."}) + "\n")
    given = lessons(TINY, "forget10", correlated=str(text), unrelated="real_authors")
    assert (len(given.rows[CORRELATED]), given.rows[UNRELATED][0].item_id) == (1, "real_authors/00000")
    assert given.skipped == {}
    assert lessons(TINY, "forget10", attacks=["nf4"]) == Lessons({}, {})


def test_forget_rows_are_chosen_by_the_seed_and_kept_in_order():
    def ids(count, seed):
        return [row.item_id for row in lessons(TINY, "forget10", forget_rows=count, seed=seed).rows[FORGET]]

    assert ids(2, 0) == ids(2, 0)
    assert all(chosen == sorted(chosen) and len(set(chosen)) == 2 for chosen in (ids(2, seed) for seed in range(9)))
    assert len({tuple(ids(2, seed)) for seed in range(9)}) > 1
    for count in (0, 5):
        with pytest.raises(UserError, match=rf"--forget-rows {count}: 'forget10' has 4 rows; expected 1 to 4"):
            ids(count, 0)


def test_text_that_teaches_the_forget_rows_is_refused(tmp_path):
    row = open_benchmark(TINY).split("forget10")[1]
    text = tmp_path / "mine.jsonl"
    text.write_text(json.dumps({"question": f" {row.question}", "answer": row.answer}) + "\n")
    taught = "mine.jsonl: 1 of 1 rows are forget rows of 'forget10'"
    with pytest.raises(UserError, match=f"--correlated .*{taught}"):
        lessons(TINY, "forget10", correlated=str(text))
    with pytest.raises(UserError, match=f"--unrelated .*{taught}"):
        lessons(TINY, "forget10", unrelated=str(text))
    with pytest.raises(UserError, match="4 of 40 rows are forget rows"):
        lessons(TINY, "forget10", correlated="full")
    with pytest.raises(UserError, match=r"has no split 'forget11'.*did you mean"):
        lessons(TINY, "forget11")
    with pytest.raises(UserError, match="no benchmark to look in"):
        lessons(None, "forget10")


def test_muse_has_no_unrelated_text_of_its_own():
    found = lessons("synthetic-muse:tiny", "raw/forget", correlated="raw/retain1")
    assert set(found.rows) == {FORGET, CORRELATED}
    assert "--unrelated" in found.skipped[UNRELATED]


@pytest.mark.parametrize(
    ("pieces", "workers", "rows", "micro"),
    [
        (400, 1, 32, 4),
        (32, 1, 32, 4),
        (10, 1, 10, 2),
        (4, 1, 4, 4),
        (7, 1, 7, 1),
        (10, 2, 10, 1),
        (9, 2, 8, 4),
        (1, 2, 2, 1),
    ],
)
def test_a_step_sees_no_row_twice(pieces, workers, rows, micro):
    fitted = _fitting(BatchConfig(rows=32, micro=4), pieces, workers)
    assert (fitted.rows, fitted.micro) == (rows, micro)
    assert fitted.rows % (fitted.micro * workers) == 0


def test_settings_that_would_differ_between_models_are_refused():
    with pytest.raises(UserError, match="a rate of its own"):
        build_config(RelearnConfig, {"optimizer": {"schedule": "auto"}})
    with pytest.raises(UserError, match="not a multiple of"):
        build_config(RelearnConfig, {"batch": {"rows": 6, "micro": 4}})
    settings = build_config(RelearnConfig, {})
    assert (settings.epochs, settings.optimizer.learning_rate) == (1.0, 2e-5)
