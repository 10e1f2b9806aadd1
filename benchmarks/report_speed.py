"""Is the report's page still quick with a thousand points and more? Times in headless Chromium.

    python -m benchmarks.report_speed

Pages of evaluations with 100, 1,000 and 1,800 made-up checkpoints of six methods. Per page, medians over the rounds:

    open      from navigation until every panel is drawn
    toggle    one method hidden or shown again: front, plot and table anew
    axis      another metric across
    hover     the card of a point, by key

Each time also as a ratio to the page of 100 points in the same run. Bound: with 1,000 points no action but opening
takes over 1 second, up to which a train of thought is not interrupted (Nielsen, Usability Engineering, 1993).
"""

import argparse
import csv
import json
import random
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines.report.write import report

METHODS = ("ngdiff", "grad_diff", "npo", "simnpo", "rmu", "mean_teacher")
STEPS = 20
BOUND_S = 1.0
TURN = "shown.x = shown.x === 'axis:privleak' ? 'axis:extraction_strength' : 'axis:privleak'"
ACTIONS = {
    "toggle": "toggleMethod('rmu')",
    "axis": f"{TURN}; drawFrontier(); redrawTable()",
    "hover": "showCard(drawn.order[7])",
}


def evaluation(folder: Path, points: int) -> Path:
    """An evaluation of so many checkpoints, with two stars; the numbers mean nothing."""
    dice = random.Random(points)
    folder.mkdir()
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["model", "run", "method", "step", "role", "path", "extraction_strength", "model_utility", "privleak"]
        )
        writer.writerow(["full", "full", "finetune", 0, "target", "/none/full", 0.9, 0.7, -90])
        writer.writerow(["retrain", "retrain", "finetune", 0, "reference", "/none/retrain", 0.1, 0.7, 0])
        for n in range(points):
            run, step = divmod(n, STEPS)
            place = (0.9 - 0.9 * (step + 1) / STEPS * dice.random(), 0.7 - 0.4 * dice.random(), dice.uniform(-100, 100))
            method = METHODS[run % len(METHODS)]
            writer.writerow([f"{run}-{step}", f"run-{run}", method, step + 1, "checkpoint", f"/none/{n}", *place])
    about = {"status": "complete", "benchmark": "synthetic:small", "forget_split": "forget10"}
    (folder / "evaluation.json").write_text(json.dumps(about))
    return folder


def measure(page_file: Path, rounds: int) -> dict[str, float]:
    """Median seconds of each action; what the browser paints after it included."""
    from playwright.sync_api import sync_playwright

    own = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    times: dict[str, list[float]] = {name: [] for name in ("open", *ACTIONS)}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=own, chromium_sandbox=False)
        for _ in range(rounds):
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.goto(f"file://{page_file}")
            page.wait_for_selector("#run-card h3")
            times["open"].append(page.evaluate("performance.now()") / 1000)
            for name, action in ACTIONS.items():
                # Two frames on: the first begins with what the action left to paint, the second after it was painted.
                script = f"""() => new Promise(done => {{ const start = performance.now(); {action};
                    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start))); }})"""
                times[name].append(page.evaluate(script) / 1000)
            page.close()
        browser.close()
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> int:
    """Print the table; 1 where the bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[100, 1000, 1800])
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    table = Table("points", *(f"{name}, s (x {chosen.points[0]}'s)" for name in ("open", *ACTIONS)))
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        for points in chosen.points:
            page, _ = report([evaluation(Path(place) / str(points), points)], Path(place) / f"report-{points}")
            found[points] = measure(page, chosen.rounds)
            first = found[chosen.points[0]]
            table.add_row(str(points), *(f"{s:.3f} ({s / first[name]:.1f})" for name, s in found[points].items()))
    Console().print(table)
    late = [
        f"{points} points: {name} takes {seconds:.2f} s, bound {BOUND_S:g}"
        for points, times in found.items()
        for name, seconds in times.items()
        if points <= 1000 and name != "open" and seconds > BOUND_S
    ]
    for line in late:
        Console().print(line)
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
