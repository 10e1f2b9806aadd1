"""Which method forgets 400 of TOFU's rows best, all on the full benchmark, on a model small enough for minutes?

    TOFU_DIR=... python -m benchmarks.tofu_full            everything that is missing, at most 25 minutes of GPU
    TOFU_DIR=... python -m benchmarks.tofu_full --smoke    every path on a CPU, with a model of two layers
    TOFU_DIR=... python -m benchmarks.tofu_full table      what there is

Needs torch, transformers and deepspeed; scipy, rouge-score, bitsandbytes with accelerate and matplotlib each add what
the table otherwise names as missing. Work is done in commands of at most eight minutes; the same command again goes on.

A Llama of 98M parameters is trained from scratch on all of TOFU (the target) and on all but the forget rows (the
reference), both also on real_authors and world_facts. Then forget10 is unlearned by seven methods: three rates each
with seed 0, then seeds 0, 1 and 2 of the chosen rate. Likelihood metrics are taken after every epoch; generated
answers, privleak, 4-bit weights and relearning once a run, on the selected epoch.

The rule of choice, written down before any result:

    forgetting    1 - |p - p_r| / (p_t - p_r), at least 0; p, p_r, p_t the mean probability of the forget answers given
                  by the model, the reference, the target
    utility       harmonic mean of the six terms of TOFU's model utility that need no generated answer (probability and
                  truth ratio on retain, real-author and world-fact rows), each over the target's and at most 1
    score         harmonic mean of the two

A run's selected epoch is the one of highest score, a method's chosen rate the one whose run with seed 0 has the highest
score. Rows that choose are the rows that are reported: TOFU has no others, and it is the same for every method. Seed 0
took part in the choice, so seeds 1 and 2 are shown apart.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import tofu_full_report as reports
from benchmarks.one_gpu import GRACE, MOST_SECONDS, ROOT, Deadline, alone, device_name, machine, run_child, today
from benchmarks.tofu_full_pieces import Place, StoppedForTime, run_piece
from benchmarks.tofu_full_plan import FULL, SMOKE, Piece, next_pieces
from unlearn_core.errors import UserError
from unlearn_core.publish import write_json, write_text

BUDGET_MINUTES = 25.0
LEAST_SECONDS = 60.0
"""No new piece is begun with less time than this left."""
CLOCK, CURRENT = "clock.json", "current.json"


def results_folder(smoke: bool) -> Path:
    """Results of a GPU go into the source tree, everything else to outputs/."""
    if torch.cuda.is_available() and not smoke:
        return ROOT / "benchmarks/results/tofu_full"
    return ROOT / f"outputs/tofu_full{'_smoke' if smoke else ''}/results"


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows by piece name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def whole_rows(folder: Path, place: Place) -> dict[str, dict[str, Any]]:
    """Rows that belong to this scale, these rows of TOFU and this GPU; others are done again."""
    found = {}
    for name, row in read_rows(folder).items():
        piece = Piece(**row["piece"])
        same = row["fingerprint"] == piece.fingerprint(place.scale, place.data_fingerprint)
        if same and row["machine"]["device"] == device_name():
            found[name] = row
    return found


def pending(place: Place, results: Path) -> list[Piece]:
    """Pieces that can be run now, in order."""
    rows = whole_rows(results, place)
    missing = [piece for piece in next_pieces(rows) if piece.name not in rows]
    taught = {name for name in ("target", "reference") if rows.get(name, {}).get("status") == "done"}
    if len(taught) < 2:
        return [piece for piece in missing if piece.kind == "teach"]
    return [piece for piece in missing if piece.kind != "final" or piece.name.removesuffix("-final") in rows]


def work(place: Place, results: Path) -> int:
    """Run pieces until none is left or the time is nearly up."""
    results.mkdir(parents=True, exist_ok=True)
    facts = machine()
    with alone():
        while place.deadline.left > LEAST_SECONDS and (queue := pending(place, results)):
            piece = queue[0]
            write_json(place.work / CURRENT, {"name": piece.name})
            began = time.monotonic()
            row = row_of(piece, place, facts)
            try:
                row |= run_piece(piece, place, whole_rows(results, place))
            except StoppedForTime as reason:
                print(f"{piece.name}: {reason}; it goes on in the next command", flush=True)
                return 0
            except torch.OutOfMemoryError as error:
                row |= {"status": "failed", "reason": f"out of memory: {str(error)[:300]}"}
            except Exception as error:
                traceback.print_exc()
                row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:400]}
            row["seconds"] = time.monotonic() - began
            write_json(results / f"{piece.name}.json", row)
            print(f"{piece.name}: {row['status']} {row.get('reason', '')} {row['seconds']:.1f} s", flush=True)
    (place.work / CURRENT).unlink(missing_ok=True)
    return 0


def row_of(piece: Piece, place: Place, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What every row says."""
    return {
        "piece": vars(piece),
        "fingerprint": piece.fingerprint(place.scale, place.data_fingerprint),
        "date": today(),
        "machine": dict(facts),
    }


