"""A Ray head on this machine that `unlearn cluster` starts, remembers and ends; never anybody else's Ray.

UNLEARN_HOME/cluster.json    process, addresses, token file (UNLEARN_HOME is ~/.unlearn by default)
UNLEARN_HOME/cluster.log     what `ray start` printed
UNLEARN_HOME/token           the token, where token authentication is on
"""

import contextlib
import dataclasses
import ipaddress
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

from unlearn_core.errors import UserError

HOME = "UNLEARN_HOME"
STATE, LOG, TOKEN = "cluster.json", "cluster.log", "token"
MARK = "UNLEARN_CLUSTER"
"""Environment variable that every process of a cluster started here inherits, with the cluster's own value."""
LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Off ("0"), Ray takes the loopback as this node's address wherever it looks for one."""
START_SECONDS = 90.0
STOP_SECONDS = 45.0
"""How long processes may take to end by themselves; Ray itself drains a node for up to 30 s."""
JOB_STOP_SECONDS = 60
"""How long a stopped job may take to write its checkpoint before Ray kills it; Ray's own default is 3 s."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A started head, as `cluster.json` holds it.

    Args:
        pid: the `ray start --block` process.
        created: when that process was created, seconds since 1970: with the pid it names one process for ever.
        mark: value of the environment variable `UNLEARN_CLUSTER` in its processes.
        address: host:port, what RAY_ADDRESS takes.
        jobs_url: the Jobs API, which is also the dashboard.
        token_path: file of the token; None without token authentication.
    """

    pid: int
    created: float
    mark: str
    address: str
    jobs_url: str
    token_path: str | None

    @property
    def runs(self) -> bool:
        """Whether its first process is alive."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def token(self) -> str | None:
        """The token, or None without token authentication."""
        return Path(self.token_path).read_text(encoding="utf-8").strip() if self.token_path else None

    def environment(self) -> dict[str, str]:
        """Variables by which Ray processes of this user reach it."""
        mode = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": self.token_path} if self.token_path else {}
        # Without it a driver takes 127.0.0.1 for the machine's network address, where nobody listens.
        alone = {LOOPBACK_SWITCH: "0"} if self.loopback else {}
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "disabled"} | mode | alone

    @property
    def loopback(self) -> bool:
        """Whether this machine alone can reach it."""
        return self.address.startswith(("127.", "[::1]"))


def home() -> Path:
    """The folder of the state file; made readable by its owner alone if missing."""
    folder = Path(os.environ.get(HOME) or Path.home() / ".unlearn").absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def recorded() -> Cluster | None:
    """The cluster of the state file, alive or not.

    Raises:
        UserError: the state file is not one of this version.
    """
    path = home() / STATE
    if not path.is_file():
        return None
    try:
        return Cluster(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is no state file of `unlearn cluster` ({error}). Delete it.") from error


def running() -> Cluster | None:
    """The cluster that was started here, if it is alive."""
    cluster = recorded()
    return cluster if cluster is not None and cluster.runs else None


def start(
    host: str = "127.0.0.1",
    port: int = 6379,
    dashboard_port: int = 8265,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    token: bool = False,
) -> Cluster:
    """Start a head in the background and wait until its Jobs API answers.

    Args:
        host: the address that Ray listens on; not loopback turns token authentication on.
        port: what other nodes and drivers connect to.
        dashboard_port: dashboard and Jobs API, always on the loopback.
        num_cpus: logical CPUs; None for the machine's.
        num_gpus: GPUs; None for the machine's.
        token: token authentication on the loopback too.

    Returns:
        The running cluster; its state file is written.

    Raises:
        UserError: one runs already, an address or port cannot be used, or Ray did not come up.
    """
    host = "127.0.0.1" if host == "localhost" else host
    loopback = _is_loopback(host)
    if running() is not None:
        raise UserError(f"A cluster of this user runs already: {home() / STATE}. `unlearn cluster stop` ends it.")
    (home() / STATE).unlink(missing_ok=True)
    _check_ports(host, port, dashboard_port)
    token_path = _write_token() if token or not loopback else None
    mark = uuid.uuid4().hex
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--node-ip-address={host}", f"--port={port}", "--include-dashboard=true"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", "--dashboard-agent-listen-port=0"),
        f"--ray-client-server-port={_free_port()}",  # Ray starts it always; its default may be another cluster's
        *(["--min-worker-port=0", "--max-worker-port=0"] if loopback else []),  # else the range that firewalls know
        *([] if num_cpus is None else [f"--num-cpus={num_cpus}"]),
        *([] if num_gpus is None else [f"--num-gpus={num_gpus}"]),
    ]
    log = home() / LOG
    with _private(log) as file:
        process = subprocess.Popen(
            command,
            cwd=home(),
            env=_environment(loopback, token_path, mark),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    created = psutil.Process(process.pid).create_time()
    jobs_url = f"http://127.0.0.1:{dashboard_port}"
    cluster = Cluster(
        process.pid, created, mark, _joined(host, port), jobs_url, str(token_path) if token_path else None
    )
    with _private(home() / STATE) as file:
        json.dump(dataclasses.asdict(cluster), file, indent=2)
    try:
        _wait_until_it_answers(cluster, process, log)
    except BaseException:
        stop(cluster)
        raise
    return cluster


def stop(cluster: Cluster, seconds: float = STOP_SECONDS) -> int:
    """End the processes of a cluster started here, and no other, and remove its state file.

    Args:
        cluster: what `start` gave or `recorded` read.
        seconds: how long they may take before they are killed.

    Returns:
        How many processes had to be killed.
    """
    seen = {process.pid: process for process in processes(cluster)}
    if cluster.runs:
        psutil.Process(cluster.pid).terminate()  # Ray ends its own children in order
    patience = time.monotonic() + seconds
    alive = list(seen.values())
    while alive and time.monotonic() < patience:
        seen |= {process.pid: process for process in processes(cluster)}
        _, alive = psutil.wait_procs(list(seen.values()), timeout=0.3)
        if not cluster.runs:  # what outlived its head is told directly
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    (home() / STATE).unlink(missing_ok=True)
    return len(alive)


def processes(cluster: Cluster) -> list[psutil.Process]:
    """The cluster's processes on this machine: the head's descendants, and all that carry its mark.

    The mark finds what was detached from the head; descent finds what wrote its own title over its environment.
    """
    found: dict[int, psutil.Process] = {}
    if cluster.runs:
        head = psutil.Process(cluster.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            found = {process.pid: process for process in [head, *head.children(recursive=True)]}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(MARK) == cluster.mark and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process
    found.pop(os.getpid(), None)
    return list(found.values())


def listening(cluster: Cluster) -> set[str]:
    """The addresses that the cluster's processes listen on (IPv4-mapped ones as IPv4)."""
    addresses = set()
    for process in processes(cluster):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    addresses.add(str(connection.laddr[0]).removeprefix("::ffff:"))
    return addresses


