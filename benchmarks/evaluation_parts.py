"""The measurements of `benchmarks.evaluation`: speed, actors, rows, memory. Each returns plain numbers."""

import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.evaluation_baseline import MIN_K, Numbers, UsualLoop
from benchmarks.evaluation_model import FORGET, MAX_LENGTH, STYLE, Scale, load, open_rows
from unlearn_core.data.tofu import Benchmark
from unlearn_core.evaluation import tofu
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.engine import measure
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.records import ItemRecord

NEAR_TIE = 1e-4
"""Greedy choices closer than this may fall otherwise in another batch."""

_COMPARED = (
    *("avg_loss", "paraphrased_loss", "perturbed_losses", "extraction_strength", "exact_memorization"),
    *("loss_score", "zlib_score", "min_k_score", "min_k_plus_plus_score"),
)
_OF_ANSWERS = ("rouge1_recall", "rougeL_recall", "rougeL_f1")
_MEMORY_GENERATION = {"max_new_tokens": 32, "generation_gib": 1 / 16}
BUDGETS = (1024, 8192)
"""Small and large token budget of the memory measurement."""


def settings(scale: Scale, **changes: Any) -> EvaluationConfig:
    """The engine's config: defaults but for what the model needs."""
    values = {"style": STYLE, "max_length": MAX_LENGTH, "max_new_tokens": scale.answer, "min_k": MIN_K}
    return EvaluationConfig(**(values | changes))


