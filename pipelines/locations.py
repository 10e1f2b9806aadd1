"""What a user names on the command line may lie in an object store: its URI becomes a path in a mirror.

An input is brought without its large files, which are fetched where they are needed. An output is brought whole, since
the same command resumes there, and taken back while the command runs.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from unlearn_core.errors import UserError
from unlearn_core.storage import check_uri, is_uri, pull
from unlearn_core.storage_sync import Syncing

_commands: list[tuple[ExitStack, list[Syncing]]] = []
"""What the command in progress has to finish at its end, and what it takes to stores."""


@contextmanager
def synced(console: Console) -> Iterator[None]:
    """While a command runs, outputs in object stores are taken there; at its end they are there.

    Args:
        console: where to say so.

    Raises:
        UserError: at the end, the store cannot be reached; names the local folder that holds everything.
    """
    moves: list[Syncing] = []
    try:
        with ExitStack() as stack:
            _commands.append((stack, moves))
            try:
                yield
            finally:
                _commands.pop()
    finally:
        for move in moves:
            if move.moved:
                console.print(f"in the store: {move.uri}", highlight=False, soft_wrap=True)


class RefusedPlace(Exception):
    """A `UserError` on its way through the command line's parser, which takes every `ValueError` for its own."""


def folder_or_uri(text: str | Path) -> Path:
    """An input: a path as it is; of a URI the mirror, without its large files.

    Raises:
        UserError: a mistake in the URI, a store that cannot be reached, or nothing there.
    """
    if not is_uri(text):
        return Path(text)
    place = pull(str(text), small_only=True)
    if not place.exists():
        raise UserError(
            f"'{check_uri(str(text))}' does not exist or is empty; give what an earlier command wrote there"
        )
    return place


def model_or_uri(name: str) -> str:
    """A model as a user names it: a URI becomes the path of its mirror, without large files; all else stays."""
    return str(folder_or_uri(name)) if is_uri(name) else name


def _worked_on(text: str | Path, following: bool) -> Path:
    if not is_uri(text):
        return Path(text)
    place = pull(str(text), small_only=following)
    if _commands:
        stack, moves = _commands[-1]
        moves.append(stack.enter_context(Syncing(place, following)))
    return place


def input_place(text: str | Path) -> Path:
    """For the command line: `folder_or_uri`, with `RefusedPlace` in place of `UserError`."""
    return _parsed(lambda: folder_or_uri(text))


def output_place(text: str | Path) -> Path:
    """For the command line: of a URI the mirror, which is taken to the store until the command ends.

    Raises:
        RefusedPlace: a mistake in the URI, or a store that cannot be reached.
    """
    return _parsed(lambda: _worked_on(text, following=False))


def followed_place(text: str | Path) -> Path:
    """For the command line: the folder of a run that others write meanwhile, which is also brought again and again."""
    return _parsed(lambda: _worked_on(text, following=True))


def _parsed(parse: Callable[[], Path]) -> Path:
    try:
        return parse()
    except UserError as error:
        raise RefusedPlace(str(error)) from error
