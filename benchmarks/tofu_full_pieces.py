"""Run one piece of `benchmarks.tofu_full`: teach a model, unlearn and score every epoch, or attack what was selected.

Training is `unlearn_core.loop`, scoring the evaluation engine, both in this process. Folders under `work`:

    tofu/                rows, where a smoke run cuts them
    SIZES/start/         tokenizer, fresh weights, the mean teacher's text; SIZES stands for sizes and rows
    SIZES/models/NAME/   target, reference, each run's selected epoch
    SIZES/records/       what was measured of each row by target and reference
"""

import dataclasses
import gc
import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks import tofu_full_plan as plan
from benchmarks.one_gpu import Deadline, device
from unlearn_core.config import RunConfig
from unlearn_core.data.tofu import Benchmark, open_benchmark
from unlearn_core.data.tokenization import Formatter, load_tokenizer
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.errors import MissingPackageError, UserError
from unlearn_core.evaluation import membership
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.engine import measure
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.leakage import quantisation_robustness, relearning_robustness
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.suite import Records, Suite, non_finite
from unlearn_core.evaluation.tofu import suite as tofu_suite
from unlearn_core.local import LocalContext
from unlearn_core.loop import Outcome, StopReason, model_folder, run
from unlearn_core.models import build_small_llama, load_model
from unlearn_core.publish import is_complete, publish_folder, write_json, write_text

KNOWN = "extraction_strength"
"""What relearning and quantisation are judged by: how much of a forget answer the model goes on with by itself."""
SPLITS = (
    *("full", plan.FORGET, f"{plan.FORGET}_perturbed", plan.RETAIN, "retain_perturbed", "holdout10"),
    *plan.KEPT,
    *(f"{name}_perturbed" for name in plan.KEPT),
)
"""Of TOFU, all that is read."""
RESERVE = 40.0
"""Seconds before the deadline at which teaching saves a checkpoint and ends."""


class StoppedForTime(Exception):
    """The command's time is up; the piece goes on from its checkpoint in the next one."""


