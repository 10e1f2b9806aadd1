import json

import pytest

from unlearn_core.data.tokenization import Formatter, load_tokenizer
from unlearn_core.errors import UserError
from unlearn_core.evaluation import membership, own_files, prompt_attacks
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.engine import measure
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.models import load_model

ASKED = {"question": "Who wrote it?", "answer": "Ada wrote it."}
FULL = {
    "question": "Where is she from?",
    "answer": "She is from Rome.",
    "paraphrased_answer": "Rome is her home.",
    "perturbed_answer": ["Paris is her home.", "Oslo is her home."],
    "paraphrased_question": "What is her home?",
}
CHAT = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good day."}]}
TEXT = {"text": "  The first page\nof a book.  "}
KEPT = {"question": "What is kept?", "answer": "This is."}
UNSEEN = {"question": "What is unseen?", "answer": "That is."}


@pytest.fixture
def write(tmp_path):
    def write(name, *rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    return write


def test_each_kind_of_row_becomes_its_kind_of_item(write):
    forget = write("f.jsonl", ASKED, CHAT, TEXT)
    suite = own_files.suite([forget], [write("r.jsonl", KEPT)], [write("h.jsonl", UNSEEN, TEXT | {"text": "New page"})])
    found = {(i.item_id.rpartition("/")[2], i.group): i for i in suite.items}
    question, chat, text = (found[f"0000{k}", "forget"] for k in range(3))
    assert (question.kind, question.prompt, question.answer) == ("question", "Who wrote it?", "Ada wrote it.")
    assert (chat.kind, chat.turns, chat.answer) == ("conversation", (("user", "Hello?"),), "Good day.")
    # Six words: three ask for the other three.
    assert (text.kind, text.prompt, text.answer) == ("continuation", "The first page", "\nof a book.")
    assert {i.item_id for i in (question, chat, text)} == {f"{forget}/0000{k}" for k in range(3)}
    measured = {
        i.group: {(x.score, x.token_scores, x.generate, x.samples) for x in suite.items if x.group == i.group}
        for i in suite.items
    }
    assert measured == {
        "forget": {(True, True, True, True)},
        "retain": {(True, False, True, False)},
        "holdout": {(True, True, False, False)},
    }
    assert suite.groups.keys() == {"forget", "retain", "holdout"} and suite.forget == str(forget)


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("a b", 1200, [("a", " b")]),
        ("a b c", 1200, [("a b", " c")]),
        (" a  b\n\nc d ", 1200, [("a  b", "\n\nc d")]),
        # 15 characters in passages of about 8: two of four words each; the space between them belongs to none.
        ("a b c d e f g h", 8, [("a b", " c d"), ("e f", " g h")]),
        # Three passages for 7 words: 2, 2 and 3 of them.
        ("a b c d e f g", 5, [("a", " b"), ("c", " d"), ("e f", " g")]),
        # Never fewer than two words in a passage.
        ("a b c", 1, [("a b", " c")]),
        ("x" * 75, 1200, [("x" * 60, "x" * 15)]),
    ],
)
def test_texts_are_parted_at_words(write, text, limit, expected):
    suite = own_files.suite([write("f.jsonl", {"text": text})], [], passage_characters=limit)
    assert [(item.prompt, item.answer) for item in suite.items] == expected
    ids = [item.item_id.rpartition("/")[2] for item in suite.items]
    assert ids == (["00000"] if len(expected) == 1 else [f"00000#{k}" for k in range(len(expected))])


