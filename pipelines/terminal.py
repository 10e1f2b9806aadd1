"""What every command shares: `--json`, `--quiet`, where results, progress and errors are printed, how it ends.

A command is a function that returns its result as a document (dicts, lists, numbers, text, paths, dataclasses). It
prints results on `out`, and progress and notes on `work`. `ScriptableTyper` adds the two options by itself:

    --json    stdout holds the document and nothing else; progress goes to stderr, whose last line is the error, if any
    --quiet   no progress and no notes: results and errors only
"""

import dataclasses
import functools
import inspect
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand

out = Console()
"""Results; silent with --json."""
work = Console()
"""Progress and notes; on stderr with --json, silent with --quiet."""
aside = Console(stderr=True)
"""Notes of a command whose stdout is a job's log; silent with --quiet."""
err = Console(stderr=True)
"""Errors for people."""

_PANEL = "For scripts"
_as_json = False


@dataclasses.dataclass(frozen=True)
class Ending:
    """A document together with an exit code that is not 0."""

    document: Any
    exit_code: int


class ScriptableTyper(typer.Typer):
    """A Typer whose commands all have `--json` and `--quiet`, and return their document."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:  # type: ignore[override]
        """As Typer's, for a function that returns its document, or an `Ending`."""
        chosen: dict[str, Any] = {"cls": ScriptableCommand} | settings
        register = super().command(name, **chosen)

        def decorate(function: Any) -> Any:
            register(_scriptable(function))
            return function

        return decorate


class ScriptableCommand(TyperCommand):
    """Tells mistakes in the arguments in the form that the arguments ask for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; `Exit` with the error's own code after a mistake that was told as JSON."""
        settle("--json" in args, "--quiet" in args)
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            if not _as_json:
                raise
            fail("UsageError", error.format_message(), error.exit_code)
            raise typer.Exit(error.exit_code) from error


def _scriptable(function: Callable[..., Any]) -> Callable[..., Any]:
    options = {
        "json_": Annotated[
            bool, typer.Option("--json", help="Print the result as one JSON document.", rich_help_panel=_PANEL)
        ],
        "quiet": Annotated[
            bool, typer.Option("--quiet", help="No progress, no notes: the result and errors.", rich_help_panel=_PANEL)
        ],
    }

    @functools.wraps(function)
    def run(*, json_: bool, quiet: bool, **arguments: Any) -> None:
        settle(json_, quiet)
        with redirect_stdout(sys.stderr) if json_ else nullcontext():
            result = function(**arguments)
        ending = result if isinstance(result, Ending) else Ending(result, 0)
        if json_:
            print(as_text(ending.document))
        if ending.exit_code:
            raise typer.Exit(ending.exit_code)

    own = inspect.signature(function)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in options.items()
    ]
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # type: ignore[attr-defined]
    run.__annotations__ = function.__annotations__ | options
    return run


def settle(as_json: bool, quiet: bool) -> None:
    """How the command that now begins prints."""
    global _as_json
    _as_json = as_json
    out.quiet = as_json
    work.stderr, work.quiet, aside.quiet = as_json, quiet, quiet
    logging.getLogger("unlearn").setLevel(logging.ERROR if quiet else logging.NOTSET)


def fail(kind: str, message: str, exit_code: int, title: str = "Error") -> None:
    """Tell an error: for people with its title in red, with `--json` as one line of JSON.

    Args:
        kind: one word for programs.
        message: for people.
        exit_code: what the process will end with.
        title: stands before the message, for people; "" for none.
    """
    if _as_json:
        error = {"error": {"kind": kind, "message": message, "exit_code": exit_code}}
        print(json.dumps(error), file=sys.stderr)
    else:
        shown = f"[bold red]{title}:[/] " if title else ""
        err.print(f"{shown}{escape(message)}", highlight=False, soft_wrap=True)


def as_text(document: Any) -> str:
    """A document as indented JSON; NaN and infinity, which JSON has no word for, are null."""
    return json.dumps(plain(document), indent=2, allow_nan=False)


def plain(value: Any) -> Any:
    """Dataclasses, paths, sets, numpy numbers and tables as what JSON has; NaN and infinity as None."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(one) for one in value)
    if isinstance(value, Path):
        return str(value)
    table: Any = getattr(value, "to_dict", None)  # of pandas, without importing it
    if table is not None:
        return [plain(row) for row in table(orient="records")]
    number: Any = getattr(value, "item", None)  # of numpy
    if number is not None:
        return plain(number())
    raise TypeError(f"a command's document holds a {type(value).__name__}, which JSON has no form for")
