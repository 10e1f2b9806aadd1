"""Score one model folder after the other in the calling process: what a search needs at each step of a trial.

The same suite, engine and aggregates as `unlearn evaluate`; the retrained reference's records are read from an
evaluation that was made before the search started.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers.utils.logging import disable_progress_bar

from pipelines.suites import build_suite
from unlearn_core.data.tokenization import Formatter, load_tokenizer
from unlearn_core.errors import DivergedError, UserError
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.engine import measure
from unlearn_core.evaluation.leakage import quantisation_robustness
from unlearn_core.evaluation.records import ItemRecord, read_parquet
from unlearn_core.evaluation.robustness import KNOWLEDGE
from unlearn_core.evaluation.suite import Suite, non_finite
from unlearn_core.models import load_model

QuantisedBits = Literal["int8", "nf4"]
ROBUSTNESS = "robustness"
"""Column prefix of Q, knowledge before over after quantisation (`leakage.quantisation_robustness`)."""


@dataclass(frozen=True)
class ScoringPlan:
    """What is measured of each model.

    Attributes:
        suite: arguments of `pipelines.suites.build_suite`.
        config: settings of the evaluation.
        generate: whether models answer questions; ROUGE columns and TOFU's model_utility need it.
        rows: rows of each group at most, evenly spaced; 0 for all.
        groups: groups of rows that are measured; empty for all. Columns of the others are missing.
        quantised: also score the model with its weights so rounded; columns get the suffix `@nf4` or `@int8`.
        reference: folder of the reference's records, a parquet file a group; None without a reference.
        target: model before unlearning, for divergences; None without.
        gpu: score on the GPU that the process was given.
        threads: CPU threads.
    """

    suite: Mapping[str, Any]
    config: EvaluationConfig
    generate: bool = False
    rows: int = 0
    groups: tuple[str, ...] = ()
    quantised: tuple[QuantisedBits, ...] = ()
    reference: Path | None = None
    target: str | None = None
    gpu: bool = False
    threads: int = 1

    def build(self) -> Suite:
        """The suite as it is measured here: perhaps fewer rows, perhaps no generated answers."""
        whole = build_suite(**self.suite)
        items = []
        unknown = sorted(set(self.groups) - whole.groups.keys())
        if unknown:
            raise UserError(f"scoring.groups: the suite has no {', '.join(unknown)}; it has {', '.join(whole.groups)}")
        for name, group in whole.groups.items():
            if self.groups and name not in self.groups:
                continue
            count = len(group) if self.rows == 0 else min(self.rows, len(group))
            items += [group[i * len(group) // count] for i in range(count)]
        if not self.generate:
            items = [replace(item, generate=False) for item in items if item.score]
        return replace(whole, items=tuple(items), fingerprint="")


def knowledge_column(columns: tuple[str, ...]) -> str | None:
    """The suite's default measure of what a model still knows of the forget set (higher = knows more)."""
    return next((column for column in KNOWLEDGE if column in columns), None)


class ModelScorer:
    """Scores model folders; keeps the suite and the target in memory.

    Args:
        plan: what is measured.
    """

    def __init__(self, plan: ScoringPlan):
        disable_progress_bar()  # a bar for each of hundreds of models
        torch.set_num_threads(plan.threads)
        self.plan, self.suite = plan, plan.build()
        self.device = "cuda" if plan.gpu else "cpu"
        self.reference = None
        if plan.reference is not None:
            self.reference = {group: read_parquet(plan.reference / f"{group}.parquet") for group in self.suite.groups}
        needs_target = plan.target is not None and any(item.kl for item in self.suite.items)
        self._target = self._load(cast(str, plan.target)) if needs_target else None

    def score(self, path: str | Path) -> dict[str, float]:
        """Every aggregate that the model has a finite value of.

        Args:
            path: its Hugging Face folder.

        Raises:
            DivergedError: the model's losses are not finite.
            UserError: as the evaluation.
        """
        values = self._aggregates(str(path))
        known = knowledge_column(self.suite.columns)
        for bits in self.plan.quantised:
            rounded = self._aggregates(str(path), bits)
            values |= {f"{name}@{bits}": value for name, value in rounded.items()}
            if known in values and known in rounded:
                values[f"{ROBUSTNESS}@{bits}"] = quantisation_robustness(values[known], rounded[known])
        return values

    def _aggregates(self, path: str, quantisation: str = "none") -> dict[str, float]:
        config = self.plan.config
        formatter = Formatter(load_tokenizer(path), config.style, config.max_length, config.system_prompt)
        model = self._load(path, quantisation)
        records: dict[str, list[ItemRecord]] = {}
        # Group by group, as the reference was: batches, and so rounding, are the same.
        with torch.inference_mode():
            for group, items in self.suite.groups.items():
                records[group] = measure(model, formatter, items, config, self._target)
        wrong = non_finite(records)
        if wrong is not None:
            raise DivergedError(f"the model's losses are not finite: {wrong}")
        found = self.suite.aggregate(records, self.reference, config.compat).values
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}

    def _load(self, path: str, quantisation: str = "none") -> Any:
        config = self.plan.config
        model = load_model(path, config.dtype, config.attention, quantisation)  # type: ignore[arg-type]
        cast(nn.Module, model).to(self.device)
        return model
