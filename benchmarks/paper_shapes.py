"""Do the methods behave as their papers say, on a small model that knows its forget rows by heart?

    python -m benchmarks.paper_shapes

A Llama of about 0.2M parameters is taught 40 authors and generic sentences from nothing; then, through the real loop:

(a) plain SGD: on how many steps does static GradDiff, and NGDiff, move against one of its aims?
(b) mean teacher: does it stay at the start with the likelihood or NPO, and leave it with NLUL?
(c) mean teacher: does half the teacher's rate need twice the steps?
(d) at equal forgetting: does mean teacher + NLUL change generic text less than AdamW + NLUL?

Everything is measured and reported whichever way it falls; the exit code is 1 only when a premise fails: the model does
not know its forget rows by heart, a run diverges, or NGDiff breaks a sign that it keeps by algebra (then our code is
wrong). Writes numbers as JSON, pictures as PNG and SVG. docs/paper-shapes.md says what came out.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.paper_shapes_model import Probe, make_model
from benchmarks.paper_shapes_pictures import draw_equal_forgetting, draw_leaving, draw_pace, draw_signs
from benchmarks.paper_shapes_runs import Curve
from benchmarks.paper_shapes_signs import Signs, measure_signs
from benchmarks.paper_shapes_teacher import FAMILIES, LEVELS, equal_forgetting, leaving_the_start, pace
from unlearn_core.local import single_process_group
from unlearn_core.models import load_model

MEMORISED = 0.95
SIGN_STEPS = 60
SIGN_LENGTH = 0.05


def signs_table(runs: list[Signs]) -> Table:
    """Part (a)."""
    kinds = ("retain sign wrong", "forget sign wrong", "retain loss rose", "rose though the retain sign was right")
    table = Table(title=f"(a) share of {len(runs[0].rise)} SGD steps")
    for name in ("", *kinds, "rate set by the bound", "forget probability", "retain probability"):
        table.add_column(name, justify="right")
    for run in runs:
        shares = run.shares()
        ends = [f"{shares[f'{rows} probability'][1]:.3f}" for rows in ("forget", "retain")]
        counts = [f"{shares[kind]:.0%}" for kind in (*kinds, "rate set by the bound")]
        table.add_row(run.name, *counts, *ends)
    return table


def leaving_table(curves: list[Curve]) -> Table:
    """Part (b)."""
    table = Table(title="(b) mean teacher, three forget losses")
    for name in ("loss", "steps", "forget probability, first", "last", "steps to 0.5", "gradient norm, first", "last"):
        table.add_column(name, justify="right")
    for curve in curves:
        norms = [log["norm_forget"] for log in curve.logs]
        last = sum(norms[-10:]) / len(norms[-10:])
        reached = curve.steps_to(0.5)
        numbers = [f"{curve.forget[0]:.4f}", f"{curve.forget[-1]:.4f}", f"{reached:.0f}" if reached else "never"]
        table.add_row(curve.name, str(curve.steps[-1]), *numbers, f"{norms[0]:.3g}", f"{last:.3g}")
    return table


def forgetting_table(comparison: dict[str, Any]) -> Table:
    """Part (d)."""
    table = Table(title="(d) generic KL at equal forget probability: lowest / middle of the runs that reach it")
    table.add_column("forget probability")
    groups = [name for name in comparison if name.split(",")[0] in FAMILIES]
    for name in groups:
        table.add_column(name, justify="right")
    for n, level in enumerate(LEVELS):
        cells = [comparison[name][n] for name in groups]
        shown = [f"{c['lowest']:.5f} / {c['middle']:.5f} ({c['reached']})" if c["reached"] else "none" for c in cells]
        table.add_row(f"{level:g}", *shown)
    return table


def main() -> None:
    """Teach, check the premise, run the four parts, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/paper_shapes"), help="replaced")
    parser.add_argument("--images", type=Path, help="copy the PNG files there, named paper-shapes-*.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 150)
    started = time.perf_counter()
    output: Path = arguments.output
    shutil.rmtree(output, ignore_errors=True)
    report: dict[str, Any] = {"model": make_model(output / "model")}
    model = load_model(str(output / "model"), "fp32")
    probe = Probe.of(output / "model", model)
    known = probe.forget_probability(model)
    report["start"] = {
        "forget probability": known,
        "retain probability": probe.retain_probability(model),
        "entropy of held-out generic text": probe.generic_entropy(),
    }
    console.print(f"start model: {report['model']}, {report['start']}", highlight=False)
    if not known > MEMORISED:
        sys.exit(f"FAIL: premise: forget probability {known:.4f} of the taught model is not above {MEMORISED}")
    print(f"ok: forget probability {known:.4f} of the taught model is above {MEMORISED}")

    folder, pictures = output / "model", output / "pictures"
    seconds = {"model": time.perf_counter() - started}

    def done(part: str) -> None:
        seconds[part] = time.perf_counter() - started - sum(seconds.values())
        print(f"part {part}: {seconds[part]:.0f} s", flush=True)
        write()

    def write() -> None:
        report["seconds"] = seconds | {"processor time": time.process_time()}
        (output / "paper-shapes.json").write_text(json.dumps(report, indent=1), encoding="utf-8")

    with single_process_group():
        signs = measure_signs(folder, probe, SIGN_STEPS, SIGN_LENGTH)
        report["a"] = {run.name: run.shares() | {"steps seen": vars(run)} for run in signs}
        draw_signs(signs, pictures / "signs")
        console.print(signs_table(signs))
        done("a")

        leaving = leaving_the_start(folder, probe)
        report["b"] = [
            curve.as_data() | {"norm of the forget gradient": [log["norm_forget"] for log in curve.logs]}
            for curve in leaving
        ]
        draw_leaving(leaving, pictures / "leaving")
        console.print(leaving_table(leaving))
        done("b")

        paced, paces = pace(folder, probe)
        report["c"] = paces | {"runs": [curve.as_data() for curve in paced]}
        draw_pace(paced, pictures / "pace")
        console.print(f"(c) steps to forget probability 0.5: {paces}", highlight=False)
        done("c")

        families, comparison = equal_forgetting(folder, probe)
        report["d"] = comparison | {
            "curves": {family: [curve.as_data() for curve in runs] for family, runs in families.items()}
        }
        draw_equal_forgetting(families, comparison, pictures / "equal-forgetting")
        console.print(forgetting_table(comparison))
        done("d")

    curves = [*leaving, *paced, *(curve for runs in families.values() for curve in runs)]
    if arguments.images:
        arguments.images.mkdir(parents=True, exist_ok=True)
        for picture in pictures.glob("*.png"):
            shutil.copyfile(picture, arguments.images / f"paper-shapes-{picture.name}")
    failed = broken_premises(signs, curves)
    for line in failed:
        print(f"FAIL: {line}")
    print(
        f"{'FAIL' if failed else 'PASS: premises hold'}; {sum(seconds.values()) / 60:.1f} minutes, "
        f"{time.process_time() / 60:.1f} of processor time; {output}"
    )
    sys.exit(1 if failed else 0)


def broken_premises(signs: list[Signs], curves: list[Curve]) -> list[str]:
    """What would make the numbers meaningless, in sentences."""
    failed = [f"the run {curve.name} {curve.outcome}" for curve in curves if curve.outcome.startswith("diverged")]
    ngdiff = next(run for run in signs if run.name == "NGDiff").shares()
    for kind in ("retain sign wrong", "forget sign wrong"):
        if ngdiff[kind]:
            failed.append(f"NGDiff: {kind} on {ngdiff[kind]:.0%} of steps, which its algebra excludes")
    return failed


if __name__ == "__main__":
    main()