def in_fresh_process(work: Callable[..., float], *arguments: Any) -> float:
    """Call in a new interpreter, so that nothing that ran before counts."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


# -- the engine against the usual loop --------------------------------------------------------------------------------


def speed(folder: Path, benchmark: Benchmark, scale: Scale, report: Callable[[str], None]) -> dict[str, Any]:
    """Pairs of the usual loop and the engine over the whole suite, in alternating order, and their differences.

    Both sides are timed with tokenising, likelihoods with all their metrics, generating and ROUGE. The engine is called
    once for the likelihoods and once for the generations, so that both can be told apart: it tokenises twice.
    """
    model, formatter = load(folder)
    items = tofu.suite(benchmark, FORGET).items
    scored = [replace(item, generate=False) for item in items]
    answered = [replace(item, score=False, token_scores=False) for item in items if item.generate]
    config = settings(scale)
    # The first passes of a process set up kernels.
    measure(model, formatter, items[:4], config)
    rounds: list[dict[str, dict[str, list[float]]]] = []
    numbers: Numbers = {}
    records: list[ItemRecord] = []
    answers: list[ItemRecord] = []
    passes: dict[str, float] = {}

    def usual() -> dict[str, list[float]]:
        loop = UsualLoop(model, formatter, items, scale.answer)
        found = {"scoring": _timed(loop.score), "generation": _timed(loop.generate)}
        numbers.update(loop.numbers)
        passes.update(loop.seconds)
        return found

    def engine() -> dict[str, list[float]]:
        records.clear()
        answers.clear()
        return {
            "scoring": _timed(lambda: records.extend(measure(model, formatter, scored, config))),
            "generation": _timed(lambda: answers.extend(measure(model, formatter, answered, config))),
        }

    for number in range(scale.repetitions):
        sides = [("usual", usual), ("engine", engine)]
        found = {name: side() for name, side in (sides if number % 2 == 0 else sides[::-1])}
        rounds.append(found)
        report(
            f"pair {number + 1}: "
            + ", ".join(
                f"{name} {found[name]['scoring'][0]:.1f} + {found[name]['generation'][0]:.1f} s" for name in found
            )
        )
    lengths = sorted(len(formatter.tokenizer(record.generation or "")["input_ids"]) for record in answers)
    return {
        "rounds": rounds,
        "passes": passes,
        "rows": len(items),
        "answers": sum(len(item.answers) for item in items),
        "generated": {"rows": len(lengths), "median": lengths[len(lengths) // 2], "longest": lengths[-1]},
        "differences": _differences(numbers, records, answers),
    }


def _timed(work: Callable[[], Any]) -> list[float]:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return [time.perf_counter() - wall, time.process_time() - cpu]


def _differences(numbers: Numbers, records: Sequence[ItemRecord], answers: Sequence[ItemRecord]) -> dict[str, Any]:
    """Largest difference of every number, and the generations that differ, of which near ties are excused."""
    largest: dict[str, float] = {}
    compared = 0
    for record in records:
        for name in _COMPARED:
            if name not in numbers[record.item_id]:
                continue
            theirs, ours = numbers[record.item_id][name], getattr(record, name)
            pairs = zip(theirs, ours, strict=True) if isinstance(theirs, list) else [(theirs, ours)]
            for one, other in pairs:
                compared += 1
                largest[name] = max(largest.get(name, 0.0), abs(one - other))
    other_text = [record for record in answers if record.generation != numbers[record.item_id]["generation"]]
    near = [record for record in other_text if (record.smallest_margin or 0.0) < NEAR_TIE]
    apart = {record.item_id for record in other_text}
    for record in answers:
        if record.item_id not in apart:
            for name in _OF_ANSWERS:
                compared += 1
                gap = abs(numbers[record.item_id][name] - getattr(record, name))
                largest[name] = max(largest.get(name, 0.0), gap)
    return {
        "largest": largest,
        "compared": compared,
        "generations_near_ties": len(near),
        "generations_otherwise": len(other_text) - len(near),
    }


# -- two actors against one -------------------------------------------------------------------------------------------


def actors(folder: Path, quick: bool, scale: Scale, count: int, copies: int) -> float:
    """Seconds of `pipelines.evaluate` with `count` actors of one thread, from the moment that all have their model.

    What is left out is starting Ray, its workers and their imports, and loading the model: each actor waits for the
    others there. What counts is everything until `evaluate` returns: Ray Data, records on disk, aggregates.

    Args:
        folder: the model's.
        quick: as the benchmark's flag.
        scale: sizes.
        count: actors, and logical CPUs of the cluster, so that each has one thread.
        copies: how many models (all the same) are scored in the one job.
    """
    import pipelines.evaluate as pipeline
    from pipelines.model_points import ModelPoint
    from pipelines.ray_session import start_ray
    from pipelines.scoring_actor import ScoringActor

    torch.set_num_threads(1)
    start_ray(num_cpus=count)
    path = str(folder.resolve())
    with tempfile.TemporaryDirectory() as temporary:
        ready = Path(temporary) / "ready"
        ready.mkdir()

        class WaitingActor(ScoringActor):
            """Loads the model, then waits until every actor has."""

            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, **named)
                self._load(path, "none")
                (ready / uuid.uuid4().hex).write_text(repr(time.perf_counter()))
                while len(list(ready.iterdir())) < count:
                    time.sleep(0.002)

        original = pipeline.ScoringActor
        # The one place where the stage's class is named; defined here, it travels to the workers by value.
        cast(Any, pipeline).ScoringActor = WaitingActor
        try:
            points = [ModelPoint(f"copy-{k}", path, "copy", "finetune", k) for k in range(copies)]
            suite = tofu.suite(open_rows(quick), FORGET)
            pipeline.evaluate(points, suite, Path(temporary) / "evaluation", settings(scale), actors=count)
            end = time.perf_counter()
        finally:
            cast(Any, pipeline).ScoringActor = original
        stamps = [float(stamp.read_text()) for stamp in ready.iterdir()]
        assert len(stamps) == count, f"{len(stamps)} actors started, expected {count}"
    # perf_counter is the machine's monotonic clock on Linux, one for all processes.
    return end - max(stamps)


# -- rows -------------------------------------------------------------------------------------------------------------


def rows_of(benchmark: Benchmark, count: int) -> list[Item]:
    """`count` questions spread over `full`, each with its answer to score and one to generate."""
    rows = benchmark.split("full")
    step = max(1, len(rows) // count)
    chosen = (rows[::step] * -(-count // len(rows[::step])))[:count]
    return [
        Item(item_id=f"row/{i}", group="full", prompt=row.question, answer=row.answer, token_scores=True)
        for i, row in enumerate(chosen)
    ]


def rows(folder: Path, benchmark: Benchmark, scale: Scale, report: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of the small and the large number of rows, in alternating order."""
    model, formatter = load(folder)
    sets = {count: rows_of(benchmark, count) for count in (scale.small, scale.large)}
    measure(model, formatter, sets[scale.small][:4], settings(scale))
    rounds = []
    for number in range(scale.repetitions):
        order = list(sets) if number % 2 == 0 else list(sets)[::-1]
        seconds = {
            count: _timed(lambda count=count: measure(model, formatter, sets[count], settings(scale)))
            for count in order
        }
        rounds.append(seconds)
        report(
            f"rows {number + 1}: "
            + ", ".join(f"{1000 * seconds[n][0] / n:.2f} ms a row of {n:,}" for n in sorted(sets))
        )
    return {"rounds": rounds}


# -- memory -----------------------------------------------------------------------------------------------------------


def memory(folder: Path, quick: bool, scale: Scale, count: int, token_budget: int) -> float:
    """Peak resident MiB above the loaded model and the items, while `count` rows are measured."""
    torch.set_num_threads(1)
    model, formatter = load(folder)
    items = rows_of(open_rows(quick), count)
    config = settings(scale, token_budget=token_budget, **_MEMORY_GENERATION)
    measure(model, formatter, items[:1], config)
    # Resets the process's high-water mark to what it holds now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    measure(model, formatter, items, config)
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
