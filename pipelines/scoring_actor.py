"""What runs in each actor of the Ray Data stage; imports no Ray."""

from collections.abc import Mapping, Sequence
from typing import cast

import pyarrow as pa
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from unlearn_core.data.tokenization import Formatter, load_tokenizer
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.engine import measure
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.records import to_table
from unlearn_core.models import load_model


class ScoringActor:
    """Keeps one model in memory and scores tasks; tasks come ordered by model, so it rarely loads another.

    Args:
        items: items of each group; tasks name them by group and index.
        config: how to score.
        threads: CPU threads of this actor.
        use_gpu: whether to score on the GPU that Ray gave this actor.
        target: folder or hub name of the model before unlearning, for items that compare with it; None for none. It
            stays in memory from the first such task on.
    """

    def __init__(
        self,
        items: Mapping[str, Sequence[Item]],
        config: EvaluationConfig,
        threads: int,
        use_gpu: bool,
        target: str | None = None,
    ) -> None:
        # The loading bars of every actor would only fill Ray's log files.
        disable_progress_bar()
        torch.set_num_threads(threads)
        self._items = items
        self._config = config
        self._device = "cuda" if use_gpu else "cpu"
        self._target_path = target
        self._target: PreTrainedModel | None = None
        self._loaded: tuple[str, str] | None = None

    def __call__(self, task: pa.Table) -> pa.Table:
        """Score one task.

        Args:
            task: rows of one model and one group; columns `model_id`, `path`, `quantisation`, `group`, `index`.

        Returns:
            Their records with a column `model_id`, in the order of the task.
        """
        names = ("model_id", "path", "quantisation", "group")
        model_id, path, quantisation, group = (task[name][0].as_py() for name in names)
        self._load(path, quantisation)
        items = [self._items[group][index] for index in task["index"].to_pylist()]
        target = self._target_model() if any(item.kl for item in items) else None
        records = measure(self._model, self._formatter, items, self._config, target)
        return to_table(records, model_id=model_id)

    def _load(self, path: str, quantisation: str) -> None:
        if (path, quantisation) == self._loaded:
            return
        if self._loaded is not None:
            # Freed first: two models at a time would need twice the memory.
            self._loaded = None
            del self._model
        config = self._config
        self._formatter = Formatter(load_tokenizer(path), config.style, config.max_length, config.system_prompt)
        self._model = self._placed(path, quantisation)
        self._loaded = (path, quantisation)

    def _target_model(self) -> PreTrainedModel | None:
        if self._target_path is None:
            return None
        if self._loaded == (self._target_path, "none"):
            return self._model
        if self._target is None:
            self._target = self._placed(self._target_path, "none")
        return self._target

    def _placed(self, path: str, quantisation: str) -> PreTrainedModel:
        model = load_model(path, self._config.dtype, self._config.attention, quantisation)
        cast(nn.Module, model).to(self._device)
        return model
