"""Turn open-unlearning logs into an evaluation folder, so that published results land on a frontier beside ours.

The folder is laid out as `unlearn evaluate` does: records/<model id>/<group>.parquet as read from the log, metrics.csv
with every aggregate recomputed from those records, and evaluation.json, written last, with the sources.
"""

import csv
import hashlib
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.evaluated_models import ROLES
from pipelines.locations import folder_or_uri
from pipelines.model_points import Role
from unlearn_core.errors import UserError
from unlearn_core.evaluation.open_unlearning_export import WrittenLog, write_log
from unlearn_core.evaluation.open_unlearning_layout import LAYOUT
from unlearn_core.evaluation.open_unlearning_log import Log, LogEvaluation, compare
from unlearn_core.evaluation.records import SCHEMA_VERSION, ItemRecord, read_metadata, read_parquet, write_parquet
from unlearn_core.publish import write_json, write_text
from unlearn_core.storage import uri_of

SOURCE = "open-unlearning log"
"""What evaluation.json and the records' footers of an import say."""

_FORGET_ROWS = {"forget01": 40, "forget05": 200, "forget10": 400}
_TOFU = "locuslab/TOFU"
_FORGET = {"tofu": "forget10", "muse": "raw/forget"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPoint:
    """One log of an import.

    Attributes:
        name: of the training run; the model's id follows from it.
        path: the log.
        role: "target" (before unlearning), "reference" (retrained without the forget data) or "checkpoint".
        step: optimizer steps of the run. A checkpoint needs it, to have its place on a trajectory.
        method: unlearning method.
    """

    name: str
    path: Path
    role: Role = "checkpoint"
    step: int = 0
    method: str

    @property
    def model_id(self) -> str:
        """`<name>` of a star, `<name>-step-00060` of a checkpoint, as for our own runs."""
        return f"{self.name}-step-{self.step:05d}" if self.role == "checkpoint" else self.name


def log_point(text: str, target: str | None, reference: str | None, methods: Mapping[str, str]) -> LogPoint:
    """Read `NAME=FILE` or `NAME=FILE@STEP`.

    Args:
        text: as typed. Without `@STEP` a checkpoint takes the number from a `checkpoint-60` in its path, where
            trainers that save as Hugging Face does put it.
        target: name of the log that is the model before unlearning.
        reference: name of the retrained model's.
        methods: name to method; a checkpoint without one is a method of its own, under its name.

    Returns:
        The point.

    Raises:
        UserError: no name, or a checkpoint of unknown step.
    """
    name, separator, rest = text.partition("=")
    if not separator or not name or not rest:
        raise UserError(
            f"'{text}': expected NAME=FILE or NAME=FILE@STEP, such as npo=saves/npo/evals/TOFU_EVAL.json@120"
        )
    role: Role = "target" if name == target else "reference" if name == reference else "checkpoint"
    stepped = re.fullmatch(r"(.+)@(\d+)", rest)
    path = folder_or_uri(stepped.group(1) if stepped else rest)
    saved = [part for part in rest.split("/") if re.fullmatch(r"checkpoint-\d+", part)]
    step = int(stepped.group(2)) if stepped else int(saved[-1].rpartition("-")[2]) if saved else None
    if step is None and role == "checkpoint":
        raise UserError(
            f"'{text}': after how many optimizer steps was this model saved? Write {name}={path}@STEP, or name it with "
            "--target or --reference if it is no checkpoint"
        )
    method = methods.get(name, name if role == "checkpoint" else "finetune")
    return LogPoint(name=name, path=path, role=role, step=step or 0, method=method)


def import_logs(
    points: Sequence[LogPoint],
    output: str | Path,
    *,
    benchmark: str | None = None,
    forget_split: str | None = None,
    retain_log: str | Path | None = None,
    compat: bool = False,
) -> list[dict[str, Any]]:
    """Write an evaluation folder from logs of one suite.

    Args:
        points: the logs; at most one has the role `reference`.
        output: the folder. An earlier import there is replaced; an evaluation of our own is not touched.
        benchmark: what our own evaluations of the same rows are called by, since a frontier has one benchmark; None
            for locuslab/TOFU. MUSE's logs do not say of which corpus they are, so there it must be given.
        forget_split: likewise; None for forget10 of TOFU, raw/forget of MUSE.
        retain_log: the retrained model's log, when it is not to be a row of the table itself.
        compat: as for `evaluate_log`.

    Returns:
        Rows of metrics.csv.

    Raises:
        UserError: a mistake in the arguments or in a log, found before anything is written.
    """
    output = Path(output)
    _check_points(points, retain_log)
    logs = {point.model_id: Log(point.path, compat) for point in points}
    suite = _one_suite(logs)
    if benchmark is None and suite == "muse":
        raise UserError(
            "logs of MUSE do not say which corpus they are of; give --benchmark, such as muse-bench/MUSE-News, as it "
            "was given to `unlearn evaluate`"
        )
    benchmark = benchmark or _TOFU
    forget_split = forget_split or _FORGET[suite]
    _check_split(logs, benchmark, forget_split)
    starred = next((point.model_id for point in points if point.role == "reference"), None)
    retrained = logs[starred] if starred else None if retain_log is None else Log(retain_log, compat)
    results = {model_id: compare(log, retrained) for model_id, log in logs.items()}
    _check_output(output)

    (output / "evaluation.json").unlink(missing_ok=True)
    for model_id, log in logs.items():
        folder = output / "records" / model_id
        shutil.rmtree(folder, ignore_errors=True)
        for group, records in log.records.items():
            write_parquet(folder / f"{group}.parquet", records, {"source": SOURCE, "model_id": model_id})
    rows = [_row(point, results[point.model_id], _columns(results.values())) for point in points]
    _write_table(output / "metrics.csv", rows)
    about = {
        "status": "complete",
        "source": SOURCE,
        "suite": suite,
        "benchmark": benchmark,
        "forget_split": forget_split,
        "compat": compat,
        "reference": starred,
        "target": next((point.model_id for point in points if point.role == "target"), None),
        "retain_log": None if retrained is None else _identity(retrained),
        "models": {model_id: _identity(log) for model_id, log in logs.items()},
        "missing": {model_id: result.missing for model_id, result in results.items()},
        "not_read": {model_id: list(result.not_read) for model_id, result in results.items()},
        "notes": sorted({note for result in results.values() for note in result.notes}),
        "schema_version": SCHEMA_VERSION,
    }
    write_json(output / "evaluation.json", about)
    return rows


def export_log(evaluation: str | Path, model: str, output: str | Path) -> WrittenLog:
    """Write one model of an evaluation folder as an open-unlearning log.

    Args:
        evaluation: folder that `unlearn evaluate` or `import_logs` wrote.
        model: the model's id there.
        output: target file; in a folder, the file gets open-unlearning's own name.

    Returns:
        What was written and what was left out.

    Raises:
        UserError: no whole evaluation, no such model, or a suite that open-unlearning has no log of.
    """
    folder, path = Path(evaluation), Path(output)
    about = _read_about(folder)
    if not isinstance(about, dict) or about.get("status") != "complete":
        raise UserError(f"{folder} holds no complete evaluation; expected a folder that `unlearn evaluate` finished")
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    if model not in rows:
        raise UserError(f"{folder} has no model '{model}'; it has {', '.join(rows)}")
    records = _read_records(folder, model)
    suite = about["suite"] if about.get("suite") in LAYOUT else _suite_of(records)
    if suite is None:
        raise UserError(
            f"{folder}: open-unlearning has no log of these groups of rows ({', '.join(records) or 'none'}); expected "
            "an evaluation of TOFU or MUSE"
        )
    aggregates = {name: float(text) for name, text in rows[model].items() if text and name not in _IDENTITY}
    reference = about.get("reference")
    theirs = _read_records(folder, reference) if isinstance(reference, str) else None
    target = path / f"{suite.upper()}_EVAL.json" if path.is_dir() else path
    return write_log(target, suite, records, aggregates, theirs)


_IDENTITY = ("model", "run", "method", "step", "role", "path", "variant")


def _check_points(points: Sequence[LogPoint], retain_log: str | Path | None) -> None:
    if not points:
        raise UserError("no logs to import; give at least one as NAME=FILE@STEP")
    for point in points:
        if not re.fullmatch(r"[A-Za-z0-9][\w.=+-]*", point.model_id, re.ASCII):
            raise UserError(
                f"'{point.name}' names a folder; use letters, digits and ._+- only, first a letter or digit"
            )
        if point.role not in ROLES:
            raise UserError(f"{point.name}: unknown role '{point.role}'; expected one of {', '.join(ROLES)}")
    twice = [model_id for model_id, count in Counter(point.model_id for point in points).items() if count > 1]
    if twice:
        raise UserError(f"'{twice[0]}' is given twice; checkpoints of one run need different steps, NAME=FILE@STEP")
    for role in ("target", "reference"):
        named = [point.name for point in points if point.role == role]
        if len(named) > 1:
            raise UserError(f"{len(named)} logs have the role '{role}' ({', '.join(named)}); expected one")
    references = [point.name for point in points if point.role == "reference"]
    if references and retain_log is not None:
        raise UserError(
            f"--reference {references[0]} and --retain-log {retain_log} both name the retrained model; give one: "
            "--reference for a star of its own in the picture"
        )


def _one_suite(logs: Mapping[str, Log]) -> str:
    suites = {model_id: log.suites for model_id, log in logs.items()}
    if len(set(suites.values())) > 1 or any(len(found) > 1 for found in suites.values()):
        named = "; ".join(f"{model_id}: {' and '.join(found)}" for model_id, found in suites.items())
        raise UserError(f"expected logs of one suite, got {named}. Import each suite into a folder of its own")
    return next(iter(suites.values()))[0]


def _check_split(logs: Mapping[str, Log], benchmark: str, forget_split: str) -> None:
    """TOFU's splits have known sizes; a log of another one must not stand under this one's name."""
    expected = _FORGET_ROWS.get(forget_split) if benchmark == _TOFU else None
    for log in logs.values():
        found = len(log.records.get("forget", ()))
        if expected and found and found != expected:
            fitting = [name for name, count in _FORGET_ROWS.items() if count == found]
            raise UserError(
                f"{log.path} has {found} forget rows, and {forget_split} of {benchmark} has {expected}; give "
                f"--forget-split{f' {fitting[0]}' if fitting else ' and --benchmark of these rows'}"
            )


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder for the evaluation")
    about = _read_about(output)
    own = about is not None and about.get("source") != SOURCE
    own = own or any(output.glob("records/*/*.parts"))  # one that was interrupted
    if own or any(read_metadata(path).get("source") != SOURCE for path in output.glob("records/*/*.parquet")):
        raise UserError(f"--output {output} holds an evaluation that was not imported; give another folder")


def _columns(results: Any) -> list[str]:
    """Columns of the table: those that a log has a value of, or a reason for having none."""
    names = dict.fromkeys(name for result in results for name in result.columns)
    return [name for name in names if any(name in r.recomputed or name in r.missing for r in results)]


def _row(point: LogPoint, result: LogEvaluation, columns: Sequence[str]) -> dict[str, Any]:
    return {
        "model": point.model_id,
        "run": point.name,
        "method": point.method,
        "step": point.step,
        "role": point.role,
        "path": uri_of(point.path) or str(point.path.resolve()),
        "variant": "",
        **{name: result.recomputed.get(name) for name in columns},
    }


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _identity(log: Log) -> dict[str, str]:
    return {
        "log": uri_of(log.path) or str(log.path.resolve()),
        "sha256": hashlib.sha256(log.path.read_bytes()).hexdigest(),
    }


def _read_about(folder: Path) -> dict[str, Any] | None:
    """Content of evaluation.json; None without one."""
    path = folder / "evaluation.json"
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); give another folder, or evaluate again") from error
    return about if isinstance(about, dict) else {}


def _read_records(folder: Path, model: str) -> dict[str, list[ItemRecord]]:
    return {path.stem: read_parquet(path) for path in sorted((folder / "records" / model).glob("*.parquet"))}


def _suite_of(records: Mapping[str, Sequence[ItemRecord]]) -> str | None:
    """The suite most of whose groups are there; records may have groups of other suites on top."""
    shares = {suite: len(groups.keys() & records.keys()) for suite, groups in LAYOUT.items()}
    best = max(shares, key=lambda suite: shares[suite])
    return best if shares[best] else None
