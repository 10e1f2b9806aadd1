"""The Ray Data stage: same numbers whatever the number of actors, every row exactly once whatever dies."""

import copy
import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import ray
import torch
from rich.console import Console

from pipelines import evaluate as stage
from pipelines import record_store
from pipelines.evaluate import ModelPoint, discover_run, evaluate
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.data.tokenization import Formatter, collate, load_tokenizer
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.errors import UserError
from unlearn_core.evaluation import generic_text, tofu
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.engine import measure
from unlearn_core.evaluation.records import read_parquet, to_table
from unlearn_core.models import SmallLlama, build_small_llama, load_model
from unlearn_core.publish import publish_folder, write_json

# Ray Data 2.60 sets deprecated fields of its own context.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")

CONFIG = EvaluationConfig(max_length=256, max_new_tokens=8)
BENCHMARK = open_benchmark("synthetic:tiny")
SUITE = tofu.suite(BENCHMARK, "forget10")
MEASURED = [name for name in tofu.NAMES if name not in ("mia_gradnorm", "privleak_without_reference")]
ROWS = 4 + 8 + 8 + 8 + 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A target, a reference and an unlearning run of two exports: one taught model under more and more noise.

    Beside them a half-written export, and a model whose weights are NaN.
    """
    root = tmp_path_factory.mktemp("runs")
    tokenizer = train_tokenizer([f"{row.question} {row.answer}" for row in BENCHMARK.split("full")], 320)
    taught = _taught(tokenizer)

    def export(folder: Path, noise: float, step: int) -> None:
        model = copy.deepcopy(taught)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(noise * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))

        def fill(aside: Path) -> None:
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)

        publish_folder(folder, fill, {"step": step})

    for name, noise in (("target", 0.0), ("reference", 0.02)):
        export(root / name / "models" / "step-00002", 1.0, 2)
        export(root / name / "models" / "step-00004", noise, 4)
        write_json(root / name / "run.json", {"run": name, "method": "finetune", "status": "finished"})
    for step in (10, 5):
        export(root / "npo" / "models" / f"step-{step:05d}", step / 200, step)
    (root / "npo" / "models" / "step-00015").mkdir()
    write_json(root / "npo" / "run.json", {"run": "npo", "method": "npo", "status": "running"})
    export(root / "broken", math.nan, 3)
    return root


def _taught(tokenizer):
    """A tiny Llama that knows part of the rows, so that no metric is 0 or 1 for all."""
    size = SmallLlama(hidden_size=32, layers=2, heads=2, mlp_size=64, vocab_size=320, max_positions=256)
    model = build_small_llama(size, tokenizer, 0)
    formatter = Formatter(tokenizer, "chat", 256)
    rows = [row for split in ("full", "real_authors", "world_facts") for row in BENCHMARK.split(split)]
    examples = [formatter.example(row.item_id, row.question, row.answer) for row in rows]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(250):
        batch = collate([examples[(8 * step + k) % len(examples)] for k in range(8)], formatter.pad_id)
        loss = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, labels=batch.labels_BT).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def points(runs):
    found = [discover_run(runs / name) for name in ("target", "reference", "npo")]
    return [*found[0], *found[1], *found[2], ModelPoint("broken", str(runs / "broken"), "broken", "ga", 3)]


@pytest.fixture(scope="module")
def first(cluster, points, tmp_path_factory):
    """All five models, one actor: folder and table that other runs are compared with."""
    output = tmp_path_factory.mktemp("first")
    return output, evaluate(points, SUITE, output, CONFIG, actors=1)


def records(output: Path, model: str) -> dict[str, list]:
    return {group: read_parquet(output / "records" / model / f"{group}.parquet") for group in SUITE.groups}


def assert_every_row_once(output: Path, models) -> None:
    expected = {group: [item.item_id for item in items] for group, items in SUITE.groups.items()}
    for point in models:
        found = records(output, point.model_id)
        assert {group: [record.item_id for record in rows] for group, rows in found.items()} == expected


def assert_same_numbers(table, other) -> None:
    assert table["model"].tolist() == other["model"].tolist()
    for name in tofu.NAMES:
        assert other[name].tolist() == pytest.approx(table[name].tolist(), rel=1e-5, nan_ok=True), name


def test_discovery(points, runs):
    found = [(p.model_id, p.run, p.method, p.step, p.role) for p in points]
    assert found == [
        ("target", "target", "finetune", 4, "target"),
        ("reference", "reference", "finetune", 4, "reference"),
        ("npo-step-00005", "npo", "npo", 5, "checkpoint"),
        ("npo-step-00010", "npo", "npo", 10, "checkpoint"),
        ("broken", "broken", "ga", 3, "checkpoint"),
    ]
    assert discover_run(runs / "npo", role="target")[0].role == "target"


def test_discovery_of_nothing(runs, tmp_path):
    with pytest.raises(UserError, match=r"no run folder.*run\.json"):
        discover_run(tmp_path)
    write_json(tmp_path / "run.json", {"run": "new", "method": "npo", "status": "running"})
    (tmp_path / "models" / "step-00005").mkdir(parents=True)
    with pytest.raises(UserError, match=r"status: running\) has no complete model"):
        discover_run(tmp_path)


def test_one_actor_equals_scoring_without_ray(first, points):
    output, table = first
    assert_every_row_once(output, points)
    assert table["forget_quality"].tolist()[1] == 1.0
    plain = {}
    for point in (points[0], points[1]):
        formatter = Formatter(load_tokenizer(point.path), CONFIG.style, CONFIG.max_length)
        found = measure(load_model(point.path, "fp32"), formatter, SUITE.items, CONFIG)
        plain[point.model_id] = {group: [r for r in found if r.group == group] for group in SUITE.groups}
    expected = tofu.aggregate(plain["target"], plain["reference"]).values
    assert set(tofu.NAMES) - set(expected) == {"mia_gradnorm", "privleak_without_reference"}
    assert table.iloc[0][list(expected)].to_dict() == pytest.approx(expected, rel=1e-5)
    for name in ("extraction_strength", "exact_memorization", "forget_Q_A_ROUGE", "model_utility"):
        assert 0 < expected[name] < 1, name


def test_two_actors_and_another_token_budget_change_nothing(first, points, tmp_path):
    config = CONFIG.model_copy(update={"token_budget": 300})
    table = evaluate(points, SUITE, tmp_path, config, actors=2, rows_per_task=3)
    assert_every_row_once(tmp_path, points)
    assert_same_numbers(first[1], table)


def test_files(first, points):
    output, table = first
    with open(output / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["model", "run", "method", "step", "role", "path", "variant", *tofu.NAMES]
    assert [row["model"] for row in rows] == [point.model_id for point in points]
    assert [float(row["model_utility"]) for row in rows] == pytest.approx(table["model_utility"].tolist(), nan_ok=True)
    about = json.loads((output / "evaluation.json").read_text())
    assert (about["status"], about["benchmark"], about["forget_split"]) == ("complete", "synthetic:tiny", "forget10")
    assert about["reference"] == "reference"
    assert all(list(about["missing"][point.model_id]) == ["mia_gradnorm"] for point in points[:4])


def test_a_diverged_model_is_a_row_of_nan(first):
    output, table = first
    assert table.iloc[4][list(tofu.NAMES)].isna().all()
    assert table.iloc[:4][MEASURED].notna().all(axis=None)
    with open(output / "metrics.csv", encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file))[4]["model_utility"] == "nan"
    missing = json.loads((output / "evaluation.json").read_text())["missing"]
    assert f"{ROWS} of {ROWS} rows have a NaN or infinite loss" in missing["broken"]["model_utility"]


def test_rerun_scores_only_what_is_missing_or_changed(first, points, monkeypatch):
    output, table = first
    scored = []
    whole = stage._score
    monkeypatch.setattr(stage, "_score", lambda writers, *rest: (scored.append(writers), whole(writers, *rest)))

    def run():
        return evaluate(points, SUITE, output, CONFIG, actors=1)

    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")}
    assert_same_numbers(table, run())
    assert scored == []
    # A lost file of one model; other weights under the same name and marker of another.
    lost = output / "records" / "npo-step-00005" / "ra.parquet"
    lost.unlink()
    os.utime(Path(points[3].path) / "model.safetensors", ns=(1, 1))
    assert_same_numbers(table, run())
    again = {(writer.unit.model.model_id, writer.unit.group) for writer in scored[0]}
    assert again == {("npo-step-00005", "ra"), *(("npo-step-00010", group) for group in SUITE.groups)}
    for path, stamp in stamps.items():
        redone = (path.parent.name, path.stem) in again
        assert (path.stat().st_mtime_ns != stamp) == redone, path


def test_a_killed_actor_loses_and_doubles_no_row(first, points, tmp_path, monkeypatch):
    killed = []
    whole = stage.RowProgress.advance

    def kill_one(self, rows, note):
        whole(self, rows, note)
        if not killed:
            victim = _own_actors()[0]
            killed.append(victim.pid)
            victim.send_signal(signal.SIGKILL)

    monkeypatch.setattr(stage.RowProgress, "advance", kill_one)
    table = evaluate(points[:2], SUITE, tmp_path, CONFIG, actors=2, rows_per_task=4)
    assert killed
    assert_every_row_once(tmp_path, points[:2])
    assert_same_numbers(first[1][:2], table)


def _own_actors() -> list[psutil.Process]:
    """Scoring actors of this process's own cluster; another test run on the machine has its own."""
    tree = psutil.Process().children(recursive=True)
    return [process for process in tree if "ScoringActor" in process.name() + " ".join(process.cmdline())]


