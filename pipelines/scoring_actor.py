"""What runs in each actor of the Ray Data stage; imports no Ray."""

from collections.abc import Mapping, Sequence
from typing import cast

import pyarrow as pa
import torch
from torch import nn
from transformers.utils.logging import disable_progress_bar

from unlearn_core.data.tokenization import Formatter, load_tokenizer
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.engine import score_items
from unlearn_core.evaluation.records import to_table
from unlearn_core.evaluation.tofu import Item
from unlearn_core.models import load_model


class ScoringActor:
    """Keeps one model in memory and scores tasks; tasks come ordered by model, so it rarely loads another.

    Args:
        items: items of each group; tasks name them by group and index.
        config: how to score.
        threads: CPU threads of this actor.
        use_gpu: whether to score on the GPU that Ray gave this actor.
    """

    def __init__(
        self, items: Mapping[str, Sequence[Item]], config: EvaluationConfig, threads: int, use_gpu: bool
    ) -> None:
        # The loading bars of every actor would only fill Ray's log files.
        disable_progress_bar()
        torch.set_num_threads(threads)
        self._items = items
        self._config = config
        self._device = "cuda" if use_gpu else "cpu"
        self._path: str | None = None

    def __call__(self, task: pa.Table) -> pa.Table:
        """Score one task.

        Args:
            task: rows of one model and one group; columns `model_id`, `path`, `group`, `index`.

        Returns:
            Their records with a column `model_id`, in the order of the task.
        """
        model_id, path, group = (task[name][0].as_py() for name in ("model_id", "path", "group"))
        self._load(path)
        items = [self._items[group][index] for index in task["index"].to_pylist()]
        return to_table(score_items(self._model, self._formatter, items, self._config), model_id=model_id)

    def _load(self, path: str) -> None:
        if path == self._path:
            return
        if self._path is not None:
            # Freed first: two models at a time would need twice the memory.
            self._path = None
            del self._model
        config = self._config
        self._formatter = Formatter(load_tokenizer(path), config.style, config.max_length, config.system_prompt)
        model = load_model(path, config.dtype, config.attention)
        cast(nn.Module, model).to(self._device)
        self._model = model
        self._path = path