def _environment(loopback: bool, token_path: Path | None, mark: str) -> dict[str, str]:
    """What the head gets: this process's environment, without what would lead it to another cluster or token."""
    away = {
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
    }
    kept = {name: value for name, value in os.environ.items() if name not in away}
    kept |= {
        MARK: mark,
        "RAY_USAGE_STATS_ENABLED": "0",
        LOOPBACK_SWITCH: "0" if loopback else "1",
        "RAY_AUTH_MODE": "token" if token_path else "disabled",
        "RAY_JOB_STOP_WAIT_TIME_S": os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", str(JOB_STOP_SECONDS)),
        # A job's `python` is this environment's.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    return kept | ({"RAY_AUTH_TOKEN_PATH": str(token_path)} if token_path else {})


def _wait_until_it_answers(cluster: Cluster, process: subprocess.Popen, log: Path) -> None:
    import requests

    token = cluster.token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    patience = time.monotonic() + START_SECONDS
    while time.monotonic() < patience:
        if process.poll() is not None:
            break
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{cluster.jobs_url}/api/jobs/", headers=headers, timeout=5).status_code == 200:
                return
        time.sleep(0.2)
    how = "ended" if process.poll() is not None else f"did not answer within {START_SECONDS:.0f} s"
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
    raise UserError(f"The Ray head {how}; the whole log is {log}, its end:\n{tail}")


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise UserError(f"--host {host}: expected an IP address of this machine, such as 127.0.0.1.") from error
    if address.is_unspecified:
        raise UserError(f"--host {host} stands for all addresses; give the one that the other nodes reach.")
    return address.is_loopback


def _check_ports(host: str, port: int, dashboard_port: int) -> None:
    if port == dashboard_port:
        raise UserError(f"--port and --dashboard-port are both {port}; give two.")
    for option, address, number in (("--port", host, port), ("--dashboard-port", "127.0.0.1", dashboard_port)):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, number))
                probe.listen(1)
            except OSError as error:
                raise UserError(
                    f"{address} port {number} cannot be used ({error.strerror}). Give another {option}, or end what "
                    f"listens there (`ss -ltnp` names it)."
                ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _write_token() -> Path:
    """The token's file. A token in the environment is taken, so that all who share that environment have it."""
    path = home() / TOKEN
    given = os.environ.get("RAY_AUTH_TOKEN")
    if not given and os.environ.get("RAY_AUTH_TOKEN_PATH"):
        own = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).absolute()
        if own.is_file():
            return own
        raise UserError(f"RAY_AUTH_TOKEN_PATH is {own}, which does not exist. Unset it, or write the token there.")
    with _private(path) as file:
        file.write(given or secrets.token_hex(32))
    return path


@contextlib.contextmanager
def _private(path: Path) -> Iterator:
    """A new file that its owner alone can read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        yield file
