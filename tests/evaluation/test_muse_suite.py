import json
import math

import pytest

from unlearn_core.data import synthetic_muse
from unlearn_core.data.tokenization import Formatter
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.errors import UserError
from unlearn_core.evaluation import membership, muse
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.tokens import tokenise

QA = [{"question": "Who?", "answer": "Ada"}]
SHOTS = [{"question": "a?", "answer": "A"}, {"question": "b?", "answer": "B"}]


def put(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


@pytest.fixture
def corpus(tmp_path):
    for side in ("forget", "retain"):
        put(tmp_path / "knowmem" / f"{side}_qa.json", QA)
    put(tmp_path / "knowmem" / "forget_qa_icl.json", SHOTS)
    put(tmp_path / "knowmem" / "retain_qa_icl.json", SHOTS[:1])
    put(tmp_path / "verbmem" / "forget.json", [{"prompt": "It was a dark", "gt": "and stormy night."}])
    for name in ("forget", "retain", "holdout"):
        put(tmp_path / "privleak" / f"{name}.json", [{"text": f"A {name} text."}])
    return tmp_path


def one(suite, group):
    (item,) = suite.groups[group]
    return item


def test_a_passage_is_continued_raw(corpus):
    item = one(muse.suite(str(corpus)), "verbmem")
    assert (item.kind, item.prompt, item.answer) == ("continuation", "It was a dark", "and stormy night.")
    assert (item.max_new_tokens, item.reference_tokens, item.stops, item.stemmer) == (128, 128, (), False)
    assert item.generate and item.score and not item.token_scores


def test_a_question_follows_its_own_sides_shots(corpus):
    suite = muse.suite(str(corpus))
    forget, retain = one(suite, "knowmem_forget"), one(suite, "knowmem_retain")
    a, b = "Question: a?\nAnswer: A\n\n", "Question: b?\nAnswer: B\n\n"
    assert forget.prompt == a + b + "Question: Who?\nAnswer: "
    assert retain.prompt == a + "Question: Who?\nAnswer: "
    for item in (forget, retain):
        assert (item.kind, item.answer, item.max_new_tokens) == ("continuation", "Ada", 32)
        assert item.stops == ("\n\n", "\nQuestion", "Question:")
        assert item.reference_tokens is None and not item.stemmer and item.answers == ()


def test_a_text_is_only_read(corpus):
    item = one(muse.suite(str(corpus)), "privleak_holdout")
    assert (item.kind, item.prompt, item.answer) == ("text", "", "A holdout text.")
    assert item.score and item.token_scores and not item.generate


def test_compat_asks_as_open_unlearning_does(corpus):
    suite = muse.suite(str(corpus), compat=True)
    item = one(suite, "verbmem")
    assert (item.prompt + item.answer, item.reference_tokens) == ("It was a dark and stormy night.", None)
    assert all(item.stemmer for item in suite.items if item.generate)
    assert one(suite, "knowmem_forget").prompt == one(muse.suite(str(corpus)), "knowmem_forget").prompt


def test_the_suite_of_a_corpus(corpus):
    suite = muse.suite(str(corpus))
    assert (suite.name, suite.source, suite.forget, suite.columns) == ("muse", str(corpus), "raw/forget", muse.NAMES)
    assert tuple(suite.groups) == muse.GROUPS
    assert set(suite.headline) <= set(suite.columns) and suite.notes == ()


def test_texts_of_the_kept_kind_are_optional_and_others_are_not(corpus):
    (corpus / "privleak" / "retain.json").unlink()
    suite = muse.suite(str(corpus))
    assert tuple(suite.groups) == muse.GROUPS[:-1]
    assert suite.notes == (f"{corpus} has no privleak/retain, so mia_min_k_retain is missing",)
    (corpus / "privleak" / "holdout.json").unlink()
    with pytest.raises(UserError, match="has no privleak/holdout"):
        muse.suite(str(corpus))


def test_nothing_of_the_synthetic_corpus_is_cut():
    suite = muse.suite("synthetic-muse:tiny")
    made = synthetic_muse.generate("tiny")
    tokenizer = train_tokenizer([row["text"] for row in made["train/forget"]], 500)
    formatter = Formatter(tokenizer, "plain", muse.MAX_LENGTH)
    for item in suite.items:
        tokens = tokenise(item, formatter)
        if item.kind == "text":
            (answer,) = tokens.answers
            assert formatter.decode((*tokens.prompt, *answer)) == item.answer
        if item.group == "verbmem":
            assert item.prompt + item.answer in {row["text"] for row in made["raw/forget"]}


# Aggregates by hand. AUC = share of (forget, other) pairs in which the forget text has the lower score.


def record(group, k, **values):
    return ItemRecord(item_id=f"{group}/{k}", group=group, **values)


def attacked(group, *scores):
    names = ("loss_score", "zlib_score", "min_k_score", "min_k_plus_plus_score", "gradient_norm")
    return [record(group, k, **dict.fromkeys(names, score)) for k, score in enumerate(scores)]


def model(forget=(1.0, 2.0), holdout=(1.5, 3.0), retain=(0.5, 2.0)):
    return {
        "verbmem": [
            record("verbmem", 0, rougeL_f1=0.5, extraction_strength=0.25, exact_memorization=0.75),
            record("verbmem", 1, rougeL_f1=1.0, extraction_strength=0.75, exact_memorization=1.0),
        ],
        "knowmem_forget": [record("knowmem_forget", k, rougeL_f1=f1) for k, f1 in enumerate((0.0, 0.0, 0.75))],
        "knowmem_retain": [record("knowmem_retain", 0, rougeL_f1=0.6)],
        "privleak_forget": attacked("privleak_forget", *forget),
        "privleak_holdout": attacked("privleak_holdout", *holdout),
        "privleak_retain": attacked("privleak_retain", *retain),
    }


def test_means_and_attacks():
    found = muse.aggregate(model(), None).values
    assert found["forget_verbmem_ROUGE"] == 0.75
    assert found["forget_knowmem_ROUGE"] == 0.25
    assert found["retain_knowmem_ROUGE"] == 0.6
    assert found["extraction_strength"] == 0.5
    assert found["exact_memorization"] == 0.875
    # 1 < 1.5, 1 < 3, 2 > 1.5, 2 < 3
    for attack in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_gradnorm"):
        assert found[attack] == 0.75
    # 0.5 < 1.5, 0.5 < 3, 2 > 1.5, 2 < 3
    assert found["mia_min_k_retain"] == 0.75


def test_privleak_is_relative_to_the_retrained_model():
    # The reference: 1 > 0.5, 1 < 3, 2 > 0.5, 2 < 3 = 0.5; in the paper's direction 0.25 against 0.5.
    reference = model(holdout=(0.5, 3.0))
    found = muse.aggregate(model(), reference).values
    assert found["privleak"] == pytest.approx(100 * (0.25 - 0.5) / 0.5, abs=1e-6)
    # Losses minus the reference's: 0 and 0 of forget, 1 and 0 of holdout: two pairs in order, two ties.
    assert found["mia_reference"] == 0.75
    assert muse.aggregate(reference, reference).values["privleak"] == 0.0


def test_without_a_reference():
    plain, compat = muse.aggregate(model(), None), muse.aggregate(model(), None, True)
    assert "none was given" in plain.missing["privleak"] and "none was given" in plain.missing["mia_reference"]
    assert "privleak_without_reference" not in plain.values | plain.missing
    assert compat.values["privleak_without_reference"] == pytest.approx(-50.0, abs=1e-6)
    assert "privleak" in compat.missing


@pytest.mark.parametrize("corpus_auc", [0.4772, 0.5393])
def test_the_published_extreme_of_a_target_that_tells_all(corpus_auc):
    # The published AUCs are of the other direction.
    assert membership.privleak(1.0, 1 - corpus_auc) == pytest.approx(-100.0, abs=1e-6)
    assert membership.privleak(0.0, 1 - corpus_auc) == pytest.approx(100 * (1 - corpus_auc) / corpus_auc, abs=1e-6)


def test_what_was_not_measured_is_missing_with_a_reason():
    records = model()
    del records["verbmem"], records["privleak_retain"]
    records["knowmem_forget"][1] = record("knowmem_forget", 1)
    found = muse.aggregate(records, None)
    assert found.missing["forget_verbmem_ROUGE"] == "there are no verbmem records"
    assert found.missing["exact_memorization"] == "there are no verbmem records"
    assert found.missing["mia_min_k_retain"] == "there are no privleak_retain records"
    assert "knowmem_forget/1" in found.missing["forget_knowmem_ROUGE"]
    assert set(found.values) | set(found.missing) == {*muse.NAMES} - {"privleak_without_reference"}
    assert not set(found.values) & set(found.missing)


def test_numbers_that_are_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        muse.aggregate(model(forget=(math.nan, 1.0)), None)


def test_a_reference_of_other_texts():
    with pytest.raises(UserError, match="compares the same items"):
        muse.aggregate(model(), model(forget=(1.0, 2.0, 3.0)))
