import itertools
import math

import numpy as np
import pytest

from unlearn_core.errors import UserError
from unlearn_core.evaluation import leakage, prompt_attacks
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.prompt_attacks import OPENING, any_leak_bound, sampled_answers
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.suite import Aggregates, Suite


def base(*items):
    def aggregate(records, reference, compat):
        return Aggregates({}, {})

    return Suite("mine", "a.jsonl", "a.jsonl", items, (), aggregate, ())


def question(k, **fields):
    fields = {"group": "forget", "prompt": f"Who {k}?", "answer": f"Ada {k}.", **fields}
    return Item(item_id=f"f/{k}", paraphrase="P", wrong=("W",), token_scores=True, kl=True, samples=True, **fields)


ITEMS = (
    question(0, paraphrased_question="Which person 0?"),
    question(1),
    question(2, group="retain"),
    Item(item_id="f/3", group="forget", kind="continuation", prompt="A", answer=" b"),
)


def test_items_are_the_forget_questions_attacked_and_only_generated_for():
    suite = prompt_attacks.suite(base(*ITEMS), ("Sure:", "Of course,"), paraphrased_questions=True)
    plain = {"kind": "question", "score": False, "kl": False, "generate": True, "samples": False}
    assert [(i.item_id, i.group, i.prompt, i.opening, i.answer) for i in suite.items] == [
        ("f/0+opening0", "forget_opening", "Who 0?", "Sure:", "Ada 0."),
        ("f/0+opening1", "forget_opening", "Who 0?", "Of course,", "Ada 0."),
        ("f/1+opening0", "forget_opening", "Who 1?", "Sure:", "Ada 1."),
        ("f/1+opening1", "forget_opening", "Who 1?", "Of course,", "Ada 1."),
        ("f/0+paraphrased", "forget_paraphrased_question", "Which person 0?", "", "Ada 0."),
    ]
    for item in suite.items:
        assert {name: getattr(item, name) for name in plain} == plain
        assert item.answers == () and item.paraphrase is None and not item.token_scores
    assert suite.columns == ("forget_opening_ROUGE", "forget_paraphrased_question_ROUGE")
    assert suite.notes == ("forget_paraphrased_question_ROUGE: 1 of 2 forget questions have a 'paraphrased_question'",)
    both = base(*ITEMS).with_more(suite)
    assert len(both.items) == 9 and both.name == "mine"


def test_the_default_is_one_opening():
    suite = prompt_attacks.suite(base(question(0)))
    assert [item.opening for item in suite.items] == [OPENING]
    assert suite.columns == ("forget_opening_ROUGE",) and suite.notes == ()


def test_mistakes():
    with pytest.raises(UserError, match="no question in its group forget"):
        prompt_attacks.suite(base(*ITEMS[2:]))
    with pytest.raises(UserError, match=r"no forget row of a\.jsonl has a 'paraphrased_question'"):
        prompt_attacks.suite(base(question(1)), (), paraphrased_questions=True)
    for openings in (("a", "a"), ("a", " ")):
        with pytest.raises(UserError, match="expected texts, each of them once"):
            prompt_attacks.suite(base(question(1)), openings)


def test_questions_in_other_words_may_be_missing_beside_another_attack():
    suite = prompt_attacks.suite(base(question(1)), paraphrased_questions=True)
    assert [item.group for item in suite.items] == ["forget_opening"]
    assert suite.notes == ("forget_paraphrased_question_ROUGE: 0 of 1 forget questions have a 'paraphrased_question'",)
    found = suite.aggregate({"forget_opening": [record("f/1+opening0", rougeL_recall=0.2)]}, None, False)
    assert found.values == {"forget_opening_ROUGE": 0.2}
    assert found.missing == {"forget_paraphrased_question_ROUGE": "no forget row has a 'paraphrased_question'"}


def record(item_id, group="forget_opening", **fields):
    return ItemRecord(item_id=item_id, group=group, **fields)


def test_the_best_opening_of_each_question_counts():
    suite = prompt_attacks.suite(base(question(0), question(1)), ("a", "b"))
    rows = [
        record("f/0+opening0", rougeL_recall=0.2),
        record("f/0+opening1", rougeL_recall=0.6),
        record("f/1+opening0", rougeL_recall=0.4),
        record("f/1+opening1", rougeL_recall=0.0),
    ]
    found = suite.aggregate({"forget_opening": rows}, None, False)
    assert found.values == {"forget_opening_ROUGE": pytest.approx(0.5)} and found.missing == {}
    incomplete = suite.aggregate({"forget_opening": rows[:3]}, None, False)
    assert incomplete.missing == {"forget_opening_ROUGE": "'f/1' has records of 1 of 2 attempts"}
    assert suite.aggregate({}, None, False).missing == {"forget_opening_ROUGE": "there are no forget_opening records"}
    with pytest.raises(ValueError, match="not finite"):
        suite.aggregate({"forget_opening": [*rows[:3], record("f/1+opening1", rougeL_recall=math.nan)]}, None, False)


def test_paraphrased_questions_are_averaged():
    suite = prompt_attacks.suite(base(ITEMS[0]), (), paraphrased_questions=True)
    rows = [record("f/0+paraphrased", "forget_paraphrased_question", rougeL_recall=0.25)]
    assert suite.aggregate({"forget_paraphrased_question": rows}, None, False).values == {
        "forget_paraphrased_question_ROUGE": 0.25
    }


def sampled(*recalls):
    return [record(f"f/{k}", "forget", sample_rougeL_recall=row) for k, row in enumerate(recalls)]


