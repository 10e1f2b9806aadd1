"""General abilities: tasks of the lm-evaluation-harness (MMLU and any other) on a model that is already loaded.

The numbers are the harness's own: its prompts, its shots, its metrics, no chat template. Tasks that run the code which
a model writes are refused, and no code of a hub data set is run; a task in a folder of the user's may name Python
functions that lie beside it, and those are run.
"""

import copy
import difflib
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn_core.errors import MissingPackageError, UserError

_SEED = 1234


def check_tasks(tasks: Sequence[str], include_path: str | None = None) -> None:
    """Find mistakes in task names before any model is loaded. Reads no data set and uses no network.

    Takes about ten seconds where a name is not found in `include_path`: the harness reads all of its task files.

    Args:
        tasks: names of tasks, groups (such as `mmlu`) or tags.
        include_path: folder with the user's own task files (YAML); its tasks go before the harness's of the same name.

    Raises:
        UserError: no task, a repeated or unknown one, no such folder, or a task that runs code which the model writes.
        MissingPackageError: lm_eval is not installed.
    """
    if not tasks or len(set(tasks)) < len(tasks):
        raise UserError(f"lm-eval tasks {list(tasks)}: expected at least one name, each of them once")
    index = _manager(tasks, include_path).task_index
    for task in tasks:
        if task not in index:
            near = difflib.get_close_matches(task, index, n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
            own = f" and '{include_path}' has none" if include_path else "; give include_path for tasks of your own"
            raise UserError(f"lm-evaluation-harness has no task '{task}'{own}{hint}")
        unsafe = next(_unsafe(task, index), None)
        if unsafe is not None:
            raise UserError(f"lm-eval task '{task}': '{unsafe}' runs code that the model writes; choose another task")


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    limit: int | None = None,
    include_path: str | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
) -> dict[str, float]:
    """Run tasks on a model. Equal arguments give equal numbers; random states are left as they were.

    Args:
        model: in evaluation mode, on the device to use.
        tokenizer: the model's; not changed.
        tasks: see `check_tasks`.
        limit: questions of each task, the first ones; None for all. For a quick look only.
        include_path: see `check_tasks`.
        num_fewshot: shots before each question; None for each task's own number. A task that fixes 0 keeps it.
        batch_size: sequences of one forward pass.

    Returns:
        `lm_eval/{task}/{metric}` to value, in the order of `tasks`; the metric's name is followed by `,{filter}` where
        the task filters answers. Of a group the harness's aggregate, or where it has none (and of a tag) its tasks.
        Ranges and directions are the metrics'.

    Raises:
        UserError: what `check_tasks` finds, a limit or batch size below 1, or data that cannot be read.
        MissingPackageError: lm_eval is not installed.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise UserError(f"lm-eval: limit {limit} and batch size {batch_size}; expected at least 1 each")
    check_tasks(tasks, include_path)
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    manager = _manager(tasks, include_path)
    with _random_states_kept(model), _quiet():
        # A copy, because the harness gives a tokenizer without a pad token one.
        lm = cast(Any, HFLM)(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
        try:
            found = cast(Any, lm_eval).simple_evaluate(
                lm,
                tasks=list(tasks),
                limit=limit,
                num_fewshot=num_fewshot,
                task_manager=manager,
                log_samples=False,
                bootstrap_iters=0,
                random_seed=_SEED,
                numpy_random_seed=_SEED,
                torch_random_seed=_SEED,
                fewshot_random_seed=_SEED,
            )
        except OSError as error:
            raise UserError(
                f"lm-eval tasks {', '.join(tasks)}: cannot read their data: {error}. Check the network, or give tasks "
                "on local files by include_path"
            ) from error
    rows: Mapping[str, Mapping[str, Any]] = {**found["results"], **found.get("groups", {})}
    names = dict.fromkeys(name for task in tasks for name in _reported(task, manager.task_index, rows))
    return {f"lm_eval/{name}/{metric}": value for name in names for metric, value in _metrics(rows[name])}


def _reported(task: str, index: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if task in rows and any(True for _ in _metrics(rows[task])):
        yield task
    else:
        for child in _children(index[task]):
            yield from _reported(child, index, rows) if child in index else (name for name in (child,) if name in rows)


def _metrics(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        name, _, answers = key.partition(",")
        # Whole words beside the metrics: alias, name, sample_len, sample_count. Standard errors are not asked for.
        if answers and not name.endswith("_stderr") and isinstance(value, Real):
            yield name if answers == "none" else key, float(value)


def _children(entry: Any) -> list[str]:
    """Names of the tasks and groups that a group or tag stands for."""
    if entry.tags and entry.cfg is None:
        return sorted(entry.tags)
    members = (entry.cfg or {}).get("task")
    if not isinstance(members, list):
        return []
    return [member if isinstance(member, str) else member.get("task", member.get("group")) for member in members]


def _unsafe(task: str, index: Mapping[str, Any]) -> Iterator[str]:
    entry = index.get(task)
    if entry is None:
        return
    if entry.cfg and entry.cfg.get("unsafe_code"):
        yield task
    for child in _children(entry):
        yield from _unsafe(child, index)


def _manager(tasks: Sequence[str], include_path: str | None) -> Any:
    """The harness's task index; without its own 15,000 tasks where none of them is asked for."""
    if include_path is not None:
        folder = Path(include_path).expanduser()
        if not folder.is_dir():
            raise UserError(f"include_path '{include_path}' does not exist; expected a folder with task files (YAML)")
        own = _index(str(folder), False)
        if all(task in own.task_index and not _children(own.task_index[task]) for task in tasks):
            return own
        return _index(str(folder), True)
    return _index(None, True)


@lru_cache(maxsize=4)
def _index(folder: str | None, defaults: bool) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingPackageError(
            "lm-evaluation-harness tasks need the package 'lm_eval' (pip install 'unlearn[lm-eval]')"
        ) from error
    with _quiet():
        return TaskManager(include_path=folder, include_defaults=defaults)


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _random_states_kept(model: PreTrainedModel) -> Iterator[None]:
    """The harness seeds Python, numpy and torch globally; what is sampled after it must not depend on that."""
    python, array = random.getstate(), np.random.get_state()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
