"""`unlearn submit` and `unlearn jobs`: sub-commands as jobs on a Ray cluster."""

import datetime
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from pipelines import terminal
from pipelines.terminal import Ending, ScriptableTyper

EPILOG = (
    "**Examples**\n\n"
    "`unlearn submit train demo-ngdiff --model /shared/pair/target -o /shared/ngdiff`\n\n"
    "`unlearn submit --no-wait --job-name night search my-search.yaml --target /shared/pair/target "
    "--reference /shared/pair/reference -o /shared/search`, then `unlearn jobs logs night --follow`\n\n"
    "`unlearn submit --address http://127.0.0.1:8265 --env HF_HUB_OFFLINE doctor --output /shared/ngdiff`\n\n"
    "Options of `submit` come before the sub-command; all after it goes to the cluster as it is, but for paths: an "
    "output, and whatever exists here and does not travel, becomes an absolute path, which the cluster's nodes must "
    "reach. The current folder travels without data, outputs, weights and files over 10 MiB. Paths inside a recipe are "
    "left alone: write absolute ones there.\n\n"
    "Exit code 0: the job succeeded; 1: it failed or was stopped. Ctrl-C leaves it running."
)
SETTINGS = {"allow_interspersed_args": False}

Address = Annotated[
    str | None,
    typer.Option(
        help="The Jobs API, such as http://127.0.0.1:8265. Default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else the "
        "cluster of `unlearn cluster start`."
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id (see `unlearn jobs list`).")]

jobs_app = ScriptableTyper(
    name="jobs",
    help="The jobs that `unlearn submit` sent to a cluster.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


def submit(
    command: Annotated[list[str], typer.Argument(metavar="SUBCOMMAND [ARGS]...", help="Any other sub-command.")],
    address: Address = None,
    job_name: Annotated[str | None, typer.Option(help="The job's id; by default one is made.")] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Take this environment variable along; no secrets. Repeatable."),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's id and return.")] = False,
) -> Any:
    """Run a sub-command as a job on a Ray cluster, with this folder's files, and show its log."""
    from pipelines import jobs
    from pipelines.job_arguments import check_command, forwarded, remote_command
    from pipelines.job_package import choose_files

    aside = terminal.aside
    command = check_command(command)
    environment = forwarded(env or [], dict(os.environ))
    client = jobs.connect(address)
    package = choose_files(Path.cwd())
    there, changed = remote_command(command, package)
    _say(aside, str(package))
    for typed, absolute in changed.items():
        _say(
            aside,
            (typed if typed == absolute else f"{typed} -> {absolute}") + ": must be reachable there from the cluster",
        )
    job = jobs.submit(client, there, package, environment, job_name)
    if no_wait:
        terminal.out.print(job, highlight=False, soft_wrap=True, markup=False)
        return {"id": job}
    _say(aside, f"job {job}")
    return _follow(client, job)


@jobs_app.command(name="list", epilog="**Examples**\n\n`unlearn jobs list`\n\n`unlearn jobs list --json`")
def list_(address: Address = None) -> Any:
    """All jobs of the cluster, the newest last."""
    from pipelines import jobs

    client = jobs.connect(address)
    found = [job for job in client.list_jobs() if job.submission_id]
    rows = [_record(job) for job in sorted(found, key=lambda job: job.start_time or 0)]
    table = Table(Column("id", overflow="fold"), "sub-command", "status", "started", "duration")
    for row in rows:
        table.add_row(row["id"], row["command"], row["status"], row["started"] or "", _duration(row["seconds"]))
    terminal.out.print(table)
    return rows


@jobs_app.command(epilog="**Example**\n\n`unlearn jobs status night`")
def status(job: JobId, address: Address = None) -> Any:
    """How one job stands."""
    from pipelines import jobs

    found = jobs.details(jobs.connect(address), job)
    row = _record(found)
    for key, value in row.items():
        if value is not None:
            _say(terminal.out, f"{key:<12}{_duration(value) if key == 'seconds' else value}")
    return row


@jobs_app.command(epilog="**Examples**\n\n`unlearn jobs logs night`\n\n`unlearn jobs logs night --follow`")
def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job ends; exit code as of submit.")] = False,
    address: Address = None,
) -> Any:
    """A job's output."""
    from pipelines import jobs

    client = jobs.connect(address)
    jobs.details(client, job)
    if follow:
        return _follow(client, job)
    text = client.get_job_logs(job)
    if not terminal.out.quiet:
        sys.stdout.write(text)
    return {"id": job, "log": text}


@jobs_app.command(
    epilog="**Example**\n\n`unlearn jobs stop night`\n\nThe job gets SIGTERM and time to write a checkpoint."
)
def stop(job: JobId, address: Address = None) -> Any:
    """End a job, and wait until it has ended."""
    from pipelines import jobs

    client = jobs.connect(address)
    was_running, found = jobs.stop(client, job)
    said = (
        f"{job}: {str(found.status).lower()}"
        if was_running
        else f"{job} had ended already: {str(found.status).lower()}"
    )
    _say(terminal.out, said)
    return {"was_running": was_running} | _record(found)


def _follow(client: Any, job: str) -> Any:
    """Show the log; exit code 1 unless the job succeeded."""
    from pipelines import jobs

    err = terminal.err
    try:
        found = jobs.follow(client, job, _write)
    except KeyboardInterrupt:
        _say(
            err,
            f"\nJob {job} goes on. `unlearn jobs logs {job} --follow` shows it again, "
            f"`unlearn jobs stop {job}` ends it.",
        )
        raise typer.Exit(130) from None
    _say(terminal.aside, f"job {job}: {str(found.status).lower()}")
    if str(found.status) != "SUCCEEDED":
        if found.message:
            _say(err, found.message.partition(", last available logs")[0].strip())  # the log is above
        return Ending(_record(found), 1)
    return _record(found)


def _record(job: Any) -> dict[str, Any]:
    """A job as `--json` gives it; times in ISO 8601 and seconds."""
    from pipelines.job_arguments import subcommand_of

    started = datetime.datetime.fromtimestamp(job.start_time / 1000) if job.start_time else None
    end = job.end_time / 1000 if job.end_time else datetime.datetime.now().timestamp()
    return {
        "id": job.submission_id,
        "command": subcommand_of(job.entrypoint),
        "status": str(job.status).lower(),
        "started": started.isoformat(sep=" ", timespec="seconds") if started else None,
        "seconds": round(end - started.timestamp(), 1) if started else None,
        "entrypoint": job.entrypoint,
        "message": (job.message or "").strip() or None,
    }


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(console: Any, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
