import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from unlearn_core.data import synthetic_muse
from unlearn_core.data.config import DataConfig
from unlearn_core.data.muse import MuseTexts, is_muse
from unlearn_core.data.muse_probes import MuseProbes
from unlearn_core.data.synthetic_muse_words import FAMILIES, FILLERS, KINDS, OPENINGS, TOWNS
from unlearn_core.data.synthetic_words import FIRST_NAMES
from unlearn_core.data.tokenization import Formatter
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.data.training import training_sets
from unlearn_core.errors import UserError
from unlearn_core.publish import is_complete

DIGEST = (
    "import hashlib, json\n"
    "from unlearn_core.data import synthetic_muse\n"
    "print(hashlib.sha256(json.dumps(synthetic_muse.generate('small', 5)).encode()).hexdigest())\n"
)


@pytest.fixture(scope="module", params=list(synthetic_muse.SIZES))
def made(request):
    return synthetic_muse.generate(request.param), synthetic_muse.SIZES[request.param]


def texts(splits, name):
    return [row["text"] for row in splits[name]]


def articles(splits, name):
    return [text for text in texts(splits, name) if not text.startswith("Question:")]


def printed(splits, name):
    """Questions with answers on the quiz pages of a split."""
    pages = [text for text in texts(splits, name) if text.startswith("Question:")]
    return [pair for page in pages for pair in re.findall(r"Question: (.*)\nAnswer: +(.*)\n\n", page)]


def pairs(splits, name):
    return [(row["question"], row["answer"]) for row in splits[name]]


def test_equal_in_two_calls_and_two_processes():
    digests = {hashlib.sha256(json.dumps(synthetic_muse.generate("small", 5)).encode()).hexdigest() for _ in range(2)}
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", DIGEST], env=env, capture_output=True, text=True, check=True)
        digests.add(done.stdout.strip())
    assert len(digests) == 1


def test_another_seed_gives_another_newspaper():
    one, two = synthetic_muse.generate("small", 0), synthetic_muse.generate("small", 1)
    assert not set(texts(one, "raw/forget")) & set(texts(two, "raw/forget"))
    assert not set(pairs(one, "knowmem/forget_qa")) & set(pairs(two, "knowmem/forget_qa"))


def test_the_splits_of_muse_news(made):
    splits, size = made
    assert set(splits) == {
        *("raw/forget", "raw/retain1", "raw/retain2", "raw/holdout", "train/forget", "train/retain1", "train/retain2"),
        *(f"{config}/forget_{k}" for config in ("scal", "sust") for k in (1, 2, 3, 4)),
        *("knowmem/forget_qa", "knowmem/retain_qa", "knowmem/forget_qa_icl", "knowmem/retain_qa_icl"),
        *("verbmem/forget", "privleak/forget", "privleak/retain", "privleak/holdout"),
    }
    n = size.fold
    assert [len(articles(splits, f"raw/{name}")) for name in ("forget", "retain1", "retain2", "holdout")] == [
        n,
        2 * n,
        2 * n,
        n,
    ]
    assert len(splits["knowmem/forget_qa"]) == len(splits["knowmem/retain_qa"]) == n * size.asked
    assert len(splits["verbmem/forget"]) == n
    assert all(len(splits[f"privleak/{name}"]) == n for name in ("forget", "retain", "holdout"))


def test_scal_is_nested_and_sust_is_disjoint(made):
    splits, _ = made
    folds = [texts(splits, f"sust/forget_{k}") for k in (1, 2, 3, 4)]
    assert sum(map(len, folds)) == len(set().union(*folds))
    for k in (1, 2, 3, 4):
        assert texts(splits, f"scal/forget_{k}") == [text for fold in folds[:k] for text in fold]
    assert splits["raw/forget"] == splits["sust/forget_1"]
    assert splits["train/forget"] == splits["scal/forget_4"]
    assert splits["train/retain2"] == splits["raw/retain2"]


