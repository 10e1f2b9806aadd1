import json

import pyarrow
import pyarrow.parquet
import pytest

from unlearn_core.data.muse import MuseTexts, corpora, is_muse
from unlearn_core.data.rows import Document
from unlearn_core.errors import UserError


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def texts(source, split):
    return [row.text for row in MuseTexts(str(source)).split(split)]


@pytest.fixture
def as_on_the_hub(tmp_path):
    """A copy of the hub's files: shards of parquet, JSON lines, and probes that are no training texts."""
    folder = tmp_path / "MUSE-News"
    (folder / "raw").mkdir(parents=True)
    for k, part in enumerate((["f0", "f1"], ["f2"])):
        name = f"forget-0000{k}-of-00002.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": part}), folder / "raw" / name)
    put(folder / "raw" / "retain1.jsonl", '{"text": "r0"}\n{"text": "r1"}\n')
    put(folder / "scal" / "forget_2.json", '{"text": "s0"}\n{"text": "s1"}\n')
    put(folder / "train" / "forget.json", json.dumps([{"text": "t0"}]))
    put(folder / "knowmem" / "forget_qa.json", json.dumps([{"question": "q", "answer": "a"}]))
    put(folder / "README.md", "card")
    return folder


@pytest.fixture
def as_on_github(tmp_path):
    folder = tmp_path / "muse_bench" / "data" / "bbc"
    put(folder / "raw" / "forget.json", json.dumps(["f0", "f1 with\n\na blank line"]))
    put(folder / "raw" / "forget.txt", "f0\n\nf1 with\n\na blank line")
    put(folder / "raw" / "retain1.txt", "r0\n\nr1\n")
    put(folder / "sust" / "forget_3.txt", "s0\n\ns1\n\ns2")
    put(folder / "readme.md", "card")
    return folder


def test_the_hubs_layout_in_a_folder(as_on_the_hub):
    muse = MuseTexts(str(as_on_the_hub))
    assert muse.splits == ("raw/forget", "raw/retain1", "scal/forget_2", "train/forget")
    assert muse.split("raw/forget") == [Document(f"raw/forget/0000{k}", f"f{k}") for k in range(3)]
    assert texts(as_on_the_hub, "raw/retain1") == ["r0", "r1"]
    assert texts(as_on_the_hub, "scal/forget_2") == ["s0", "s1"]
    assert texts(as_on_the_hub, "train/forget") == ["t0"]


def test_the_authors_layout_and_json_before_txt(as_on_github):
    assert MuseTexts(str(as_on_github)).splits == ("raw/forget", "raw/retain1", "sust/forget_3")
    assert texts(as_on_github, "raw/forget") == ["f0", "f1 with\n\na blank line"]
    assert texts(as_on_github, "raw/retain1") == ["r0", "r1"]
    assert texts(as_on_github, "sust/forget_3") == ["s0", "s1", "s2"]
    (as_on_github / "raw" / "forget.json").unlink()
    assert texts(as_on_github, "raw/forget") == ["f0", "f1 with", "a blank line"]


def test_what_is_recognised_as_muse(as_on_the_hub, as_on_github, tmp_path):
    assert is_muse(str(as_on_the_hub)) and is_muse(str(as_on_github))
    assert is_muse("muse-bench/MUSE-News") and is_muse("me/muse-books")
    assert not any(map(is_muse, ("locuslab/TOFU", "synthetic:tiny", "muse-bench/TOFU", "./MUSE-News", "me/amuse-b")))
    tofu = tmp_path / "tofu"
    put(tofu / "forget10.json", "{}")
    put(tofu / "train" / "log.json", "{}")
    assert not is_muse(str(tofu))


def test_corpora_inside_a_folder(as_on_github, tmp_path):
    for folder in (as_on_github.parent, as_on_github.parent.parent):
        assert corpora(str(folder)) == (str(as_on_github),)
    assert corpora(str(tmp_path / "none")) == corpora("muse-bench/MUSE-News") == ()


def test_unknown_splits_and_probes_list_the_valid_ones(as_on_the_hub):
    with pytest.raises(UserError, match=r"no split 'raw/forgot'; did you mean 'raw/forget'\? Valid splits: raw/forget"):
        texts(as_on_the_hub, "raw/forgot")
    with pytest.raises(UserError, match=r"no split 'knowmem/forget_qa'"):
        texts(as_on_the_hub, "knowmem/forget_qa")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "a"}\n{"txt": "b"}', r"forget\.jsonl:2: no 'text'; found the keys \['txt'\]"),
        ('{"text": "a"}\n\n{"text": " "}', r"forget\.jsonl:3: 'text' is empty"),
        ('{"text": 4}', r"forget\.jsonl:1: 'text' must be a text, found a int"),
        ("3", r"forget\.jsonl:1: expected a text or an object with 'text', found a int"),
        ("", "'raw/forget' of .* holds no rows"),
    ],
)
def test_malformed_documents(tmp_path, content, says):
    put(tmp_path / "raw" / "forget.jsonl", content)
    with pytest.raises(UserError, match=says):
        texts(tmp_path, "raw/forget")


def test_the_hub_is_asked_for_configuration_and_split(monkeypatch):
    import datasets

    held = {"raw": ["forget", "retain1"], "scal": ["forget_1"], "knowmem": ["forget_qa"]}
    asked = []

    def load(source, config, split):
        asked.append((source, config, split))
        if split not in held.get(config, ()):
            raise ValueError(f"Unknown split {split}")
        return [{"text": f"{config} {split} {k}"} for k in range(2)]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda source: list(held))
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda source, config: held[config])
    muse = MuseTexts("muse-bench/MUSE-News")
    assert muse.split("scal/forget_1") == [Document(f"scal/forget_1/0000{k}", f"scal forget_1 {k}") for k in range(2)]
    assert asked == [("muse-bench/MUSE-News", "scal", "forget_1")]
    assert muse.splits == ("raw/forget", "raw/retain1", "scal/forget_1")
    with pytest.raises(UserError, match="did you mean 'raw/forget'"):
        muse.split("raw/forgett")
    with pytest.raises(UserError, match="has no split 'knowmem/forget_qa'"):
        muse.split("knowmem/forget_qa")
    with pytest.raises(UserError, match="has no split 'forget10'"):
        muse.split("forget10")
    assert len(asked) == 2  # what can be no training split is not asked for

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match="cannot read data set 'muse-bench/MUSE-News' from the Hugging Face hub"):
        muse.split("raw/forget")


def offline(*args, **named):
    raise ConnectionError("no network")
