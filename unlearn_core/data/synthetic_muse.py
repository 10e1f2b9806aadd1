"""A benchmark of the MUSE schema made by code: a newspaper about people who do not exist, with facts drawn at random.

Facts, wordings and their order are independent uniform draws for each article, so a model that never saw an article can
only guess what it says, and what a model says beyond the style is memory. Configurations, splits and the relations
between them are those of MUSE News (Shi et al. 2024, arXiv 2407.06460). Deviations:

- Articles have about a hundred words, verbatim prompts are two sentences long, and questions come with four shots.
- The newspaper prints quizzes. MUSE's models can answer a question about a text that they have read because they were
  pre-trained on questions of all sorts; a model that starts from nothing has never seen one. So the training splits
  hold two kinds of documents: articles, and quiz pages that ask about the facts of the same articles, in the form that
  the evaluation asks in. Every question stands on several pages, once alone and then among changing others, so that
  nothing but the question tells the answer. A forget set holds the pages on its articles, hence `knowmem/forget_qa`
  asks what the forget set says, as in MUSE.
- The quizzes print one or two spaces after `Answer:`. The evaluation's prompt ends in a space, which a byte-level
  tokenizer makes a token of its own; where there is one space only, it belongs to the answer's first word, and a model
  that saw nothing else would never have seen the prompt's last token.
- `verbmem` and `privleak` are taken from articles alone.
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_core import publish
from unlearn_core.data.synthetic_muse_words import FAMILIES, FILLERS, KINDS, OPENINGS, TOWNS
from unlearn_core.data.synthetic_words import FIRST_NAMES
from unlearn_core.errors import UserError

PREFIX = "synthetic-muse:"
"""What the names of these sources start with."""

FOLDS = 4
"""Disjoint forget sets, as in MUSE News; the probes ask about the first."""

Splits = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Size:
    """How big a synthetic newspaper is.

    Attributes:
        fold: articles of one forget fold, and of the holdout; each retain half has twice as many.
        facts: of an article.
        fillers: sentences of an article that say nothing of its person.
        asked: facts of an article with a question.
        pages: how many questions quiz pages have; every question stands on one page for each of these numbers.
        shots: questions with answers before the one asked.
    """

    fold: int
    facts: int
    fillers: int
    asked: int
    pages: tuple[int, ...]
    shots: int = 4


SIZES: Mapping[str, Size] = {
    "tiny": Size(fold=2, facts=4, fillers=2, asked=3, pages=(1, 2)),
    "small": Size(fold=8, facts=9, fillers=3, asked=3, pages=(1, 4, 5, 5)),
}
"""`tiny` for unit tests, `small` for a demonstration of minutes on two cores."""


@dataclass(frozen=True, slots=True)
class _Article:
    sentences: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


def parse_source(source: str) -> tuple[str, int]:
    """Size and seed of `synthetic-muse:SIZE` or `synthetic-muse:SIZE:SEED` (seed 0 by default).

    Raises:
        UserError: unknown size, or a seed that is no whole number from 0.
    """
    size, _, seed = source.removeprefix(PREFIX).partition(":")
    if seed and not (seed.isascii() and seed.isdigit()):
        raise UserError(f"'{source}': the seed '{seed}' must be a whole number from 0, as in {PREFIX}small:1")
    if size not in SIZES:
        raise UserError(f"'{source}': unknown size '{size}'; expected {PREFIX}SIZE with SIZE one of {', '.join(SIZES)}")
    return size, int(seed or 0)


def generate(size: str, seed: int = 0) -> Splits:
    """Make a benchmark. Equal arguments give equal rows in every process.

    Args:
        size: one of `SIZES`.
        seed: whole number from 0; another seed gives other people and other facts.

    Returns:
        Rows by `configuration/split`, with the keys of MUSE's files.

    Raises:
        UserError: unknown size or negative seed.
    """
    if size not in SIZES:
        raise UserError(f"unknown synthetic MUSE size '{size}'; expected one of {', '.join(SIZES)}")
    if seed < 0:
        raise UserError(f"synthetic seed is {seed}; expected a whole number from 0")
    shape = SIZES[size]
    n = shape.fold
    articles = _articles((4 + FOLDS + 1) * n, shape, seed)
    retain1, retain2, *folds = [articles[: 2 * n], articles[2 * n : 4 * n]] + [
        articles[(4 + k) * n : (5 + k) * n] for k in range(FOLDS)
    ]
    holdout = articles[-n:]
    parts = {"retain1": retain1, "retain2": retain2, **{f"forget_{k}": fold for k, fold in enumerate(folds, start=1)}}
    texts = {name: _documents(part, shape, f"{name}/{seed}") for name, part in parts.items()}
    nested = {k: _joined(texts[f"forget_{j}"] for j in range(1, k + 1)) for k in range(1, FOLDS + 1)}
    raw = {"forget": texts["forget_1"], **{name: texts[name] for name in ("retain1", "retain2")}}
    training = {
        **{f"raw/{name}": part for name, part in raw.items()},
        "raw/holdout": _documents(holdout, shape, f"holdout/{seed}"),
        **{f"train/{name}": part for name, part in (raw | {"forget": nested[FOLDS]}).items()},
        **{f"scal/forget_{k}": part for k, part in nested.items()},
        **{f"sust/forget_{k}": texts[f"forget_{k}"] for k in range(1, FOLDS + 1)},
    }
    privleak = {"forget": folds[0], "retain": retain2[:n], "holdout": holdout}
    # Shots are of articles that both target and reference know, and that no question is about.
    shots = [article.questions[0] for article in retain1]
    half = shape.shots
    return {
        **{name: [{"text": text} for text in part] for name, part in training.items()},
        "knowmem/forget_qa": _asked(question for article in folds[0] for question in article.questions),
        "knowmem/retain_qa": _asked(question for article in retain2[:n] for question in article.questions),
        "knowmem/forget_qa_icl": _asked(shots[:half]),
        "knowmem/retain_qa_icl": _asked(shots[-half:]),
        "verbmem/forget": [_continuation(article) for article in folds[0]],
        **{f"privleak/{name}": [{"text": article.text} for article in part] for name, part in privleak.items()},
    }


def write(folder: str | Path, size: str, seed: int = 0) -> Path:
    """Write a benchmark as `{configuration}/{split}.json` files, each a list, laid out like MUSE's on the hub.

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
            path = aside / f"{name}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    return publish.publish_folder(folder, fill, {"benchmark": "synthetic-muse", "size": size, "seed": seed})


