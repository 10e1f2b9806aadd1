"""`unlearn cluster start`, `status` and `stop`: a Ray head on this machine."""

import dataclasses
from typing import Annotated, Any

import typer

from pipelines import terminal
from pipelines.terminal import Ending, ScriptableTyper
from unlearn_core.errors import UserError

cluster_app = ScriptableTyper(
    name="cluster",
    help="A Ray head on this machine, in the background, for `unlearn submit` and for drivers.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@cluster_app.command(
    epilog="**Examples**\n\n"
    "`unlearn cluster start`  (nobody but this machine can reach it)\n\n"
    "`unlearn cluster start --token`  (nor other users of this machine)\n\n"
    "`unlearn cluster start --host 10.0.0.5`  (other nodes can join, with the token)\n\n"
    "Then `unlearn submit train demo-ngdiff --model outputs/pair/target -o outputs/run`, and at the end "
    "`unlearn cluster stop`."
)
def start(
    host: Annotated[
        str, typer.Option(help="Address of this machine that Ray listens on; not loopback turns the token on.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="What nodes and drivers connect to.", min=1024, max=65535)] = 6379,
    dashboard_port: Annotated[
        int, typer.Option(help="Dashboard and Jobs API, on the loopback.", min=1024, max=65535)
    ] = 8265,
    num_cpus: Annotated[int | None, typer.Option(help="Logical CPUs; default: the machine's.", min=0)] = None,
    num_gpus: Annotated[int | None, typer.Option(help="GPUs; default: the machine's.", min=0)] = None,
    token: Annotated[bool, typer.Option("--token", help="Token authentication on the loopback too.")] = False,
) -> Any:
    """Start a Ray head in the background and wait until it takes jobs."""
    from pipelines import local_cluster

    out = terminal.out
    before = local_cluster.recorded()
    if before is not None and not before.runs:
        out.print(f"The cluster recorded before (process {before.pid}) has ended; its record is replaced.")
        local_cluster.stop(before)  # processes that outlived their head
    cluster = local_cluster.start(host, port, dashboard_port, num_cpus, num_gpus, token)
    lines = [
        f"Ray head {cluster.address} (process {cluster.pid}); dashboard and Jobs API {cluster.jobs_url}",
        "next:     unlearn submit train RECIPE --model MODEL -o outputs/run",
        f"drivers:  export {_exports(cluster)}",
        "end it:   unlearn cluster stop",
    ]
    if cluster.token_path:
        lines.insert(1, f"token:    {cluster.token_path} (whoever has it can run code here)")
    if not cluster.loopback:
        lines.append(
            f"more nodes: copy the token file there and run  RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE "
            f"ray start --address={cluster.address}"
        )
    out.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
    return _document(cluster)


@cluster_app.command(
    epilog="**Examples**\n\n`unlearn cluster status`\n\n`unlearn cluster status --json`\n\nExit code 1: none runs."
)
def status() -> Any:
    """Say whether the cluster that was started here runs, and where."""
    from pipelines import local_cluster

    out = terminal.out
    cluster = local_cluster.recorded()
    alive = cluster is not None and cluster.runs
    if cluster is None:
        out.print("No cluster was started here; `unlearn cluster start` starts one.")
    elif not alive:
        out.print(f"The cluster recorded here (process {cluster.pid}) has ended; `unlearn cluster start` starts one.")
    else:
        count = len(local_cluster.processes(cluster))
        where = f"Ray head {cluster.address}, dashboard and Jobs API {cluster.jobs_url}"
        secured = f"token in {cluster.token_path}" if cluster.token_path else "no token"
        out.print(f"{where}; {count} processes, {secured}", highlight=False, soft_wrap=True)
    return Ending(_document(cluster), 0 if alive else 1)


@cluster_app.command(epilog="**Example**\n\n`unlearn cluster stop`\n\nEnds what `unlearn cluster start` started, only.")
def stop() -> Any:
    """End the cluster that was started here; jobs that still run end with it."""
    from pipelines import local_cluster

    cluster = local_cluster.recorded()
    if cluster is None:
        raise UserError("No cluster was started here, so there is none to stop. Other Ray processes are left alone.")
    alive = cluster.runs
    killed = local_cluster.stop(cluster)
    ended = "Stopped." if alive else f"It had ended already (process {cluster.pid}); its record is removed."
    terminal.out.print(ended + (f" {killed} processes had to be killed." if killed else ""))
    return {"was_running": alive, "killed": killed}


def _document(cluster: Any) -> dict[str, Any]:
    fields = {} if cluster is None else dataclasses.asdict(cluster)
    fields.pop("mark", None)
    return {"running": cluster is not None and cluster.runs} | fields


def _exports(cluster: Any) -> str:
    return " ".join(f"{name}={value}" for name, value in cluster.environment().items())
