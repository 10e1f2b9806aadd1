"""The models to evaluate: found in run folders, checked before anything starts, identified by their content."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from unlearn_core.data.sources import looks_like_path, on_this_node
from unlearn_core.errors import UserError
from unlearn_core.models import check_model_source
from unlearn_core.publish import MARKER, is_complete
from unlearn_core.storage import is_uri, sha256_of, shared, uri_of

Role = Literal["target", "reference", "checkpoint"]
Quantisation = Literal["none", "int8", "nf4"]

_IDENTITY_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model")


@dataclass(frozen=True)
class ModelPoint:
    """One model of an evaluation.

    Attributes:
        model_id: unique name, used as a folder name: letters, digits and `._=+-`, starting with a letter or digit.
        path: its Hugging Face folder (seen by every node, or in a mirror of an object store), its URI, or a hub name.
        run: name of the run that made it.
        method: unlearning method, or `finetune`.
        step: optimizer steps of that run.
        role: `target` (before unlearning), `reference` (never saw the forget data), `checkpoint` (any other).
        quantisation: how its weights are held: `none`, `int8` or `nf4` (4 bits).
        variant: what was done to the model before it was scored, such as an attack; "" for nothing.
    """

    model_id: str
    path: str
    run: str
    method: str
    step: int
    role: Role = "checkpoint"
    quantisation: Quantisation = "none"
    variant: str = ""


def discover_run(run_folder: str | Path, role: Role | None = None) -> list[ModelPoint]:
    """Every model that a run published whole, in step order. Half-written exports are left out.

    A finetune's earlier exports are no points of interest: only its final model is returned.

    Args:
        run_folder: a run's folder, holding `run.json`.
        role: role of the points; None takes `target` or `reference` from a finetune of that name, else `checkpoint`.

    Returns:
        At least one point. Ids are `<run>-step-00010`, for a finetune `<run>`.

    Raises:
        UserError: no run folder, or it holds no whole model.
    """
    folder = Path(run_folder)
    run = _read_object(folder / "run.json", f"'{run_folder}' is no run folder")
    name, method = str(run.get("run", folder.name)), str(run.get("method", "unknown"))
    exports = sorted((path for path in folder.glob("models/step-*") if is_complete(path)), key=_step)
    finetune = method == "finetune"
    if finetune:
        exports = [folder / "model"] if is_complete(folder / "model") else exports[-1:]
    if not exports:
        raise UserError(
            f"run '{run_folder}' (status: {run.get('status', 'unknown')}) has no complete model; expected "
            f"models/step-*/{MARKER}. Wait for the run's first export, or leave the run out"
        )
    if role is None:
        role = "target" if finetune and name == "target" else "checkpoint"
        role = "reference" if finetune and name == "reference" else role
    return [
        ModelPoint(
            model_id=name if finetune else f"{name}-step-{_step(path):05d}",
            path=str(path),
            run=name,
            method=method,
            step=_step(path),
            role=role,
        )
        for path in exports
    ]


def check_models(models: Sequence[ModelPoint], require_reference: bool) -> None:
    """Find every mistake in a list of models before a worker starts.

    Args:
        models: the list.
        require_reference: whether a reference must be among them.

    Raises:
        UserError: no model, an id twice or unfit as a folder name, an unknown role, more than one reference or a
            missing one that is required, or a folder that is not a whole model.
    """
    if not models:
        raise UserError("no models to evaluate; give at least one run or model folder")
    seen: dict[str, str] = {}
    for point in models:
        if not re.fullmatch(r"[A-Za-z0-9][\w.=+-]*", point.model_id, re.ASCII):
            raise UserError(
                f"model id '{point.model_id}' names a folder; use letters, digits and ._=+- only, first a letter or "
                "digit"
            )
        if point.model_id in seen:
            raise UserError(
                f"model id '{point.model_id}' is given twice, for {seen[point.model_id]} and {point.path}; "
                "evaluate one of them, or rename a run"
            )
        seen[point.model_id] = point.path
        if point.role not in get_args(Role):
            raise UserError(f"{point.model_id}: unknown role '{point.role}'; expected one of {get_args(Role)}")
        check_model_source(point.path)
    for role in ("reference", "target"):
        named = [point.model_id for point in models if point.role == role and not point.variant]
        if len(named) > 1:
            raise UserError(f"{len(named)} models have the role '{role}' ({', '.join(named)}); expected one")
    references = [point.model_id for point in models if point.role == "reference" and not point.variant]
    if require_reference and not references:
        raise UserError(
            "no model has the role 'reference', which a comparison was asked for with; add the model that was trained "
            "without the forget data"
        )


def identity(point: ModelPoint) -> dict[str, Any]:
    """What tells this model's content from another's without reading its weights.

    The marker alone would not do: a run repeated with another learning rate writes the same one.

    Args:
        point: a checked model.

    Returns:
        The folder's path, its marker's content (None without one) and name, size and modification time of its files.
        For a model in an object store, its URI, and SHA-256 in place of the time, which nodes differ in. For a hub
        name, the name: a hub model that changes under its name is not noticed.
    """
    held = {} if point.quantisation == "none" else {"quantisation": point.quantisation}
    if not looks_like_path(point.path):
        return {"hub": point.path, **held}
    folder = Path(on_this_node(point.path)).expanduser().resolve()
    uri = uri_of(folder)
    files = sorted({path for pattern in _IDENTITY_FILES for path in folder.glob(pattern)})
    return {
        "path": uri or str(folder),
        "marker": _read_object(folder / MARKER, "unreadable marker") if is_complete(folder) else None,
        "files": [
            [path.name, path.stat().st_size, sha256_of(path) if uri else path.stat().st_mtime_ns] for path in files
        ],
        **held,
    }


def absolute(point: ModelPoint) -> str:
    """A name of the model that processes in other folders and on other nodes understand.

    Args:
        point: a model.

    Returns:
        The absolute path of its folder; for one in a mirror its URI, to which it is uploaded first; a hub name or URI
        as it is.
    """
    return shared(point.path) if looks_like_path(point.path) and not is_uri(point.path) else point.path


def same_place(one: str | Path, other: str | Path) -> bool:
    """Whether two paths or URIs name the same folder."""
    first, second = (str(name) if is_uri(str(name)) else uri_of(name) or Path(name).resolve() for name in (one, other))
    return first == second


def weight_bytes(point: ModelPoint) -> int:
    """Size of a model's safetensors files; 0 for a hub name."""
    if not looks_like_path(point.path):
        return 0
    folder = Path(on_this_node(point.path)).expanduser()
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _step(export: Path) -> int:
    step = _read_object(export / MARKER, f"'{export}' has no readable marker").get("step")
    if not isinstance(step, int):
        raise UserError(f"{export / MARKER}: 'step' is {step!r}; expected a whole number")
    return step


def _read_object(path: Path, problem: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{problem}: cannot read {path} ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{problem}: {path} holds no JSON object")
    return value
