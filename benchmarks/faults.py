"""What happens when things go wrong: every fault is made to happen, and the row says what it did.

    python -m benchmarks.faults                  all rows, about 15 minutes on two cores
    python -m benchmarks.faults --only driver    rows whose name has the word
    python -m benchmarks.faults --light          those that `make test` runs too

A run is disturbed and must end with the weights of the undisturbed one (relative difference at most 1e-6), or the user
must get a clear error and lose nothing. Exits with 1 when any row fails.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import faults_cluster, faults_training
from benchmarks.faults_light import light_rows, nan_in_one_rank, no_network
from benchmarks.faults_run import Row, Workspace
from unlearn_core.local import single_process_group


def main() -> None:
    """Run the rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name has this word")
    parser.add_argument("--light", action="store_true", help="no rows that start Ray")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        work = Workspace(arguments.folder or Path(temporary))
        with single_process_group():  # of the light rows, which train in this process
            rows = run_rows(work, arguments.only, arguments.light, console)
    if arguments.markdown:
        print(markdown(rows))
    else:
        Console(width=max(console.width, 180)).print(table(rows))
    failed = [row.fault for row in rows if not row.passed]
    console.print(f"{len(rows) - len(failed)} of {len(rows)} rows pass" + (f"; failed: {failed}" if failed else ""))
    sys.exit(1 if failed or not rows else 0)


def run_rows(work: Workspace, only: str, light: bool, console: Console) -> list[Row]:
    """Rows in order; a row that cannot be carried out fails with the reason."""
    heavy = () if light else (*faults_training.HEAVY, *faults_cluster.HEAVY, nan_in_one_rank, no_network)
    acts = {act.__name__: act for act in heavy} | light_rows()
    rows = []
    for name, act in acts.items():
        if only not in name and act is not faults_training.nothing:
            continue
        started = time.monotonic()
        try:
            row = act(work)
        except Exception as error:
            row = Row(name, f"{type(error).__name__}: {error}", False)
        rows.append(row)
        took = time.monotonic() - started
        verdict = "ok " if row.passed else "BAD"
        console.print(f"{verdict} {row.fault} ({took:.0f} s): {row.happened} {row.result}", markup=False)
    return rows


def table(rows: list[Row]) -> Table:
    """The rows as they are reported."""
    found = Table("fault", "what happened", "recovery s", "steps lost", "result", "", title="benchmarks.faults")
    for row in rows:
        found.add_row(
            row.fault,
            escape(row.happened),
            "" if row.recovery is None else f"{row.recovery:.1f}",
            "" if row.lost is None else str(row.lost),
            escape(row.result),
            "ok" if row.passed else "FAILED",
        )
    return found


def markdown(rows: list[Row]) -> str:
    """The same for a notebook."""
    lines = ["| fault | what happened | recovery s | steps lost | result | |", "|---|---|---|---|---|---|"]
    for row in rows:
        recovery = "" if row.recovery is None else f"{row.recovery:.1f}"
        lost = "" if row.lost is None else str(row.lost)
        cells = (row.fault, row.happened, recovery, lost, row.result, "ok" if row.passed else "FAILED")
        lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