def drive(arguments: argparse.Namespace, place: Place, results: Path) -> None:
    """Children of at most eight minutes each until nothing is left or the budget is used up."""
    assert place.data_fingerprint, "the rows are read before anything is begun"
    for path in [results / f"{name}.json" for name, row in read_rows(results).items() if row["status"] == "failed"]:
        path.unlink()  # another try, once a call
    clock = place.work / CLOCK
    used = json.loads(clock.read_text())["seconds"] if clock.is_file() else 0.0
    while queue := pending(place, results):
        left = 60 * arguments.minutes - used
        if left < LEAST_SECONDS:
            print(f"{used / 60:.1f} of {arguments.minutes:g} minutes are used; give more by --minutes", flush=True)
            return
        began, before = time.monotonic(), [piece.name for piece in queue]
        (place.work / CURRENT).unlink(missing_ok=True)
        words = ["work", "--seconds", str(min(MOST_SECONDS, left)), "--work", str(place.work)]
        words += ["--results", str(results), *(["--smoke"] if arguments.smoke else [])]
        problem = run_child("benchmarks.tofu_full", words, min(MOST_SECONDS, left) + GRACE)
        used += time.monotonic() - began
        write_json(clock, {"seconds": used})
        if problem:
            name = json.loads((place.work / CURRENT).read_text())["name"] if (place.work / CURRENT).is_file() else ""
            piece = next((piece for piece in pending(place, results) if piece.name == name), None)
            if piece is None:
                raise UserError(f"the command that runs the pieces ended early ({problem}); its output says why")
            write_json(
                results / f"{name}.json", {**row_of(piece, place, machine()), "status": "failed", "reason": problem}
            )
            print(f"{name}: {problem}", flush=True)
        elif before == [piece.name for piece in pending(place, results)] and queue[0].kind != "teach":
            raise UserError(f"nothing got done in {time.monotonic() - began:.0f} s; look at the output above")


def main(words: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("all", "work", "table"), default="all")
    parser.add_argument("--smoke", action="store_true", help="a cut of TOFU and a model of two layers")
    parser.add_argument("--minutes", type=float, default=BUDGET_MINUTES, help="of GPU time for everything")
    parser.add_argument("--seconds", type=float, default=MOST_SECONDS, help="of one `work` command")
    parser.add_argument("--work", type=lambda text: Path(text).resolve(), help="folder of models and records")
    parser.add_argument("--results", type=lambda text: Path(text).resolve(), help="folder of rows")
    arguments = parser.parse_args(words)
    tofu = os.environ.get("TOFU_DIR")
    if not tofu:
        print("TOFU_DIR is not set: give the folder that holds full.json and the other TOFU files.", file=sys.stderr)
        return 2
    results = arguments.results or results_folder(arguments.smoke)
    base = arguments.work or ROOT / f"outputs/tofu_full{'_smoke' if arguments.smoke else ''}"
    scale = SMOKE if arguments.smoke else FULL
    place = Place(scale, Path(tofu).resolve(), base, Deadline(arguments.seconds))
    try:
        if arguments.command == "work":
            return work(place, results)
        if arguments.command == "all":
            if not arguments.smoke and not torch.cuda.is_available():
                raise UserError("there is no GPU here, and on a CPU this takes days; try every path with --smoke")
            drive(arguments, place, results)
        return finish(place, results, arguments.smoke)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def finish(place: Place, results: Path, smoke: bool) -> int:
    """Print and write the table; on a GPU the page of results as well. 0 when nothing is missing."""
    rows = whole_rows(results, place)
    text = reports.table(rows, smoke)
    print(text)
    if rows:
        write_text(results / "table.md", text + "\n")
        picture = reports.draw(rows, results / "frontier.png")
        print(picture or f"picture: {results / 'frontier.png'}")
    on_gpu = bool(rows) and all(row["machine"]["device"] != "CPU" for row in rows.values())
    if on_gpu and not smoke and results == results_folder(False):
        page = reports.page(rows)
        if page:
            write_text(ROOT / "docs/results.md", page)
            print("written: docs/results.md")
    return 0 if rows and not reports.missing_pieces(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
