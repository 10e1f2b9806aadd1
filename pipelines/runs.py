"""From what a user names (a run folder, a model folder, a hub name, a recipe) to what the stages need."""

import difflib
import json
from importlib import resources
from pathlib import Path

import yaml

from pipelines.locations import folder_or_uri
from unlearn_core.errors import UserError
from unlearn_core.storage import is_uri, uri_of


def resolve_model(name: str) -> str:
    """A run folder becomes its newest whole model; a model folder or hub name stays as it is, and so does its URI.

    Raises:
        UserError: a run folder without a whole model, or an object store that cannot be reached.
    """
    if is_uri(name):
        found = resolve_model(str(folder_or_uri(name)))
        return uri_of(found) or found
    record = Path(name) / "run.json"
    if not record.is_file():
        return name
    last = json.loads(record.read_text(encoding="utf-8")).get("last_model")
    if last is None:
        raise UserError(f"The run {name} has no finished model yet. Run its `unlearn train` or `finetune` to the end.")
    return str((Path(name) / last).resolve())


def probe_summary(output: Path) -> str:
    """What AutoLR's probes came to, in a line: how many were taken and why the others were refused."""
    from unlearn_core.loop import METRICS  # it brings transformers along, which listing recipes does not need

    last = json.loads((output / METRICS).read_text(encoding="utf-8").splitlines()[-1])
    counts = {name: count for name, count in last["auto_probes"].items() if count and name != "halved"}
    refused = ", ".join(f"{name} {count}" for name, count in counts.items() if name != "accepted") or "none"
    total = sum(counts.values())
    share = 1 - counts.get("accepted", 0) / total if total else 0.0
    return f"AutoLR: rate {last['auto_rate']:.3g} after {total} probes; refused {share:.0%} ({refused})"


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("pipelines"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_path(name: str) -> Path:
    """A YAML file, or a shipped recipe by name.

    Raises:
        UserError: neither exists; lists the recipes.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.exists():
        return path
    known = recipes()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UserError(f"No recipe '{name}'.{hint} Recipes: {', '.join(known)}. Or give a .yaml file.")
    return known[name]


def recipe_summary(path: Path) -> tuple[str, str]:
    """(command it is for, first comment line) of a recipe file."""
    text = path.read_text(encoding="utf-8")
    keys = yaml.safe_load(text)
    command = "search" if "recipe" in keys else "train" if "method" in keys else "finetune"
    return command, text.splitlines()[0].lstrip("# ")
