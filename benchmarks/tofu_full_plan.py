"""What `benchmarks.tofu_full` runs: sizes, methods with their grids, and the rule by which one is chosen.

Everything here was written before any number was seen. The grids were set by what smaller models needed elsewhere in
this repository (docs/hyperparameter-search.md), not tried on this model.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from unlearn_core.config import RunConfig, build_config
from unlearn_core.data.tofu import Benchmark
from unlearn_core.errors import UserError
from unlearn_core.models import SmallLlama
from unlearn_core.publish import write_text

FORGET, RETAIN = "forget10", "retain90"
KEPT = ("real_authors", "world_facts")
"""Taught to target and reference alike: a pretrained model knows them beforehand."""
SEEDS = (0, 1, 2)
MAX_LENGTH = 512
"""Tokens that a row may have; the longest that is taught has 140 of the full tokenizer's."""
CHUNK = 32
"""Tokens of a chunk of the mean teacher's text."""


@dataclass(frozen=True)
class Scale:
    """Size of everything."""

    llama: SmallLlama
    teach_epochs: int
    teach_rate: float
    teach_rows: int
    """Of a step of teaching."""
    epochs: int
    """Passes over the forget rows of an unlearning run; metrics are taken after each."""
    rows: int
    """Of each set in a step."""
    answer: int
    """Longest generated answer, tokens."""
    cut: int = 0
    """Rows of each split that are kept; 0 for all."""

    @property
    def dtype(self) -> Literal["bf16", "fp32"]:
        """bf16 with fp32 master weights on a GPU; fp32 on a CPU."""
        return "bf16" if torch.cuda.is_available() else "fp32"


FULL = Scale(
    SmallLlama(hidden_size=768, layers=12, heads=12, mlp_size=2048, vocab_size=8192, max_positions=512,
               tie_embeddings=False),
    teach_epochs=30, teach_rate=1e-3, teach_rows=48, epochs=4, rows=32, answer=128,
)  # fmt: skip
"""98M parameters."""
SMOKE = Scale(
    SmallLlama(hidden_size=64, layers=2, heads=4, mlp_size=128, vocab_size=600, max_positions=512,
               tie_embeddings=False),
    teach_epochs=40, teach_rate=6e-3, teach_rows=8, epochs=2, rows=8, answer=12, cut=16,
)  # fmt: skip
"""To try every path on a CPU; its numbers mean nothing."""


@dataclass(frozen=True)
class Contest:
    """A method and the three configurations that are tried of it."""

    name: str
    title: str
    method: str
    rates: tuple[float, float, float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)


_ADAMW = (3e-5, 1e-4, 3e-4)
_AUTO = {"schedule": "auto", "auto": {"every": 10}}
_MOMENTUM = {"name": "sgd", "momentum": 0.95, "gradient_clipping": 1.0}
CONTESTS: dict[str, Contest] = {
    contest.name: contest
    for contest in (
        Contest("ngdiff", "NGDiff", "ngdiff", _ADAMW),
        Contest("ngdiff_autolr", "NGDiff + AutoLR", "ngdiff", _ADAMW, optimizer=_AUTO),
        Contest(
            "mean_teacher",
            "Mean teacher + NLUL",
            "mean_teacher",
            (3e-3, 1e-2, 3e-2),
            {"teacher_rate": 0.05, "forget_weight": 0.3, "damping": 1.0},
            _MOMENTUM,
        ),
        Contest("grad_diff", "GradDiff", "grad_diff", _ADAMW),
        Contest("npo", "NPO", "npo", _ADAMW),
        Contest("simnpo", "SimNPO", "simnpo", _ADAMW),
        Contest("rmu", "RMU", "rmu", _ADAMW, {"coefficient": 20.0}),
    )
}