def test_a_row_delivered_twice_counts_once(first, points, tmp_path):
    output, _ = first
    writers = writers_of(points[:1], tmp_path)
    tables = [to_table(rows, model_id="target") for rows in records(output, "target").values()]
    halves = [part for table in tables for part in (table.slice(0, 3), table.slice(0, 3), table.slice(3), table)]
    with stage.RowProgress("test", ROWS, None) as progress:
        stage._collect(writers, iter(halves), progress)
    assert_every_row_once(tmp_path, points[:1])


def test_a_lost_row_is_no_result(first, points, tmp_path):
    output, _ = first
    writers = writers_of(points[:1], tmp_path)[:1]
    table = to_table(records(output, "target")["forget"], model_id="target")
    with stage.RowProgress("test", ROWS, None) as progress, pytest.raises(AssertionError, match="without all rows"):
        stage._collect(writers, iter([table.slice(1)]), progress)
    assert not writers[0].unit.path.exists()
    # What did arrive is kept, and only the lost row is missing the next time.
    assert writers_of(points[:1], tmp_path)[0].missing == [0]


def writers_of(points, output: Path) -> list[record_store.UnitWriter]:
    return [record_store.UnitWriter(unit) for unit in record_store.units_of(points, SUITE, output, CONFIG)]


def test_other_settings_and_broken_pieces_do_not_count(first, points, tmp_path):
    found = records(first[0], "target")["forget"]
    writers_of(points[:1], tmp_path)[0].add(found[:2])
    assert writers_of(points[:1], tmp_path)[0].missing == [2, 3]
    (tmp_path / "records" / "target" / "forget.parts" / "half.parquet").write_bytes(b"PAR1 cut off")
    assert writers_of(points[:1], tmp_path)[0].missing == [2, 3]
    other = CONFIG.model_copy(update={"max_new_tokens": 9})
    units = record_store.units_of(points[:1], SUITE, tmp_path, other)
    assert record_store.UnitWriter(units[0]).missing == [0, 1, 2, 3]
    # What no item of a group asks for changes nothing for it: holdout rows are not generated for.
    before = {unit.group: unit.fingerprint for unit in record_store.units_of(points[:1], SUITE, tmp_path, CONFIG)}
    assert [unit.group for unit in units if unit.fingerprint == before[unit.group]] == ["holdout"]
    sampled = CONFIG.model_copy(update={"samples": 3})
    units = record_store.units_of(points[:1], SUITE, tmp_path, sampled)
    assert [unit.group for unit in units if unit.fingerprint != before[unit.group]] == ["forget"]


