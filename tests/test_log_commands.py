"""`unlearn logs` as its user meets it: checks, imports that a frontier takes beside our own evaluations, exports."""

import csv
import json
import math
import os

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from pipelines import terminal
from pipelines.evaluated_models import read_evaluations
from pipelines.frontier import frontier
from pipelines.import_logs import SOURCE, LogPoint, export_log, import_logs, log_point
from pipelines.log_commands import logs_app
from unlearn_core.errors import UserError
from unlearn_core.evaluation.open_unlearning_log import evaluate_log
from unlearn_core.evaluation.records import read_parquet

app = typer.Typer()
app.add_typer(logs_app)


@pytest.fixture
def logs(monkeypatch):
    """Call `unlearn logs ...`; gives what it printed, and raises what it raises."""

    def call(*arguments):
        monkeypatch.setattr(terminal, "out", Console(width=400, highlight=False))
        result = CliRunner().invoke(app, ["logs", *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def by_index(*entries):
    return {"value_by_index": {str(row): entry for row, entry in enumerate(entries)}}


def tofu_log(loss: float, strength: float = 0.5) -> dict:
    """A log of two items a group, all metrics that model utility needs, and one attack of AUC 0.75."""
    log = {}
    for group in ("forget", "retain", "ra", "wf"):
        losses = (loss, loss + 0.5)
        log[f"{group}_Q_A_Prob"] = by_index(*({"prob": math.exp(-x), "avg_loss": x} for x in losses))
        log[f"{group}_Q_A_PERT_Prob"] = by_index(*({"prob": [math.exp(-x - 1)], "avg_loss": [x + 1]} for x in losses))
        log[f"{group}_Q_A_ROUGE"] = by_index({"rougeL_recall": 0.5}, {"rougeL_recall": 1.0})
        if group in ("forget", "retain"):
            log[f"{group}_Q_A_PARA_Prob"] = log[f"{group}_Q_A_Prob"]
    log["extraction_strength"] = by_index({"score": strength}, {"score": strength})
    parts = ([1.0, 3.0], [2.0, 4.0])
    log["mia_min_k"] = {
        part: by_index(*({"score": score} for score in scores))
        for part, scores in zip(("forget", "holdout"), parts, strict=True)
    }
    return log


def muse_log() -> dict:
    return {"retain_knowmem_ROUGE": by_index({"rougeL_f1": 0.5}), "extraction_strength": by_index({"score": 0.25})}


@pytest.fixture
def saved(tmp_path):
    """Write a log; gives its path."""

    def save(content: dict, name: str):
        path = tmp_path / "saves" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return path

    return save


@pytest.fixture
def four(saved):
    """Logs of a target, a reference and two checkpoints of one run."""
    return {
        "full": saved(tofu_log(0.1, 0.9), "full/TOFU_EVAL.json"),
        "retain": saved(tofu_log(0.2, 0.1), "retain/TOFU_EVAL.json"),
        60: saved(tofu_log(0.3, 0.4), "npo/checkpoint-60/evals/TOFU_EVAL.json"),
        120: saved(tofu_log(0.8, 0.2), "npo/evals/TOFU_EVAL.json"),
    }


def imported(four, output, **options):
    points = [
        LogPoint(name="full", path=four["full"], role="target", method="finetune"),
        LogPoint(name="retain", path=four["retain"], role="reference", method="finetune"),
        LogPoint(name="run", path=four[60], step=60, method="NPO"),
        LogPoint(name="run", path=four[120], step=120, method="NPO"),
    ]
    return import_logs(points, output, benchmark="mine", **options)


@pytest.mark.parametrize("command", ["check", "import", "export"])
def test_help_teaches_with_examples(logs, command):
    shown = logs(command, "--help")
    assert "Example" in shown and f"unlearn logs {command}" in shown


def test_check_prints_recomputed_logged_and_difference(logs, saved, four):
    log = tofu_log(0.1) | {"something_else": {"agg_value": 1.0}}
    log["forget_Q_A_ROUGE"]["agg_value"] = 0.5
    shown = logs("check", saved(log, "TOFU_EVAL.json"), "--retain-log", four["retain"])
    line = next(line for line in shown.splitlines() if "forget_Q_A_ROUGE" in line)
    assert "0.75" in line and "0.5" in line and "5.0e-01" in line
    assert "largest relative difference of an aggregate: 5.0e-01" in shown
    assert "left alone: something_else" in shown
    assert "exact_memorization is missing: 2 of 2 records have no exact_memorization" in shown


def test_check_without_a_reference(logs, four):
    assert "privleak is missing: needs the AUC of a reference" in logs("check", four["full"])
    shown = logs("check", four["full"], "--compat")
    assert "privleak_without_reference" in shown and "constant AUC 0.5" in shown


def test_check_of_the_published_muse_log(logs):
    folder = os.environ.get("GOLDEN_DIR")
    if not folder:
        pytest.skip("GOLDEN_DIR is not set: the folder of published evaluation logs")
    target, retrain = (f"{folder}/muse_llama-2-7b_books_{name}_numbers.json" for name in ("target", "retrain"))
    shown = logs("check", target, "--retain-log", retrain)
    assert "-57.34097632" in shown
    assert "e-1" in shown.split("largest relative difference of an aggregate: ")[1]


def test_an_import_is_an_evaluation(four, tmp_path):
    rows = imported(four, tmp_path / "eval", forget_split="some")
    assert [(row["model"], row["run"], row["step"], row["role"]) for row in rows] == [
        ("full", "full", 0, "target"),
        ("retain", "retain", 0, "reference"),
        ("run-step-00060", "run", 60, "checkpoint"),
        ("run-step-00120", "run", 120, "checkpoint"),
    ]
    expected = evaluate_log(four[60], four["retain"])
    for name, value in expected.recomputed.items():
        assert rows[2][name] == value
    assert rows[1]["forget_quality"] == 1.0 and rows[1]["privleak"] == 0.0
    about = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    assert (about["status"], about["source"], about["suite"]) == ("complete", SOURCE, "tofu")
    assert (about["benchmark"], about["forget_split"], about["reference"]) == ("mine", "some", "retain")
    assert about["missing"]["full"] == expected.missing
    with open(tmp_path / "eval" / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert float(table[2]["model_utility"]) == expected.recomputed["model_utility"]
    assert table[2]["exact_memorization"] == ""
    records = read_parquet(tmp_path / "eval" / "records" / "run-step-00060" / "holdout.parquet")
    assert [record.min_k_score for record in records] == [2.0, 4.0]


def test_a_frontier_takes_an_import_beside_another_evaluation(four, tmp_path):
    imported(four, tmp_path / "published", forget_split="forget10")
    ours = [LogPoint(name="gd", path=four[120], step=10, method="GradDiff")]
    import_logs(ours, tmp_path / "ours", benchmark="mine", retain_log=four["retain"])
    models, settings, repeated = read_evaluations([tmp_path / "ours", tmp_path / "published"], ("model_utility",))
    assert settings == {"benchmark": "mine", "forget_split": "forget10"}
    assert (len(models), repeated) == (5, 0)
    summary = frontier([tmp_path / "ours", tmp_path / "published"], tmp_path / "frontier")
    assert summary.candidates == 3
    assert set(summary.hypervolume_by_method) == {"NPO", "GradDiff"}
    assert (tmp_path / "frontier" / "frontier.png").stat().st_size > 0


def test_import_from_the_command_line(logs, four, tmp_path):
    shown = logs(
        "import",
        f"full={four['full']}",
        f"retain={four['retain']}",
        f"run={four[60]}",
        f"run={four[120]}@120",
        *("--target", "full", "--reference", "retain", "--method", "run=NPO", "--benchmark", "mine"),
        *("-o", tmp_path / "eval"),
    )
    assert "run-step-00060" in shown and "run-step-00120" in shown and "metrics.csv" in shown
    models, _, _ = read_evaluations([tmp_path / "eval"], ())
    assert {(model.model, model.role, model.method) for model in models} == {
        ("full", "target", "finetune"),
        ("retain", "reference", "finetune"),
        ("run-step-00060", "checkpoint", "NPO"),
        ("run-step-00120", "checkpoint", "NPO"),
    }


def test_an_import_is_replaced_by_the_next_one(four, tmp_path):
    imported(four, tmp_path / "eval")
    import_logs(
        [LogPoint(name="full", path=four["full"], role="target", method="finetune")],
        tmp_path / "eval",
        benchmark="mine",
    )
    assert [model.model for model in read_evaluations([tmp_path / "eval"], ())[0]] == ["full"]


def test_an_import_without_reference_under_compat_names_the_constant(four, tmp_path):
    point = LogPoint(name="full", path=four["full"], role="target", method="finetune")
    (plain,) = import_logs([point], tmp_path / "plain", benchmark="mine")
    assert plain["privleak"] is None and "privleak_without_reference" not in plain
    (row,) = import_logs([point], tmp_path / "compat", benchmark="mine", compat=True)
    assert row["privleak"] is None
    assert row["privleak_without_reference"] == pytest.approx(-50.0)


def test_muse_needs_its_corpus(saved, tmp_path):
    point = LogPoint(name="gd", path=saved(muse_log(), "MUSE_EVAL.json"), step=5, method="gd")
    with pytest.raises(UserError, match=r"do not say which corpus.*--benchmark"):
        import_logs([point], tmp_path / "eval")
    (row,) = import_logs([point], tmp_path / "eval", benchmark="muse-bench/MUSE-News")
    assert (row["retain_knowmem_ROUGE"], row["extraction_strength"]) == (0.5, 0.25)
    assert "forget_Q_A_Prob" not in row


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("npo=a/TOFU_EVAL.json@120", ("npo", "a/TOFU_EVAL.json", "checkpoint", 120, "npo")),
        ("npo=a/checkpoint-60/TOFU_EVAL.json", ("npo", "a/checkpoint-60/TOFU_EVAL.json", "checkpoint", 60, "npo")),
        ("npo=a/checkpoint-60/x.json@7", ("npo", "a/checkpoint-60/x.json", "checkpoint", 7, "npo")),
        ("gd=a@b/x.json@3", ("gd", "a@b/x.json", "checkpoint", 3, "GradDiff")),
        ("full=a/x.json", ("full", "a/x.json", "target", 0, "finetune")),
        ("retain=a=b.json", ("retain", "a=b.json", "reference", 0, "finetune")),
    ],
)
def test_how_a_log_is_named(text, expected):
    point = log_point(text, "full", "retain", {"gd": "GradDiff"})
    assert (point.name, str(point.path), point.role, point.step, point.method) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.json", "expected NAME=FILE"),
        ("=a.json", "expected NAME=FILE"),
        ("npo=a.json", "after how many.*npo=a.json@STEP"),
    ],
)
def test_how_a_log_is_not_named(text, message):
    with pytest.raises(UserError, match=message):
        log_point(text, None, None, {})