@dataclass(frozen=True)
class Piece:
    """One thing to run, small enough to be done within a command."""

    kind: str
    """`teach`, `unlearn` or `final`."""
    contest: str = ""
    grid: int = 0
    """Which of the three rates."""
    seed: int = 0
    model: str = ""
    """`target` or `reference`, of a `teach` piece."""

    @property
    def name(self) -> str:
        """Of its row's file."""
        if self.kind == "teach":
            return self.model
        return f"{self.contest}-rate{self.grid}-seed{self.seed}" + ("-final" if self.kind == "final" else "")

    def fingerprint(self, scale: Scale, data: str) -> str:
        """Of what its numbers depend on, code and machine aside: 12 hex digits."""
        contest = asdict(CONTESTS[self.contest]) if self.contest else {}
        return digest([asdict(self), contest, scale_values(scale), data])


Row = Mapping[str, Any]


def scale_values(scale: Scale) -> dict[str, Any]:
    """A scale as plain data."""
    return {**asdict(scale), "llama": scale.llama.model_dump()}


def digest(values: Any) -> str:
    """Of plain data: 12 hex digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def next_pieces(rows: Mapping[str, Row]) -> list[Piece]:
    """Every piece that can be named now, in order; seeds of a method's choice follow when its grid is through.

    Args:
        rows: by piece name; of pieces that are through, however they ended.
    """
    # The reference first: what the target's privleak and forget quality compare with.
    pieces = [Piece("teach", model=name) for name in ("reference", "target")]
    pieces += [Piece("unlearn", name, grid) for grid in range(3) for name in CONTESTS]
    chosen = {name: choice(name, rows) for name in CONTESTS}
    for seed in SEEDS:
        for name, grid in chosen.items():
            if grid is None:
                continue
            pieces += [Piece("unlearn", name, grid, seed)] if seed else []
            pieces.append(Piece("final", name, grid, seed))
    return pieces


def choice(contest: str, rows: Mapping[str, Row]) -> int | None:
    """Number of the chosen rate: the highest score of its best epoch with seed 0, the smaller rate among equals.

    None while a run of the grid is missing, and where none of the three has a score.
    """
    found = [rows.get(Piece("unlearn", contest, grid).name) for grid in range(3)]
    if any(row is None for row in found):
        return None
    scores = [row["score"] if row and row["status"] == "done" else -1.0 for row in found]
    return scores.index(max(scores)) if max(scores) >= 0 else None


UTILITY = (
    *("retain_Q_A_Prob", "ra_Q_A_Prob_normalised", "wf_Q_A_Prob_normalised"),
    *("retain_Truth_Ratio", "ra_Truth_Ratio", "wf_Truth_Ratio"),
)
"""The six of model utility's nine terms that need no generated answer."""


