import json
import os
import subprocess
import sys

import pytest

from unlearn_core.data import synthetic
from unlearn_core.data.tofu import Matching, matching, open_benchmark
from unlearn_core.errors import UserError

ROW_COUNTS = {
    "full": 4000,
    "forget01": 40,
    "forget05": 200,
    "forget10": 400,
    "retain99": 3960,
    "retain95": 3800,
    "retain90": 3600,
    "holdout01": 40,
    "holdout05": 200,
    "holdout10": 400,
    "forget01_perturbed": 40,
    "forget05_perturbed": 200,
    "forget10_perturbed": 400,
    "retain_perturbed": 400,
    "real_authors": 100,
    "real_authors_perturbed": 100,
    "world_facts": 117,
    "world_facts_perturbed": 117,
}


@pytest.fixture(scope="module")
def tofu():
    folder = os.environ.get("TOFU_DIR")
    if not folder:
        pytest.skip("TOFU_DIR is not set: no copy of the TOFU files to read")
    return open_benchmark(folder)


def texts(rows):
    return [(row.question, row.answer) for row in rows]


def test_tofu_has_every_split_with_its_row_count(tofu):
    assert {name: len(tofu.split(name)) for name in tofu.splits} == ROW_COUNTS


@pytest.mark.parametrize("percent", [1, 5, 10])
def test_tofu_forget_and_retain_part_full(tofu, percent):
    name = f"forget{percent:02d}"
    full, forget = texts(tofu.split("full")), texts(tofu.split(name))
    assert forget == full[-len(forget) :]
    assert texts(tofu.split(matching(name).retain)) + forget == full
    perturbed = tofu.split(matching(name).perturbed)
    assert texts(perturbed) == forget
    assert all(row.paraphrased_answer and len(row.perturbed_answers) == 5 for row in perturbed)
    assert not set(texts(tofu.split(matching(name).holdout))) & set(full)


def test_tofu_utility_splits(tofu):
    assert set(texts(tofu.split("retain_perturbed"))) <= set(texts(tofu.split("retain90")))
    for name in ("real_authors", "world_facts"):
        perturbed = tofu.split(f"{name}_perturbed")
        assert texts(perturbed) == texts(tofu.split(name))
        assert all(row.paraphrased_answer is None and len(row.perturbed_answers) == 3 for row in perturbed)


def test_matching_names():
    assert matching("forget10") == Matching("retain90", "holdout10", "forget10_perturbed")
    assert matching("forget01") == Matching("retain99", "holdout01", "forget01_perturbed")


@pytest.mark.parametrize("name", ["forget", "forget1", "forget00", "forget10_perturbed", "retain90", "Forget10"])
def test_matching_refuses_other_names(name):
    with pytest.raises(UserError, match="expected forgetNN"):
        matching(name)


def test_a_written_folder_equals_the_generated_benchmark(tmp_path):
    synthetic.write(tmp_path / "bench", "tiny", seed=3)
    folder, made = open_benchmark(str(tmp_path / "bench")), open_benchmark("synthetic:tiny:3")
    assert folder.splits == made.splits
    for name in made.splits:
        assert folder.split(name) == made.split(name)
    assert folder.fingerprint(made.splits) == made.fingerprint(made.splits)


def test_fingerprint_follows_contents_not_order():
    tiny, other = open_benchmark("synthetic:tiny"), open_benchmark("synthetic:tiny:1")
    digest = tiny.fingerprint(["forget10", "retain90"])
    assert len(digest) == 64
    assert tiny.fingerprint(["retain90", "forget10", "forget10"]) == digest
    assert other.fingerprint(["forget10", "retain90"]) != digest
    assert tiny.fingerprint(["forget10"]) != digest


def test_fingerprint_sees_a_changed_perturbed_answer(tmp_path):
    row = {"question": "q", "answer": "a", "perturbed_answer": ["b", "c"]}
    digests = []
    for perturbed in (["b", "c"], ["c", "b"]):
        (tmp_path / "s.json").write_text(json.dumps({**row, "perturbed_answer": perturbed}))
        digests.append(open_benchmark(str(tmp_path)).fingerprint(["s"]))
    assert digests[0] != digests[1]


def test_an_unknown_split_lists_the_valid_ones_and_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"did you mean 'retain90'\?.*Valid splits: forget10, forget10_perturbed, full"):
        open_benchmark("synthetic:tiny").split("retain9")
    synthetic.write(tmp_path / "bench", "tiny")
    with pytest.raises(UserError, match=r"has no split 'complete'"):
        open_benchmark(str(tmp_path / "bench")).split("complete")


def test_a_split_that_a_size_cannot_have_does_not_exist():
    small = open_benchmark("synthetic:small")
    assert "forget01" not in small.splits and "retain99" not in small.splits
    with pytest.raises(UserError, match="has no split 'forget01'"):
        small.split("forget01")


def test_a_returned_list_is_the_callers_own():
    tiny = open_benchmark("synthetic:tiny")
    tiny.split("full").clear()
    assert len(tiny.split("full")) == 40


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("./nowhere", "is no folder"),
        ("nowhere", "is no folder"),
        ("/nowhere/at/all", "is no folder"),
        ("synthetic:huge", "unknown synthetic size 'huge'; expected one of tiny, small, medium"),
        ("synthetic:tiny:x", "the seed 'x' must be a whole number"),
        ("synthetic:tiny:-1", "the seed '-1' must be a whole number"),
    ],
)
def test_wrong_sources(source, says):
    with pytest.raises(UserError, match=says):
        open_benchmark(source)


def test_a_folder_without_splits(tmp_path):
    (tmp_path / "complete.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds no {split}\.json file"):
        open_benchmark(str(tmp_path))


def hub(monkeypatch, names, load):
    import datasets

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda source: names)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return open_benchmark("locuslab/TOFU")


def test_hub_rows_are_read_through_datasets(monkeypatch):
    asked = []

    def load(source, name):
        asked.append((source, name))
        return {"train": [{"question": "q", "answer": "a", "perturbed_answer": ["b"]}]}

    benchmark = hub(monkeypatch, ["full", "forget10"], load)
    for _ in range(2):
        (row,) = benchmark.split("forget10")
    assert (row.item_id, row.question, row.answer, row.perturbed_answers) == ("forget10/00000", "q", "a", ("b",))
    assert asked == [("locuslab/TOFU", "forget10")]
    assert benchmark.splits == ("forget10", "full")


def test_hub_unknown_split_and_malformed_row(monkeypatch):
    def load(source, name):
        if name == "forget10":
            return {"train": [{"question": "q", "answer": "a"}, {"question": "q"}]}
        raise ValueError("BuilderConfig not found")

    benchmark = hub(monkeypatch, ["full", "forget10"], load)
    with pytest.raises(UserError, match="did you mean 'forget10'"):
        benchmark.split("forget11")
    with pytest.raises(UserError, match="split forget10, row 1: no 'answer'"):
        benchmark.split("forget10")


def test_hub_without_a_network_is_a_users_error():
    code = (
        "from unlearn_core.data.tofu import open_benchmark\n"
        "from unlearn_core.errors import UserError\n"
        "for ask in (lambda b: b.split('forget10'), lambda b: b.splits):\n"
        "    try:\n"
        "        ask(open_benchmark('locuslab/no-such-data'))\n"
        "    except UserError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.stdout.count("cannot read data set 'locuslab/no-such-data' from the Hugging Face hub") == 2, done.stderr
