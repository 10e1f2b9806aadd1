"""ROUGE of a generated against a true answer (Lin 2004), by the `rouge-score` package."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from unlearn_core.errors import MissingPackageError


@dataclass(frozen=True, slots=True)
class Rouge:
    """Overlap with the true answer, each in [0, 1]; an empty generation has 0 everywhere.

    Attributes:
        rouge1_recall: share of the true answer's words that were generated.
        rougeL_recall: share of them in the longest common subsequence. TOFU's ROUGE.
        rougeL_f1: harmonic mean of that recall and its precision. MUSE's ROUGE.
    """

    rouge1_recall: float
    rougeL_recall: float
    rougeL_f1: float


def rouge(truth: str, generation: str, stemmer: bool = True) -> Rouge:
    """Score one generation.

    Args:
        truth: the true answer.
        generation: the generated one; may be empty.
        stemmer: Porter stemming, as TOFU and open-unlearning do; MUSE's own code does not.

    Returns:
        The three numbers; higher means more overlap (better on retain data, worse on forget data).

    Raises:
        MissingPackageError: rouge-score is not installed.
    """
    scores = _scorer(stemmer).score(truth, generation)
    return Rouge(
        rouge1_recall=scores["rouge1"].recall,
        rougeL_recall=scores["rougeL"].recall,
        rougeL_f1=scores["rougeL"].fmeasure,
    )


@lru_cache(maxsize=2)
def _scorer(stemmer: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingPackageError("ROUGE needs rouge-score: pip install rouge-score") from error
    return RougeScorer(["rouge1", "rougeL"], tokenizer=_Words(stemmer))


class _Words:
    """The package's own words and stems; a stem is looked up once, for answers share most of their words."""

    def __init__(self, stemmer: bool) -> None:
        from nltk.stem.porter import PorterStemmer
        from rouge_score.tokenize import tokenize

        self._tokenize = tokenize
        self._stemmer = _Stems(lru_cache(maxsize=100_000)(PorterStemmer().stem)) if stemmer else None

    def tokenize(self, text: str) -> list[str]:
        """Words of a text."""
        return self._tokenize(text, self._stemmer)


@dataclass(frozen=True, slots=True)
class _Stems:
    stem: Callable[[str], str]
