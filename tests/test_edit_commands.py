"""`unlearn edit` as its user meets it: runs that `evaluate` takes, and mistakes told before anything is written."""

import json
import math

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from pipelines import cli, terminal
from pipelines.model_points import check_models, discover_run
from pipelines.runs import resolve_model
from unlearn_core.edits.streamed_weights import StreamedWeights

NAME = "model.layers.1.mlp.down_proj.weight"
TINY = ("--benchmark", "synthetic:tiny", "--format", "plain", "--layers", 2, "--iterations", 3)


@pytest.fixture
def edit(monkeypatch, capsys):
    """Call `unlearn edit ...`; gives (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["unlearn", "edit", *map(str, arguments)])
        monkeypatch.setattr(terminal, "out", Console(width=400, highlight=False))
        monkeypatch.setattr(terminal, "err", Console(stderr=True, width=400, highlight=False))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def other(taught, tmp_path_factory):
    """A second model: one matrix of the taught one, moved."""
    folder = tmp_path_factory.mktemp("other") / "model"
    StreamedWeights(taught).write(folder, lambda name, old: old + 1.0 if name == NAME else old, {"step": 0})
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("command", ["interpolate", "task-vector", "slug"])
def test_help_teaches_with_examples(edit, command):
    code, shown, _ = edit(command, "--help")
    assert code == 0
    assert "Example" in shown and f"unlearn edit {command}" in shown


@pytest.mark.parametrize(
    ("command", "names", "shift"),
    [("interpolate", ("--unlearned", "--target"), 1.0), ("task-vector", ("--model", "--reinforced"), -1.0)],
)
def test_a_line_of_models_is_a_run(edit, taught, other, tmp_path, command, names, shift):
    output = tmp_path / "line"
    arguments = (command, names[0], taught, names[1], other, "-a", 0.25, "-a", 1, "-o", output)
    code, shown, told = edit(*arguments)
    assert code == 0, told
    assert "models/step-00002" in shown
    points = discover_run(output)
    check_models(points, require_reference=False)
    assert [(point.model_id, point.step) for point in points] == [("line-step-00001", 1), ("line-step-00002", 2)]
    assert json.loads((output / "points.json").read_text()) == [{"step": 1, "weight": 0.25}, {"step": 2, "weight": 1.0}]
    old = weights(taught)
    for weight, point in zip((0.25, 1.0), points, strict=True):
        new = weights(output / "models" / f"step-{point.step:05d}")
        torch.testing.assert_close(new[NAME], old[NAME] + shift * weight)
        assert all(torch.allclose(new[name], old[name], rtol=1e-6, atol=0) for name in old if name != NAME)
    assert resolve_model(str(output)) == points[-1].path
    assert "| weight | 0.25 |" in (output / "models" / "step-00001" / "README.md").read_text()
    run = json.loads((output / "run.json").read_text())
    assert (run["status"], run["steps"], run["method"]) == ("finished", 2, points[0].method)
    before = (output / "models" / "step-00001" / "model.safetensors").stat().st_mtime_ns
    assert edit(*arguments)[0] == 0  # done already: nothing is written again
    assert (output / "models" / "step-00001" / "model.safetensors").stat().st_mtime_ns == before
    code, _, told = edit(*arguments[:-4], "-a", 0.5, "-o", output)
    assert code == 2 and "with other options. Choose another --output" in told


def test_an_interrupted_line_is_done_again(edit, taught, other, tmp_path):
    output = tmp_path / "line"
    arguments = ("interpolate", "--unlearned", taught, "--target", other, "-o", output)
    edit(*arguments)
    record = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps(record | {"status": "running"}))
    (output / "models" / ".step-00002.abc.part").mkdir()
    assert edit(*arguments)[0] == 0
    assert json.loads((output / "run.json").read_text()) == record
    assert [path.name for path in sorted((output / "models").iterdir())] == [f"step-0000{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("export", ["layers", "best", "all"])
def test_a_slug_search_is_a_run(edit, taught, tmp_path, export):
    output = tmp_path / "slug"
    code, shown, told = edit(
        "slug", "--model", taught, "--threshold", 0.001, *TINY, "--export", export, "--name", "one", "-o", output
    )
    assert code == 0, told
    assert "6 models tried, threshold 0.001" in shown
    assert "forget gradient: 100 %" in shown and "models tried: 100 %" in shown
    points = json.loads((output / "points.json").read_text())
    assert [point["step"] for point in points] == [1, 2, 3, 4, 5, 6]
    assert sum(point["best"] for point in points) == 1
    exported = [point for point in points if point["exported"]]
    assert len(exported) == {"layers": 2, "best": 1, "all": 6}[export]
    models = discover_run(output)
    check_models(models, require_reference=False)
    assert [(model.run, model.method, model.step) for model in models] == [("one", "slug", p["step"]) for p in exported]
    old = weights(taught)
    for point in exported:
        new = weights(output / "models" / f"step-{point['step']:05d}")
        assert [name for name in old if not torch.equal(old[name], new[name])] == [point["layer"]]
    best = next(point for point in points if point["best"])
    assert resolve_model(str(output)).endswith(f"step-{best['step']:05d}")
    layers = json.loads((output / "layers.json").read_text())
    assert sum(layer["searched"] for layer in layers) == 2 and len(layers) == 15


def test_the_reference_sets_the_threshold(edit, taught, other, tmp_path):
    code, shown, told = edit("slug", "--model", taught, "--reference", other, *TINY, "-o", tmp_path / "slug")
    assert code == 0, told
    threshold = json.loads((tmp_path / "slug" / "points.json").read_text())[0]["threshold"]
    assert 0.0 < threshold < 1.0 and math.isfinite(threshold)
    assert f"threshold {threshold:.3g}" in shown
    code, _, told = edit("slug", "--model", other, "--reference", taught, *TINY, "-o", tmp_path / "back")
    assert code == 2 and "nothing is left to forget" in told
    assert not (tmp_path / "back").exists()


def test_a_search_that_never_comes_down_says_so(edit, taught, tmp_path):
    arguments = ("--model", taught, "--threshold", 0, "--layers", 1, "--iterations", 1)
    code, shown, _ = edit(
        "slug", *arguments, "--benchmark", "synthetic:tiny", "--format", "plain", "-o", tmp_path / "s"
    )
    assert code == 0
    assert "No model came down to a forget probability of 0" in shown


LINE = ["interpolate", "--unlearned", "{taught}", "--target", "{other}"]
SLUG = ["slug", "--model", "{taught}", "--benchmark", "synthetic:tiny", "--format", "plain"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*LINE, "-a", "1.5"], "weights.0: Input should be less than or equal to 1 (got 1.5)"),
        ([*LINE, "-a", "0.5", "-a", "nan"], "weights.1: Input should be"),
        ([*LINE, "-a", "0.5", "-a", "0.5"], "repeat a value"),
        ([*LINE, "--name", "a/b"], "name: String should match"),
        (["interpolate", "--unlearned", "./none", "--target", "{other}"], "model folder './none' does not exist"),
        (["interpolate", "--unlearned", "{taught}", "--target", "{run}"], "has no finished model yet"),
        (["interpolate", "--unlearned", "{taught}", "--target", "{wide}"], "expected two models of one architecture"),
        (["task-vector", "--model", "{taught}", "--reinforced", "{wide}"], "expected two models of one architecture"),
        (["task-vector", "--model", "{taught}", "--reinforced", "{other}", "-a", "-1"], "greater than or equal to 0"),
        (["task-vector", "--model", "{taught}", "--reinforced", "{other}", "-a", "inf"], "finite number"),
        (SLUG, "give exactly one of reference"),
        ([*SLUG, "--threshold", "0.1", "--reference", "{other}"], "give exactly one of reference"),
        ([*SLUG, "--threshold", "1.5"], "threshold: Input should be less than 1"),
        ([*SLUG, "--threshold", "0.999"], "nothing is left to forget"),
        ([*SLUG, "--threshold", "0.1", "--layers", "0"], "layers: Input should be greater than or equal to 1"),
        ([*SLUG, "--threshold", "0.1", "--forget", "forget11"], "no split 'forget11'"),
        ([*SLUG, "--threshold", "0.1", "--forget", "authors"], "'authors' is no forget split"),
        ([*SLUG, "--threshold", "0.1", "--forget", "forget05", "--forget", "forget10"], "give --retain"),
        ([*SLUG, "--threshold", "0.1", "--retain", "full"], "forget rows are also retain rows"),
        ([*SLUG, "--threshold", "0.1", "--max-length", "10"], "is over max_length 10"),
        ([*SLUG, "--threshold", "0.1", "--export", "some"], "Input should be 'layers', 'best' or 'all'"),
        ([*SLUG, "--threshold", "0.1", "--dtype", "fp16"], "Input should be 'fp32' or 'bf16'"),
        ([*SLUG, "--reference", "./none"], "model folder './none' does not exist"),
        ([*SLUG[:2], "./none", "--threshold", "0.1"], "model folder './none' does not exist"),
    ],
)
def test_mistakes_are_told_without_a_traceback(edit, taught, other, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    wide, run = tmp_path / "wide", tmp_path / "run"
    if "{wide}" in arguments:
        from transformers import LlamaConfig, LlamaForCausalLM

        size = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 512}
        LlamaForCausalLM(LlamaConfig(hidden_size=64, **size)).save_pretrained(wide)
    run.mkdir()
    (run / "run.json").write_text('{"status": "running"}')
    places = {"{taught}": taught, "{other}": other, "{wide}": wide, "{run}": run}
    code, _, told = edit(*(places.get(argument, argument) for argument in arguments), "-o", "out")
    assert code == 2
    assert message in told
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()
