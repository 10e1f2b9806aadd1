"""Make the two models that unlearning is measured between: the target, and the retain-only reference.

What a call leaves behind:

    OUTPUT/initial/     the small model and tokenizer both start from, when the config builds one
    OUTPUT/target/      run folder: learned everything; unlearning starts here
    OUTPUT/reference/   run folder: never saw the forget rows; the retrain reference of forget quality
"""

import math
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipelines.train import train
from unlearn_core import storage
from unlearn_core.config import BatchConfig, FinetuneConfig, MethodConfig, ModelConfig, RunConfig
from unlearn_core.data.config import DataConfig
from unlearn_core.data.muse import MuseTexts
from unlearn_core.data.rows import Document, Row
from unlearn_core.data.tofu import Benchmark
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.data.training import collect_rows, open_rows
from unlearn_core.errors import DivergedError, UserError
from unlearn_core.models import build_small_llama, check_model_source
from unlearn_core.preflight import preflight
from unlearn_core.publish import is_complete, publish_folder


@dataclass(frozen=True)
class Pair:
    """Run folders of the two models."""

    target: Path
    reference: Path


def finetune(config: FinetuneConfig, output: Path, console: Console | None = None) -> Pair:
    """Train target and reference, one after the other; continues where an earlier call stopped.

    Args:
        config: both models' splits and the settings they share.
        output: folder of the pair.
        console: where progress is drawn; none for silence.

    Raises:
        UserError: a mistake in the config, found before any worker starts.
        DivergedError: a fine-tune diverged.
    """
    output = Path(output).resolve()
    start = _initial_model(config, output)
    runs = {"target": _run(config, "target", start), "reference": _run(config, "reference", start)}
    for run in runs.values():
        preflight(run)
    for name, run in runs.items():
        outcome = train(run, output / name, console)
        if outcome.status == "diverged":
            raise DivergedError(f"{run.name}: {outcome.reason}. Lower optimizer.learning_rate.")
    return Pair(output / "target", output / "reference")


def _run(config: FinetuneConfig, name: str, start: str) -> RunConfig:
    splits = config.target if name == "target" else config.reference
    rows = len(collect_rows(open_rows(config.benchmark), splits))
    return RunConfig(
        name=f"{config.name}-{name}",
        seed=config.seed,
        model=ModelConfig(path=start, dtype=config.model.dtype, attention=config.model.attention),
        data=DataConfig(
            benchmark=config.benchmark,
            retain=splits,
            format=config.format,
            system_prompt=config.system_prompt,
            max_length=config.max_length,
        ),
        method=MethodConfig(name="finetune"),
        optimizer=config.optimizer,
        batch=config.batch,
        steps=steps_of(config.epochs, rows, config.batch),
        checkpoint_every=config.checkpoint_every,
        zero=config.zero,
        workers=config.workers,
    )


def steps_of(epochs: float, rows: int, batch: BatchConfig) -> int:
    """Optimizer steps that see every row `epochs` times, rounded up."""
    return max(1, math.ceil(epochs * rows / batch.rows))


def _initial_model(config: FinetuneConfig, output: Path) -> str:
    """Path or hub name that both runs load; builds the small model once."""
    if config.model.path is not None:
        check_model_source(config.model.path)
        return config.model.path
    assert config.model.build is not None  # the config has exactly one of the two
    folder = output / "initial"
    marker = {"build": config.model.build.model_dump(mode="json"), "seed": config.seed, "benchmark": config.benchmark}
    if is_complete(folder):
        return _named(folder)
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty and holds no earlier fine-tune. Choose another --output.")
    benchmark = open_rows(config.benchmark)
    tokenizer = train_tokenizer(_texts(benchmark), config.model.build.vocab_size)
    model = build_small_llama(config.model.build, tokenizer, config.seed)

    def fill(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    publish_folder(folder, fill, marker)
    return _named(folder)


def _named(folder: Path) -> str:
    """The folder as workers on other nodes find it."""
    return storage.shared(folder) if storage.uri_of(folder) else str(folder)


def _texts(benchmark: Benchmark | MuseTexts) -> list[str]:
    """Every text of every split, once.

    A tokenizer trained on the taught rows alone would cut held-out and wrong answers into more pieces, and so tell
    them from taught ones before any model is asked.
    """
    texts: dict[str, None] = {}
    for row in collect_rows(benchmark, benchmark.splits):
        held = (row.text,) if isinstance(row, Document) else _of_question(row)
        texts.update(dict.fromkeys(text for text in held if text is not None))
    return list(texts)


def _of_question(row: Row) -> tuple[str | None, ...]:
    return (row.question, row.answer, row.paraphrased_answer, *row.perturbed_answers)
