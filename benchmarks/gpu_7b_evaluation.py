"""The evaluation engine on a shape of `benchmarks.gpu_7b`: tokens scored a second, tokens generated a second.

Rows are like TOFU's forget10: a question of 32 tokens, seven answers of 48 (the true one, a paraphrase, five wrong
ones), cut from real text. Answers are generated greedily to their full length: a model of random weights ends none.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_7b_measure import RESERVE, Note
from benchmarks.gpu_7b_shapes import Shape
from benchmarks.gpu_7b_text import TextRows
from benchmarks.one_gpu import Deadline, synchronise
from unlearn_core.data.tokenization import Example
from unlearn_core.evaluation.engine import TOKEN_BUDGETS
from unlearn_core.evaluation.generation import Request, generate
from unlearn_core.evaluation.scoring import ScoringRow, score_rows

ANSWERS = 7
REPETITIONS = 3
MEMORY_GIB = 4.0
"""Of keys and values, the engine's default."""


def scoring_rows(rows: list[Example], count: int) -> list[ScoringRow]:
    """Questions with seven answers each; a row of text gives one, and short rows give shorter ones."""
    found = []
    for k in range(count):
        ids = rows[k % len(rows)].input_ids
        question = min(32, len(ids) // 4)
        answer = min(48, (len(ids) - question) // ANSWERS)
        starts = range(question, question + ANSWERS * answer, answer)
        found.append(ScoringRow(ids[:question], tuple(ids[start : start + answer] for start in starts)))
    return found


def measure_evaluation(shape: Shape, rows: TextRows, device: torch.device, deadline: Deadline, note: Note) -> None:
    """Median seconds of scoring and of generating; writes the row after each."""
    started = time.perf_counter()
    model = shape.model(device)
    synchronise()
    note({"model_seconds": time.perf_counter() - started})
    budget = TOKEN_BUDGETS["cpu" if device.type == "cpu" else "gpu"]
    asked = scoring_rows(rows.forget, shape.scored)
    answers = sum(len(answer) for row in asked for answer in row.answers)
    requests = [Request(asked[k % len(asked)].prompt, shape.answer) for k in range(shape.generated)]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def score() -> Any:
        return score_rows(model, asked, budget)

    def answer() -> Any:
        return generate(model, requests, (), MEMORY_GIB, budget, lambda _: "")

    for name, work, tokens in (
        ("scoring", score, answers + sum(len(row.prompt) for row in asked)),
        ("generation", answer, shape.generated * shape.answer),
    ):
        seconds = _timed(work, deadline)
        if not seconds:
            return
        found: dict[str, Any] = {"tokens": tokens, "seconds": seconds}
        found["tokens_a_second"] = tokens / statistics.median(seconds)
        note({name: found})
    if device.type == "cuda":
        memory = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        note({"memory": memory})


def _timed(work: Callable[[], Any], deadline: Deadline) -> list[float]:
    """Seconds of each repetition after a first one that does not count; fewer when the deadline is near."""
    found: list[float] = []
    for repetition in range(1 + REPETITIONS):
        began = time.perf_counter()
        work()
        synchronise()
        taken = time.perf_counter() - began
        if repetition:
            found.append(taken)
        if deadline.left < RESERVE + 2 * taken:
            break
    return found
