"""The relearning attack: fine-tune models on a few rows, all with the same settings, and see what comes back.

    OUTPUT/relearned/<model id>/<attack>/         a training run's folder, with attack.json: what was attacked, and how
    OUTPUT/relearned/_rows/<attack>-<hash>.jsonl  the rows of an attack, the same for every model

The same call on the same output goes on where it stopped; a finished attack is not run again.
"""

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from rich.console import Console

from pipelines.finetune import steps_of
from pipelines.model_points import ModelPoint, absolute, identity
from pipelines.runs import resolve_model
from pipelines.train import train
from unlearn_core.config import (
    BatchConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    WorkersConfig,
    ZeroConfig,
    check_batch,
)
from unlearn_core.data.config import DataConfig
from unlearn_core.data.muse import MuseTexts, is_muse
from unlearn_core.data.rows import Conversation, Document, TrainingRow, read_training_rows
from unlearn_core.data.sources import is_data_file
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.data.tokenization import load_tokenizer
from unlearn_core.data.training import training_sets
from unlearn_core.errors import UserError
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.robustness import ATTACKS, variant_id
from unlearn_core.preflight import preflight
from unlearn_core.publish import write_json, write_text
from unlearn_core.strict import Strict

FORGET, CORRELATED, UNRELATED = "relearn-forget", "relearn-correlated", "relearn-unrelated"
UNRELATED_SPLIT = "world_facts"
"""Unrelated text of a benchmark of TOFU's kind."""


class RelearnConfig(Strict):
    """How models are attacked by fine-tuning; format, system prompt and attention are the evaluation's.

    One pass at a rate of 2e-5 is OpenUnlearning's protocol (arXiv 2506.12618).
    """

    epochs: float = Field(default=1.0, gt=0)
    """Passes over an attack's rows, rounded up to whole optimizer steps."""
    seed: int = Field(default=0, ge=0)
    """Of the choice of forget rows and of the order of rows."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-5)
    """As in a training run."""
    batch: BatchConfig = BatchConfig()
    """As in a training run; an attack of fewer rows than `rows` takes all of them in each step."""
    dtype: Literal["fp32", "bf16"] | None = None
    """As in a training run; null for the evaluation's."""
    max_length: int | None = Field(default=None, ge=8)
    """Tokens a row may have; a text is cut into pieces of this length. Null for the evaluation's."""
    zero: ZeroConfig = ZeroConfig()
    """As in a training run."""
    workers: WorkersConfig = WorkersConfig()
    """As in a training run."""

    @model_validator(mode="after")
    def _same_for_every_model(self) -> Self:
        check_batch(self.batch, self.workers)
        if self.optimizer.schedule == "auto":
            raise ValueError(
                "optimizer.schedule auto would attack every model at a rate of its own; use constant, linear or cosine"
            )
        return self


@dataclass(frozen=True, slots=True)
class Lessons:
    """What models are fine-tuned on.

    Attributes:
        rows: name of a relearning attack -> its rows, in order.
        skipped: name of an attack that cannot be run -> why.
    """

    rows: Mapping[str, Sequence[TrainingRow]]
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Relearning:
    """One model under one relearning attack.

    Attributes:
        point: the model.
        attack: name of the attack.
        run: its training run.
        output: the run's folder.
    """

    point: ModelPoint
    attack: str
    run: RunConfig
    output: Path


