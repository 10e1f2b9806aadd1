import json

import pyarrow
import pyarrow.parquet
import pytest

from unlearn_core.data import generic
from unlearn_core.data.config import GenericConfig
from unlearn_core.data.generic import generic_documents, generic_examples
from unlearn_core.data.tokenization import Formatter
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.errors import UserError


@pytest.fixture(scope="module")
def formatter():
    # The smallest vocabulary: every byte is one token, so lengths can be counted by hand.
    return Formatter(train_tokenizer(["a"], 263), "plain", 16)


def chunks(config, formatter):
    return [
        (example.item_id, formatter.tokenizer.decode(list(example.input_ids)))
        for example in generic_examples(config, generic_documents(config), formatter)
    ]


def lines(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def test_only_full_chunks_are_kept(tmp_path, formatter):
    source = lines(tmp_path / "web.jsonl", [{"text": "abcdefghij"}, {"text": "kl"}, {"text": "mnopqrst"}])
    config = GenericConfig(source=source, length=4)
    assert chunks(config, formatter) == [
        ("generic/00000#0", "abcd"),
        ("generic/00000#1", "efgh"),
        ("generic/00002#0", "mnop"),
        ("generic/00002#1", "qrst"),
    ]
    examples = generic_examples(config, generic_documents(config), formatter)
    assert {(example.prompt_length, example.label_count) for example in examples} == {(1, 3)}


def test_at_most_so_many_documents_are_read(tmp_path, formatter):
    path = tmp_path / "web.jsonl"
    lines(path, [{"text": "abcd"}, {"text": "  "}, {"text": "efgh"}, {"text": "ijkl"}])
    path.write_text(path.read_text() + "not json\n")
    config = GenericConfig(source=str(path), length=4, documents=3)
    # The blank document counts, and the broken line after the third is never reached.
    assert chunks(config, formatter) == [("generic/00000#0", "abcd"), ("generic/00002#0", "efgh")]
    with pytest.raises(UserError, match=r"web\.jsonl:5: invalid JSON"):
        generic_documents(GenericConfig(source=str(path), length=4, documents=5))


def test_another_key_and_a_missing_one(tmp_path, formatter):
    source = lines(tmp_path / "web.jsonl", [{"content": "abcd"}])
    assert chunks(GenericConfig(source=source, length=4, text_key="content"), formatter) == [
        ("generic/00000#0", "abcd")
    ]
    with pytest.raises(UserError, match=r"web\.jsonl:1: no 'text'; found the keys \['content'\]"):
        generic_documents(GenericConfig(source=source))


def test_a_text_file_is_one_document(tmp_path, formatter):
    (tmp_path / "book.txt").write_text("ab\n\ncd\n")
    config = GenericConfig(source=str(tmp_path / "book.txt"), length=3)
    assert chunks(config, formatter) == [("generic/00000#0", "ab\n"), ("generic/00000#1", "\ncd")]


def test_a_folder_is_read_in_order_and_of_one_kind(tmp_path, formatter):
    lines(tmp_path / "b.jsonl", [{"text": "bbbb"}])
    (tmp_path / "LICENSE.txt").write_text("free text of a licence")
    (tmp_path / "a").mkdir()
    lines(tmp_path / "a" / "z.jsonl", [{"text": "aaaa"}])
    config = GenericConfig(source=str(tmp_path), length=4)
    assert [text for _, text in chunks(config, formatter)] == ["aaaa", "bbbb"]
    pyarrow.parquet.write_table(pyarrow.table({"text": ["pppp", "qqqq"]}), tmp_path / "p.parquet")
    assert [text for _, text in chunks(config, formatter)] == ["pppp", "qqqq"]


def test_no_full_chunk_is_an_error(tmp_path, formatter):
    source = lines(tmp_path / "web.jsonl", [{"text": "abc"}, {"text": "de"}])
    with pytest.raises(UserError, match=r"none of the 2 documents .*web\.jsonl' has 4 tokens.*data\.generic\.length"):
        chunks(GenericConfig(source=source, length=4), formatter)


def test_sources_that_do_not_exist(tmp_path):
    for source in ("./nowhere", "nowhere.jsonl", "nowhere.parquet", str(tmp_path / "no")):
        with pytest.raises(UserError, match="does not exist; give a"):
            generic_documents(GenericConfig(source=source))
    with pytest.raises(UserError, match=r"holds no \.parquet"):
        generic_documents(GenericConfig(source=str(tmp_path)))
    (tmp_path / "a.csv").write_text("text\nabc\n")
    with pytest.raises(UserError, match=r"a\.csv' is a file of an unknown kind"):
        generic_documents(GenericConfig(source=str(tmp_path / "a.csv")))


@pytest.fixture
def fresh_cache():
    generic._from_hub.cache_clear()
    yield
    generic._from_hub.cache_clear()


@pytest.mark.usefixtures("fresh_cache")
def test_the_hub_is_streamed_once_and_no_further_than_needed(monkeypatch, formatter):
    import datasets

    asked, reached = [], []

    def load(source, subset, split, streaming):
        asked.append((source, subset, split, streaming))
        for k in range(1000):
            reached.append(k)
            yield {"text": f"{k:04d}{k:04d}", "url": "x"}

    monkeypatch.setattr(datasets, "load_dataset", load)
    config = GenericConfig(source="Skylion007/openwebtext", length=4, documents=3)
    first, second = chunks(config, formatter), chunks(config, formatter)
    assert first == second
    assert [text for _, text in first] == ["0000", "0000", "0001", "0001", "0002", "0002"]
    assert asked == [("Skylion007/openwebtext", None, "train", True)]
    assert reached == [0, 1, 2]
    generic_documents(config.model_copy(update={"subset": "en"}))
    assert asked[1][1] == "en"


@pytest.mark.usefixtures("fresh_cache")
def test_hub_errors(monkeypatch):
    import datasets

    def missing_config(*args, **named):
        raise ValueError("Config name is missing: en, de")

    def offline(*args, **named):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", missing_config)
    with pytest.raises(UserError, match=r"Config name is missing.*Set data\.generic\.subset"):
        generic_documents(GenericConfig(source="allenai/c4"))
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match="cannot read data set 'allenai/c4' from the Hugging Face hub"):
        generic_documents(GenericConfig(source="allenai/c4"))
