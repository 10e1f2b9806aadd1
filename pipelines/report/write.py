"""`unlearn report` without the command line: everything is read and checked, then written aside, then renamed.

OUTPUT/report.html              the page
OUTPUT/frontier.png, .svg, .pdf and the other pictures, tables and summary.json of `unlearn frontier`
"""

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from pipelines.report.content import Content, content_of
from pipelines.report.inputs import Inputs, sort_folders
from pipelines.report.page import page_of
from unlearn_core.errors import UserError

PAGE = "report.html"


def report(folders: Sequence[Path], output: Path) -> tuple[Path, Content]:
    """Write OUTPUT/report.html and, where there is a frontier, its pictures.

    Args:
        folders: evaluations, searches, training runs and robustness results, in any mix.
        output: folder for the files; older files of these names are replaced, others stay.

    Returns:
        The page, and what it shows.

    Raises:
        UserError: a folder that is none of these, is damaged or unfinished, or does not belong on one page with the
            others; before anything is written.
        MissingPackageError: jinja2, plotly, moocore or matplotlib is not installed.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder to write the report into")
    inputs = sort_folders(folders)
    content = content_of(inputs)
    page = page_of(content)
    aside = output.with_name(f".{output.name}.{uuid.uuid4().hex}.part")
    aside.mkdir(parents=True)
    try:
        _pictures(inputs, content, aside)
        (aside / PAGE).write_text(page, encoding="utf-8")
        output.mkdir(parents=True, exist_ok=True)
        # The page last: whoever sees it finds its pictures.
        for path in sorted(aside.iterdir(), key=lambda path: path.name == PAGE):
            os.replace(path, output / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return output / PAGE, content


def _pictures(inputs: Inputs, content: Content, folder: Path) -> None:
    """The printed figures of `unlearn frontier`: of searches with evaluated runs beside them, else of evaluations."""
    from pipelines.frontier import frontier
    from pipelines.search_frontier import search_frontier

    if content.data["pair"] is None:
        return
    if inputs.searches:
        search_frontier([*inputs.searches, *content.evaluations], folder)
        return
    x, y = (key.partition(":")[2] for key in content.data["pair"])
    frontier(content.evaluations, folder, forgetting=x, utility=y)
