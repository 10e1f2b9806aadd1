"""What all commands share: --json, --quiet, exit codes, completion; and `unlearn show`. Nothing here starts Ray."""

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pandas as pd
import pytest
import typer
from rich.console import Console

from pipelines import cli, terminal
from pipelines.glance import glance, sparkline
from pipelines.row_progress import RowProgress
from pipelines.runs import recipes
from pipelines.stage_progress import StageProgress
from unlearn_core.errors import DivergedError, StoppedError, UserError
from unlearn_core.loop import Outcome


@pytest.fixture
def unlearn(monkeypatch, capsys):
    """Call the command line; gives (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["unlearn", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    yield call
    terminal.settle(as_json=False, quiet=False)


def every_command(group=None, path=()):
    group = group or typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from every_command(command, (*path, name))
        else:
            yield pytest.param(command, id=" ".join((*path, name)))


@pytest.mark.parametrize("command", list(every_command()))
def test_every_command_has_the_options_and_returns_a_document(command):
    assert {"--json", "--quiet"} <= {word for parameter in command.params for word in parameter.opts}
    assert get_type_hints(command.callback)["return"] is not type(None)


@pytest.fixture
def tried(monkeypatch):
    """A command of its own, in place of `unlearn`'s, that prints in every way there is."""

    def make(document=None, error=None):
        app = terminal.ScriptableTyper()

        @app.command()
        def work(name: str):
            print("somebody else's print")
            terminal.work.print("progress")
            terminal.out.print("result")
            if error is not None:
                raise error
            return document

        @app.command()
        def other():
            return None

        monkeypatch.setattr(cli, "app", app)

    return make


def test_json_is_all_of_stdout(unlearn, tried):
    @dataclass
    class Found:
        path: Path
        values: tuple

    table = pd.DataFrame({"step": [1, 2], "loss": [0.5, math.nan]})
    tried({"found": Found(Path("a/b"), (math.nan, math.inf, np.float32(0.5), np.int64(3))), "table": table})
    code, shown, told = unlearn("work", "x", "--json")
    assert code == 0
    assert json.loads(shown) == {
        "found": {"path": "a/b", "values": [None, None, 0.5, 3]},
        "table": [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}],
    }
    assert told == "somebody else's print\nprogress\n"
    assert unlearn("work", "x", "--json", "--quiet")[2] == "somebody else's print\n"
    assert unlearn("work", "x") == (0, "somebody else's print\nprogress\nresult\n", "")  # and nothing of it stays
    assert unlearn("work", "x", "--quiet") == (0, "somebody else's print\nresult\n", "")


def test_a_document_without_a_form_in_json_is_our_mistake(tried, unlearn):
    with pytest.raises(TypeError, match="object"):
        terminal.plain({"x": object()})


def test_an_ending_has_both_document_and_exit_code(unlearn, tried):
    tried(terminal.Ending({"fits": False}, 1))
    assert unlearn("work", "x", "--json")[:2] == (1, '{\n  "fits": false\n}\n')


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (UserError("no [such] file"), 2, "UserError"),
        (StoppedError("no [such] file"), 143, "StoppedError"),
        (DivergedError("no [such] file"), 3, "DivergedError"),
    ],
)
def test_errors_keep_their_exit_code_and_are_the_last_line_of_stderr(unlearn, tried, error, code, kind):
    tried(error=error)
    ended, shown, told = unlearn("work", "x", "--json")
    assert (ended, shown) == (code, "")
    said = json.loads(told.splitlines()[-1])["error"]
    assert (said["kind"], said["exit_code"]) == (kind, code)
    assert "no [such] file" in said["message"]
    assert unlearn("work", "x", "--quiet")[0] == code
    assert "no [such] file" in unlearn("work", "x")[2]


def test_mistakes_in_the_arguments_are_json_too(unlearn):
    code, shown, told = unlearn("train", "--json")
    assert (code, shown) == (2, "")
    assert json.loads(told)["error"] == {"kind": "UsageError", "message": "Missing argument 'recipe'.", "exit_code": 2}
    code, _, told = unlearn("train", "demo-ngdif", "--json", "-o", "x")
    assert code == 2
    assert "Did you mean 'demo-ngdiff'?" in json.loads(told)["error"]["message"]


def test_documents_of_real_commands(unlearn, monkeypatch, tmp_path):
    listed = json.loads(unlearn("recipes", "--json")[1])
    assert {one["recipe"] for one in listed} == set(recipes())
    assert json.loads(unlearn("recipes", "demo-ngdiff", "--json")[1])["yaml"].startswith("# NGDiff")
    assert "method.name" in json.loads(unlearn("space", "composed", "npo", "--json")[1])
    monkeypatch.setattr("pipelines.train.train", lambda *_: Outcome("diverged", 7, "non-finite loss at step 8"))
    code, shown, told = unlearn("train", "demo-ngdiff", "--model", "x", "-o", tmp_path, "--json")
    assert code == 3
    assert (json.loads(shown)["status"], json.loads(shown)["step"]) == ("diverged", 7)
    assert json.loads(told)["error"]["kind"] == "DivergedError"