def lessons(
    benchmark: str | None,
    forget: str | Sequence[str],
    *,
    attacks: Sequence[str] = (FORGET, CORRELATED, UNRELATED),
    forget_rows: int | None = None,
    seed: int = 0,
    correlated: str | None = None,
    unrelated: str | None = None,
) -> Lessons:
    """Read the rows of the relearning attacks.

    Args:
        benchmark: as in a training run; None where every entry is a file.
        forget: what was forgotten: a split or a file, or several.
        attacks: names of attacks; those that are no relearning are passed over.
        forget_rows: how many forget rows `relearn-forget` gets, chosen by the seed and kept in order; None for all.
        seed: of that choice.
        correlated: split or file of harmless text about the same subjects; None leaves that attack out.
        unrelated: split or file of other text; None for `world_facts` where the benchmark has it.

    Returns:
        The rows, and which attacks have none.

    Raises:
        UserError: no such split or file, fewer forget rows than asked for, or rows of the other two attacks that are
            forget rows: what they bring back would not be recovered but taught.
    """
    wanted = [name for name in attacks if ATTACKS[name].kind == "relearning"]
    rows: dict[str, Sequence[TrainingRow]] = {}
    skipped: dict[str, str] = {}
    if not wanted:
        return Lessons(rows, skipped)
    entries = (forget,) if isinstance(forget, str) else tuple(forget)
    known = [row for entry in entries for row in _rows_of(benchmark, entry)]
    named = ", ".join(entries)
    if FORGET in wanted:
        rows[FORGET] = _chosen(known, named, forget_rows, seed)
    if CORRELATED in wanted:
        if correlated is None:
            skipped[CORRELATED] = "no text about the same subjects was given (--correlated)"
        else:
            rows[CORRELATED] = _rows_of(benchmark, correlated)
    if UNRELATED in wanted:
        if unrelated is None and (benchmark is None or is_muse(benchmark)):
            skipped[UNRELATED] = f"no unrelated text was given (--unrelated) and there is no split {UNRELATED_SPLIT}"
        else:
            rows[UNRELATED] = _rows_of(benchmark, unrelated or UNRELATED_SPLIT)
    taught = {_content(row) for row in known}
    for name, option, entry in ((CORRELATED, "--correlated", correlated), (UNRELATED, "--unrelated", unrelated)):
        both = [row.item_id for row in rows.get(name, ()) if _content(row) in taught]
        if both:
            raise UserError(
                f"{option} {entry}: {len(both)} of {len(rows[name])} rows are forget rows of '{named}' (first: "
                f"{both[0]}), so the attack would teach what it looks for; give text without them"
            )
    return Lessons(rows, skipped)


def plan_relearning(
    points: Sequence[ModelPoint],
    reference: ModelPoint,
    taught: Lessons,
    output: Path,
    config: RelearnConfig,
    evaluation: EvaluationConfig,
) -> list[Relearning]:
    """Every model under every relearning attack; writes the attacks' rows and nothing else.

    Args:
        points: the models, the reference among them.
        reference: the retrained model: its tokenizer counts an attack's pieces of text.
        taught: the rows.
        output: the suite's folder.
        config: how models are fine-tuned.
        evaluation: how they are scored.

    Returns:
        The runs, models outermost, of equal settings but for the model.

    Raises:
        UserError: a missing or broken model, a row that does not fit it, or a folder that holds an attack on other
            weights, with other rows or settings.
    """
    output = output.resolve()
    shared: dict[str, tuple[DataConfig, BatchConfig, int]] = {}
    for attack, rows in taught.rows.items():
        data = DataConfig(
            retain=(str(_write_rows(output, attack, rows)),),
            format=evaluation.style,
            system_prompt=evaluation.system_prompt,
            max_length=config.max_length or evaluation.max_length,
        )
        pieces = len(training_sets(data, ("retain",), load_tokenizer(absolute(reference)), config.seed)["retain"])
        batch = _fitting(config.batch, pieces, config.workers.count)
        shared[attack] = (data, batch, steps_of(config.epochs, pieces, batch))
    plans = []
    for point in points:
        for attack, (data, batch, steps) in shared.items():
            run = RunConfig(
                name=re.sub(r"[^A-Za-z0-9._-]", "-", f"{point.model_id}.{attack}"),
                seed=config.seed,
                model=ModelConfig(
                    path=absolute(point),
                    dtype=config.dtype or evaluation.dtype,
                    attention=evaluation.attention,
                ),
                data=data,
                method=MethodConfig(name="finetune"),
                optimizer=config.optimizer,
                batch=batch,
                steps=steps,
                zero=config.zero,
                workers=config.workers,
            )
            plan = Relearning(point, attack, run, output / "relearned" / point.model_id / attack)
            _check_earlier(plan)
            preflight(run)
            plans.append(plan)
    return plans


