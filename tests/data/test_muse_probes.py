import json

import pyarrow
import pyarrow.parquet
import pytest

from unlearn_core.data.muse import MuseTexts, is_muse
from unlearn_core.data.muse_probes import MuseProbes, Passage
from unlearn_core.data.rows import Document, Row
from unlearn_core.errors import UserError

QA = [{"question": "Who?", "answer": "Ada"}, {"question": "Where?", "answer": "Here"}]


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


@pytest.fixture
def as_on_the_hub(tmp_path):
    """Shards of parquet and JSON lines, `retain`, texts as objects, a column more than is read."""
    folder = tmp_path / "MUSE-Books"
    put(folder / "knowmem" / "forget_qa.json", QA)
    put(folder / "knowmem" / "forget_qa_icl.jsonl", '{"question": "f?", "answer": "F"}\n')
    put(folder / "knowmem" / "retain_qa.json", QA[:1])
    put(folder / "knowmem" / "retain_qa_icl.jsonl", '{"question": "r?", "answer": "R"}\n')
    for k in (0, 1):
        name = f"forget-0000{k}-of-00002.parquet"
        table(folder / "verbmem" / name, prompt=[f"p{k} "], gt=[f"g{k}"], rougeL_target=[1.0])
    for name in ("forget", "retain", "holdout"):
        table(folder / "privleak" / f"{name}-00000-of-00001.parquet", text=[f"{name} 0", f"{name} 1"])
    return folder


@pytest.fixture
def as_on_github(tmp_path):
    """Lists of texts, and the older name of the retain half."""
    folder = tmp_path / "data" / "bbc"
    for side in ("forget", "retain2"):
        put(folder / "knowmem" / f"{side}_qa.json", QA)
        put(folder / "knowmem" / f"{side}_qa_icl.json", [{"question": f"{side}?", "answer": "A"}])
    put(folder / "verbmem" / "forget.json", [{"prompt": "p", "gt": "g"}])
    for name in ("forget", "retain2", "holdout"):
        put(folder / "privleak" / f"{name}.json", [f"{name} 0"])
    return folder


def test_the_hubs_layout_in_a_folder(as_on_the_hub):
    probes = MuseProbes(str(as_on_the_hub))
    assert probes.questions("forget") == [
        Row("knowmem/forget_qa/00000", "Who?", "Ada"),
        Row("knowmem/forget_qa/00001", "Where?", "Here"),
    ]
    assert probes.questions("retain") == [Row("knowmem/retain_qa/00000", "Who?", "Ada")]
    assert probes.shots("forget") == [Row("knowmem/forget_qa_icl/00000", "f?", "F")]
    assert probes.shots("retain") == [Row("knowmem/retain_qa_icl/00000", "r?", "R")]
    assert probes.passages() == [
        Passage("verbmem/forget/00000", "p0 ", "g0"),
        Passage("verbmem/forget/00001", "p1 ", "g1"),
    ]
    assert probes.texts("holdout") == [Document(f"privleak/holdout/0000{k}", f"holdout {k}") for k in (0, 1)]
    assert probes.has_retain_texts()


def test_the_authors_layout_has_the_same_ids(as_on_github):
    probes = MuseProbes(str(as_on_github))
    assert [row.item_id for row in probes.questions("retain")] == [f"knowmem/retain_qa/0000{k}" for k in (0, 1)]
    assert probes.shots("retain") == [Row("knowmem/retain_qa_icl/00000", "retain2?", "A")]
    assert probes.texts("retain") == [Document("privleak/retain/00000", "retain2 0")]
    assert probes.texts("forget") == [Document("privleak/forget/00000", "forget 0")]
    assert probes.has_retain_texts()


def test_a_folder_of_probes_alone_is_muse(as_on_the_hub, as_on_github, tmp_path):
    assert is_muse(str(as_on_the_hub)) and is_muse(str(as_on_github))
    assert MuseTexts(str(as_on_github)).splits == ()
    put(tmp_path / "other" / "knowmem" / "notes.json", [])
    assert not is_muse(str(tmp_path / "other"))


def test_retain_comes_before_retain2(as_on_github):
    put(as_on_github / "privleak" / "retain.json", ["newer"])
    assert MuseProbes(str(as_on_github)).texts("retain") == [Document("privleak/retain/00000", "newer")]


def test_what_is_missing_is_named(as_on_github):
    for path in as_on_github.glob("privleak/*"):
        path.unlink()
    (as_on_github / "knowmem" / "retain2_qa_icl.json").unlink()
    probes = MuseProbes(str(as_on_github))
    assert not probes.has_retain_texts()
    with pytest.raises(UserError, match=r"has no privleak/holdout, .* Probes that it has: knowmem/forget_qa, knowmem"):
        probes.texts("holdout")
    with pytest.raises(UserError, match="has no knowmem/retain_qa_icl or knowmem/retain2_qa_icl, which MUSE's eval"):
        probes.shots("retain")


def test_a_folder_without_probes(tmp_path, as_on_github):
    put(tmp_path / "texts" / "raw" / "forget.json", ["f"])
    with pytest.raises(UserError, match=r"has no verbmem/forget, .* It has no probes\. The hub's muse-bench/MUSE-News"):
        MuseProbes(str(tmp_path / "texts")).passages()
    with pytest.raises(UserError, match=r"holds MUSE corpora and is none itself; give one of: .*data/bbc$"):
        MuseProbes(str(as_on_github.parent)).passages()
    with pytest.raises(UserError, match=r"'\./nowhere' is no folder; give a folder of MUSE's files"):
        MuseProbes("./nowhere")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "p"}, r"element 0: 'gt' must be a text that is not blank; found the keys \['prompt'\]"),
        ({"prompt": " ", "gt": "g"}, r"element 0: 'prompt' must be a text that is not blank; found ' '"),
        ({"prompt": "p", "gt": 3}, r"'gt' must be a text that is not blank; found 3"),
        ("p g", "expected an object with 'prompt' and 'gt', found a str"),
    ],
)
def test_malformed_passages(tmp_path, row, says):
    put(tmp_path / "verbmem" / "forget.json", [row])
    with pytest.raises(UserError, match=says):
        MuseProbes(str(tmp_path)).passages()


def test_malformed_rows_and_empty_splits(tmp_path):
    put(tmp_path / "knowmem" / "forget_qa.json", [{"question": "q"}])
    put(tmp_path / "privleak" / "holdout.json", [])
    probes = MuseProbes(str(tmp_path))
    with pytest.raises(UserError, match="element 0: no 'answer'"):
        probes.questions("forget")
    with pytest.raises(UserError, match=r"'privleak/holdout' of .* holds no rows"):
        probes.texts("holdout")


def test_the_hub_is_asked_for_each_name_once(monkeypatch):
    import datasets

    asked = []

    def load(source, config, split):
        asked.append(f"{config}/{split}")
        if "retain2" not in split:
            raise ValueError(f"Unknown split {split}")
        return [{"question": "q", "answer": "a"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda source: ["knowmem", "raw"])
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda source, config: ["retain2_qa", "forget_qa"])
    probes = MuseProbes("me/MUSE-Old")
    assert [row.item_id for row in probes.questions("retain")] == ["knowmem/retain_qa/00000"]
    assert asked == ["knowmem/retain_qa", "knowmem/retain2_qa"]
    assert len(probes.questions("retain")) == 1
    assert len(asked) == 2
    # Named by the hub, yet not to be had: the reason is told.
    with pytest.raises(UserError, match=r"has no knowmem/forget_qa, .* Probes that it has: knowmem/forget_qa"):
        probes.questions("forget")