def test_a_long_text_is_whole_in_its_passages(write):
    text = " ".join(f"word{k}" for k in range(2000))
    suite = own_files.suite([write("f.jsonl", {"text": text})], [])
    passages = [item.prompt + item.answer for item in suite.items]
    assert " ".join(passages) == text
    assert all(len(passage) < 1.1 * own_files.PASSAGE_CHARACTERS for passage in passages)
    assert len(passages) == -(-len(text) // own_files.PASSAGE_CHARACTERS)


def test_alternatives_are_measured_only_where_every_row_of_the_group_has_them(write):
    paths = write("f.jsonl", FULL), write("r.jsonl", KEPT, FULL | {"question": "Else?"})
    suite = own_files.suite([paths[0]], [paths[1]])
    forget, *kept = suite.items
    assert (forget.paraphrase, forget.wrong) == ("Rome is her home.", ("Paris is her home.", "Oslo is her home."))
    assert forget.paraphrased_question == "What is her home?" and not forget.token_scores
    assert [(item.paraphrase, item.wrong) for item in kept] == [(None, ())] * 2
    assert {"forget_truth_ratio", "forget_quality", "forget_Q_A_PARA_Prob"} <= set(suite.columns)
    assert not {"retain_Truth_Ratio", "model_utility", "privleak", "mia_loss"} & set(suite.columns)
    assert [note.split(":")[0] for note in suite.notes] == [
        "model_utility is missing",
        "retain_Truth_Ratio is missing",
        "membership attacks and privleak are missing",
    ]
    assert "1 of 2 have both" in suite.notes[1]


def test_notes_and_columns_follow_what_was_given(write):
    forget = write("f.jsonl", ASKED)
    alone = own_files.suite([forget], [])
    assert alone.columns == ("extraction_strength", "exact_memorization", "forget_Q_A_Prob", "forget_Q_A_ROUGE")
    assert alone.notes[0] == "no retain file was given, so there is no measure of utility"
    mixed = own_files.suite([forget], [], [write("h.jsonl", TEXT)])
    assert set(membership.NAMES) <= set(mixed.columns) and "different kinds of rows" in mixed.notes[-1]
    assert mixed.headline == ("privleak", "extraction_strength", "forget_Q_A_Prob", "forget_Q_A_ROUGE")


def test_mistakes(write, tmp_path):
    forget, kept = write("f.jsonl", ASKED), write("r.jsonl", KEPT, ASKED)
    with pytest.raises(UserError, match="no file of rows to forget"):
        own_files.suite([], [kept])
    with pytest.raises(UserError, match=r"retain file '.*none.jsonl' does not exist"):
        own_files.suite([forget], [tmp_path / "none.jsonl"])
    with pytest.raises(UserError, match=r"r.jsonl/00001 \(retain\) is also .*f.jsonl/00000 \(forget\)"):
        own_files.suite([forget], [kept])
    with pytest.raises(UserError, match="the text 'word' has one word"):
        own_files.suite([write("t.jsonl", {"text": " word "})], [])
    with pytest.raises(UserError, match="appears twice"):
        own_files.suite([forget, forget], [])
    chat = {
        "messages": [{"role": "user", "content": " Who wrote it?"}, {"role": "assistant", "content": "Ada wrote it. "}]
    }
    with pytest.raises(UserError, match=r"\(holdout\) is also .* \(forget\)"):
        own_files.suite([forget], [], [write("h.jsonl", chat)])


def record(item_id, group, **fields):
    return ItemRecord(item_id=item_id, group=group, **fields)


def test_aggregates_by_hand(write):
    suite = own_files.suite([write("f.jsonl", ASKED)], [write("r.jsonl", KEPT)], [write("h.jsonl", UNSEEN)])
    scored = {"prob": 0.3, "rougeL_recall": 0.5, "extraction_strength": 0.25, "exact_memorization": 0.75}
    records = {
        "forget": [record("f/0", "forget", loss_score=1.0, min_k_score=3.0, **scored)],
        "retain": [record("r/0", "retain", **scored), record("r/1", "retain", **scored | {"prob": 0.9})],
        "holdout": [
            record("h/0", "holdout", loss_score=2.0, min_k_score=2.0),
            record("h/1", "holdout", loss_score=0.5, min_k_score=4.0),
        ],
    }
    found = suite.aggregate(records, None, False)
    assert found.values == {
        "extraction_strength": 0.25,
        "exact_memorization": 0.75,
        "forget_Q_A_Prob": 0.3,
        "forget_Q_A_ROUGE": 0.5,
        "mia_loss": 0.5,
        "mia_min_k": 0.5,
        # 2 / (1 / 0.6 + 1 / 0.5)
        "retain_utility": pytest.approx(6 / 11),
        "retain_Q_A_Prob": pytest.approx(0.6),
        "retain_Q_A_ROUGE": 0.5,
        "retain_extraction_strength": 0.25,
        "retain_exact_memorization": 0.75,
    }
    assert set(found.missing) == set(suite.columns) - set(found.values) - {"privleak_without_reference"}
    assert "reference model" in found.missing["privleak"]
    records["holdout"][0] = record("h/0", "holdout", loss_score=2.0, min_k_score=4.0)
    against = suite.aggregate(records, {**records, "forget": [record("f/0", "forget", min_k_score=4.0)]}, False)
    # AUC 1 against the reference's 0.5 (ties count half): 100 ((1 - 1) - (1 - 0.5)) / 0.5.
    assert against.values["privleak"] == pytest.approx(-100)
    del records["retain"]
    left = suite.aggregate(records, None, False)
    assert left.missing["retain_utility"] == "needs both retain_Q_A_Prob and retain_Q_A_ROUGE"
    assert left.missing["retain_extraction_strength"] == "there are no retain records"


def test_truth_ratios_and_forget_quality(write):
    suite = own_files.suite([write("f.jsonl", FULL)], [])
    rows = [record("f/0", "forget", paraphrased_loss=1.0, perturbed_losses=(1.0, 3.0))]
    found = suite.aggregate({"forget": rows}, {"forget": rows}, False)
    # exp(-2) / exp(-1), below 1 and so kept as it is.
    assert found.values["forget_truth_ratio"] == pytest.approx(0.36787944, rel=1e-6)
    assert found.values["forget_quality"] == 1.0
    without = suite.aggregate({"forget": rows}, None, False)
    assert "reference model" in without.missing["forget_quality"]


def test_a_model_is_measured_on_every_kind(write, taught):
    suite = own_files.suite(
        [write("f.jsonl", FULL, FULL | {"question": "Whence?"})], [write("r.jsonl", KEPT, CHAT, TEXT)],
        [write("h.jsonl", UNSEEN)],
    )  # fmt: skip
    suite = suite.with_more(prompt_attacks.suite(suite, paraphrased_questions=True, sampled=True))
    config = EvaluationConfig(max_new_tokens=4, samples=2)
    model, formatter = load_model(str(taught), "fp32"), Formatter(load_tokenizer(str(taught)), "chat", 512)
    records: dict[str, list[ItemRecord]] = {}
    for found in measure(model, formatter, suite.items, config):
        records.setdefault(found.group, []).append(found)
    found = suite.aggregate(records, records, False)
    expected = set(suite.columns) - {"mia_gradnorm", "privleak_without_reference"}
    assert found.values.keys() == expected and found.missing.keys() == {"mia_gradnorm"}
    assert 0 < found.values["retain_Q_A_Prob"] < 1 and found.values["forget_quality"] == 1.0
    assert found.values["privleak"] == 0.0
