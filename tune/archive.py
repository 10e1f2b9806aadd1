"""The trajectory archive on disk: every scored step of every trial, append-only, safe against a kill at any moment.

    SEARCH/search.json                what is searched: space, goal, searcher, budget; written once
    SEARCH/trials.jsonl               a line when a trial starts, a line when it ends; written by the driver
    SEARCH/trials/0007/steps.jsonl    a line a scored step; written by the process that runs trial 7, then told
    SEARCH/archive.parquet            all of it as one table, remade from the lines

Each file has one writer. A line counts once its newline is on disk; a line that a kill cut off is dropped when its file
is next opened for writing, and its step is done again. Diverged, out-of-memory, hung, failed and pruned trials are rows
of the table too: one without a step where they have no scored one.
"""

import io
import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.history import History, Origin, Point, Status, Trial
from tune.objectives import Goal
from tune.space import Config
from unlearn_core.errors import UserError
from unlearn_core.publish import write_json

if TYPE_CHECKING:
    import pandas as pd

SEARCH = "search.json"
TRIALS = "trials.jsonl"
STEPS = "steps.jsonl"
TABLE = "archive.parquet"
FORMAT = 1


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a JSON line and wait until it is on disk; first drop a half-written last line.

    NaN and infinity are refused (`ValueError`): leave such numbers out.
    """
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    with open(path, "a+b") as file:
        _drop_torn_line(file)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _drop_torn_line(file: Any) -> None:
    end = file.seek(0, io.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    whole = file.read()
    file.truncate(whole.rfind(b"\n") + 1)
    file.seek(0, io.SEEK_END)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, none where there is no file.

    Raises:
        UserError: a line in the middle is not JSON: not the mark of a kill, but of a damaged file.
    """
    if not path.is_file():
        return []
    *whole, _torn = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(whole, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is damaged ({error}). Restore the file from a copy, or delete that line to go "
                "on without it."
            ) from error
    return records


def point_record(point: Point) -> dict[str, Any]:
    """A point as plain data; values that are not finite become null."""
    return {
        "trial": point.trial,
        "step": point.step,
        "values": [_or_null(value) for value in point.values],
        "slacks": [_or_null(slack) for slack in point.slacks],
        "metrics": {name: value for name, value in point.metrics.items() if math.isfinite(value)},
        "seconds": point.seconds,
        "time": point.time,
    }


def point_of(record: dict[str, Any]) -> Point:
    """The inverse of `point_record`."""
    return Point(
        trial=record["trial"],
        step=record["step"],
        values=tuple(math.nan if value is None else value for value in record["values"]),
        slacks=tuple(math.nan if slack is None else slack for slack in record["slacks"]),
        metrics=record["metrics"],
        seconds=record["seconds"],
        time=record["time"],
    )


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Archive:
    """The archive of one search. The driver holds one; trials write through `TrialLog`.

    Args:
        folder: the search's folder.
        about: content of search.json: at least `fingerprint` and `goal`.

    Raises:
        UserError: the folder holds another search, or its files are damaged.
    """

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.folder, self.about = Path(folder), about
        self.goal = Goal.from_data(about["goal"])
        path = self.folder / SEARCH
        if path.is_file():
            earlier = json.loads(path.read_text(encoding="utf-8"))
            if earlier.get("fingerprint") != about["fingerprint"]:
                raise UserError(
                    f"{folder} holds the search '{earlier.get('name')}' with other settings (fingerprint "
                    f"{earlier.get('fingerprint')}, now {about['fingerprint']}). Choose another --output, or delete "
                    "that folder. Only the budget, the concurrency and the resources may change."
                )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, about | {"format": FORMAT})
        self.history = read_history(self.folder)

    def start(
        self,
        config: Config,
        seed: int,
        origin: Origin = "search",
        parent: int | None = None,
        parent_step: int | None = None,
        note: dict[str, Any] | None = None,
    ) -> Trial:
        """Give a trial its number and make it known on disk before anything runs."""
        trial = Trial(self.history.next_number, config, seed, origin, parent, parent_step)
        line = {"event": "start", "trial": trial.number, "config": config, "seed": seed, "origin": origin}
        line |= {"parent": parent, "parent_step": parent_step, "time": time.time()}
        append_line(self.folder / TRIALS, line | (note or {}))
        self.history.add(trial)
        return trial

    def end(self, number: int, status: Status, reason: str = "", steps_done: int | None = None) -> None:
        """Record a trial's end; a second one is ignored."""
        if self.history.end(number, status, reason, steps_done):
            done = self.history.trials[number].steps_done
            line = {"event": "end", "trial": number, "status": status, "reason": reason, "steps_done": done}
            append_line(self.folder / TRIALS, line | {"time": time.time()})

    def session(self) -> None:
        """Note that a call of the search begins now."""
        append_line(self.folder / TRIALS, {"event": "session", "time": time.time()})

    def seconds_used(self) -> float:
        """Wall-clock seconds of all earlier calls, each from its beginning to the last thing it recorded."""
        lines = read_lines(self.folder / TRIALS)
        starts = [line["time"] for line in lines if line["event"] == "session"]
        times = [line["time"] for line in lines] + [point.time for trial in self.history for point in trial.points]
        ends = [*starts[1:], math.inf][: len(starts)]
        return sum(
            max((moment for moment in times if start <= moment < end), default=start) - start
            for start, end in zip(starts, ends, strict=True)
        )

    def trial_folder(self, number: int) -> Path:
        """Where trial `number` keeps its own files."""
        return trial_folder(self.folder, number)

    def table(self) -> "pd.DataFrame":
        """As `read_table`, from memory."""
        return table_of(self.history, self.goal, self.about.get("name", self.folder.name))

    def write_table(self) -> Path:
        """Remake archive.parquet."""
        path = self.folder / TABLE
        aside = path.with_name(f".{TABLE}.part")
        self.table().to_parquet(aside)
        os.replace(aside, path)
        return path