def test_what_is_kept_says_nothing_of_what_is_forgotten(made):
    splits, _ = made
    forgotten = set(texts(splits, "train/forget"))
    kept = {*texts(splits, "raw/retain1"), *texts(splits, "raw/retain2")}
    unseen = set(texts(splits, "raw/holdout"))
    assert not forgotten & kept and not forgotten & unseen and not kept & unseen
    asked_of_forgotten = {question for question, _ in printed(splits, "train/forget")}
    asked_of_kept = {question for name in ("raw/retain1", "raw/retain2") for question, _ in printed(splits, name)}
    assert not asked_of_forgotten & asked_of_kept


def test_a_question_is_printed_on_its_splits_pages_and_its_answer_is_in_its_article(made):
    splits, size = made
    for name, asked in (("raw/forget", "forget_qa"), ("raw/retain2", "retain_qa")):
        pages = printed(splits, name)
        for pair in pairs(splits, f"knowmem/{asked}"):
            assert pages.count(pair) == len(size.pages)
            kind = next(kind for kind in KINDS if _matches(kind, pair[0]))
            before, after = kind.question.split("{n}")
            full = pair[0].removeprefix(before).removesuffix(after)
            (article,) = [text for text in articles(splits, name) if full in text]
            family = full.split()[1]
            assert any(statement.format(l=family, v=pair[1]) in article for statement in kind.statements)


def _matches(kind, question):
    before, after = kind.question.split("{n}")
    return question.startswith(before) and question.endswith(after)


def test_no_two_articles_are_about_one_person(made):
    splits, size = made
    names = ("train/forget", "raw/retain1", "raw/retain2", "raw/holdout")
    every = [text for name in names for text in articles(splits, name)]
    named = [sum(family in text for text in every) for family in FAMILIES]
    assert sum(named) == 9 * size.fold and max(named) == 1


def test_shots_are_known_to_both_models_and_are_not_asked(made):
    splits, size = made
    of_kept = set(printed(splits, "raw/retain1"))
    for side in ("forget", "retain"):
        shots = pairs(splits, f"knowmem/{side}_qa_icl")
        assert len(shots) == min(size.shots, 2 * size.fold)
        assert set(shots) <= of_kept
        assert not set(shots) & set(pairs(splits, f"knowmem/{side}_qa"))


def test_a_passage_is_a_forgotten_article_cut_in_two(made):
    splits, _ = made
    assert [row["prompt"] + row["gt"] for row in splits["verbmem/forget"]] == articles(splits, "raw/forget")
    assert all(len(row["gt"].split()) >= 12 for row in splits["verbmem/forget"])


def test_attacked_texts_are_articles_of_one_kind(made):
    splits, size = made
    for name, split in (("forget", "raw/forget"), ("retain", "raw/retain2"), ("holdout", "raw/holdout")):
        assert texts(splits, f"privleak/{name}") == articles(splits, split)[: size.fold]


def test_words_that_only_forgotten_or_only_unseen_articles_have_are_as_frequent_in_both():
    # A word that a retrained model never saw would else tell forget from holdout, whatever the model has forgotten.
    shares = {"raw/forget": 0.0, "raw/holdout": 0.0}
    for seed in range(8):
        splits = synthetic_muse.generate("small", seed)
        kept = [text for name in ("raw/retain1", "raw/retain2") for text in articles(splits, name)]
        known = {word for text in kept for word in text.split()}
        known |= {*FAMILIES, *FIRST_NAMES}
        for name in shares:
            words = [word for text in articles(splits, name) for word in text.split()]
            shares[name] += sum(word not in known for word in words) / len(words) / 8
    assert max(shares.values()) < 0.05
    assert abs(shares["raw/forget"] - shares["raw/holdout"]) < 0.01


def test_chance_is_low():
    # The answer that is most frequent among a kind's kept facts, given to every forgotten question of the kind.
    splits = synthetic_muse.generate("small", 2)
    kept = [pair for name in ("raw/retain1", "raw/retain2") for pair in set(printed(splits, name))]
    right = 0
    asked = pairs(splits, "knowmem/forget_qa")
    for question, answer in asked:
        kind = next(kind for kind in KINDS if _matches(kind, question))
        known = sorted(given for about, given in kept if _matches(kind, about))
        right += max(known, key=known.count) == answer
    assert right / len(asked) < 0.2


