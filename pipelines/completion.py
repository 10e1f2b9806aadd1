"""What the shell offers after a tab: names of recipes and methods (`unlearn --install-completion`).

Each function gets what has been typed so far and gives (name, what it is). The shell waits for the answer, so recipes
are read as text and methods listed by their files.
"""

from importlib import resources
from pathlib import Path


def recipe_names(incomplete: str) -> list[tuple[str, str]]:
    """Recipes that come with the package."""
    return _recipes(incomplete, ("finetune", "train", "search"))


def training_recipes(incomplete: str) -> list[tuple[str, str]]:
    """Those for `unlearn train`."""
    return _recipes(incomplete, ("train",))


def finetune_recipes(incomplete: str) -> list[tuple[str, str]]:
    """Those for `unlearn finetune`."""
    return _recipes(incomplete, ("finetune",))


def search_recipes(incomplete: str) -> list[tuple[str, str]]:
    """Those for `unlearn search`."""
    return _recipes(incomplete, ("search",))


def method_names(incomplete: str) -> list[tuple[str, str]]:
    """Methods, which are the files of unlearn_core/methods/, with the first line of each."""
    folder = Path(str(resources.files("unlearn_core"))) / "methods"
    found = []
    for path in sorted(folder.glob("*.py")):
        if path.stem.startswith(incomplete) and not path.stem.startswith("_"):
            title = path.read_text(encoding="utf-8").splitlines()[0].strip('"').rstrip(".")
            found.append((path.stem, title))
    return found


def _recipes(incomplete: str, commands: tuple[str, ...]) -> list[tuple[str, str]]:
    from pipelines.runs import recipe_summary, recipes

    found = []
    for name, path in recipes().items():
        if name.startswith(incomplete):
            command, summary = recipe_summary(path)
            if command in commands:
                found.append((name, summary))
    return found