def test_mistakes_of_an_import_are_told_before_anything_is_written(logs, four, saved, tmp_path):
    output, full, retain = tmp_path / "eval", f"full={four['full']}", f"retain={four['retain']}"
    muse = f"muse={saved(muse_log(), 'MUSE_EVAL.json')}@1"
    stars = ("--target", "full", "--reference", "retain")
    for arguments, message in (
        ((full, retain, "--target", "fill"), "--target fill is none of the logs"),
        ((full, "--target", "full", "--method", "fill=x"), "--method fill is none of the logs"),
        ((full, "--target", "full", "--method", "full"), "--method full: expected NAME=METHOD"),
        ((full, retain, *stars, "--retain-log", four["retain"]), "both name the retrained model"),
        ((f"run={four[60]}", f"run={four[120]}@60"), "'run-step-00060' is given twice"),
        ((f"a/b={four[60]}",), "'a/b' names a folder"),
        ((f"run={four[60]}", muse, "--benchmark", "mine"), "expected logs of one suite"),
        ((f"run={four[60]}",), "has 2 forget rows, and forget10 of locuslab/TOFU has 400"),
        ((f"run={tmp_path}/absent.json@1",), "cannot read"),
    ):
        with pytest.raises(UserError, match=message):
            logs("import", *arguments, "-o", output)
        assert not output.exists(), message


