"""Which kind of results each folder holds, told by the file that its command wrote last; mistakes before anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearn_core.errors import UserError

KINDS = {
    "searches": ("search.json", "unlearn search"),
    "attacks": ("robustness.json", "unlearn robustness"),
    "evaluations": ("evaluation.json", "unlearn evaluate"),
    "runs": ("run.json", "unlearn train"),
}
"""Kind -> (the file that tells it, the command that writes it); the first that fits counts."""


@dataclass(frozen=True)
class Inputs:
    """The folders of a report by kind, each in the order given."""

    evaluations: tuple[Path, ...] = ()
    searches: tuple[Path, ...] = ()
    runs: tuple[Path, ...] = ()
    attacks: tuple[Path, ...] = ()

    @property
    def every(self) -> tuple[Path, ...]:
        """All of them."""
        return (*self.evaluations, *self.searches, *self.runs, *self.attacks)


def sort_folders(folders: Sequence[Path]) -> Inputs:
    """Tell the kinds apart.

    Args:
        folders: as the user gave them.

    Raises:
        UserError: no folder, one that is named twice or does not exist, or one that no command of ours finished.
    """
    if not folders:
        raise UserError(
            "no folder given; name evaluations, searches, training runs or robustness results, such as "
            "unlearn report outputs/evaluation -o outputs/report"
        )
    found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    seen: set[Path] = set()
    for folder in map(Path, folders):
        place = folder.resolve()
        if place in seen:
            raise UserError(f"{folder} is given twice; name each folder once")
        seen.add(place)
        found[_kind(folder)].append(folder)
    return Inputs(**{kind: tuple(names) for kind, names in found.items()})


def _kind(folder: Path) -> str:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}; expected a folder that {_commands()} wrote")
    for kind, (name, _) in KINDS.items():
        if (folder / name).is_file():
            return kind
    names = [name for name, _ in KINDS.values()]
    inside = [child for child in sorted(folder.iterdir()) if any((child / name).is_file() for name in names)]
    if inside:
        named = " ".join(str(child) for child in inside[:6])
        raise UserError(f"{folder} holds no results itself, but folders in it do; name those: {named}")
    files = ", ".join(name for name, _ in KINDS.values())
    raise UserError(
        f"{folder} holds none of {files}: it is no folder that {_commands()} wrote, or that command did not finish. "
        "Run it again, or leave the folder out"
    )


def _commands() -> str:
    *most, last = (command for _, command in KINDS.values())
    return f"{', '.join(most)} or {last}"