def relearn(plans: Sequence[Relearning], console: Console | None = None) -> tuple[list[ModelPoint], dict[str, str]]:
    """Run the attacks, one after the other, each on the Ray cluster's training workers.

    Args:
        plans: what `plan_relearning` gave.
        console: where progress is drawn; None for silence.

    Returns:
        The attacked models; and for each one that diverged, its id and why it is not there.
    """
    points: list[ModelPoint] = []
    absent: dict[str, str] = {}
    for number, plan in enumerate(plans, start=1):
        if console is not None:
            text = f"relearning {number} of {len(plans)}: {plan.point.model_id}, {plan.attack}, {plan.run.steps} steps"
            console.print(text, highlight=False, soft_wrap=True)
        model_id = variant_id(plan.point.model_id, ATTACKS[plan.attack])
        # Before the training, so that a folder never holds a model of unknown origin.
        write_json(plan.output / "attack.json", _record(plan))
        outcome = train(plan.run, plan.output, console)
        if outcome.status == "diverged":
            absent[model_id] = f"the fine-tune diverged: {outcome.reason}"
            continue
        path = resolve_model(str(plan.output))
        points.append(replace(plan.point, model_id=model_id, path=path, variant=plan.attack))
    return points, absent


def _record(plan: Relearning) -> dict[str, Any]:
    # As JSON gives it back, to compare with what was read.
    return json.loads(json.dumps({"model": identity(plan.point), "fingerprint": plan.run.fingerprint()}))


def _check_earlier(plan: Relearning) -> None:
    path = plan.output / "attack.json"
    if not path.is_file():
        if plan.output.exists() and any(plan.output.iterdir()):
            raise UserError(f"{plan.output} holds something that is no relearning attack; choose another --output")
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); delete the folder {plan.output}") from error
    now = _record(plan)
    other = [name for name in now if earlier.get(name) != now[name]]
    if other:
        what = "weights" if "model" in other else "rows or settings"
        raise UserError(
            f"{plan.output} holds this attack with other {what}. Choose another --output, or delete that folder to "
            "attack again"
        )


def _fitting(batch: BatchConfig, pieces: int, workers: int) -> BatchConfig:
    """The batch, made smaller where there are fewer rows: else a step would see rows several times."""
    if pieces >= batch.rows:
        return batch
    each = max(1, pieces // workers)
    micro = max(size for size in range(1, min(batch.micro, each) + 1) if each % size == 0)
    return BatchConfig(rows=each * workers, micro=micro)


def _chosen(rows: Sequence[TrainingRow], entry: str, count: int | None, seed: int) -> Sequence[TrainingRow]:
    if count is None:
        return rows
    if not 1 <= count <= len(rows):
        raise UserError(f"--forget-rows {count}: '{entry}' has {len(rows)} rows; expected 1 to {len(rows)}")
    chosen = random.Random(f"relearn {seed}").sample(range(len(rows)), count)
    return [rows[index] for index in sorted(chosen)]


def _rows_of(benchmark: str | None, entry: str) -> Sequence[TrainingRow]:
    if is_data_file(entry):
        return read_training_rows(Path(entry).expanduser(), entry)
    if benchmark is None:
        raise UserError(f"'{entry}' is no file ending in .jsonl, .json or .txt, and there is no benchmark to look in")
    if is_muse(benchmark):
        return MuseTexts(benchmark).split(entry)
    return open_benchmark(benchmark).split(entry)


def _write_rows(output: Path, attack: str, rows: Sequence[TrainingRow]) -> Path:
    """The rows as a file whose name changes with them, so that the run's fingerprint does."""
    text = "".join(json.dumps(_value(row), ensure_ascii=False) + "\n" for row in rows)
    path = output / "relearned" / "_rows" / f"{attack}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
    if not path.is_file():
        write_text(path, text)
    return path


def _value(row: TrainingRow) -> dict[str, Any]:
    if isinstance(row, Document):
        return {"text": row.text}
    if isinstance(row, Conversation):
        turns = (*row.turns, ("assistant", row.answer))
        return {"messages": [{"role": role, "content": content} for role, content in turns]}
    return {"question": row.question, "answer": row.answer}


def _content(row: TrainingRow) -> str:
    """What a row teaches, white space at the ends aside."""
    value = _value(row)
    messages = value.pop("messages", ())
    texts = [*value.values(), *(message["content"] for message in messages)]
    return json.dumps([text.strip() for text in texts])
