"""What travels with a job: the working tree without data and outputs, and this installation's own code.

Packed are, in a git work tree, the files that git tracks or does not ignore, elsewhere all; never what `_LEFT_FOLDERS`,
`_LEFT_ENDINGS` and `FILE_LIMIT` name, nor links that lead outside.
"""

import dataclasses
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from unlearn_core.errors import UserError

MIB = 2**20
FILE_LIMIT = 10 * MIB
"""Larger files stay behind."""
TOTAL_LIMIT = 200 * MIB
"""More is an error: the package goes through the head's memory."""
OWN_CODE = ("pipelines", "tune", "unlearn_core")
"""Packages of this installation that a job runs with, whatever the nodes have installed."""

_LEFT_FOLDERS = {
    *(".git", ".venv", "venv", "outputs", "data", "checkpoints", "models", "node_modules", "__pycache__"),
    *(".pytest_cache", ".ruff_cache"),
}
_LEFT_ENDINGS = (".safetensors", ".bin", ".pt", ".gguf")


@dataclasses.dataclass(frozen=True)
class Package:
    """Which files of a folder travel.

    Args:
        root: the folder.
        files: relative paths, sorted.
        size: their bytes.
        left_out: why files stayed behind, with how many.
    """

    root: Path
    files: tuple[Path, ...]
    size: int
    left_out: dict[str, int]

    def holds(self, path: Path) -> bool:
        """Whether a file, or every file below a folder, travels; False for what is outside the root."""
        if path.is_absolute():
            return False
        inside, packed = Path(os.path.normpath(path)), set(self.files)
        if ".." in inside.parts:
            return False
        if (self.root / inside).is_file():
            return inside in packed
        below = [path.relative_to(self.root) for path in (self.root / inside).rglob("*") if not path.is_dir()]
        return bool(below) and packed.issuperset(below)

    def __str__(self) -> str:
        left = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        return f"packed {len(self.files)} files, {self.size / MIB:.1f} MiB" + (f"; left out: {left}" if left else "")


def choose_files(root: Path) -> Package:
    """Choose what of `root` travels.

    Raises:
        UserError: more than the total limit; names the biggest files.
    """
    root = root.resolve()
    kept: dict[Path, int] = {}
    left: Counter[str] = Counter()
    for path in sorted(_candidates(root)):
        reason = _reason_to_stay(root, path)
        if reason is None:
            kept[path] = (root / path).stat().st_size
        elif reason:
            left[reason] += 1
    size = sum(kept.values())
    if size > TOTAL_LIMIT:
        biggest = sorted(kept, key=lambda path: -kept[path])[:5]
        named = ", ".join(f"{path} ({kept[path] / MIB:.1f} MiB)" for path in biggest)
        raise UserError(
            f"{root} would send {size / MIB:.0f} MiB in {len(kept)} files; at most {TOTAL_LIMIT // MIB} MiB may "
            f"travel. Biggest: {named}. Move data to a folder named data or outputs, list it in .gitignore, or "
            "submit from a smaller folder."
        )
    return Package(root, tuple(kept), size, dict(left))


def stage(package: Package, folder: Path) -> Path:
    """Copy the files of a package below `folder`; links are followed.

    Returns:
        `folder`, never empty: Ray refuses an empty one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in package.files:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(package.root / path, target)
    if not package.files:
        (folder / ".unlearn-job").touch()
    return folder


def stage_own_code(folder: Path) -> list[str]:
    """Copy this installation's packages below `folder`, without byte code.

    Returns:
        Their folders, as Ray's `py_modules` takes them.
    """
    here = Path(__file__).resolve().parents[1]
    for name in OWN_CODE:
        shutil.copytree(here / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    return [str(folder / name) for name in OWN_CODE]


def _candidates(root: Path) -> Iterator[Path]:
    """Relative paths: git's view of the tree where there is one, else every file."""
    with_git = ["git", "-C", str(root), "ls-files", "-z", "-co", "--exclude-standard"]
    try:
        answer = subprocess.run(with_git, capture_output=True, check=False)
    except FileNotFoundError:  # no git on this machine
        answer = None
    if answer is not None and answer.returncode == 0:
        names = {Path(os.fsdecode(name)) for name in answer.stdout.split(b"\0") if name}
        yield from (name for name in names if (root / name).is_file() or (root / name).is_symlink())
        return
    for folder, folders, names in os.walk(root):
        yield from ((Path(folder) / name).relative_to(root) for name in names)
        yield from ((Path(folder) / name).relative_to(root) for name in folders if (Path(folder) / name).is_symlink())
        folders[:] = [name for name in folders if name not in _LEFT_FOLDERS]


def _reason_to_stay(root: Path, path: Path) -> str | None:
    """None for a file that travels, "" for one that is not worth a word."""
    if set(path.parts[:-1]) & _LEFT_FOLDERS:
        return "in data, output or tool folders"
    if path.suffix in _LEFT_ENDINGS:
        return "weight files"
    if path.name.startswith(".env") or path.name == ".netrc" or path.suffix in (".pem", ".key"):
        return "files that may hold secrets"
    real = (root / path).resolve()
    if not real.is_relative_to(root):
        return "links to outside"
    if not real.is_file():
        return "links to folders, sockets or nothing"
    if real.stat().st_size > FILE_LIMIT:
        return f"larger than {FILE_LIMIT // MIB} MiB"
    if len(path.parts) > 1 and path.parts[0] in OWN_CODE and path.suffix in (".py", ".pyc"):
        return ""  # the installation's own code travels beside; a second copy in the tree could shadow it
    return None
