"""`unlearn plan` as its user meets it, and the refusal of runs that cannot fit."""

import json

import pytest
from rich.console import Console

from pipelines import cli, terminal
from unlearn_core import memory_check
from unlearn_core.config import RunConfig, build_config
from unlearn_core.errors import UserError
from unlearn_core.memory_check import check_memory
from unlearn_core.plan_setting import GIB


@pytest.fixture
def unlearn(monkeypatch, capsys):
    """Call the command line; gives (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["unlearn", *map(str, arguments)])
        monkeypatch.setattr(terminal, "out", Console(width=200, highlight=False))
        monkeypatch.setattr(terminal, "err", Console(stderr=True, width=400, highlight=False))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


def test_a_plan_that_fits(unlearn):
    code, shown, _ = unlearn("plan", "--model", "Llama-2-7B", "--method", "ngdiff", "--gpus", 8)
    assert code == 0
    for word in ("6.738B parameters", "built-in shape", "It fits", "estimated", "assumed price", "layouts", "weights"):
        assert word in shown, word
    assert "What would fit" not in shown


def test_a_plan_that_does_not_fit_says_what_would(unlearn):
    code, shown, _ = unlearn("plan", "--model", "Llama-2-7B", "--method", "ngdiff", "--gpu", "h100-80g")
    assert code == 1
    assert "does not fit" in shown
    assert "--set workers.count=2" in shown


def test_a_recipe_as_json(unlearn):
    code, shown, _ = unlearn(
        "plan", "tofu-ngdiff", "--model", "meta-llama/Llama-3.2-1B-Instruct", "--gpus", 2, "--trials", 10, "--json",
        "--row-tokens", 120, "--labels", 60, "--price", 2, "--set", "zero.stage=3",
    )  # fmt: skip
    found = json.loads(shown)
    assert code == 0
    assert found["fits"]
    assert found["parameters"] == 1_235_814_400
    assert found["gib"] == pytest.approx(sum(found["items_gib"].values()))
    assert found["gib"] - sum(v for k, v in found["items_gib"].items() if "allowance" in k) == pytest.approx(
        max(found["moments_gib"].values())
    )
    run, search = found["estimated"]["run"], found["estimated"]["search"]
    assert run["steps"] == 63
    assert run["hours"] == pytest.approx(63 * found["estimated"]["step_seconds"] / 3600)
    assert run["dollars"] == pytest.approx(run["hours"] * 2 * 2)
    assert search["hours"] == pytest.approx(10 * run["hours"])
    assert len(found["layouts"]) == 22


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--method", "ngdiff"), "give a recipe, or both --model and --method"),
        (("--model", "Llama-2-7B", "--method", "ngdiff", "--gpu", "h1000"), "expected one of h100-80g"),
        (("--model", "./nowhere", "--method", "ngdiff"), "no config.json"),
        (("--model", "Llama-2-7B", "--method", "ngdif"), "Did you mean 'ngdiff'?"),
        (("tofu-ngdif", "--model", "Llama-2-7B"), "tofu-ngdiff"),
        (("--model", "Llama-2-7B", "--method", "ngdiff", "--set", "zero.stage=4"), "zero.stage"),
        (("--model", "Llama-2-7B", "--method", "grad_ascent", "--set", "optimizer.schedule=auto"), "retain loss"),
    ],
)
def test_mistakes_are_told(unlearn, monkeypatch, arguments, told):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, said = unlearn("plan", *arguments)
    assert code == 2
    assert told in said


def run_of(gpu, **changes):
    values = {
        "name": "big",
        "model": {"path": "Llama-2-7B"},
        "data": {"benchmark": "synthetic:tiny", "forget": ["forget10"], "retain": ["retain90"]},
        "method": {"name": "ngdiff"},
        "batch": {"rows": 4, "micro": 4},
        "steps": 1,
        "workers": {"gpu": gpu},
    }
    return build_config(RunConfig, values, {key.replace("__", "."): value for key, value in changes.items()})


def test_a_gpu_that_is_too_small_is_refused_with_remedies(monkeypatch):
    monkeypatch.setattr(memory_check, "gpu_memory", lambda: 79 * GIB)
    with pytest.raises(UserError) as refused:
        check_memory(run_of(True), 1, 1)
    said = str(refused.value)
    assert "at least 113.1 GiB a worker" in said
    assert "this GPU has 79.0 GiB" in said
    assert "workers.count=2" in said
    assert "unlearn plan" in said
    check_memory(run_of(True, workers__skip_memory_check=True), 1, 1)
    check_memory(run_of(True, batch__rows=32, workers__count=8), 8, 8)


def test_a_node_that_is_too_small_is_refused(monkeypatch):
    monkeypatch.setattr(memory_check, "node_memory", lambda: 180 * GIB)
    check_memory(run_of(False), 1, 1)
    with pytest.raises(UserError, match=r"this node has for each of its 2 workers 90\.0 GiB"):
        check_memory(run_of(False, batch__rows=8, workers__count=2, zero__stage=0), 2, 2)


def test_the_small_runs_of_this_machine_pass(taught):
    check_memory(run_of(False, model__path=str(taught)), 2, 2)
    assert memory_check.node_memory() > GIB
