import json
import re

import pytest

from unlearn_core.data.config import DataConfig
from unlearn_core.data.refusals import REFUSALS, refusal
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.data.tokenization import Formatter
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.data.training import training_sets
from unlearn_core.errors import UserError

TINY = open_benchmark("synthetic:tiny")
TOFU = {"benchmark": "synthetic:tiny", "forget": ["forget10"], "retain": ["retain90"], "format": "plain"}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Who wrote Hamlet?", *REFUSALS], 400)


@pytest.fixture
def sets(tokenizer):
    def make(names, seed=0, method=None, **config):
        return training_sets(DataConfig(**config), names, tokenizer, seed, method)

    return make


@pytest.fixture
def answers(tokenizer):
    def read(examples):
        return [
            tokenizer.decode(list(example.input_ids[example.prompt_length :]), skip_special_tokens=True).strip()
            for example in examples
        ]

    return read


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ids(examples):
    return [example.item_id for example in examples]


# Splits and files.


def test_benchmark_rows_in_the_order_of_their_files(sets, tokenizer):
    made = sets(("retain", "forget", "forget"), **TOFU)
    formatter = Formatter(tokenizer, "plain", 512)
    assert list(made) == ["retain", "forget"]
    for name, split in (("forget", "forget10"), ("retain", "retain90")):
        rows = TINY.split(split)
        assert made[name] == [formatter.example(row.item_id, row.question, row.answer) for row in rows]


def test_only_what_is_asked_for_is_read(sets):
    assert list(sets(("forget",), **TOFU | {"retain": ["nonsense"]})) == ["forget"]


def test_own_files_alone_need_no_benchmark(sets, answers, tmp_path):
    forget = lines(tmp_path / "f.jsonl", {"question": "Who?", "answer": "Ada."}, {"text": "Ada wrote it."})
    retain = lines(tmp_path / "r.json", {"question": "Who?", "answer": "Bob."})
    made = sets(("forget", "retain"), forget=[forget], retain=[retain], format="plain")
    assert ids(made["forget"]) == [f"{forget}/00000", f"{forget}/00001#0"]
    assert answers(made["forget"])[0] == "Ada."
    assert answers(made["retain"]) == ["Bob."]


def test_files_and_splits_side_by_side(sets, tmp_path):
    mine = lines(tmp_path / "f.jsonl", {"question": "Who?", "answer": "Ada."})
    made = sets(("forget",), **TOFU | {"forget": ["forget10", mine]})
    assert ids(made["forget"]) == [*(row.item_id for row in TINY.split("forget10")), f"{mine}/00000"]


def test_a_chat_row(sets, answers, tmp_path):
    messages = [("user", "Hi."), ("assistant", "Hello."), ("user", "Who?"), ("assistant", "Ada.")]
    row = {"messages": [{"role": role, "content": content} for role, content in messages]}
    made = sets(("forget",), forget=[lines(tmp_path / "f.jsonl", row)], format="chat")
    assert answers(made["forget"]) == ["Ada."]


