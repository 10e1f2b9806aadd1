"""`unlearn show`: what a folder holds, at a glance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from pipelines import terminal
from pipelines.locations import input_place

EPILOG = (
    "**Examples**\n\n"
    "`unlearn show outputs/ngdiff`  (a run: where it stands, its curves, its models, its scores)\n\n"
    "`unlearn show outputs/evaluation`  (also searches, pairs of fine-tunes, robustness, frontiers, model folders)\n\n"
    "`unlearn show outputs/ngdiff --json | jq .step`"
)
_ROWS = 16
_CURVES = {"learning_rate": "learning rate", "update_norm": "norm of the update", "teacher_gap": "gap to the teacher"}


def show(
    folder: Annotated[Path, typer.Argument(parser=input_place, help="A folder that a command of `unlearn` wrote.")],
) -> Any:
    """A run or any other output at a glance; also while it is at work."""
    from pipelines.glance import glance

    found = glance(folder)
    _SHOW[found["kind"]](found)
    return found


def _run(run: Mapping[str, Any]) -> None:
    step = f"step {run['step']} of {run['steps']}" if run["steps"] else f"step {run['step']}"
    data = [f"{name} {_listed(value)}" for name, value in run["data"].items()]
    pace = "" if run["seconds_a_step"] is None else f", {run['seconds_a_step']:.2f} s a step"
    _lines(
        ("run", f"{run['run']}  ({run['method']})"),
        ("status", f"{run['status']}, {step}{pace}" + (f": {run['reason']}" if run["reason"] else "")),
        ("model", run["model"]),
        ("data", "; ".join(data)),
        ("models", _steps(run["exports"])),
        ("checkpoints", _steps(run["checkpoints"])),
        ("events", f"{run['events']['count']}, the last: {run['events']['last']}" if run["events"]["count"] else None),
        ("best", _best(run["best"])),
    )
    if run["curves"]:
        table = Table("", Column("first", justify="right"), "", Column("last", justify="right"))
        for name, curve in run["curves"].items():
            title = _CURVES.get(name, name.replace("loss_", "loss, ").replace("norm_", "gradient norm, "))
            table.add_row(title, _number(curve["first"]), curve["line"], _number(curve["last"]))
        terminal.out.print(table)
    for evaluation in run["evaluations"]:
        terminal.out.print(f"scores in {evaluation['folder']}", highlight=False, markup=False, soft_wrap=True)
        _models(evaluation["models"])


def _pair(pair: Mapping[str, Any]) -> None:
    _lines(("pair", f"target and reference, {pair['status']}"))
    for role in ("target", "reference"):
        terminal.out.print(f"\n{role}")
        if role in pair:
            _run(pair[role])
        else:
            terminal.out.print("not begun yet")


def _evaluation(found: Mapping[str, Any]) -> None:
    if found["status"] == "unfinished":
        groups = ", ".join(f"{model} {count}" for model, count in found["groups_scored"].items())
        _lines(("evaluation", "unfinished; the same command goes on"), ("groups scored", groups or "none yet"))
        return
    _lines(
        ("evaluation", f"{found['suite']}, {found['benchmark']}, forget split {found['forget_split']}"),
        ("stars", f"target {found['target'] or 'none'}, reference {found['reference'] or 'none'}"),
        ("made on", f"{found['device']}, " + ", ".join(f"{name} {one}" for name, one in found["versions"].items())),
    )
    _models(found["models"])


def _search(found: Mapping[str, Any]) -> None:
    trials = ", ".join(f"{count} {name}" for name, count in found["trials"].items())
    _lines(
        ("search", f"{found['search']} by {found['searcher']}, {found['status']}"),
        ("trials", f"{trials or 'none yet'}; {found['steps_spent']} optimizer steps"),
        ("hypervolume", f"{found['hypervolume']:.4f} of {len(found['front'])} non-dominated points"),
    )
    if found["front"]:
        names = found["objectives"]
        table = Table("trial", "step", *(Column(name, justify="right") for name in names))
        for point in found["front"][:_ROWS]:
            table.add_row(str(point["trial"]), str(point["step"]), *(_number(point[name]) for name in names))
        terminal.out.print(table)
        _more(len(found["front"]), "points")


def _robustness(found: Mapping[str, Any]) -> None:
    _lines(
        ("robustness", f"{found['benchmark']}, forget split {found['forget_split']}; reference {found['reference']}"),
        ("attacks", ", ".join(found["attacks"])),
        ("left out", "; ".join(f"{name}: {reason}" for name, reason in found["skipped"].items())),
    )
    leading = [score for score in found["scores"] if score["metric"] == found["metric"]]
    if leading:
        columns = [name for name in leading[0] if isinstance(leading[0][name], int | float | None)]
        table = Table("model", *(Column(name.replace("_", " "), justify="right") for name in columns))
        for score in leading[:_ROWS]:
            table.add_row(score["model"], *(_number(score[name]) for name in columns))
        terminal.out.print(table)


def _frontier(found: Mapping[str, Any]) -> None:
    _lines(
        ("frontier", f"{len(found.get('front', ()))} non-dominated points, hypervolume {found.get('hypervolume'):.4f}"),
        ("of", ", ".join(map(str, found.get("evaluations", ())))),
        ("picture", found["folder"] / "frontier.png"),
    )


def _model(found: Mapping[str, Any]) -> None:
    made = found["made_by"] or {}
    _lines(
        ("model", f"{found['architecture']}, {found['dtype']}, {found['bytes'] / 2**20:.1f} MiB"),
        ("export", found["status"]),
        ("made by", ", ".join(f"{name} {value}" for name, value in made.items() if isinstance(value, int | str))),
    )


_SHOW = {
    "run": _run,
    "pair": _pair,
    "evaluation": _evaluation,
    "search": _search,
    "robustness": _robustness,
    "frontier": _frontier,
    "model": _model,
}


def _lines(*pairs: tuple[str, Any]) -> None:
    for name, value in pairs:
        if value:
            terminal.out.print(f"{name:<13}{value}", highlight=False, markup=False, soft_wrap=True)


def _models(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    names = [name for name in rows[0] if name not in ("model", "run", "method", "role", "step")]
    table = Table(
        Column("model", overflow="fold"), *(Column(name.replace("_", " "), justify="right") for name in names)
    )
    for row in rows[:_ROWS]:
        table.add_row(row["model"], *(_number(row[name]) for name in names))
    terminal.out.print(table)
    _more(len(rows), "models")


def _more(count: int, what: str) -> None:
    if count > _ROWS:
        terminal.out.print(f"{_ROWS} of {count} {what}; --json has all", highlight=False)


def _steps(names: Sequence[str]) -> str:
    steps = [name.removeprefix("step-").lstrip("0") or "0" for name in names]
    return f"{len(steps)}, at steps {', '.join(steps)}" if steps else "none"


def _best(best: Mapping[str, Any] | None) -> str | None:
    if best is None:
        return None
    chosen = f"{best['model_id']}, step {best['step']}" if best["model_id"] else "none yet"
    return f"{chosen} by {best['criterion']}" + (f" ({best['reason']})" if best["reason"] else "")


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
