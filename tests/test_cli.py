"""The command line as its user meets it: help, recipes, mistakes, outcomes. Nothing here starts Ray."""

import io
import json
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipelines import cli, terminal
from pipelines.finetune import steps_of
from pipelines.progress import follow_run
from pipelines.runs import recipe_summary, recipes, resolve_model
from pipelines.search_config import SearchConfig
from tune.space import Space, space_of_methods
from unlearn_core.config import BatchConfig, FinetuneConfig, RunConfig, load_config
from unlearn_core.errors import DivergedError, UserError
from unlearn_core.events import note_event
from unlearn_core.loop import Outcome
from unlearn_core.method import compose

COMMANDS = ("finetune", "train", "evaluate", "frontier", "demo", "recipes")
EDITS = ("interpolate", "task-vector", "slug")


@pytest.fixture
def unlearn(monkeypatch, capsys):
    """Call the command line; gives (exit code, stdout, stderr)."""
    wide = {"width": 400, "highlight": False}

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["unlearn", *map(str, arguments)])
        monkeypatch.setattr(terminal, "out", Console(**wide))
        monkeypatch.setattr(terminal, "err", Console(stderr=True, **wide))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_examples(unlearn, command):
    code, shown, _ = unlearn(command, "--help")
    assert code == 0
    assert "Example" in shown
    assert f"unlearn {command}" in shown


@pytest.mark.parametrize("command", EDITS)
def test_help_of_edits_teaches_with_examples(unlearn, command):
    assert command in unlearn("edit", "--help")[1]
    code, shown, _ = unlearn("edit", command, "--help")
    assert code == 0
    assert "Example" in shown
    assert f"unlearn edit {command}" in shown


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_valid(name):
    path = recipes()[name]
    command, summary = recipe_summary(path)
    assert summary
    if command == "train":
        config = load_config(RunConfig, path, {"model.path": "some/model"})
        sets = set(compose(config.method.name, config.method.settings).sets)
        assert sets <= {name for name in ("forget", "retain", "generic") if getattr(config.data, name)}
    elif command == "search":
        search = load_config(SearchConfig, path)
        assert Space.from_data(space_of_methods(search.methods) | search.space).dimension > 1
        assert recipe_summary(recipes()[search.recipe])[0] == "train"
    else:
        values = load_config(FinetuneConfig, path, {} if "build" in path.read_text() else {"model.path": "some/model"})
        assert set(values.reference) - set(values.target) <= {"retain90"}


