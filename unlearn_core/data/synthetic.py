"""A benchmark of the TOFU schema made by code: authors who do not exist, each with facts drawn at random.

The facts of two authors are independent uniform draws, so a model that never saw an author can only guess, and what a
model says about an author beyond the sentence pattern is memory. Split names, keys and the relations between splits are
those of TOFU (Maini et al. 2024, arXiv 2401.06121); deviations:

- Every author is asked the same kinds of questions in the same words; TOFU's questions differ from author to author.
- Perturbed answers are the paraphrase's sentence with every value wrong; TOFU's were written by a language model.
- `holdout05` is the start of `holdout10`.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_core import publish
from unlearn_core.data.general_facts import REAL_AUTHORS, WORLD_FACTS
from unlearn_core.data.synthetic_words import FIRST_NAMES, KINDS, LAST_NAMES, Kind
from unlearn_core.errors import UserError

Splits = dict[str, list[dict[str, Any]]]

FORGET_PERCENTS = (1, 5, 10)
"""Percentages of the authors that TOFU forgets."""


@dataclass(frozen=True, slots=True)
class Size:
    """How big a synthetic benchmark is.

    Attributes:
        authors: people in `full`.
        questions: per author; `full` has authors * questions rows.
        retain_perturbed_authors: people at the start of `full` whose rows make up `retain_perturbed`.
        general_facts: rows of `real_authors` and of `world_facts`, each.
    """

    authors: int
    questions: int
    retain_perturbed_authors: int
    general_facts: int


SIZES: Mapping[str, Size] = {
    "tiny": Size(authors=10, questions=4, retain_perturbed_authors=2, general_facts=8),
    "small": Size(authors=40, questions=10, retain_perturbed_authors=6, general_facts=30),
    "medium": Size(authors=100, questions=20, retain_perturbed_authors=10, general_facts=40),
}
"""`tiny` for unit tests, `small` for a demonstration of minutes on one core, `medium` for searches."""


def generate(size: str, seed: int = 0) -> Splits:
    """Make a benchmark. Equal arguments give equal rows in every process.

    Args:
        size: one of `SIZES`.
        seed: whole number from 0; another seed gives other people and other facts.

    Returns:
        Rows by split name, with the keys of TOFU's files. A percentage that is no whole number of authors has no
        splits: `small` (40 authors) has no forget01, `tiny` (10 authors) only forget10.

    Raises:
        UserError: unknown size or negative seed.
    """
    if size not in SIZES:
        raise UserError(f"unknown synthetic size '{size}'; expected one of {', '.join(SIZES)}")
    if seed < 0:
        raise UserError(f"synthetic seed is {seed}; expected a whole number from 0")
    shape = SIZES[size]
    percents = [percent for percent in FORGET_PERCENTS if shape.authors * percent % 100 == 0]
    held_out = shape.authors * max(percents) // 100
    rows = _author_rows(shape.authors + held_out, KINDS[: shape.questions], seed)
    n_full = shape.authors * shape.questions
    full, holdout = rows[:n_full], rows[n_full:]
    splits = {
        "full": _plain(full),
        "retain_perturbed": full[: shape.retain_perturbed_authors * shape.questions],
        **_fact_splits("real_authors", REAL_AUTHORS, shape.general_facts, seed),
        **_fact_splits("world_facts", WORLD_FACTS, shape.general_facts, seed),
    }
    for percent in percents:
        count = n_full * percent // 100
        splits[f"forget{percent:02d}"] = _plain(full[-count:])
        splits[f"forget{percent:02d}_perturbed"] = full[-count:]
        splits[f"retain{100 - percent:02d}"] = _plain(full[:-count])
        splits[f"holdout{percent:02d}"] = _plain(holdout[:count])
    return splits


def write(folder: str | Path, size: str, seed: int = 0) -> Path:
    """Write a benchmark as `{split}.json` files of JSON lines, laid out like TOFU's on the hub.

    Args:
        folder: the new folder; it appears whole or not at all, and replaces an older one.
        size: one of `SIZES`.
        seed: see `generate`.

    Returns:
        The folder.
    """
    splits = generate(size, seed)

    def fill(aside: Path) -> None:
        for name, rows in splits.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (aside / f"{name}.json").write_text(lines, encoding="utf-8")

    return publish.publish_folder(folder, fill, {"benchmark": "synthetic", "size": size, "seed": seed})


def _author_rows(count: int, kinds: Sequence[Kind], seed: int) -> list[dict[str, Any]]:
    """Perturbed-style rows of `count` people with names of their own, author by author."""
    names = _names(count, seed)
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        # Seeded by a text, which Python hashes by SHA-512 here: independent of PYTHONHASHSEED.
        draw = random.Random(f"author/{seed}/{number}")
        rows.extend(_row(kind, name, draw) for kind in kinds)
    return rows


def _names(count: int, seed: int) -> list[str]:
    """Different full names, in which every 15 neighbours in the list have all 15 first and all 15 last names.

    So forgotten and held-out people share each of their names with two or more of the 36 retained ones of `small`. With
    names drawn at random, some were unique to a forgotten person: a model retrained without them had an untrained
    embedding there and failed to even copy the name, which told forget from holdout rows.
    """
    draw = random.Random(f"names/{seed}")
    first, last = draw.sample(FIRST_NAMES, len(FIRST_NAMES)), draw.sample(LAST_NAMES, len(LAST_NAMES))
    assert count <= len(first) * len(last)
    return [f"{first[i % len(first)]} {last[(i + i // len(first)) % len(last)]}" for i in range(count)]


def _row(kind: Kind, name: str, draw: random.Random) -> dict[str, Any]:
    # Six different values for each blank: the true one, then those of the five wrong answers.
    drawn = {pool: draw.sample(pool, 6 * kind.pools.count(pool)) for pool in dict.fromkeys(kind.pools)}
    values = [[drawn[pool].pop() for _ in range(6)] for pool in kind.pools]
    true, *wrong = zip(*values, strict=True)
    return {
        "question": kind.question.format(n=name),
        "answer": kind.answer.format(*true, n=name),
        "paraphrased_answer": kind.paraphrased_answer.format(*true, n=name),
        "perturbed_answer": [kind.paraphrased_answer.format(*alternative, n=name) for alternative in wrong],
        "paraphrased_question": kind.paraphrased_question.format(n=name),
    }


def _plain(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


def _fact_splits(name: str, groups: Mapping[str, Mapping[str, str]], count: int, seed: int) -> Splits:
    """`count` general facts, with options as in TOFU's plain files and wrong answers as in its perturbed ones."""
    facts = [(question, about) for question, answers in groups.items() for about in answers]
    options: list[dict[str, Any]] = []
    perturbed: list[dict[str, Any]] = []
    draw = random.Random(f"{name}/{seed}")
    for question, about in draw.sample(facts, count):
        answer = groups[question][about]
        others = sorted(set(groups[question].values()) - {answer})
        wrong = draw.sample(others, 3)
        shown = draw.sample([answer, *wrong], 4)
        row = {"question": question.format(about)}
        options.append({**row, **{f"option{k}": text for k, text in enumerate(shown, start=1)}, "answer": answer})
        perturbed.append({**row, "answer": answer, "perturbed_answer": wrong})
    return {name: options, f"{name}_perturbed": perturbed}
