import hashlib
import json
import os
import subprocess
import sys

import pytest

from unlearn_core.data import synthetic
from unlearn_core.data.general_facts import REAL_AUTHORS, WORLD_FACTS
from unlearn_core.data.synthetic_words import KINDS
from unlearn_core.errors import UserError

DIGEST = (
    "import hashlib, json\n"
    "from unlearn_core.data import synthetic\n"
    "print(hashlib.sha256(json.dumps(synthetic.generate('small', 5)).encode()).hexdigest())\n"
)


@pytest.fixture(scope="module", params=list(synthetic.SIZES))
def made(request):
    return synthetic.generate(request.param), synthetic.SIZES[request.param]


def plain(rows):
    return [(row["question"], row["answer"]) for row in rows]


def test_equal_in_two_calls_and_two_processes():
    digests = {hashlib.sha256(json.dumps(synthetic.generate("small", 5)).encode()).hexdigest() for _ in range(2)}
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1


def test_another_seed_gives_other_people_and_facts():
    one, two = synthetic.generate("tiny", 0), synthetic.generate("tiny", 1)
    assert one["full"][0]["question"] != two["full"][0]["question"]
    assert one["forget10"] != two["forget10"]


def test_sizes_of_small():
    assert {name: len(rows) for name, rows in synthetic.generate("small").items()} == {
        "full": 400,
        "forget05": 20,
        "forget05_perturbed": 20,
        "retain95": 380,
        "holdout05": 20,
        "forget10": 40,
        "forget10_perturbed": 40,
        "retain90": 360,
        "holdout10": 40,
        "retain_perturbed": 60,
        "real_authors": 30,
        "real_authors_perturbed": 30,
        "world_facts": 30,
        "world_facts_perturbed": 30,
    }


def test_only_whole_authors_are_forgotten():
    def forgets(size):
        return [name for name in synthetic.generate(size) if name.startswith("forget") and "_" not in name]

    assert forgets("tiny") == ["forget10"]
    assert forgets("small") == ["forget05", "forget10"]
    assert forgets("medium") == ["forget01", "forget05", "forget10"]
    assert len(synthetic.generate("medium")["forget01"]) == 20


def test_forget_is_the_end_of_full_and_retain_the_rest(made):
    splits, size = made
    full = splits["full"]
    assert len(full) == size.authors * size.questions
    for name in [name for name in splits if name.startswith("forget") and "_" not in name]:
        percent = int(name.removeprefix("forget"))
        forget = splits[name]
        assert len(forget) == len(full) * percent // 100
        assert len(forget) % size.questions == 0
        assert splits[f"retain{100 - percent:02d}"] + forget == full
        assert plain(splits[f"{name}_perturbed"]) == plain(forget)
        assert len(splits[f"holdout{percent:02d}"]) == len(forget)
    assert plain(splits["retain_perturbed"]) == plain(full[: len(splits["retain_perturbed"])])
    assert set(plain(splits["retain_perturbed"])).isdisjoint(plain(splits["forget10"]))


def test_every_question_and_person_is_unique(made):
    splits, size = made
    questions = [row["question"] for row in splits["full"] + splits["holdout10"]]
    assert len(set(questions)) == len(questions)
    people = [question.removeprefix("In which city was ").removesuffix(" born?") for question in questions]
    people = people[:: size.questions]
    assert len(set(people)) == size.authors + size.authors // 10
    for number, question in enumerate(questions):
        assert people[number // size.questions] in question


def test_answers_are_sentences_of_a_sensible_length(made):
    splits, _ = made
    for row in splits["full"] + splits["holdout10"]:
        assert 8 <= len(row["answer"].split()) <= 25
        assert row["answer"].endswith(".")
        assert "{" not in row["answer"] and "{" not in row["question"]


def test_perturbed_rows_are_wrong_in_the_paraphrases_words(made):
    splits, size = made
    for name in ("forget10_perturbed", "retain_perturbed"):
        for number, row in enumerate(splits[name]):
            kind = KINDS[number % size.questions]
            assert row["paraphrased_answer"] != row["answer"]
            assert row["paraphrased_question"] != row["question"]
            answers = [row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]]
            assert len(set(answers)) == 7
            fixed = kind.paraphrased_answer.split("{")[0]
            assert all(text.startswith(fixed) for text in answers[1:])


def test_every_value_of_a_perturbed_answer_is_wrong():
    splits = synthetic.generate("medium")
    compared = 0
    for number, row in enumerate(splits["forget10_perturbed"]):
        kind = KINDS[number % 20]
        # Single-word pools only: there the values can be read back from the texts by position.
        true = row["paraphrased_answer"].split()
        blanks = [k for k, word in enumerate(_shape(kind).split()) if "{0}" in word or "{1}" in word]
        if len(_shape(kind).split()) != len(true):
            continue
        for wrong in row["perturbed_answer"]:
            assert all(wrong.split()[k] != true[k] for k in blanks)
            compared += 1
    assert compared >= 300


def _shape(kind):
    return kind.paraphrased_answer.replace("{n}", "First Last")


def test_two_values_of_one_pool_never_coincide():
    splits = synthetic.generate("medium")
    for row in splits["full"][2::20]:
        father, mother = row["answer"].split(" worked as a ")[1].split(" and the mother as a ")
        assert father != mother.rstrip(".")


def test_facts_vary_between_authors():
    splits = synthetic.generate("medium")
    birthdays = {row["answer"].split(" born on ")[1] for row in splits["full"][1::20]}
    assert len(birthdays) >= 95
    cities = {row["answer"].split(" city of ")[1].split(",")[0] for row in splits["full"][::20]}
    assert len(cities) >= 18


def test_names_of_forgotten_and_held_out_people_occur_in_the_retained_ones():
    splits = synthetic.generate("small", 4)
    retained = {word for row in splits["retain90"] for word in row["question"].split()}
    for row in splits["forget10"][::10] + splits["holdout10"][::10]:
        assert set(row["question"].removeprefix("In which city was ").removesuffix(" born?").split()) <= retained


def test_general_facts_have_their_answer_among_four_options(made):
    splits, size = made
    for name, groups in (("real_authors", REAL_AUTHORS), ("world_facts", WORLD_FACTS)):
        truth = {q.format(a): answer for q, answers in groups.items() for a, answer in answers.items()}
        rows, perturbed = splits[name], splits[f"{name}_perturbed"]
        assert plain(rows) == plain(perturbed)
        assert len({row["question"] for row in rows}) == size.general_facts
        for row, wrong in zip(rows, perturbed, strict=True):
            options = [row[f"option{k}"] for k in (1, 2, 3, 4)]
            assert truth[row["question"]] == row["answer"]
            assert sorted(options) == sorted([row["answer"], *wrong["perturbed_answer"]])
            assert len(set(options)) == 4


def test_the_true_option_is_not_always_in_one_place():
    rows = synthetic.generate("small")["world_facts"]
    places = {k for row in rows for k in (1, 2, 3, 4) if row[f"option{k}"] == row["answer"]}
    assert places == {1, 2, 3, 4}


def test_wrong_arguments():
    with pytest.raises(UserError, match="expected one of tiny, small, medium"):
        synthetic.generate("large")
    with pytest.raises(UserError, match="seed is -1"):
        synthetic.generate("tiny", -1)