def forgetting(values: Mapping[str, float], target: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """1 - |p - p_r| / (p_t - p_r), at least 0; p the mean probability of forget answers, of model, reference, target.

    1: as likely as to a model that never saw them. Less likely is not better: it is a trace as well.

    Raises:
        UserError: the target does not know the forget rows better than the reference.
    """
    gap = target["forget_Q_A_Prob"] - reference["forget_Q_A_Prob"]
    if gap <= 0:
        raise UserError(
            f"the target gives forget answers a probability of {target['forget_Q_A_Prob']:.3g} and the reference "
            f"{reference['forget_Q_A_Prob']:.3g}: there is nothing to forget. Teach longer."
        )
    return max(0.0, 1.0 - abs(values["forget_Q_A_Prob"] - reference["forget_Q_A_Prob"]) / gap)


def utility(values: Mapping[str, float], target: Mapping[str, float]) -> float:
    """Harmonic mean of the six `UTILITY` terms, each over the target's and at most 1; in [0, 1]."""
    shares = [min(1.0, values[name] / target[name]) if target[name] > 0 else 0.0 for name in UTILITY]
    return len(shares) / sum(1 / share for share in shares) if min(shares) > 0 else 0.0


def score(forgotten: float, useful: float) -> float:
    """Harmonic mean of both; 0 where one is 0."""
    return 2 / (1 / forgotten + 1 / useful) if forgotten > 0 and useful > 0 else 0.0


def teach_config(scale: Scale, model: str, start: Path, tofu: Path, steps: int) -> RunConfig:
    """Fine-tuning of a fresh model on everything (target), or on everything but the forget rows (reference)."""
    values = {
        "name": model,
        "model": {"path": str(start), "dtype": scale.dtype},
        "data": _data(tofu, retain=["full" if model == "target" else RETAIN, *KEPT]),
        "method": {"name": "finetune"},
        "optimizer": {"learning_rate": scale.teach_rate, "schedule": "cosine", "warmup_steps": max(1, steps // 20)},
        "steps": steps,
        **_layout(scale.teach_rows),
    }
    return build_config(RunConfig, values)


def unlearn_config(scale: Scale, piece: Piece, target: Path, tofu: Path, generic: Path, epoch: int) -> RunConfig:
    """One unlearning run; `epoch` is its steps from one export to the next."""
    contest = CONTESTS[piece.contest]
    settings = dict(contest.settings)
    if contest.method == "rmu":
        settings["layer"] = scale.llama.layers // 3
    values = {
        "name": piece.name,
        "seed": piece.seed,
        "model": {"path": str(target), "dtype": scale.dtype},
        "data": {
            **_data(tofu, forget=[FORGET], retain=[RETAIN]),
            "generic": {"source": str(generic), "length": CHUNK},
        },
        "method": {"name": contest.method, "settings": settings},
        "optimizer": {**contest.optimizer, "learning_rate": contest.rates[piece.grid]},
        "steps": scale.epochs * epoch,
        "export_every": epoch,
        **_layout(scale.rows),
    }
    return build_config(RunConfig, values)


def relearn_config(scale: Scale, name: str, model: Path, tofu: Path, steps: int) -> RunConfig:
    """The attack: one pass of plain fine-tuning over the forget rows, the same for every model."""
    values = {
        "name": name,
        "model": {"path": str(model), "dtype": scale.dtype},
        "data": _data(tofu, retain=[FORGET]),
        "method": {"name": "finetune"},
        "optimizer": {"learning_rate": 1e-4},
        "steps": steps,
        **_layout(scale.rows),
    }
    return build_config(RunConfig, values)


def _data(tofu: Path, **splits: Sequence[str]) -> dict[str, Any]:
    return {"benchmark": str(tofu), "format": "plain", "max_length": MAX_LENGTH, **splits}


def _layout(rows: int) -> dict[str, Any]:
    return {"batch": {"rows": rows, "micro": rows}, "zero": {"stage": 1}}


def cut_benchmark(source: Path, folder: Path, rows: int) -> Path:
    """A folder of TOFU's files with `rows` rows of each split, `full` those of retain90 and forget10; the smoke run's.

    With 0 rows the source itself.
    """
    if not rows:
        return source
    shutil.rmtree(folder, ignore_errors=True)
    lines: dict[str, list[str]] = {}
    names = (FORGET, f"{FORGET}_perturbed", RETAIN, "retain_perturbed", "holdout10")
    for name in (*names, *KEPT, *(f"{one}_perturbed" for one in KEPT)):
        lines[name] = (source / f"{name}.json").read_text(encoding="utf-8").splitlines()[:rows]
    lines["full"] = [*lines[RETAIN], *lines[FORGET]]
    for name, kept in lines.items():
        write_text(folder / f"{name}.json", "".join(f"{line}\n" for line in kept))
    return folder


def generic_text(benchmark: Benchmark) -> str:
    """The retain rows as JSON lines of plain text: what the mean teacher holds the model to.

    A model that knows nothing but TOFU has no generic text to keep; so the method gets what the others are given.
    """
    rows = benchmark.split(RETAIN)
    texts = [f"Question: {row.question.strip()}\nAnswer: {row.answer.strip()}" for row in rows]
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)