def test_recipes_are_listed_and_printed(unlearn):
    assert all(name in unlearn("recipes")[1] for name in recipes())
    assert unlearn("recipes", "tofu-ngdiff")[1] == recipes()["tofu-ngdiff"].read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "demo-ngdif"], "No recipe 'demo-ngdif'. Did you mean 'demo-ngdiff'?"),
        (["train", "nowhere.yaml"], "Cannot read the config nowhere.yaml: No such file or directory"),
        (["train", "demo-ngdiff"], "model.path: missing, and it has no default. Give --model"),
        (["train", "demo-ngdiff", "--model", "./none"], "model folder './none' does not exist"),
        (["train", "demo-ngdiff", "--model", "x", "--set", "optimiser.lr=1"], "Did you mean 'optimizer'?"),
        (["train", "demo-ngdiff", "--model", "x", "--set", "steps"], "--set steps: expected key=value"),
        (["train", "demo-ngdiff", "--model", "x", "--set", "batch.rows=15"], "set batch.rows=16"),
        (["train", "demo-ngdiff", "--model", "x", "--set", "method.name=ngd"], "Unknown method 'ngd'"),
        (["train", "demo-ngdiff", "--model", "x", "--sequential"], "--sequential has no name after it"),
        (["train", "--sequential", "a", "demo-ngdiff"], "--sequential took 'demo-ngdiff', which is a recipe"),
        (["train", "own-files", "--model", "x", "--sequential", "a.jsonl", "forget05"], "'forget05' is no file"),
        (["train", "demo-ngdiff", "--model", "{model}", "--sequential", "forget10", "forget11"], "no split 'forget11'"),
        (["train", "own-files", "--model", "{model}"], "names the file 'my-retain.jsonl', which does not exist"),
        (
            ["train", "demo-ngdiff", "--model", "{model}", "--set", "method.name=mean_teacher"],
            "data.generic is not set",
        ),
        (["train", "demo-ngdiff", "--model", "{model}", "--set", "method.name=alt_po"], "has no alternate answer"),
        (["finetune", "demo-finetune", "--set", "model.path=x"], "give exactly one of model.path"),
        (["finetune", "demo-finetune", "--set", "target=[ful]"], "no split 'ful'; did you mean 'full'?"),
        (["evaluate"], "at least one run folder, --target or --reference"),
        (["evaluate", "./none"], "is no run folder"),
        (["evaluate", "--from-log", "none.json"], "none.json"),
        (["evaluate", "--target", "x/y", "--dtype", "fp16"], "Input should be 'fp32' or 'bf16'"),
        (["frontier", "./none"], "none"),
        (["frontier", "./none", "--forgetting", "bleu"], "'bleu' is not a forgetting axis"),
    ],
)
def test_mistakes_are_told_without_a_traceback(unlearn, taught, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, told = unlearn(
        *(taught if argument == "{model}" else argument for argument in arguments),
        *([] if "--from-log" in arguments else ["-o", "out"]) * (arguments != ["evaluate"]),
    )
    assert code == 2
    assert message in told
    assert "Traceback" not in told
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize(
    "names",
    [
        ["--sequential", "forget05", "mine.jsonl", "more.jsonl"],
        ["--sequential=forget05", "mine.jsonl", "more.jsonl"],
        ["--sequential", "forget05", "--sequential", "mine.jsonl", "more.jsonl"],
    ],
)
def test_sequential_takes_the_names_that_follow(unlearn, monkeypatch, tmp_path, names):
    seen = []
    monkeypatch.setattr("pipelines.train.train", lambda config, *_: seen.append(config) or Outcome("finished", 120))
    assert unlearn("train", "demo-ngdiff", *names, "--model", "x", "-o", tmp_path)[0] == 0
    (config,) = seen
    assert config.data.sequential == ("forget05", "mine.jsonl", "more.jsonl")
    assert config.data.forget == ()  # the recipe's own is put aside
    assert config.total_steps == 3 * 40
    assert unlearn("train", "demo-ngdiff", "--model", "x", "-o", tmp_path)[0] == 0
    assert (seen[1].data.sequential, seen[1].data.forget) == ((), ("forget10",))


def test_a_command_without_arguments_says_what_is_missing(unlearn):
    code, _, told = unlearn("train")
    assert code == 2
    assert "Traceback" not in told


def test_workers_read_relative_paths_from_where_the_run_was_started(monkeypatch, tmp_path):
    from pipelines import train as stage
    from pipelines import train_worker

    here, elsewhere, seen = tmp_path / "here", tmp_path / "elsewhere", []
    here.mkdir()
    elsewhere.mkdir()
    config = load_config(RunConfig, recipes()["own-files"], {"model.path": "model"})
    monkeypatch.setattr(stage, "AbortableTrainer", lambda _, train_loop_config, **__: train_loop_config)
    monkeypatch.setattr(train_worker, "RayContext", lambda output, _: SimpleNamespace(rank=1, output=output))
    monkeypatch.setattr(train_worker, "_taken_to_the_store", lambda _: nullcontext())
    monkeypatch.setattr(train_worker, "_check_memory", lambda *_: None)
    monkeypatch.setattr(train_worker, "run", lambda *_: seen.append(Path.cwd()))
    monkeypatch.chdir(here)
    arguments = stage._trainer(config, tmp_path / "out")
    monkeypatch.chdir(elsewhere)
    train_worker.work(arguments)
    assert seen == [here]
    train_worker.work(arguments | {"started_in": "/no/such/folder"})  # a node without it reads absolute paths


def test_a_diverged_run_has_an_exit_code_of_its_own(unlearn, monkeypatch, tmp_path):
    monkeypatch.setattr("pipelines.train.train", lambda *_: Outcome("diverged", 7, "non-finite loss at step 8"))
    code, _, told = unlearn("train", "demo-ngdiff", "--model", "x", "-o", tmp_path)
    assert code == 3
    assert "Diverged: non-finite loss at step 8" in told

    def diverge(*_):
        raise DivergedError("demo-target: non-finite loss")

    monkeypatch.setattr("pipelines.finetune.finetune", diverge)
    assert unlearn("finetune", "demo-finetune", "-o", tmp_path)[0] == 3


def test_a_published_log_is_recomputed(unlearn):
    folder = os.environ.get("GOLDEN_DIR")
    if not folder:
        pytest.skip("GOLDEN_DIR is not set: the folder of published evaluation logs")
    log, retain = (f"{folder}/tofu_llama-3.2-1b_{name}.json" for name in ("full_forget10", "retain90"))
    code, shown, _ = unlearn("evaluate", "--from-log", log, "--retain-log", retain)
    assert code == 0
    assert "3.9054713571083378e-22" in shown
    assert "0.599153470736893" in shown
    assert "1017 items, 0 differ" in shown
    assert "forget_quality is missing" in unlearn("evaluate", "--from-log", log)[1]


def test_a_run_folder_stands_for_its_newest_model(tmp_path):
    assert resolve_model("meta-llama/Llama-3.2-1B") == "meta-llama/Llama-3.2-1B"
    (tmp_path / "run.json").write_text(json.dumps({"last_model": "models/step-00010"}))
    assert resolve_model(str(tmp_path)) == str(tmp_path / "models" / "step-00010")
    (tmp_path / "run.json").write_text(json.dumps({"status": "running"}))
    with pytest.raises(UserError, match="has no finished model yet"):
        resolve_model(str(tmp_path))


def test_epochs_become_steps_rounded_up():
    batch = BatchConfig(rows=16, micro=8)
    assert steps_of(30, 460, batch) == 863  # 13,800 rows / 16 = 862.5
    assert steps_of(1, 16, batch) == 1
    assert steps_of(0.01, 10, batch) == 1


def test_progress_in_a_log_file_is_lines(tmp_path):
    line = {"step": 3, "loss_retain": 0.25, "learning_rate": 1e-4, "seconds": 0.5}
    # the last line is being written
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n" + '{"step": 4, "loss')
    note_event(tmp_path, "workers_lost", "of an earlier start")
    page = io.StringIO()
    with follow_run(tmp_path, 10, "run", Console(file=page)):
        note_event(tmp_path, "workers_lost", "rank 1 failed")
    assert (
        page.getvalue()
        == "run: rank 1 failed\nrun: step 3/10  retain loss 0.250  rate 0.0001  0.50 s/step  0:04 left\n"
    )
    page = io.StringIO()
    with follow_run(tmp_path, 10, "run", Console(file=page, force_terminal=True, width=120)):
        note_event(tmp_path, "workers_lost", "rank 0 failed")
    assert "3/10" in page.getvalue()
    assert "rank 0 failed" in page.getvalue()


def test_refused_probes_are_reported(tmp_path):
    from pipelines.runs import probe_summary

    counts = {"accepted": 6, "not_finite": 0, "noise": 3, "slope": 0, "curvature": 1, "halved": 1}
    lines = [{"auto_rate": 1.0, "auto_probes": {}}, {"auto_rate": 2.5e-4, "auto_probes": counts}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = probe_summary(tmp_path)
    assert said == "AutoLR: rate 0.00025 after 10 probes; refused 40% (noise 3, curvature 1)"