@pytest.mark.parametrize("role", ["target", "reference"])
def test_a_star_is_one_log(four, tmp_path, role):
    points = [LogPoint(name=name, path=four[name], role=role, method="finetune") for name in ("full", "retain")]
    with pytest.raises(UserError, match=f"2 logs have the role '{role}'"):
        import_logs(points, tmp_path / "eval", benchmark="mine")


def test_an_evaluation_of_our_own_is_not_overwritten(four, tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "evaluation.json").write_text('{"status": "complete"}')
    with pytest.raises(UserError, match="was not imported; give another folder"):
        imported(four, tmp_path / "eval")
    assert [path.name for path in (tmp_path / "eval").iterdir()] == ["evaluation.json"]
    (tmp_path / "interrupted" / "records" / "model" / "forget.parts").mkdir(parents=True)
    with pytest.raises(UserError, match="was not imported; give another folder"):
        imported(four, tmp_path / "interrupted")


def test_export_and_import_again(logs, four, tmp_path):
    imported(four, tmp_path / "eval")
    (tmp_path / "out").mkdir()
    shown = logs("export", tmp_path / "eval", "--model", "run-step-00060", "-o", tmp_path / "out")
    assert "TOFU_EVAL.json" in shown and "left out, since 2 of 2 records have no exact_memorization" in shown
    logs("export", tmp_path / "eval", "--model", "retain", "-o", tmp_path / "retrained.json")
    before = evaluate_log(four[60], four["retain"])
    again = evaluate_log(tmp_path / "out" / "TOFU_EVAL.json", tmp_path / "retrained.json")
    assert again.recomputed == pytest.approx(before.recomputed, rel=1e-12)
    assert again.largest_difference <= 1e-12


def test_what_cannot_be_exported(four, tmp_path):
    with pytest.raises(UserError, match="holds no complete evaluation"):
        export_log(tmp_path, "full", tmp_path / "log.json")
    imported(four, tmp_path / "eval")
    with pytest.raises(UserError, match="has no model 'fill'; it has full, retain"):
        export_log(tmp_path / "eval", "fill", tmp_path / "log.json")
