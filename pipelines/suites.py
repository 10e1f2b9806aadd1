"""From what a user asks to be measured to a suite."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearn_core.data.config import DataConfig, GenericConfig
from unlearn_core.data.muse import corpora, is_muse
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.errors import UserError
from unlearn_core.evaluation import generic_text, muse, own_files, prompt_attacks, tofu
from unlearn_core.evaluation.suite import Suite

TOFU = "locuslab/TOFU"
MAX_LENGTH = 512
"""Longest row of suites of questions, tokens."""


def build_suite(
    benchmark: str | None = None,
    forget_split: str = "forget10",
    *,
    forget: Sequence[str | Path] = (),
    retain: Sequence[str | Path] = (),
    holdout: Sequence[str | Path] = (),
    compat: bool = False,
    legacy: bool = False,
    prompts: bool = False,
    sampled: bool = False,
    generic: GenericConfig | None = None,
) -> Suite:
    """The suite of a benchmark or of a user's own files, with what is added to it.

    Args:
        benchmark: as `data.benchmark` of a run: TOFU's or MUSE's folder or hub name, `synthetic:SIZE` or
            `synthetic-muse:SIZE`; None for `locuslab/TOFU`, or for own files.
        forget_split: TOFU's forget split.
        forget: own files of what is to be forgotten, in place of a benchmark.
        retain: own files of what is to be kept.
        holdout: own files that no model was trained on, for membership attacks.
        compat: ask as open-unlearning does where that differs.
        legacy: also TOFU's original aggregation.
        prompts: also prompts that put words into the model's mouth, and paraphrased questions.
        sampled: also what sampled answers leak.
        generic: also perplexity and divergence from the target on this text.

    Returns:
        The suite.

    Raises:
        UserError: options that do not go together, or rows that are missing or malformed.
    """
    own = bool(forget or retain or holdout)
    if own and benchmark is not None:
        raise UserError(f"--benchmark '{benchmark}' and own files of rows were given; give one of the two")
    source = benchmark or TOFU
    if legacy and (own or is_muse(source)):
        raise UserError("--legacy is the original TOFU harness; it needs a TOFU benchmark")
    if own:
        if not forget:
            raise UserError("own files need --forget, the rows that were to be forgotten")
        suite = own_files.suite([Path(file) for file in forget], [Path(f) for f in retain], [Path(f) for f in holdout])
    elif is_muse(source):
        suite = muse.suite(source, compat)
    elif inside := corpora(source):
        raise UserError(f"'{source}' holds several MUSE corpora; name one: {', '.join(inside)}")
    else:
        suite = tofu.suite(open_benchmark(source), forget_split, legacy)
    base = suite
    if prompts or sampled:
        openings = (prompt_attacks.OPENING,) if prompts else ()
        suite = suite.with_more(prompt_attacks.suite(base, openings, prompts, sampled))
    if generic is not None:
        more = generic_text.suite(
            generic.source, subset=generic.subset, documents=generic.documents, text_key=generic.text_key
        )
        suite = suite.with_more(more)
    return suite


def suite_arguments(data: DataConfig) -> dict[str, Any]:
    """Arguments of `build_suite` for a training run's own benchmark, or its own files."""
    if data.benchmark is None:
        return {"forget": data.forget, "retain": data.retain}
    return {"benchmark": data.benchmark} | ({"forget_split": data.forget[0]} if data.forget else {})


def longest_row(suite: Suite) -> int:
    """Default of `EvaluationConfig.max_length`: 512 tokens, for MUSE's texts what its protocol needs."""
    return muse.MAX_LENGTH if suite.name == "muse" else MAX_LENGTH