class PieceContext(LocalContext):
    """A run that ends itself in time, with a checkpoint, where there is a deadline; else one without checkpoints."""

    def __init__(self, output: Path, deadline: Deadline | None):
        super().__init__(output)
        self._deadline = deadline

    def checkpoint(self, metrics: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Only for a run that may have to go on: one of a minute is done again instead."""
        if self._deadline is not None:
            super().checkpoint(metrics, write)

    def stop_reason(self) -> StopReason:
        """When little time is left."""
        return "stopped" if self._deadline is not None and self._deadline.left < RESERVE else ""


@dataclass
class Place:
    """Where pieces run, and what they share; read once a process.

    Args:
        scale: size of everything.
        source: TOFU's folder.
        work: models and records.
        deadline: of this command.
    """

    scale: plan.Scale
    source: Path
    work: Path
    deadline: Deadline
    lacking: dict[str, str] = field(init=False, default_factory=dict)
    """Package -> what cannot be measured without it."""

    def __post_init__(self) -> None:
        for name, what in (
            ("rouge_score", "generated answers (ROUGE and model utility)"),
            ("scipy", "forget quality"),
            ("bitsandbytes", "4-bit weights"),
            ("accelerate", "4-bit weights"),
        ):
            if importlib.util.find_spec(name) is None:
                self.lacking[name] = what

    @cached_property
    def tofu(self) -> Path:
        """The rows' folder.

        Raises:
            UserError: there is no such folder, or it lacks a split.
        """
        whole = open_benchmark(str(self.source))
        for split in SPLITS:
            whole.split(split)
        return plan.cut_benchmark(self.source, self.work / "tofu", self.scale.cut)

    @cached_property
    def benchmark(self) -> Benchmark:
        """The rows."""
        return open_benchmark(str(self.tofu))

    @cached_property
    def data_fingerprint(self) -> str:
        """Of the rows that are taught and scored."""
        return self.benchmark.fingerprint(SPLITS)[:12]

    @cached_property
    def home(self) -> Path:
        """Folder of everything that depends on these sizes and rows."""
        return self.work / plan.digest([plan.scale_values(self.scale), self.data_fingerprint])

    @cached_property
    def suite(self) -> Suite:
        """TOFU's."""
        return tofu_suite(self.benchmark, plan.FORGET)

    @cached_property
    def start(self) -> Path:
        """Tokenizer and fresh weights, the same for target and reference; and the mean teacher's text."""
        folder = self.home / "start"
        if is_complete(folder):
            return folder
        rows = [row for split in ("full", *plan.KEPT) for row in self.benchmark.split(split)]
        words = [f"{row.question} {row.answer}" for row in rows]
        tokenizer = train_tokenizer(words, self.scale.llama.vocab_size)

        def fill(aside: Path) -> None:
            build_small_llama(self.scale.llama, tokenizer, seed=0).save_pretrained(aside)
            tokenizer.save_pretrained(aside)
            write_text(aside / "generic.jsonl", plan.generic_text(self.benchmark))

        return publish_folder(folder, fill, {"rows": len(rows)})

    @cached_property
    def formatter(self) -> Formatter:
        """Of every model here."""
        return Formatter(load_tokenizer(str(self.start)), "plain", plan.MAX_LENGTH)

    def model(self, name: str) -> Path:
        """Folder of a model that was kept."""
        return self.home / "models" / name

    @property
    def epoch(self) -> int:
        """Steps of one pass over the forget rows."""
        return -(-len(self.benchmark.split(plan.FORGET)) // self.scale.rows)

    # -- training ----------------------------------------------------------------------------------------------------

    def train(self, config: RunConfig, resumes: bool = False) -> tuple[Outcome, Path]:
        """The loop, in a folder of its own; a run that cannot resume starts anew.

        Raises:
            StoppedForTime: a run that resumes had to end for now.
        """
        output = self.home / "runs" / config.name
        if not resumes:
            shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True, exist_ok=True)
        outcome = run(config, PieceContext(output, self.deadline if resumes else None))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if outcome.status == "stopped":
            raise StoppedForTime(outcome.reason)
        return outcome, output

    def keep(self, exported: Path, name: str) -> None:
        """Move an exported model to where it stays."""
        target = self.model(name)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(exported, target)

    # -- scoring -----------------------------------------------------------------------------------------------------

    def records(self, folder: Path, items: Sequence[Item], quantisation: str = "none") -> dict[str, list[ItemRecord]]:
        """Group -> records of a model on these items.

        Raises:
            MissingPackageError: the quantisation needs a package that is not there.
        """
        config = EvaluationConfig(
            style="plain", max_length=plan.MAX_LENGTH, max_new_tokens=self.scale.answer, dtype=self.scale.dtype
        )
        model: Any = load_model(str(folder), config.dtype, quantisation=quantisation)
        model.to(device())
        groups: dict[str, list[Item]] = {}
        for item in items:
            groups.setdefault(item.group, []).append(item)
        with torch.inference_mode():
            return {group: measure(model, self.formatter, mine, config) for group, mine in groups.items()}

    def likelihood_items(self, groups: Sequence[str] = ("forget", "retain", "ra", "wf")) -> list[Item]:
        """Items without generated answers."""
        return [replace(item, generate=False) for item in self.suite.items if item.group in groups]

    def all_items(self) -> list[Item]:
        """Every item; without generated answers where ROUGE cannot be computed."""
        if "rouge_score" not in self.lacking:
            return list(self.suite.items)
        return self.likelihood_items(tuple(self.suite.groups))

    def values(self, records: Records, reference: Records | None) -> tuple[dict[str, float], dict[str, str]]:
        """Aggregates and reasons for what is missing."""
        try:
            found = self.suite.aggregate(records, reference, False)
        except MissingPackageError as error:  # scipy, for forget quality alone
            found = self.suite.aggregate(records, None, False)
            attacks = membership.aggregate(records, reference, False)
            missing = {**found.missing, **attacks.missing}
            for name in ("forget_quality", "forget_quality_log10"):
                missing[name] = str(error)
            values = {**found.values, **attacks.values}
            return values, {name: why for name, why in missing.items() if name not in values}
        return found.values, found.missing

    def stored(self, name: str) -> dict[str, list[ItemRecord]]:
        """Records of target or reference that its piece left.

        Raises:
            UserError: it has not been taught yet, or its folder was removed.
        """
        path = self.home / "records" / f"{name}.json"
        if not path.is_file():
            raise UserError(f"{path} is missing; delete {name}.json among the results to have it taught again")
        groups = json.loads(path.read_text(encoding="utf-8"))
        return {group: [_record(row) for row in rows] for group, rows in groups.items()}

    def store(self, name: str, records: Records) -> None:
        """Write records as JSON."""
        rows = {group: [dataclasses.asdict(one) for one in mine] for group, mine in records.items()}
        write_json(self.home / "records" / f"{name}.json", rows)


def _record(row: Mapping[str, Any]) -> ItemRecord:
    fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in row.items()}
    return ItemRecord(**fields)


def run_piece(piece: plan.Piece, place: Place, rows: Mapping[str, plan.Row]) -> dict[str, Any]:
    """Run one piece; what its row says beside name and machine.

    Args:
        piece: what to run; what it stands on is through.
        place: where.
        rows: of pieces that are through.

    Raises:
        StoppedForTime: the rest comes in another command.
    """
    return {"teach": _teach, "unlearn": _unlearn, "final": _final}[piece.kind](piece, place, rows)


