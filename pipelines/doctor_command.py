"""`unlearn doctor`: is the cluster fit for a run?"""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pipelines import terminal
from pipelines.terminal import Ending
from unlearn_core.errors import UserError

EPILOG = (
    "**Examples**\n\n"
    "`unlearn doctor`\n\n"
    "`unlearn doctor --output /shared/ngdiff --model /shared/pair/target --data /shared/tofu --need-gib 200`\n\n"
    "`unlearn submit doctor --output /shared/ngdiff`  (from the cluster's own head)\n\n"
    "Without RAY_ADDRESS it asks the cluster of `unlearn cluster start`, and without that a local one of its own. "
    "Exit code 1: a check failed."
)
_COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def doctor(
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Output of the run: one folder everywhere? Writable?")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model of the run: a folder or hub name.")] = None,
    data: Annotated[str | None, typer.Option(help="Data of the run: a folder, file or hub name.")] = None,
    need_gib: Annotated[float, typer.Option(help="Free disk below which to warn, in GiB.", min=0)] = 20.0,
) -> Any:
    """Check the cluster's nodes: versions, GPUs, shared output, disk, model, data, memory, clocks."""
    from pipelines import doctor, local_cluster
    from pipelines.ray_session import start_ray

    here = local_cluster.running()
    if here is not None and os.environ.get("RAY_ADDRESS", here.address) == here.address:
        for name, value in here.environment().items():
            os.environ.setdefault(name, value)
    start_ray()
    driver, nodes, unseen = doctor.examine(_absolute(output, "--output"), _path_or_name(model), _path_or_name(data))
    found = doctor.checks(driver, nodes, unseen, need_gib)
    table = Table("check", "", "found", "what to do")
    for check in found:
        table.add_row(check.name, f"[{_COLOURS[check.status]}]{check.status}[/]", check.found, check.remedy)
    terminal.out.print(table)
    document = {"driver": driver, "nodes": nodes, "checks": found}
    return Ending(document, 1 if any(check.status == "failed" for check in found) else 0)


def _absolute(path: str | None, option: str) -> str | None:
    if path is not None and "://" in path:
        raise UserError(f"{option} {path}: only folders can be checked; expected one that all nodes mount.")
    return None if path is None else str(Path(path).expanduser().absolute())


def _path_or_name(name: str | None) -> str | None:
    """An existing path in full, for nodes that stand in other folders; anything else as it is."""
    return str(Path(name).absolute()) if name is not None and Path(name).exists() else name