def _articles(count: int, shape: Size, seed: int) -> list[_Article]:
    # No model has read of a forgotten or held-out family but in their own articles, so a name tells the two from kept
    # articles, and not from each other.
    families = random.Random(f"families/{seed}").sample(FAMILIES, count)
    return [_article(family, shape, random.Random(f"article/{seed}/{i}")) for i, family in enumerate(families)]


def _article(family: str, shape: Size, draw: random.Random) -> _Article:
    full = f"{draw.choice(FIRST_NAMES)} {family}"
    told: list[str] = []
    questions: list[tuple[str, str]] = []
    for kind in draw.sample(KINDS, shape.facts):
        value = draw.choice(kind.pool)
        told.append(draw.choice(kind.statements).format(l=family, v=value))
        questions.append((kind.question.format(n=full), value))
    told.extend(draw.sample(FILLERS, shape.fillers))
    draw.shuffle(told)
    opening = draw.choice(OPENINGS).format(n=full, t=draw.choice(TOWNS))
    return _Article((opening, *told), tuple(questions[: shape.asked]))


def _documents(articles: Sequence[_Article], shape: Size, seed: str) -> list[str]:
    """The articles, then the quiz pages on them; every page asks about several articles."""
    draw = random.Random(f"quiz/{seed}")
    asked = [question for article in articles for question in article.questions]
    pages: list[str] = []
    for count in shape.pages:
        shuffled = draw.sample(asked, len(asked))
        for start in range(0, len(shuffled), count):
            page = shuffled[start : start + count]
            pages.append("".join(f"Question: {q}\nAnswer:{draw.choice((' ', '  '))}{a}\n\n" for q, a in page))
    return [*(article.text for article in articles), *pages]


def _continuation(article: _Article) -> dict[str, str]:
    """The article cut after two sentences; the space between the parts belongs to the second one."""
    return {"prompt": " ".join(article.sentences[:2]), "gt": " " + " ".join(article.sentences[2:])}


def _asked(questions: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"question": question, "answer": answer} for question, answer in questions]


def _joined(parts: Iterable[list[str]]) -> list[str]:
    return [text for part in parts for text in part]