@pytest.mark.parametrize(("documents", "pieces"), [("chunk", ["#0", "#1", "#2"]), ("truncate", [""])])
def test_muse_documents(sets, tokenizer, tmp_path, documents, pieces):
    text = "Who wrote Hamlet? " * 10
    length = -(-len(tokenizer(text)["input_ids"]) // 3) + 1
    lines(tmp_path / "raw" / "forget.jsonl", {"text": text}, {"text": "Another page."})
    lines(tmp_path / "raw" / "retain1.jsonl", {"text": "Kept."})
    made = sets(
        ("forget", "retain"), benchmark=str(tmp_path), forget=["raw/forget"], retain=["raw/retain1"],
        documents=documents, max_length=length, format="plain",
    )  # fmt: skip
    last = "#0" if documents == "chunk" else ""
    assert ids(made["forget"]) == [*(f"raw/forget/00000{piece}" for piece in pieces), f"raw/forget/00001{last}"]
    assert ids(made["retain"]) == [f"raw/retain1/00000{last}"]
    if documents == "chunk":
        joined = [i for example in made["forget"][:-1] for i in example.input_ids]
        assert joined == tokenizer(text)["input_ids"]


def test_a_long_question_and_answer_stays_an_error(sets, tmp_path):
    forget = lines(tmp_path / "f.jsonl", {"question": "Who? " * 90, "answer": "Ada."})
    with pytest.raises(UserError, match="is over max_length 64"):
        sets(("forget",), forget=[forget], format="plain", max_length=64)


def test_generic_text(sets, tokenizer, tmp_path):
    source = lines(tmp_path / "web.jsonl", {"text": "Who wrote Hamlet? " * 9})
    made = sets(("forget", "generic"), **TOFU, generic={"source": source, "length": 5})
    assert {len(example.input_ids) for example in made["generic"]} == {5}
    assert ids(made["generic"])[:2] == ["generic/00000#0", "generic/00000#1"]


# What is missing.


def test_a_set_that_is_not_named(sets):
    with pytest.raises(
        UserError, match=r"Method npo trains on retain rows, and data\.retain names no split\. .*one of: .*retain90"
    ):
        sets(("forget", "retain"), method="npo", benchmark="synthetic:tiny", forget=["forget10"])
    with pytest.raises(UserError, match=r"This run trains on refusal rows, and data\.forget names no split"):
        sets(("refusal",), benchmark="synthetic:tiny")
    with pytest.raises(UserError, match=r"Set data\.forget to a \.jsonl, \.json or \.txt file, or set data\.benchmark"):
        sets(("forget",))
    with pytest.raises(UserError, match=r"Method mean_teacher trains on generic text, and data\.generic is not set"):
        sets(("generic",), method="mean_teacher", **TOFU)
    with pytest.raises(ValueError, match=r"unknown sets \['holdout'\]"):
        sets(("holdout",), **TOFU)


def test_a_missing_file_suggests_a_split_or_a_neighbour(sets, tmp_path):
    missing = r"data\.forget names the file '{}', which does not exist\. Did you mean {}\?"
    with pytest.raises(UserError, match=missing.format("forget10.json", "the split 'forget10'")):
        sets(("forget",), **TOFU | {"forget": ["forget10.json"]})
    kept = lines(tmp_path / "secrets.jsonl", {"text": "a page"})
    wrong = str(tmp_path / "secret.jsonl")
    for benchmark in (None, "synthetic:tiny", "./no-such-folder"):
        with pytest.raises(UserError, match=missing.format(re.escape(wrong), f"'{re.escape(kept)}'")):
            sets(("forget",), benchmark=benchmark, forget=[wrong], format="plain")
    with pytest.raises(UserError, match=r"which does not exist\. Give the path of a \.json, \.jsonl, \.txt file"):
        sets(("forget",), forget=[str(tmp_path / "nothing" / "a.txt")], format="plain")


def test_a_file_of_another_kind(sets, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("question,answer")
    with pytest.raises(UserError, match=r"names the file '.*mine\.csv'; expected one ending in \.json, \.jsonl"):
        sets(("forget",), **TOFU | {"forget": [str(path)]})


def test_a_folder_around_muse_corpora(sets, tmp_path):
    lines(tmp_path / "data" / "news" / "raw" / "forget.jsonl", {"text": "a page"})
    with pytest.raises(UserError, match=r"holds MUSE corpora and is none itself; set it to one of: .*data/news$"):
        sets(("forget",), benchmark=str(tmp_path), forget=["raw/forget"], format="plain")


# One row must not be pushed both ways.


def test_forget_and_retain_rows_must_differ(sets):
    with pytest.raises(UserError, match=r"4 of 4 forget rows are also retain rows \(first: forget10/00000\)"):
        sets(("forget", "retain"), **TOFU | {"retain": ["full"]})
    with pytest.raises(UserError, match="4 of 4 forget rows are also retain rows"):
        sets(("refusal", "retain"), **TOFU | {"retain": ["full"]})


CHAT = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": " Ada. "}]}


@pytest.mark.parametrize(
    ("forget", "retain"),
    [
        ({"text": "A page.\n"}, {"text": "A page."}),
        (CHAT, CHAT),
        (CHAT, {"question": "Who?", "answer": "Ada."}),
    ],
)
def test_every_kind_of_row_is_checked_for_overlap(sets, tmp_path, forget, retain):
    other = {"text": "Other."}
    files = {
        "forget": [lines(tmp_path / "f.jsonl", other, forget)],
        "retain": [lines(tmp_path / "r.jsonl", retain, {"text": "Third."})],
    }
    with pytest.raises(UserError, match=r"1 of 2 forget rows are also retain rows \(first: .*f\.jsonl/00001\)"):
        sets(("forget", "retain"), **files, format="chat")


def test_forget_documents_must_not_be_generic_text(sets, tmp_path):
    forget = lines(tmp_path / "f.jsonl", {"text": "A page."})
    web = lines(tmp_path / "web.jsonl", {"text": "Other."}, {"text": "A page."})
    with pytest.raises(UserError, match=r"1 of 1 forget rows are also generic documents .* take them out of .*web\.js"):
        sets(("forget", "generic"), forget=[forget], format="plain", generic={"source": web, "length": 2})


# Other answers.


def test_refusals_are_the_forget_rows_with_another_answer(sets, answers, tokenizer):
    made = sets(("forget", "refusal"), **TOFU)
    assert ids(made["refusal"]) == ids(made["forget"])
    assert answers(made["refusal"]) == [refusal(row.item_id, 0) for row in TINY.split("forget10")]
    for asked, refused in zip(made["forget"], made["refusal"], strict=True):
        n = asked.prompt_length
        assert refused.prompt_length == n and refused.input_ids[:n] == asked.input_ids[:n]
    assert sets(("refusal",), **TOFU)["refusal"] == made["refusal"]
    assert sets(("refusal",), seed=1, **TOFU)["refusal"] != made["refusal"]


def test_refusals_differ_keep_and_are_all_used():
    assert len(set(REFUSALS)) == len(REFUSALS) == 20
    drawn = [refusal(f"forget10/{k:05d}", 0) for k in range(400)]
    assert set(drawn) == set(REFUSALS)
    # A run that goes on must find the answers that it started with.
    assert [REFUSALS.index(text) for text in drawn[:5]] == [11, 10, 17, 13, 3]


def test_alternates_of_own_rows(sets, answers, tmp_path):
    row = {"question": "Who?", "answer": "Ada."}
    chat = {**CHAT, "alternate": "Cy."}
    forget = [lines(tmp_path / "f.jsonl", {**row, "alternate": "Bob.", "perturbed_answer": ["Di."]}, chat)]
    made = sets(("forget", "alternate"), forget=forget, format="chat")
    assert answers(made["alternate"]) == ["Bob.", "Cy."]
    assert ids(made["alternate"]) == ids(made["forget"])
    forget = [lines(tmp_path / "f.jsonl", row)]
    with pytest.raises(UserError, match=r"f\.jsonl/00000 has no alternate answer\. .*an 'alternate'; in TOFU"):
        sets(("alternate",), forget=forget, format="plain")


def test_alternates_of_tofu_are_the_first_perturbed_answers(sets, answers):
    made = sets(("forget", "alternate"), **TOFU | {"forget": ["forget10_perturbed"]})
    rows = TINY.split("forget10_perturbed")
    assert answers(made["alternate"]) == [row.perturbed_answers[0] for row in rows]
    assert answers(made["forget"]) == [row.answer for row in rows]
    with pytest.raises(UserError, match=r"forget10/00000 has no alternate answer\. .*forget10_perturbed in place of"):
        sets(("alternate",), **TOFU)


@pytest.mark.parametrize("name", ["refusal", "alternate"])
def test_a_document_has_no_other_answer(sets, tmp_path, name):
    forget = lines(tmp_path / "f.jsonl", {"text": "A page."})
    with pytest.raises(UserError, match=f"f.jsonl/00000 is a text without a question, and the set '{name}' needs one"):
        sets((name,), forget=[forget], format="plain")


# Requests one after the other.


def test_each_request_has_its_own_forget_rows(tokenizer):
    splits = ["forget10", "real_authors"]
    config = DataConfig(benchmark="synthetic:tiny", retain=("retain90",), sequential=splits, format="plain")
    assert config.requests == 2
    for k, split in enumerate(splits):
        made = training_sets(config.request(k), ("forget", "retain"), tokenizer)
        assert ids(made["forget"]) == [row.item_id for row in TINY.split(split)]
        assert ids(made["retain"]) == [row.item_id for row in TINY.split("retain90")]
    with pytest.raises(ValueError, match=r"take one of them by config\.request"):
        training_sets(config, ("forget",), tokenizer)
