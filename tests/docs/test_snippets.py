"""Every command and snippet of README, CONTRIBUTING and docs/: executed where that takes seconds, else parsed.

A command of ours is parsed by the command line itself, and where it names a recipe the whole config is built, so an
option, a key or a value that does not exist is found. tests/ray/test_documented_commands.py runs the
long ones at their smallest size, `make docs-check` in full.
"""

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from pipelines import locations
from pipelines.cli import app
from pipelines.runs import recipe_path
from pipelines.search_config import SearchConfig
from tests.docs.documented_commands import OTHER_PAGES, PAGES
from tests.docs.snippets import ROOT, Block, blocks, commands, yaml_lines
from unlearn_core.config import FinetuneConfig, RunConfig, load_config, parse_overrides

pytestmark = pytest.mark.docs

ELSEWHERE = {
    "ssh": "a tunnel to a cluster's head",
    "export": "sets a variable",
    "ray": "a cluster of several machines",
    "docker": "a registry of one's own",
    "kubectl": "a Kubernetes cluster",
    "hf": "an account of the hub",
    "tensorboard": "a server that stays; the event files are read by tests/test_run_logging.py",
}
"""Commands of other programs, and why they are not executed."""
PICTURES = (
    "unlearn_core  <-  tune  <-  pipelines",
    "rows -> tokens -> paired",
    "method = objectives + combiner",
    "L(theta - eta d)",
    "OUT/relearned/MODEL/ATTACK/",
    "ngdiff: step 12/40",
)
"""Beginnings of indented blocks that are formulas, listings or output."""
SCHEMAS: dict[str, Any] = {"steps": RunConfig, "recipe": SearchConfig}
"""A key that only one kind of config has at its top -> that kind."""
EXECUTED = {
    "add-a-method.md": "tests/docs/test_add_a_method.py",
    "python-api.md": "tests/docs/test_python_api.py",
}
"""Pages whose Python blocks another test executes."""

ALL = blocks()
SHELL = [block for block in ALL if block.language in ("bash", "console")]


def test_every_block_is_accounted_for():
    known = {"bash", "console", "yaml", "json", "python"}
    strangers = [
        str(block)
        for block in ALL
        if block.language not in known and not block.text.startswith((*PICTURES, '"""WGA', '{"error"'))
    ]
    assert strangers == []
    text = "\n".join(block.text for block in ALL)
    assert [start for start in PICTURES if start not in text] == []
    named = {words[0] for block in SHELL for words in commands(block)}
    assert sorted(set(ELSEWHERE) - named) == []


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_exist_with_their_options(block, monkeypatch, tmp_path):
    monkeypatch.setattr(locations, "is_uri", lambda _: False)  # parsed without asking a store
    if block.text.startswith("#!"):
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for words in commands(block):
        check = {"unlearn": parse_ours, "python": parse_module, "make": parse_make, "pip": parse_pip}.get(words[0])
        if check is None:
            assert words[0] in ELSEWHERE, f"{block}: {' '.join(words)}"
        else:
            check(words[1:])


def parse_ours(words: list[str]) -> None:
    """By the command line itself; configs are built whole."""
    if words[0] == "submit":
        start = next(n for n, word in enumerate(words) if n and word in get_command(app).commands)  # type: ignore[attr-defined]
        parse(words[:start] + words[start:])
        parse_ours(words[start:])
        return
    name, given = parse(words)
    recipe = given.get("recipe")
    if name in ("train", "finetune", "search") and recipe is not None:
        # A file of the reader's own stands for the recipe that the page makes it from.
        stands_for = {"my-run.yaml": "tofu-ngdiff", "my-search.yaml": "tofu-search", "mine.yaml": "own-files"}
        file = stands_for.get(recipe) or recipe
        kind = {"train": RunConfig, "finetune": FinetuneConfig, "search": SearchConfig}[name]
        extra = {"model.path": "model"} if given.get("model") else {}
        if file == "own-files":
            extra |= {"data.forget": ["a.jsonl"], "data.retain": ["b.jsonl"]}
        load_config(kind, recipe_path(file), extra | parse_overrides(given.get("set_") or []))


def parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    """(name of the sub-command, its parameters); fails on a name, an option or a value that it does not know."""
    command: Any = get_command(app)
    name = ""
    while hasattr(command, "commands"):
        name = words[0]
        assert name in command.commands, f"no command {name!r}"
        command, words = command.commands[name], words[1:]
    context = command.make_context(name, list(words))
    return name, context.params


def parse_module(words: list[str]) -> None:
    """`python -m MODULE OPTIONS`: the module is there and its parser, as its source has it, knows the options."""
    if words[0] == "-c":
        compile(words[1], "README", "exec")
        return
    assert words[0] == "-m"
    spec = importlib.util.find_spec(words[1])
    assert spec is not None and spec.origin is not None, words[1]
    source = Path(spec.origin).read_text(encoding="utf-8")
    for word in words[2:]:
        if word.startswith("--"):
            assert f'"{word.split("=")[0]}"' in source, f"{words[1]} has no {word}"
        elif not word.startswith("docs/"):
            assert f'"{word}"' in source or word in gpu_names(), f"{words[1]} knows no {word!r}"