def completions(words: str) -> list[str]:
    """What bash would offer after `words`, by the environment variables of its completion script."""
    environment = os.environ | {
        "_UNLEARN_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    run = "from pipelines.cli import app; app(prog_name='unlearn')"
    done = subprocess.run([sys.executable, "-c", run], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_shell_completes_recipes_and_methods():
    assert {"demo-ngdiff", "demo-grad-diff"} <= set(completions("unlearn train demo-"))
    assert "demo-search" not in completions("unlearn train demo-")
    assert completions("unlearn search demo-") == ["demo-search"]
    assert completions("unlearn plan --method ng") == ["ngdiff"]
    assert completions("unlearn plan --method mean") == ["mean_teacher"]
    assert "slug" in completions("unlearn edit s")


def test_completion_is_installed_for_bash(tmp_path):
    environment = os.environ | {"HOME": str(tmp_path)}
    run = "from pipelines.cli import app; app(prog_name='unlearn')"
    command = [sys.executable, "-c", run, "--show-completion", "bash"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert "_UNLEARN_COMPLETE=complete_bash" in done.stdout, done.stderr
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0


@pytest.mark.parametrize(
    "kind", [Console, lambda **all: Console(force_terminal=True, _environ={"TERM": "dumb"}, **all)]
)
def test_progress_in_a_log_is_plain_lines(kind, monkeypatch):
    page = io.StringIO()
    console = kind(file=page, no_color=True)
    with RowProgress("evaluate", 4, console) as rows:
        rows.advance(1, "a long note " * 10)
        rows.advance(3, "model/group")
    assert page.getvalue().splitlines()[0] == "evaluate: 4 rows"
    assert page.getvalue().splitlines()[1].startswith("evaluate: 4/4 ")
    assert page.getvalue().splitlines()[1].endswith("model/group  0:00 left")
    with StageProgress(console) as stages:
        stages("layer 1", 1, 2)
        stages("layer 1", 2, 2)
    assert page.getvalue().splitlines()[2:] == ["layer 1: 50 %", "layer 1: 100 %"]
    assert "\x1b" not in page.getvalue()


def test_a_sparkline_has_the_shape_of_its_curve():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, math.nan, 5.0]) == "▁ ▁"
    assert sparkline([0.0, 0.0, 7.0, 7.0], points=2) == "▁█"
    assert sparkline([]) == ""


@pytest.fixture
def run_folder(tmp_path):
    """A run of 4 steps that is at step 3, and an evaluation beside it that scored its one export."""
    run, evaluation = tmp_path / "ngdiff", tmp_path / "evaluation"
    export = run / "models" / "step-00002"
    export.mkdir(parents=True)
    (export / "complete.json").write_text("{}")
    (run / "models" / "step-00004").mkdir()  # without the marker: cut off
    config = {"model": {"path": "my-model"}, "data": {"forget": ["forget10"], "retain": ["retain90"]}}
    record = {"run": "first", "method": "ngdiff", "status": "running", "steps": 4, "config": config}
    (run / "run.json").write_text(json.dumps(record))
    lines = [{"step": n, "loss_forget": 1.0 + n, "learning_rate": 1e-4, "seconds": n / 2} for n in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
    evaluation.mkdir()
    about = {"status": "complete", "suite": "tofu", "versions": {}, "benchmark": "b", "forget_split": "f"}
    (evaluation / "evaluation.json").write_text(json.dumps(about))
    (evaluation / "metrics.csv").write_text(
        "model,run,method,step,role,path,extraction_strength,forget_quality\n"
        f"first-2,first,ngdiff,2,checkpoint,{export},0.25,\n"
        "other-9,other,npo,9,checkpoint,elsewhere,0.5,0.1\n"
    )
    return run


def test_a_run_at_a_glance(run_folder, unlearn):
    found = glance(run_folder)
    assert (found["kind"], found["status"], found["step"], found["steps"]) == ("run", "running", 3, 4)
    assert found["curves"]["loss_forget"] == {"first": 2.0, "last": 4.0, "line": "▁▅█"}
    assert found["seconds_a_step"] == 1.0
    assert found["exports"] == ["step-00002"]
    (scored,) = found["evaluations"]
    (row,) = scored["models"]
    assert (row["model"], row["step"], row["extraction_strength"], row["forget_quality"]) == ("first-2", 2, 0.25, None)
    code, shown, _ = unlearn("show", run_folder)
    assert code == 0
    for word in (
        "first  (ngdiff)",
        "running, step 3 of 4, 1.00 s a step",
        "my-model",
        "forget forget10",
        "▁▅█",
        "0.25",
    ):
        assert word in shown, word
    assert json.loads(unlearn("show", run_folder, "--json")[1])["evaluations"][0]["models"] == [row]


def test_other_folders_at_a_glance(run_folder, unlearn, tmp_path):
    shown = unlearn("show", run_folder.parent / "evaluation")[1]
    assert "tofu, b, forget split f" in shown and "other-9" in shown
    assert json.loads(unlearn("show", run_folder.parent / "evaluation", "--json")[1])["kind"] == "evaluation"
    code, _, told = unlearn("show", tmp_path)
    assert code == 2 and "holds nothing that `unlearn` wrote" in told
    assert "is no folder" in unlearn("show", tmp_path / "none")[2]
    pair = tmp_path / "pair"
    (pair / "target").mkdir(parents=True)
    (pair / "target" / "run.json").write_text((run_folder / "run.json").read_text())
    assert "not begun yet" in unlearn("show", pair)[1]
