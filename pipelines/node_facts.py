"""What `unlearn doctor` asks of each node. Travels to the nodes by value, so it imports the standard library only."""

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("ray", "torch", "transformers", "deepspeed", "unlearn")
GPU_SECONDS = 45.0
HUB_SECONDS = 10.0
_GPUS = (
    "import json, torch; count = torch.cuda.device_count(); "
    "print(json.dumps([torch.cuda.get_device_name(i) for i in range(count)]))"
)


def collect(question: dict[str, Any]) -> dict[str, Any]:
    """Facts about the machine that this runs on, as plain values.

    Args:
        question: `node`, a name for files; `output`, `model`, `data`, each a path or name or None; `nonce`, the name of
            the file that the driver wrote into the output; `secret`, that file's content.

    Returns:
        The fields of `pipelines.doctor.Node` that a node knows itself.
    """
    output = question["output"]
    return {
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "code": _code(),
        "gpus": _gpus(),
        "output": None if output is None else _output(Path(output), question),
        "free_output_gib": None if output is None else _free(Path(output)),
        "free_temp_gib": _free(Path(tempfile.gettempdir())),
        "shared_memory_gib": _size(Path("/dev/shm")),
        "model": _reachable(question["model"], "config.json", "model"),
        "data": _reachable(question["data"], "README.md", "dataset"),
    }


def clock() -> float:
    """This node's time, seconds since 1970."""
    return time.time()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _code() -> str | None:
    """A digest of unlearn's source as this node would import it; None where it is missing."""
    digest = hashlib.sha256()
    for package in ("pipelines", "tune", "unlearn_core"):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _gpus() -> list[str] | str:
    """Names of the GPUs that torch sees, in a process of its own: Ray hides them from a task that asks for none."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _GPUS], env=environment, capture_output=True, text=True, timeout=GPU_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"torch did not answer within {GPU_SECONDS:.0f} s"
    if answer.returncode != 0:
        return (answer.stderr.strip().splitlines() or ["torch failed"])[-1]
    return json.loads(answer.stdout.strip().splitlines()[-1])


def _output(folder: Path, question: dict[str, Any]) -> str:
    """Read the driver's file and write this node's own; "ok" or what went wrong."""
    try:
        if (folder / question["nonce"]).read_text(encoding="utf-8") != question["secret"]:
            return "is another folder: the driver's file has other content here"
        (folder / f"{question['nonce']}-{question['node']}").write_text(question["secret"], encoding="utf-8")
    except FileNotFoundError:
        return "is another folder: the driver's file is not here"
    except OSError as error:
        return f"cannot be read and written: {error.strerror or error}"
    return "ok"


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _free(path: Path) -> float:
    return shutil.disk_usage(_existing(path)).free / 2**30


def _size(path: Path) -> float | None:
    return shutil.disk_usage(path).total / 2**30 if path.is_dir() else None


def _reachable(name: str | None, file: str, kind: str) -> str | None:
    """How a path or hub name is reached from here: found, cached, hub, not checked, or why not."""
    if name is None:
        return None
    if Path(name).exists():
        return "found"
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        return "does not exist"
    try:
        from huggingface_hub import constants, get_token, try_to_load_from_cache
    except ImportError as error:
        return f"cannot be looked up: {error}"
    try:
        if isinstance(try_to_load_from_cache(name, file, repo_type=kind), str):
            return "cached"
    except ValueError:
        return "does not exist"  # nor could it be a hub name
    if constants.HF_HUB_OFFLINE:
        return "not checked offline"
    token = get_token()
    request = urllib.request.Request(
        f"{constants.ENDPOINT}/api/{kind}s/{name}", headers={"Authorization": f"Bearer {token}"} if token else {}
    )
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):
            return "hub"
    except urllib.error.HTTPError as error:
        return f"the hub says {error.code}: no such name, or one that needs a token there"
    except OSError as error:
        return f"the hub is not reached: {getattr(error, 'reason', error)}"