def gpu_names() -> set[str]:
    """Shapes and methods of benchmarks.gpu_7b, which are keys of its tables."""
    from benchmarks import gpu_7b_shapes

    return set(re.findall(r'"([\w.-]+)"', Path(gpu_7b_shapes.__file__).read_text(encoding="utf-8")))


def parse_make(words: list[str]) -> None:
    """The target is in the Makefile, and make can plan it."""
    subprocess.run(["make", "-n", *words], cwd=ROOT, check=True, capture_output=True)


def parse_pip(words: list[str]) -> None:
    """Of extras: they are in pyproject.toml."""
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        for named in re.findall(r"unlearn\[([\w,-]+)\]", word):
            assert set(named.split(",")) <= set(extras)


def test_every_page_with_commands_is_run_somewhere():
    """tests/ray/test_documented_commands.py runs those of PAGES."""
    pages = {block.page for block in SHELL if any(words[0] == "unlearn" for words in commands(block))}
    assert pages <= set(PAGES) | set(OTHER_PAGES)
    for why in OTHER_PAGES.values():
        for test in re.findall(r"tests/\S+\.py", why):
            assert (ROOT / test).is_file()


def test_a_misspelt_option_value_or_key_is_found():
    for wrong in (
        "unlearn evaluate outputs/a --refrence b -o c",
        "unlearn trian tofu-ngdiff -o c",
        "unlearn train tofu-ngdiff --set optimizer.learning_rat=1 -o c",
        "unlearn train tofu-ngdiff --set steps=none -o c",
        "unlearn search tofu-search --target a --trials none -o c",
        "python -m benchmarks.exactnes",
        "python -m benchmarks.tofu_full --smokes",
        "make demos",
        "pip install 'unlearn[tensorbord]'",
    ):
        (words,) = commands(Block("page", 1, "bash", wrong))
        with pytest.raises((Exception, SystemExit)):
            {"unlearn": parse_ours, "python": parse_module, "make": parse_make, "pip": parse_pip}[words[0]](words[1:])


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "yaml"], ids=str)
def test_configs_are_valid(block, tmp_path):
    content = yaml.safe_load(block.text)
    kind = next((kind for key, kind in SCHEMAS.items() if key in content), None)
    file = tmp_path / "snippet.yaml"
    if kind is not None:
        file.write_text(block.text)
        load_config(kind, file, {"model.path": "model"} if kind is RunConfig else {})
        return
    # A part of a run's config: put into a whole one.
    whole = yaml.safe_load(recipe_path("tofu-ngdiff").read_text())
    whole["model"]["path"] = "model"
    for key, value in content.items():
        whole[key] = value
    if content.get("method", {}).get("settings", {}).get("generic"):
        whole["data"]["generic"] = {"source": "generic.jsonl"}
    file.write_text(yaml.safe_dump(whole))
    load_config(RunConfig, file, {})


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "json"], ids=str)
def test_rows_are_read(block, tmp_path):
    from unlearn_core.data.rows import read_training_rows

    file = tmp_path / "rows.jsonl"
    file.write_text(block.text)
    assert len(read_training_rows(file, "own")) == len(block.text.splitlines())


def test_own_data_takes_at_most_ten_lines():
    own = [block for block in ALL if block.language == "yaml" and "name: mine" in block.text]
    assert {block.page for block in own} == {"README.md", "own-model-and-metric.md"}
    assert all(yaml_lines(block.text) <= 10 for block in own)


def test_python_snippets_run(monkeypatch, tmp_path):
    """Of pages that no other test executes; a search's table is read from a recorded search."""
    import shutil

    recorded = ROOT / "tests" / "report" / "recorded"
    (tmp_path / "outputs").mkdir()
    shutil.copytree(recorded / "search" / "search-0", tmp_path / "outputs" / "search")
    monkeypatch.chdir(tmp_path)
    for block in ALL:
        if block.language == "python" and block.page not in EXECUTED:
            names: dict[str, Any] = {}
            exec(compile(block.text, str(block), "exec"), names)
            if "leaked_share" in names:
                model = "grad_diff-step-00020"
                assert 0 <= names["leaked_share"](recorded / "demo" / "evaluation", model) <= 1
                leaked = names["leaked_share"]
            if "LEAKED" in names:
                from unlearn_core.evaluation.records import read_parquet

                rows = read_parquet(recorded / "demo" / "evaluation" / "records" / model / "forget.parquet")
                found = names["LEAKED"].aggregate({"forget": rows}, None, False)
                assert found.values == {"forget_leaked_share": leaked(recorded / "demo" / "evaluation", model)}
            if "table" in names:
                assert len(names["table"]) > len(names["front"]) > 0
    for page, test in EXECUTED.items():
        assert page in (ROOT / test).read_text() and any(block.page == page for block in ALL)
