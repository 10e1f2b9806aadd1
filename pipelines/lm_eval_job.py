"""Tasks of lm-evaluation-harness as part of an evaluation; imports no Ray.

OUTPUT/records/<model id>/lm_eval.json      fingerprint and values, written when a model's tasks are done
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa
import torch
from torch import nn
from transformers.utils.logging import disable_progress_bar

from pipelines.model_points import ModelPoint, identity
from unlearn_core.data.tokenization import load_tokenizer
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.lm_eval_tasks import run_tasks
from unlearn_core.models import load_model
from unlearn_core.publish import write_json


@dataclass(frozen=True)
class LmEvalTasks:
    """What the harness runs.

    Attributes:
        tasks: names of its tasks, groups or tags, such as `mmlu`.
        limit: examples of each task; None for all.
        shots: examples in the prompts; None for each task's own.
        include_path: folder of own task files, seen by every node; None for none.
        batch_size: sequences of one forward pass.
    """

    tasks: tuple[str, ...]
    limit: int | None = None
    shots: int | None = None
    include_path: str | None = None
    batch_size: int = 8


class LmEvalActor:
    """Loads a model and runs the tasks on it.

    Args:
        tasks: what to run.
        config: gives precision and attention kernel.
        threads: CPU threads of this actor.
        use_gpu: whether to run on the GPU that Ray gave this actor.
    """

    def __init__(self, tasks: LmEvalTasks, config: EvaluationConfig, threads: int, use_gpu: bool) -> None:
        disable_progress_bar()
        torch.set_num_threads(threads)
        self._tasks = tasks
        self._config = config
        self._device = "cuda" if use_gpu else "cpu"

    def __call__(self, task: pa.Table) -> pa.Table:
        """Run all tasks on one model.

        Args:
            task: one row; columns `model_id`, `path`, `quantisation`.

        Returns:
            One row: `model_id` and `values`, a JSON object of column to value.
        """
        model_id, path, quantisation = (task[name][0].as_py() for name in ("model_id", "path", "quantisation"))
        model = load_model(path, self._config.dtype, self._config.attention, quantisation)
        cast(nn.Module, model).to(self._device)
        asked = self._tasks
        values = run_tasks(
            model,
            load_tokenizer(path),
            asked.tasks,
            limit=asked.limit,
            include_path=asked.include_path,
            num_fewshot=asked.shots,
            batch_size=asked.batch_size,
        )
        return pa.table({"model_id": [model_id], "values": [json.dumps(values)]})


def result_file(output: Path, point: ModelPoint) -> Path:
    """Where a model's values are kept."""
    return output / "records" / point.model_id / "lm_eval.json"


def fingerprint(point: ModelPoint, tasks: LmEvalTasks, config: EvaluationConfig) -> str:
    """SHA-256 of everything that the values depend on."""
    settings = config.model_dump(mode="json", include={"dtype", "attention"})
    facts = [asdict(tasks), settings, identity(point)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read_result(output: Path, point: ModelPoint, wanted: str) -> dict[str, float] | None:
    """A model's values, if they are there and of the wanted fingerprint."""
    path = result_file(output, point)
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    return kept["values"] if kept["fingerprint"] == wanted else None


def keep_result(output: Path, point: ModelPoint, made: str, values: dict[str, float]) -> None:
    """Write a model's values, whole or not at all."""
    write_json(result_file(output, point), {"fingerprint": made, "values": values})
