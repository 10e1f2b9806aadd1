"""`unlearn report`: everything that runs, evaluations, searches and attacks show, as one page."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import terminal
from pipelines.locations import input_place, output_place

EPILOG = (
    "**Examples**\n\n"
    "`unlearn report outputs/evaluation -o outputs/report`  (training logs are found beside the evaluated models)\n\n"
    "`unlearn report outputs/search-seed0 outputs/search-seed1 outputs/evaluation outputs/robustness "
    "-o outputs/report`\n\n"
    "`unlearn report outputs/ngdiff outputs/grad_diff -o outputs/training`  (runs alone: curves and gradients)\n\n"
    "The page opens from disk and loads nothing. docs/report.md explains its panels."
)


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDERS",
            parser=input_place,
            help="Evaluations, searches, training runs and robustness results, in any mix.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=output_place, help="Folder for report.html and the pictures.")
    ],
) -> dict[str, Any]:
    """Write one HTML page: frontier, metrics, training, gradients, answers, robustness, what ran; and the pictures."""
    from pipelines.report.write import report as write_report

    page, content = write_report(folders, output)
    for sentence in content.sentences:
        terminal.out.print(sentence, highlight=False, markup=False, soft_wrap=True)
    size = page.stat().st_size / 2**20
    terminal.out.print(
        f"report: {page}  ({size:.1f} MiB, open it in a browser)", highlight=False, markup=False, soft_wrap=True
    )
    return {"page": str(page), "title": content.title, "sentences": content.sentences}