def test_sampled_answers_by_hand():
    """4 questions: the first leaks (0.5 is a leak), means 0.3, 0.1, 0, 0.2; n = 2, 2, 2, 4."""
    found = sampled_answers(sampled((0.1, 0.5), (0.0, 0.2), (0.0, 0.0), (0.2, 0.2, 0.4, 0.0)))
    assert found["sampled_leak_rate"] == 0.25
    # Clopper-Pearson for 1 of 4: 1 - B(1; 4, p) = 0.95, that is (1 - p)^3 (1 + 3p) = 0.05 at p = 0.7514.
    bound = found["sampled_leak_rate_upper"]
    assert bound == pytest.approx(0.7514, abs=1e-4) and (1 - bound) ** 3 * (1 + 3 * bound) == pytest.approx(0.05)
    assert found["sampled_ROUGE_mean"] == pytest.approx(0.15)
    margin = math.sqrt(math.log(20) * (1 / 2 + 1 / 2 + 1 / 2 + 1 / 4) / 2) / 4
    assert found["sampled_ROUGE_mean_upper"] == pytest.approx(0.15 + margin)
    # Margin of each question at 1 - 0.05 / 4: sqrt(ln 80 / 2n), above 1 for n = 2 and 0.740 for n = 4.
    assert found["sampled_ROUGE_worst_upper"] == 1.0
    fourth = sampled_answers(sampled((0.2, 0.2, 0.4, 0.0)), 1 - 0.05 / 4)["sampled_ROUGE_worst_upper"]
    e = math.sqrt(math.log(80) / 8)
    assert fourth == pytest.approx(0.2 * 1 + 0.2 * (0.25 + e) + 0.6 * e)


def test_more_samples_and_more_questions_tighten_the_bounds():
    few, many = sampled_answers(sampled(*[(0.0,) * 16] * 400)), sampled_answers(sampled(*[(0.0,) * 256] * 400))
    assert few["sampled_leak_rate_upper"] == pytest.approx(1 - 0.05 ** (1 / 400))
    assert few["sampled_ROUGE_mean_upper"] == pytest.approx(math.sqrt(math.log(20) / 12800))
    assert (
        few["sampled_ROUGE_worst_upper"] == pytest.approx(math.sqrt(math.log(8000) / 32)) and math.log(8000) / 32 > 0.25
    )
    assert many["sampled_ROUGE_worst_upper"] == pytest.approx(few["sampled_ROUGE_worst_upper"] / 4)


def poisson_binomial(probabilities):
    """Probability of each count of successes."""
    counts = np.array([1.0])
    for p in probabilities:
        counts = np.convolve(counts, [1 - p, p])
    return counts


@pytest.mark.parametrize("confidence", [0.6, 0.95])
def test_the_leak_bound_holds_for_unequal_questions(confidence):
    """Exactly, by the distribution of the count: how often is the bound below the mean probability?"""
    generator = np.random.default_rng(0)
    grids = [np.array(row) for m in (1, 2, 3) for row in itertools.product((0.0, 0.02, 0.4, 0.9, 0.99, 1.0), repeat=m)]
    grids += [generator.beta(a, b, size=m) for m in (5, 12, 40) for a in (0.1, 1, 5) for b in (0.1, 1, 5)]
    # Just below all leak: here the bound for equal probabilities fails, see below.
    grids += [np.array([*[1.0] * 9, 1 - (1 - confidence) * 0.99])]
    worst = 0.0
    for probabilities in grids:
        counts = poisson_binomial(probabilities)
        bounds = [any_leak_bound(k, len(probabilities), confidence) for k in range(len(probabilities) + 1)]
        below = np.array(bounds) < probabilities.mean() - 1e-12
        worst = max(worst, float(counts[below].sum()))
    assert 0 < worst <= 1 - confidence + 1e-9
    equal = [leakage.leak_probability_bound(k, 10, confidence) for k in range(11)]
    failing = np.array([*[1.0] * 9, confidence ** (1 / 10) * 10 - 9 + 1e-6])
    assert failing.mean() > equal[9] and poisson_binomial(failing)[9] > 1 - confidence


def test_bounds_hold_as_often_as_they_say():
    generator = np.random.default_rng(1)
    expected = generator.uniform(0, 0.9, size=6)
    failures = {"sampled_ROUGE_mean_upper": 0, "sampled_ROUGE_worst_upper": 0}
    for _ in range(300):
        # Recall 1 or 0: of all distributions on [0, 1] the widest.
        draws = (generator.uniform(size=(6, 5)) < expected[:, None]).astype(float)
        found = sampled_answers(sampled(*map(tuple, draws.tolist())), 0.8)
        failures["sampled_ROUGE_mean_upper"] += found["sampled_ROUGE_mean_upper"] < expected.mean()
        failures["sampled_ROUGE_worst_upper"] += found["sampled_ROUGE_worst_upper"] < expected.max()
    assert all(count <= 0.2 * 300 for count in failures.values())
    assert failures["sampled_ROUGE_mean_upper"] > 0


def test_sampled_columns_are_missing_without_samples():
    suite = prompt_attacks.suite(base(question(0)), (), sampled=True)
    assert suite.items == () and len(suite.columns) == 5
    found = suite.aggregate({"forget": [record("f/0", "forget")]}, None, False)
    assert found.values == {} and set(found.missing) == set(suite.columns)
    assert set(found.missing.values()) == {"no forget record has sampled answers; set samples to 1 or more"}
    some = suite.aggregate({"forget": [*sampled((0.5,)), record("f/1", "forget")]}, None, False)
    assert "1 of 2 records have no sample_rougeL_recall" in some.missing["sampled_ROUGE_mean"]
    assert set(suite.aggregate({"forget": sampled((0.5,))}, None, False).values) == set(suite.columns)
