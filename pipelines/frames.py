"""What commands wrote, as pandas tables: runs, evaluations and their answers, searches, frontiers, robustness.

Folders may be URIs of an object store, and may belong to work that goes on. Each table has in `attrs` what holds for
all its rows. A value that is missing is NaN, or NA in a column of whole numbers.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.evaluated_models import NOT_METRICS
from pipelines.glance import read_steps
from pipelines.locations import folder_or_uri
from unlearn_core.errors import MissingPackageError, UserError

if TYPE_CHECKING:
    import pandas as pd

_SETTINGS = ("suite", "benchmark", "forget_split", "benchmark_fingerprint", "target", "reference", "device", "versions")


def read_run(folder: str | Path) -> "pd.DataFrame":
    """The steps of a training run, also while it trains.

    Args:
        folder: the run's.

    Returns:
        Index `step`, from 1. Columns that a method always has:

        - `loss_SET` (`loss_retain`, `loss_forget`, ...): mean of the objective over the global batch, before the step;
          cross-entropies in nats a label token. A forget loss is as it is minimised or climbed on, see the method.
        - `learning_rate`: of the step; `update_norm`: L2 norm of the combined gradient, clipped.
        - `seconds`: of the step, without export and checkpoint.

        A method that keeps its gradients apart has `norm_SET`, their L2 norms, and `cosine`, of the angle between two;
        a moving teacher `teacher_gap`; AutoLR `auto_rate` and `auto_probes/OUTCOME`, counts up to this step. `attrs`:
        `run`, `method`, `status`, `steps`, `fingerprint`.

    Raises:
        UserError: no run there.
    """
    pd = _pandas()
    place = folder_or_uri(folder)
    record = _document(place, "run.json", "a run, such as outputs/ngdiff")
    lines = [_flattened(line) for line in read_steps(place)]
    table = pd.DataFrame(lines, columns=None if lines else ["step"]).set_index("step")
    table.attrs |= {name: record.get(name) for name in ("run", "method", "status", "steps", "fingerprint")}
    return table


def read_evaluation(folder: str | Path) -> "pd.DataFrame":
    """The models of a finished evaluation with all their aggregates.

    Args:
        folder: the evaluation's.

    Returns:
        Index `model`. Columns `run`, `method`, `step` (0 for the untouched target), `role` (target, reference or
        checkpoint), `path`, `variant` (empty, or the quantisation), then a column for each aggregate; docs/metrics.md
        has their ranges and better directions. `attrs`: the settings, fingerprint and versions of the evaluation, and
        `missing`: model -> aggregate -> why it has none.

    Raises:
        UserError: no evaluation there, or an unfinished one.
    """
    pd = _pandas()
    place = folder_or_uri(folder)
    about = _document(place, "evaluation.json", "a finished evaluation")
    table = pd.read_csv(place / "metrics.csv", dtype={"step": "Int64", **dict.fromkeys(_TEXTS, str)})
    table[_TEXTS] = table[_TEXTS].fillna("")
    metrics = [name for name in table.columns if name not in NOT_METRICS]
    table = table.astype(dict.fromkeys(metrics, float)).set_index("model")
    table.attrs |= {name: about.get(name) for name in _SETTINGS} | {"missing": about.get("missing", {})}
    return table


def read_answers(folder: str | Path, model: str | None = None, group: str | None = None) -> "pd.DataFrame":
    """What was measured on each row, question by question, also of an unfinished evaluation.

    Args:
        folder: the evaluation's.
        model: only this model; None for all.
        group: only this group of rows, such as forget or retain; None for all.

    Returns:
        Columns `model`, `group`, `item_id`, `question`, `answer` (the right one), `generation` (the model's, greedy),
        `prob` (of the right answer: geometric mean over its tokens, in (0, 1]), `rougeL_recall` (of the generation, in
        [0, 1]), `extraction_strength`, and whatever else the suite records; missing where the group lacks it.

    Raises:
        UserError: no records there, or no such model or group; names those there are.
    """
    pd = _pandas()
    place = folder_or_uri(folder)
    files = sorted(place.glob("records/*/*.parquet"))
    for chosen, names, what in (
        (model, {path.parent.name for path in files}, "model"),
        (group, {path.stem for path in files}, "group"),
    ):
        if chosen is not None and chosen not in names:
            raise UserError(f"{folder} has no records of the {what} '{chosen}'; it has {', '.join(sorted(names))}.")
    if not files:
        raise UserError(f"{folder} has no records/*/*.parquet; give an evaluation, such as outputs/evaluation.")
    kept = [path for path in files if model in (None, path.parent.name) and group in (None, path.stem)]
    if not kept:
        raise UserError(f"{folder} has no records of the group '{group}' of the model '{model}'.")
    tables = [pd.read_parquet(path).assign(model=path.parent.name, group=path.stem) for path in kept]
    table = pd.concat(tables, ignore_index=True)
    first = [name for name in ("model", "group", "item_id", "question", "answer", "generation") if name in table]
    return table[first + [name for name in table.columns if name not in first]]


def read_frontier(folder: str | Path) -> "pd.DataFrame":
    """The points of a frontier.

    Args:
        folder: what `unlearn frontier` wrote.

    Returns:
        A row a model, or a scored step of a search: `run`, `method`, `step`, `role`, `model`, `path`, the two columns
        that were asked for, then `utility` and `forgetting` as drawn (higher is better), `on_front`,
        `hypervolume_contribution`, and `reason` where a row is no candidate. `attrs`: summary.json, with `hypervolume`.

    Raises:
        UserError: no frontier there.
    """
    pd = _pandas()
    place = folder_or_uri(folder)
    summary = _document(place, "summary.json", "a frontier, such as outputs/frontier")
    if not (place / "frontier.csv").is_file():
        raise UserError(f"{folder} has no frontier.csv; give what `unlearn frontier` wrote, such as outputs/frontier.")
    table = pd.read_csv(place / "frontier.csv")
    table.attrs |= summary
    return table


def read_search(folder: str | Path) -> "pd.DataFrame":
    """The scored steps of a search, also while it runs.

    Args:
        folder: the search's.

    Returns:
        A row a scored step, and one for each trial without any: `search`, `trial`, `origin`, `parent`, `parent_step`,
        `seed`, `status`, `reason`, `step`, `seconds`, `time` (Unix), `feasible`, `on_front`, then `value/NAME` (each
        objective, higher is better), `slack/METRIC`, `config/KEY`, `metric/COLUMN`.

    Raises:
        UserError: no search there, or a damaged file.
    """
    _pandas()
    from tune.archive import read_table

    return read_table(folder_or_uri(folder))


def read_robustness(folder: str | Path) -> "pd.DataFrame":
    """What came back under attack.

    Args:
        folder: what `unlearn robustness` wrote.

    Returns:
        A row for each model, attack and metric: `model`, `attack`, `kind` (relearning, quantisation, prompt),
        `metric`, its value `before` and `after`, the same of the retrained model (`reference_before`,
        `reference_after`), their `ratio`, and `reason` where there is none. `attrs`: `reference`, `target`,
        `benchmark`, `forget_split`, `skipped`.

    Raises:
        UserError: nothing of that kind there.
    """
    pd = _pandas()
    place = folder_or_uri(folder)
    about = _document(place, "robustness.json", "what `unlearn robustness` wrote")
    table = pd.read_csv(place / "robustness.csv")
    table.attrs |= {name: about.get(name) for name in ("reference", "target", "benchmark", "forget_split", "skipped")}
    return table


_TEXTS = ["run", "method", "role", "path", "variant"]


def _flattened(line: dict[str, Any]) -> dict[str, Any]:
    """Counts of AutoLR's probes as columns of their own."""
    flat = {name: value for name, value in line.items() if not isinstance(value, dict)}
    inner = {name: value for name, value in line.items() if isinstance(value, dict)}
    return flat | {f"{name}/{key}": count for name, counts in inner.items() for key, count in counts.items()}


def _document(folder: Path, name: str, what: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise UserError(f"{folder} has no {name}; give the folder of {what}.")
    return json.loads((folder / name).read_text(encoding="utf-8"))


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise MissingPackageError("tables need the package pandas: pip install pandas") from error
    return pandas
