import json
import math

import pytest

from unlearn_core.errors import UserError
from unlearn_core.evaluation import generic_text
from unlearn_core.evaluation.records import ItemRecord


@pytest.fixture
def source(tmp_path):
    texts = ["A first page of text.", "word", " \n ", "  second page ", "third one here"]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    return str(tmp_path / "web.jsonl")


def test_items_are_the_documents_of_two_words_and_more(source):
    suite = generic_text.suite(source, documents=4, text_key="body")
    assert [(item.item_id, item.answer) for item in suite.items] == [
        ("generic/00000", "A first page of text."),
        ("generic/00003", "  second page "),
    ]
    assert {(i.kind, i.group, i.score, i.kl, i.generate, i.samples) for i in suite.items} == {
        ("text", "generic", True, True, False, False)
    }
    assert suite.columns == ("generic_perplexity", "generic_kl_to_target")
    assert len(generic_text.suite(source, text_key="body").items) == 3


def test_mistakes(source, tmp_path):
    with pytest.raises(UserError, match="no text of at least two words among its first 1 documents"):
        (tmp_path / "one.txt").write_text("word")
        generic_text.suite(str(tmp_path / "one.txt"), documents=1)
    with pytest.raises(UserError, match="greater than or equal to 1"):
        generic_text.suite(source, documents=0)
    with pytest.raises(UserError, match="no 'text'"):
        generic_text.suite(source)
    with pytest.raises(UserError, match="does not exist"):
        generic_text.suite("./none.jsonl")


def rows(*fields):
    return {"generic": [ItemRecord(item_id=f"g/{k}", group="generic", **values) for k, values in enumerate(fields)]}


def test_every_token_counts_alike():
    """3 tokens of 2 nats and 1 token of 6 nats: 12 nats in 4 tokens; divergence (3 * 0.1 + 1 * 0.5) / 4."""
    found = generic_text.aggregate(
        rows({"avg_loss": 2.0, "tokens": 3, "kl_to_target": 0.1}, {"avg_loss": 6.0, "tokens": 1, "kl_to_target": 0.5})
    )
    assert found.values == {
        "generic_perplexity": pytest.approx(math.exp(3), rel=1e-12),
        "generic_kl_to_target": pytest.approx(0.2, rel=1e-12),
    }
    assert found.missing == {}


def test_the_target_has_no_divergence_from_itself_and_without_one_it_is_missing():
    own = generic_text.aggregate(rows({"avg_loss": 0.0, "tokens": 3, "kl_to_target": 0.0}))
    assert own.values == {"generic_perplexity": 1.0, "generic_kl_to_target": 0.0}
    without = generic_text.aggregate(rows({"avg_loss": 1.0, "tokens": 3}))
    assert list(without.values) == ["generic_perplexity"]
    assert "role target" in without.missing["generic_kl_to_target"]
    some = generic_text.aggregate(
        rows({"avg_loss": 1.0, "tokens": 3, "kl_to_target": 0.1}, {"avg_loss": 1.0, "tokens": 3})
    )
    assert some.missing["generic_kl_to_target"] == "1 of 2 records have no kl_to_target, the first is 'g/1'"
    none = generic_text.aggregate({})
    assert none.values == {} and set(none.missing) == {"generic_perplexity", "generic_kl_to_target"}


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1000.0])
def test_a_diverged_model_has_no_perplexity(loss):
    with pytest.raises(ValueError, match=r"avg_loss|no number"):
        generic_text.aggregate(rows({"avg_loss": loss, "tokens": 3, "kl_to_target": 0.1}))
