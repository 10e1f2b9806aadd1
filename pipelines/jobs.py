"""Jobs on a Ray cluster: connect to its Jobs API, submit a sub-command, follow its log, stop it."""

import asyncio
import contextlib
import logging
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines import local_cluster
from pipelines.job_arguments import entrypoint
from pipelines.job_package import Package, stage, stage_own_code
from unlearn_core.errors import UserError

CONNECT_SECONDS = 5.0
STOP_SECONDS = 90.0
"""How long `stop` waits; the head gives a job 60 s to write its checkpoint."""
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
RECONNECTS = 5


def jobs_url(address: str | None) -> str:
    """The Jobs API to talk to.

    Args:
        address: what the user gave, such as http://head:8265; None to look in the environment, then in the state file
            of `unlearn cluster start`.

    Raises:
        UserError: none is known, or it is the address of drivers and not of the Jobs API.
    """
    said, where = address, "--address"
    for name in ADDRESSES:
        if not said and os.environ.get(name):
            said, where = os.environ[name], name
    here = local_cluster.running()
    if here is not None and said in (None, "auto", here.address):
        return here.jobs_url
    if not said:
        raise UserError(
            "No cluster is known: give --address http://HEAD:8265, set RAY_API_SERVER_ADDRESS, or start one on this "
            "machine with `unlearn cluster start`."
        )
    if not said.startswith(("http://", "https://")):
        raise UserError(
            f"{where} is {said}, which is no address of a Jobs API; expected the dashboard's, such as "
            f"http://{said.rpartition(':')[0] or 'HEAD'}:8265. Give it with --address."
        )
    return said.rstrip("/")


def connect(address: str | None) -> Any:
    """A client of the cluster's Jobs API that is known to answer.

    Args:
        address: as for `jobs_url`.

    Returns:
        A `ray.job_submission.JobSubmissionClient`.

    Raises:
        UserError: nobody answers there within seconds, or not a Ray cluster, or the token is missing or wrong.
    """
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    url = jobs_url(address)
    for name in ("dashboard_sdk", "job.sdk"):  # each package and each closed connection is news to them
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)
    try:  # Ray's own client would wait for minutes
        requests.get(f"{url}/api/version", timeout=CONNECT_SECONDS)
    except requests.RequestException as error:
        raise UserError(
            f"No Ray cluster answers at {url} ({type(error).__name__}). Check the address, an ssh tunnel if it needs "
            "one (ssh -L 8265:127.0.0.1:8265 HEAD), or start one here with `unlearn cluster start`."
        ) from error
    try:
        with _without_addresses():  # in Ray's client they win over its argument
            return JobSubmissionClient(url, headers=_token_headers(url))
    except AuthenticationError as error:
        raise UserError(
            f"The cluster at {url} wants a token, and there is none or a wrong one. Set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH=FILE with the cluster's token."
        ) from error
    except (RuntimeError, ConnectionError, ValueError, requests.RequestException) as error:
        raise UserError(f"What answers at {url} is no Ray cluster that takes jobs: {error}") from error


def submit(client: Any, command: list[str], package: Package, environment: dict[str, str], name: str | None) -> str:
    """Upload the package and start the job.

    Args:
        client: as `connect` gave it.
        command: sub-command and arguments, as they are meant on the cluster.
        package: files of the working folder.
        environment: variables that the job gets.
        name: the job's id; None for a new one.

    Returns:
        The job's id.

    Raises:
        UserError: the id is taken or has other characters than letters, digits, dots, dashes and underscores.
    """
    job = name or f"{command[0]}-{time.strftime('%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    if not job.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UserError(f"--job-name {job}: only letters, digits, dots, dashes and underscores are allowed.")
    if name is not None and any(taken.submission_id == name for taken in client.list_jobs()):
        raise UserError(f"A job named {name} exists on that cluster; choose another --job-name.")
    with tempfile.TemporaryDirectory(prefix="unlearn-job-") as folder:
        runtime_env: dict[str, Any] = {
            "working_dir": str(stage(package, Path(folder) / "files")),
            "py_modules": stage_own_code(Path(folder) / "code"),
        }
        if environment:
            runtime_env["env_vars"] = environment
        return client.submit_job(
            entrypoint=entrypoint(command),
            submission_id=job,
            runtime_env=runtime_env,
            metadata={"unlearn": command[0]},
        )


def details(client: Any, job: str) -> Any:
    """What Ray knows about a job.

    Raises:
        UserError: no such job.
    """
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            raise UserError(f"No job '{job}' on that cluster. `unlearn jobs list` names them.") from error
        raise


def follow(client: Any, job: str, show: Callable[[str], None]) -> Any:
    """Show a job's log as it grows until the job ends.

    Args:
        client: as `connect` gave it.
        job: its id.
        show: gets the log in pieces, from its beginning.

    Returns:
        The job's details at its end.

    Raises:
        UserError: no such job.
    """
    import aiohttp

    while str((found := details(client, job)).status) == "PENDING":
        time.sleep(0.2)
    shown = 0
    for attempt in range(RECONNECTS):
        try:
            for piece in _each(client.tail_job_logs(job), skip=shown):
                show(piece)
                shown += len(piece)
        except (RuntimeError, OSError, aiohttp.ClientError) as error:  # the connection ended, not the job
            if attempt == RECONNECTS - 1:
                raise UserError(
                    f"The connection to the log of {job} is lost ({error}); the job goes on. "
                    f"`unlearn jobs logs {job} --follow` shows it again."
                ) from error
        found = _settled(client, job)
        if found.status.is_terminal():
            break
    if not shown:  # it ended before its log could be followed
        show(client.get_job_logs(job))
    return found


def stop(client: Any, job: str, seconds: float = STOP_SECONDS) -> tuple[bool, Any]:
    """Ask a job to end and wait until it has.

    Args:
        client: as `connect` gave it.
        job: its id.
        seconds: how long to wait.

    Returns:
        (whether it was running, its details at the end).

    Raises:
        UserError: no such job, or it has not ended in time.
    """
    found = details(client, job)
    if found.status.is_terminal():
        return False, found
    client.stop_job(job)
    patience = time.monotonic() + seconds
    while time.monotonic() < patience:
        found = details(client, job)
        if found.status.is_terminal():
            return True, found
        time.sleep(0.3)
    raise UserError(f"Job {job} was told to stop and still runs after {seconds:.0f} s; look again with `unlearn jobs`.")


def _settled(client: Any, job: str) -> Any:
    """Details, after the seconds that Ray may need to write down how a job ended once its log has closed."""
    for _ in range(20):
        found = details(client, job)
        if found.status.is_terminal():
            break
        time.sleep(0.25)
    return found


def _each(pieces: AsyncIterator[str], skip: int) -> Iterator[str]:
    """The pieces of an asynchronous iterator, without the first `skip` characters."""

    async def following() -> str | None:
        return await anext(pieces, None)

    with asyncio.Runner() as runner:
        while (piece := runner.run(following())) is not None:
            kept, skip = piece[skip:], max(0, skip - len(piece))
            if kept:
                yield kept


def _token_headers(url: str) -> dict[str, str] | None:
    """The token of a cluster that was started here; the user's own settings go before it."""
    here = local_cluster.running()
    if here is None or here.jobs_url != url or os.environ.get("RAY_AUTH_MODE"):
        return None
    token = here.token()
    return {"Authorization": f"Bearer {token}"} if token else None


@contextlib.contextmanager
def _without_addresses() -> Any:
    kept = {name: os.environ.pop(name) for name in ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
