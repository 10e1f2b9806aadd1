"""From a command line as typed here to one that means the same on the cluster.

A job runs in a temporary folder, where the packed files lie. So what names an output, or a local file or folder that
does not travel, becomes an absolute path: it must be reachable under that path from the cluster. Everything is checked
as far as it can be here: the sub-command, its options, the recipe.
"""

import os
import re
import shlex
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from pipelines.job_package import Package
from unlearn_core.errors import UserError

OUTPUTS = ("-o", "--output")
_HERE_ONLY = ("cluster", "jobs", "submit")
_SECRET = re.compile(r"SECRET|PASSWORD|PASSWD|CREDENTIAL|(TOKEN|KEY)S?(_|$)")
_STEP = re.compile(r"(?P<path>.+)@(?P<step>\d+)")
_MODELS = {"model", "target", "reference", "unlearned", "reinforced"}
"""Options of free text that may name a folder even without a slash or a dot."""


def check_command(command: list[str]) -> list[str]:
    """Parse a command line as it will be parsed on the cluster, and check that its recipe exists.

    Args:
        command: sub-command and arguments. `--help` among them prints that help and exits.

    Returns:
        The command line, with an output folder that it left to the default said in full.

    Raises:
        UserError: no such sub-command, one that makes no sense as a job, no such recipe.
    """
    parser, path = _parser(command)
    with parser.make_context(" ".join(["unlearn", *path]), list(command[len(path) :])) as context:
        given = context.params
    recipe = given.get("recipe")
    if recipe is not None:
        from pipelines.runs import recipe_path

        if not recipe_path(recipe).is_file():
            raise UserError(f"The recipe file {recipe} does not exist. `unlearn recipes` lists those that come along.")
    output = given.get("output")
    named = any(word in OUTPUTS or word.startswith(("--output=", "-o")) for word in command[len(path) :])
    return command if output is None or named else [*command, "--output", str(output)]


def remote_command(command: list[str], package: Package) -> tuple[list[str], dict[str, str]]:
    """Make paths absolute that would mean something else in the job's folder.

    Args:
        command: sub-command and arguments, as `check_command` gave them.
        package: what travels of the current folder.

    Returns:
        The command line for the cluster, and every path changed: as typed -> absolute.
    """
    parser, path = _parser(command)
    options = {name: parameter for parameter in parser.params for name in parameter.opts if name.startswith("-")}
    typed = get_type_hints(parser.callback)
    paths = {parameter.name for parameter in parser.params if _holds_paths(typed.get(parameter.name))}
    positional = {parameter.name for parameter in parser.params if parameter.param_type_name == "argument"}
    rewrite = _Rewriting(package, paths)
    words = list(path)
    values, owner = 0, ""  # how many values the option before still takes
    for word in command[len(path) :]:
        name, equals, value = word.partition("=")
        if values:
            words.append(rewrite.value(word, {owner}))
            values -= 1
        elif name in options and equals:
            words.append(f"{name}={rewrite.value(value, {options[name].name})}")
        elif word in options:
            words.append(word)
            flag = getattr(options[word], "is_flag", False)
            values, owner = 0 if flag else options[word].nargs, options[word].name
        elif word[:2] in options and not word.startswith("--"):  # -oFOLDER
            words.append(word[:2] + rewrite.value(word[2:], {options[word[:2]].name}))
        else:
            words.append(word if word.startswith("-") else rewrite.value(word, positional))
    return words, rewrite.changed


def entrypoint(command: list[str]) -> str:
    """The shell command of the job."""
    return shlex.join(["python", "-m", "pipelines.cli", *command])


def subcommand_of(entrypoint: str) -> str:
    """The sub-command in a job's shell command; the whole command if it is not one of ours."""
    _, ours, rest = entrypoint.partition("-m pipelines.cli ")
    return rest.split(" ")[0] if ours else entrypoint


def forwarded(names: list[str], environment: dict[str, str]) -> dict[str, str]:
    """The environment variables that a job takes along.

    Args:
        names: of `--env`.
        environment: where the values come from.

    Raises:
        UserError: a name that is not set, or that looks like a secret's.
    """
    for name in names:
        if looks_secret(name):
            raise UserError(
                f"--env {name} looks like a secret. A job's environment is part of its metadata, and everybody who "
                f"sees the dashboard sees it. Set {name} on the nodes instead, before Ray starts there."
            )
        if name.startswith("RAY_"):
            raise UserError(f"--env {name}: Ray's own variables belong to the cluster. Set it where Ray is started.")
        if name not in environment:
            hint = " Give the name alone; the value is taken from here." if "=" in name else ""
            raise UserError(f"--env {name}: no such environment variable is set here.{hint}")
    return {name: environment[name] for name in names}


def looks_secret(name: str) -> bool:
    """Whether a variable of this name is likely to hold a secret."""
    return _SECRET.search(name.upper()) is not None


def _parser(command: list[str]) -> tuple[Any, list[str]]:
    """The parser of a sub-command and its path, such as ["edit", "slug"]."""
    from pipelines import cli  # it includes the command that uses this file, so not at the top

    parser: Any = typer.main.get_command(cli.app)
    path: list[str] = []
    while hasattr(parser, "commands"):
        known = [name for name in parser.commands if path or name not in _HERE_ONLY]
        said = command[len(path)] if len(path) < len(command) else ""
        if said not in known:
            what = f"'{' '.join([*path, said])}' is no sub-command for a job" if said else "A sub-command is missing"
            raise UserError(f"{what}; expected one of {', '.join(' '.join([*path, name]) for name in known)}.")
        path.append(said)
        parser = parser.commands[said]
    return parser, path


class _Rewriting:
    """Makes the paths among arguments absolute where it has to be.

    Args:
        package: what travels.
        paths: names of the parameters that are paths by type.
    """

    def __init__(self, package: Package, paths: set[str]):
        self.package, self.paths = package, paths
        self.changed: dict[str, str] = {}

    def value(self, text: str, parameters: set[str]) -> str:
        """The value of one of these parameters; also inside KEY=VALUE, [A,B] and FILE@STEP."""
        if "://" in text:
            return text
        if "output" in parameters:
            return self._absolute(text)
        is_path = bool(parameters & self.paths)
        if os.path.exists(text) and (is_path or parameters & _MODELS):
            return self._unless_packed(text)
        key, equals, inner = text.partition("=")
        if equals and not os.path.exists(text):
            return f"{key}={self._untyped(inner)}"
        return self._absolute(text) if is_path else self._untyped(text)  # a path may exist on the cluster only

    def _untyped(self, text: str) -> str:
        """Without a type, only what exists and does not look like a mere name is a path."""
        if "://" in text:
            return text
        if len(text) > 2 and text[0] in "'\"" and text[-1] == text[0]:
            return text[0] + self._untyped(text[1:-1]) + text[0]
        if text.startswith("[") and text.endswith("]"):
            return f"[{','.join(self._untyped(part.strip()) for part in text[1:-1].split(','))}]"
        stepped = _STEP.fullmatch(text)
        if stepped and not os.path.exists(text):
            return f"{self._untyped(stepped['path'])}@{stepped['step']}"
        return self._unless_packed(text) if ("/" in text or "." in text) and os.path.exists(text) else text

    def _unless_packed(self, text: str) -> str:
        return text if self.package.holds(Path(text)) else self._absolute(text)

    def _absolute(self, text: str) -> str:
        self.changed[text] = absolute = os.path.abspath(os.path.expanduser(text))
        return absolute


def _holds_paths(kind: Any) -> bool:
    return kind is Path or any(_holds_paths(part) for part in get_args(kind))