def test_a_killed_driver_resumes_at_the_missing_rows(first, points, tmp_path):
    script = f"""
        from pipelines import evaluate as stage
        from pipelines.evaluate import EvaluationConfig, ModelPoint, evaluate
        from pipelines.ray_session import start_ray
        from unlearn_core.data.tofu import open_benchmark
        from unlearn_core.evaluation import tofu
        import os, signal
        start_ray(num_cpus=1)
        points = [
            ModelPoint("target", {points[0].path!r}, "target", "finetune", 4, "target"),
            ModelPoint("reference", {points[1].path!r}, "reference", "finetune", 4, "reference"),
        ]
        whole = stage.RowProgress.advance
        def die(self, rows, note):
            whole(self, rows, note)
            if self.done >= 20:
                os.kill(os.getpid(), signal.SIGKILL)
        stage.RowProgress.advance = die
        config = EvaluationConfig(max_length=256, max_new_tokens=8)
        suite = tofu.suite(open_benchmark("synthetic:tiny"), "forget10")
        evaluate(points, suite, {str(tmp_path)!r}, config, actors=1, rows_per_task=3)
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "evaluation.json").exists()
    found = [record for path in (tmp_path / "records").rglob("*.parquet") for record in read_parquet(path)]
    assert 20 <= len(found) < 2 * ROWS
    shown = io.StringIO()
    table = evaluate(points[:2], SUITE, tmp_path, CONFIG, actors=1, console=Console(file=shown, width=200))
    assert f"evaluate: {2 * ROWS - len(found)} rows" in shown.getvalue()
    assert_every_row_once(tmp_path, points[:2])
    assert_same_numbers(first[1][:2], table)
    assert list((tmp_path / "records").rglob("*.parts")) == []


def test_divergence_from_the_target_and_tasks_of_lm_eval_in_the_same_job(points, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "An old mill stood by the river, and nobody knew who had built it."}\n', encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"q": "Is water wet?", "a": 0}\n{"q": "Is fire cold?", "a": 1}\n')
    (tmp_path / "facts.yaml").write_text(
        "task: two_facts\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files: {{test: {tmp_path / 'rows.jsonl'}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: 'Question: {{q}} Answer:'\n"
        "doc_to_choice: ['yes', 'no']\ndoc_to_target: '{{a}}'\nmetric_list:\n  - metric: acc\n"
    )
    suite = generic_text.suite(str(text))
    tasks = stage.LmEvalTasks(("two_facts",), include_path=str(tmp_path))
    chosen = [points[0], points[2]]
    table = evaluate(chosen, suite, tmp_path / "out", CONFIG, actors=1, lm_eval=tasks)
    models = [load_model(point.path, "fp32") for point in chosen]
    formatter = Formatter(load_tokenizer(points[0].path), CONFIG.style, CONFIG.max_length)
    (expected,) = measure(models[1], formatter, suite.items, CONFIG, models[0])
    assert expected.kl_to_target is not None and expected.avg_loss is not None
    assert table["generic_kl_to_target"].tolist() == pytest.approx([0.0, expected.kl_to_target], abs=1e-6)
    assert expected.kl_to_target > 0.01
    assert table["generic_perplexity"].tolist()[1] == pytest.approx(math.exp(expected.avg_loss), rel=1e-5)
    found = table["lm_eval/two_facts/acc"].tolist()
    assert all(value in (0.0, 0.5, 1.0) for value in found)
    again = evaluate(chosen, suite, tmp_path / "out", CONFIG, actors=1, lm_eval=tasks)
    assert again["lm_eval/two_facts/acc"].tolist() == found


def test_without_a_reference_forget_quality_is_an_empty_cell(first, points, tmp_path):
    output, table = first
    (tmp_path / "records").symlink_to(output / "records")
    alone = evaluate(points[:1], SUITE, tmp_path, CONFIG)
    assert math.isnan(alone["forget_quality"][0])
    assert alone["model_utility"][0] == pytest.approx(table["model_utility"][0])
    with open(tmp_path / "metrics.csv", encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["forget_quality"] == ""
    missing = json.loads((tmp_path / "evaluation.json").read_text())["missing"]
    needs = {"forget_quality", "forget_quality_log10", "mia_reference", "privleak"}
    assert set(missing["target"]) == needs | {"mia_gradnorm"}
    assert all("reference" in missing["target"][name] for name in needs)


def test_a_users_mistake_found_in_an_actor_comes_back_as_one(cluster, points, tmp_path):
    config = EvaluationConfig(max_length=16)
    with pytest.raises(UserError, match="tokens is over max_length 16"):
        evaluate(points[:1], SUITE, tmp_path, config, actors=1)
    assert not (tmp_path / "evaluation.json").exists()
    # The failed job's actors must give their CPUs back, or the next training waits for ever.
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_mistakes_are_found_before_ray_starts(points, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(stage, "start_ray", never)

    def attempt(models, split="forget10", **options):
        evaluate(models, tofu.suite(BENCHMARK, split), tmp_path / "out", CONFIG, **options)

    target, reference = points[:2]
    moved = ModelPoint("gone", str(tmp_path / "nowhere"), "gone", "npo", 1)
    with pytest.raises(UserError, match="no model has the role 'reference'"):
        attempt([target], require_reference=True)
    with pytest.raises(UserError, match="2 models have the role 'reference'"):
        attempt([reference, ModelPoint("other", reference.path, "r", "finetune", 4, "reference")])
    with pytest.raises(UserError, match="'target' is given twice"):
        attempt([target, target])
    with pytest.raises(UserError, match="does not exist"):
        attempt([target, moved])
    with pytest.raises(UserError, match="no models"):
        attempt([])
    with pytest.raises(UserError, match="names a folder"):
        attempt([ModelPoint("../up", target.path, "r", "npo", 1)])
    with pytest.raises(UserError, match="unknown role 'base'"):
        attempt([ModelPoint("x", target.path, "r", "npo", 1, "base")])  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="forget20_perturbed"):
        attempt([target], split="forget20")
    with pytest.raises(UserError, match="actors is 0"):
        attempt([target], actors=0)
    assert not (tmp_path / "out").exists()


def test_more_actors_than_gpus_is_an_error(cluster, points, tmp_path):
    with pytest.raises(UserError, match="the cluster has 0"):
        evaluate(points[:1], SUITE, tmp_path, CONFIG, use_gpu=True)


def test_progress_in_a_log_file_is_lines():
    file = io.StringIO()
    with stage.RowProgress("evaluate", 10, Console(file=file)) as progress:
        progress.advance(4, "target")
        progress.advance(6, "npo")
    lines = file.getvalue().splitlines()
    assert lines[0] == "evaluate: 10 rows"
    assert len(lines) == 2
    assert "10/10" in lines[1]
    assert "npo" in lines[1]


def test_one_cpu_is_enough(points, tmp_path):
    script = f"""
        import ray
        from pathlib import Path
        from pipelines.evaluate import EvaluationConfig, ModelPoint, evaluate
        from pipelines.ray_session import start_ray
        from unlearn_core.data.tofu import open_benchmark
        from unlearn_core.evaluation import tofu
        start_ray(num_cpus=1)
        assert ray.cluster_resources()["CPU"] == 1
        point = ModelPoint("target", {points[0].path!r}, "target", "finetune", 4, "target")
        config = EvaluationConfig(max_length=256, max_new_tokens=8)
        suite = tofu.suite(open_benchmark("synthetic:tiny"), "forget10")
        evaluate([point], suite, {str(tmp_path)!r}, config, actors=2, rows_per_task=8)
        assert ray._private.worker._global_node.node_ip_address == "127.0.0.1"
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert_every_row_once(tmp_path, points[:1])