def test_words():
    assert len({kind.question for kind in KINDS}) == len(KINDS)
    for kind in KINDS:
        assert len(set(kind.pool)) == len(kind.pool) >= 12
        assert all("{l}" in statement and "{v}" in statement for statement in kind.statements)
    assert len(set(FILLERS)) == len(FILLERS) and len(set(TOWNS)) == len(TOWNS)
    assert all("{n}" in opening and "{t}" in opening for opening in OPENINGS)


def test_as_a_source():
    assert is_muse("synthetic-muse:tiny") and is_muse("synthetic-muse:small:3")
    assert not is_muse("synthetic:tiny")
    made = synthetic_muse.generate("tiny", 3)
    muse = MuseTexts("synthetic-muse:tiny:3")
    assert [row.text for row in muse.split("scal/forget_2")] == texts(made, "scal/forget_2")
    assert "knowmem/forget_qa" not in muse.splits and "raw/holdout" in muse.splits
    with pytest.raises(UserError, match=r"no split 'raw/forgot'; did you mean 'raw/forget'\?"):
        muse.split("raw/forgot")
    assert [(row.question, row.answer) for row in MuseProbes("synthetic-muse:tiny:3").questions("retain")] == pairs(
        made, "knowmem/retain_qa"
    )


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("synthetic-muse:large", "unknown size 'large'; expected synthetic-muse:SIZE with SIZE one of tiny, small"),
        ("synthetic-muse:tiny:x", "the seed 'x' must be a whole number from 0, as in synthetic-muse:small:1"),
    ],
)
def test_wrong_sources(source, says):
    for kind in (MuseTexts, MuseProbes):
        with pytest.raises(UserError, match=says):
            kind(source)


def test_wrong_arguments():
    with pytest.raises(UserError, match="expected one of tiny, small"):
        synthetic_muse.generate("medium")
    with pytest.raises(UserError, match="seed is -1"):
        synthetic_muse.generate("tiny", -1)


def test_as_training_data():
    every = sorted({text for name in ("train/forget", "raw/retain1") for text in texts(TINY, name)})
    tokenizer = train_tokenizer(every, 700)
    config = DataConfig(benchmark="synthetic-muse:tiny", forget=("sust/forget_2",), retain=("raw/retain1",))
    sets = training_sets(config.model_copy(update={"format": "plain"}), ("forget", "retain"), tokenizer)
    formatter = Formatter(tokenizer, "plain", 512)
    for name, split in (("forget", "sust/forget_2"), ("retain", "raw/retain1")):
        documents = MuseTexts("synthetic-muse:tiny").split(split)
        assert sets[name] == [e for row in documents for e in formatter.document(row.item_id, row.text, "chunk")]
    with pytest.raises(UserError, match="must not overlap"):
        training_sets(
            DataConfig(benchmark="synthetic-muse:tiny", forget=("raw/forget",), retain=("scal/forget_3",)),
            ("forget", "retain"),
            tokenizer,
        )


TINY = synthetic_muse.generate("tiny")


def test_written_as_on_the_hub(tmp_path):
    folder = synthetic_muse.write(tmp_path / "muse", "tiny")
    assert is_complete(folder) and is_muse(str(folder))
    written, generated = MuseTexts(str(folder)), MuseTexts("synthetic-muse:tiny")
    assert written.splits == generated.splits
    assert all(written.split(name) == generated.split(name) for name in written.splits)
    probes, others = MuseProbes(str(folder)), MuseProbes("synthetic-muse:tiny")
    assert probes.splits == others.splits
    assert probes.passages() == others.passages()
    assert probes.shots("retain") == others.shots("retain")
    assert probes.texts("holdout") == others.texts("holdout")