class TrialLog:
    """What a trial's process writes: its scored steps.

    Args:
        folder: the search's folder.
        number: of the trial.
    """

    def __init__(self, folder: Path, number: int):
        self.folder, self.number = trial_folder(Path(folder), number), number
        self.folder.mkdir(parents=True, exist_ok=True)

    def points(self) -> list[Point]:
        """What is recorded already; a step told twice counts once."""
        found = {record["step"]: point_of(record) for record in reversed(read_lines(self.folder / STEPS))}
        return [found[step] for step in sorted(found)]

    def add(self, point: Point) -> None:
        """Append a point; on disk when this returns."""
        append_line(self.folder / STEPS, point_record(point))


def trial_folder(folder: Path, number: int) -> Path:
    """SEARCH/trials/0007."""
    return folder / "trials" / f"{number:04d}"


def read_about(folder: Path) -> dict[str, Any]:
    """search.json.

    Raises:
        UserError: no search there.
    """
    path = Path(folder) / SEARCH
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no search: cannot read {path} ({error}).") from error


def read_history(folder: Path) -> History:
    """All trials of a search's folder, from its lines; safe beside a running search."""
    history = History()
    for line in read_lines(Path(folder) / TRIALS):
        if line["event"] == "start":
            known = (line[name] for name in ("trial", "config", "seed", "origin", "parent", "parent_step"))
            history.add(Trial(*known))
        elif line["event"] == "end":
            history.end(line["trial"], line["status"], line["reason"], line["steps_done"])
    for trial in history:
        for record in read_lines(trial_folder(Path(folder), trial.number) / STEPS):
            history.record(point_of(record))
    return history


def read_table(folder: Path) -> "pd.DataFrame":
    """A search as one table, also while it runs: a row a scored step, and a row for each trial without one.

    Returns:
        Columns `search`, `trial`, `origin`, `parent`, `parent_step`, `seed`, `status`, `reason`, `step` (missing for a
        trial without a scored step), `seconds`, `time`, `feasible`, `on_front`, `value/NAME` for each objective,
        `slack/METRIC` for each constraint, `config/KEY` and `metric/COLUMN`.

    Raises:
        UserError: no search there, or a damaged file.
    """
    about = read_about(folder)
    return table_of(read_history(folder), Goal.from_data(about["goal"]), about.get("name", Path(folder).name))


def table_of(history: History, goal: Goal, name: str) -> "pd.DataFrame":
    """The table of `read_table`."""
    import pandas as pd

    front = {(point.trial, point.step) for point in history.front()}
    rows = []
    for trial in history:
        head: dict[str, Any] = {
            "search": name,
            "trial": trial.number,
            "origin": trial.origin,
            "parent": trial.parent,
            "parent_step": trial.parent_step,
            "seed": trial.seed,
            "status": trial.status,
            "reason": trial.reason,
        }
        tail = {f"config/{key}": value for key, value in trial.config.items()}
        for point in trial.points:
            middle: dict[str, Any] = {
                "step": point.step,
                "seconds": point.seconds,
                "time": point.time,
                "feasible": point.candidate,
                "on_front": (trial.number, point.step) in front,
            }
            middle |= {f"value/{one.name}": v for one, v in zip(goal.objectives, point.values, strict=True)}
            middle |= {f"slack/{one.metric}": s for one, s in zip(goal.constraints, point.slacks, strict=True)}
            rows.append(head | middle | tail | {f"metric/{key}": value for key, value in point.metrics.items()})
        if not trial.points:
            rows.append(head | {"step": None, "feasible": False, "on_front": False} | tail)
    first = ["search", "trial", "origin", "parent", "parent_step", "seed", "status", "reason", "step"]
    first += ["seconds", "time", "feasible", "on_front", *(f"value/{one.name}" for one in goal.objectives)]
    table = pd.DataFrame(rows, columns=None if rows else first)
    order = [*first, *(column for column in table.columns if column not in first)]
    table = table.reindex(columns=order)
    for column in table.columns:
        # A column of parquet holds one type: numbers, or text for everything else.
        if column.startswith("config/") and table[column].dtype == object:
            table[column] = table[column].map(lambda value: value if value is None or value != value else str(value))
    return table.astype({"step": "Int64", "parent": "Int64", "parent_step": "Int64"})
