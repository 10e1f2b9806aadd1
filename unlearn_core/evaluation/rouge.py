"""ROUGE of a generated against a true answer (Lin 2004), by the `rouge-score` package."""

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


def rouge(truth: str, generation: str) -> Rouge:
    """Score one generation, with Porter stemming as TOFU and open-unlearning do.

    Args:
        truth: the true answer.
        generation: the generated one; may be empty.

    Returns:
        The three numbers; higher means more overlap (better on retain data, worse on forget data).

    Raises:
        MissingPackageError: rouge-score is not installed.
    """
    scores = _scorer().score(truth, generation)
    return Rouge(
        rouge1_recall=scores["rouge1"].recall,
        rougeL_recall=scores["rougeL"].recall,
        rougeL_f1=scores["rougeL"].fmeasure,
    )


@lru_cache(maxsize=1)
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingPackageError("ROUGE needs rouge-score: pip install rouge-score") from error
    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