def _teach(piece: plan.Piece, place: Place, rows: Mapping[str, plan.Row]) -> dict[str, Any]:
    splits = ("full" if piece.model == "target" else plan.RETAIN, *plan.KEPT)
    count = sum(len(place.benchmark.split(split)) for split in splits)
    steps = place.scale.teach_epochs * -(-count // place.scale.teach_rows)
    config = plan.teach_config(place.scale, piece.model, place.start, place.tofu, steps)
    if not is_complete(place.model(piece.model)):
        outcome, output = place.train(config, resumes=True)
        if outcome.status != "finished":
            return {"status": outcome.status, "reason": outcome.reason}
        place.keep(model_folder(output, steps), piece.model)
        shutil.rmtree(output)
    records = place.records(place.model(piece.model), place.all_items())
    place.store(piece.model, records)
    reference = place.stored("reference") if piece.model == "target" else None
    values, missing = place.values(records, reference)
    return {"status": "done", "steps": steps, "rows": count, "values": values, "missing": missing}


def _unlearn(piece: plan.Piece, place: Place, rows: Mapping[str, plan.Row]) -> dict[str, Any]:
    epoch = place.epoch
    generic = place.start / "generic.jsonl"
    config = plan.unlearn_config(place.scale, piece, place.model("target"), place.tofu, generic, epoch)
    outcome, output = place.train(config)
    target, reference = rows["target"]["values"], rows["reference"]["values"]
    points, folders = [], []
    for number in range(1, place.scale.epochs + 1):
        folder = model_folder(output, number * epoch)
        if not is_complete(folder):
            break
        records = place.records(folder, place.likelihood_items())
        problem = non_finite(records)
        if problem:
            outcome = Outcome("diverged", number * epoch, problem)
            break
        values, _ = place.values(records, None)
        forgotten, useful = plan.forgetting(values, target, reference), plan.utility(values, target)
        points.append({"epoch": number, "forgetting": forgotten, "utility": useful, "values": values})
        folders.append(folder)
    found: dict[str, Any] = {"status": "done" if points else outcome.status, "reason": outcome.reason, "points": points}
    if points:
        scores = [plan.score(point["forgetting"], point["utility"]) for point in points]
        best = scores.index(max(scores))
        found |= {"score": scores[best], "selected": points[best]["epoch"]}
        place.keep(folders[best], piece.name)
    shutil.rmtree(output)
    return found


def _final(piece: plan.Piece, place: Place, rows: Mapping[str, plan.Row]) -> dict[str, Any]:
    name = piece.name.removesuffix("-final")
    run_row = rows[name]
    if run_row["status"] != "done":
        return {"status": run_row["status"], "reason": run_row["reason"]}
    folder = place.model(name)
    records = place.records(folder, place.all_items())
    values, missing = place.values(records, place.stored("reference"))
    found: dict[str, Any] = {"status": "done", "selected": run_row["selected"], "values": values}
    missing |= {f"package {package}": f"not installed: no {what}" for package, what in place.lacking.items()}
    before = values[KNOWN]
    try:
        after = _knowledge(place, folder, "nf4")
        found["nf4"] = {"after": after, "robustness": quantisation_robustness(before, after)}
    except MissingPackageError as error:
        missing["nf4"] = str(error)
    own = _relearned(place, folder, f"{name}-relearned")
    if isinstance(own, str):
        missing["relearning"] = own
    else:
        reference = rows["reference"]["values"][KNOWN]
        again = _reference_relearned(place)
        ratio = relearning_robustness(
            reference_before=reference, reference_after=again, unlearned_before=before, unlearned_after=own
        )
        found["relearning"] = {"after": own, "reference_after": again, "robustness": ratio}
    return found | {"missing": missing}


def _knowledge(place: Place, folder: Path, quantisation: str = "none") -> float:
    records = place.records(folder, place.likelihood_items(("forget",)), quantisation)
    return place.values(records, None)[0][KNOWN]


def _relearned(place: Place, folder: Path, name: str) -> float | str:
    """What a model knows after the attack; or why that is not known."""
    steps = place.epoch
    outcome, output = place.train(plan.relearn_config(place.scale, name, folder, place.tofu, steps))
    if outcome.status != "finished":
        return f"the attack {outcome.status}: {outcome.reason}"
    known = _knowledge(place, model_folder(output, steps))
    shutil.rmtree(output)
    return known


def _reference_relearned(place: Place) -> float:
    """The same of the reference, attacked once."""
    path = place.home / "records" / "reference-relearned.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))[KNOWN]
    known = _relearned(place, place.model("reference"), "reference-relearned")
    if isinstance(known, str):
        raise UserError(f"the reference: {known}; no model can be compared with it")
    write_json(path, {KNOWN: known})
    return known
