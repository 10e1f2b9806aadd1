"""The robustness suite on models of a few thousand weights: attacked alike, compared, resumed; mistakes found first."""

import copy
import csv
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")

from pipelines import robustness as stage
from pipelines import robustness_relearn
from pipelines.evaluate import EvaluationConfig, ModelPoint
from pipelines.robustness import leakage_table, robustness, robustness_table
from pipelines.robustness_relearn import FORGET, UNRELATED, RelearnConfig, lessons, plan_relearning
from unlearn_core.config import build_config
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.data.tokenization import Formatter, collate
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.errors import UserError
from unlearn_core.evaluation import prompt_attacks, tofu
from unlearn_core.loop import Outcome
from unlearn_core.models import SmallLlama, build_small_llama, load_model
from unlearn_core.publish import publish_folder

# Ray 2.60 and its dependencies.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")

BENCHMARK = open_benchmark("synthetic:tiny")
CONFIG = EvaluationConfig(style="plain", max_length=128, max_new_tokens=8, samples=2)
RELEARN = build_config(RelearnConfig, {"epochs": 5, "optimizer": {"learning_rate": 1e-2}, "batch": {"micro": 4}})
ATTACKS = (FORGET, "nf4", "opening")


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """A reference that learned the retain rows, and an "unlearned" model: one that learned all, under noise."""
    root = tmp_path_factory.mktemp("models")
    rows = BENCHMARK.split("full")
    tokenizer = train_tokenizer([f"{row.question} {row.answer}" for row in rows], 320)
    size = SmallLlama(hidden_size=64, layers=2, heads=2, mlp_size=64, vocab_size=320, max_positions=128)
    formatter = Formatter(tokenizer, "plain", 128)

    def taught(split: str):
        examples = [formatter.example(row.item_id, row.question, row.answer) for row in BENCHMARK.split(split)]
        model = build_small_llama(size, tokenizer, 0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for step in range(120):
            batch = collate([examples[(8 * step + k) % len(examples)] for k in range(8)], formatter.pad_id)
            mask, labels = batch.attention_mask_BT, batch.labels_BT
            model(input_ids=batch.input_ids_BT, attention_mask=mask, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.eval()

    def export(model, name: str) -> str:
        def fill(folder: Path) -> None:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

        return str(publish_folder(root / name, fill, {"step": 1}))

    noisy = copy.deepcopy(whole := taught("full"))
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    return [
        ModelPoint("target", export(whole, "target"), "target", "finetune", 1, "target"),
        ModelPoint("reference", export(taught("retain90"), "reference"), "reference", "finetune", 1, "reference"),
        ModelPoint("npo-step-00001", export(noisy, "npo"), "npo", "npo", 1),
    ]


@pytest.fixture(scope="module")
def suite():
    base = tofu.suite(BENCHMARK, "forget10")
    return base.with_more(prompt_attacks.suite(base, sampled=True))


@pytest.fixture(scope="module")
def first(cluster, points, suite, tmp_path_factory):
    output = tmp_path_factory.mktemp("robustness")
    return output, attempt(points, suite, output)


def attempt(points, suite, output, relearning=RELEARN, **options):
    taught = lessons("synthetic:tiny", "forget10")
    options = {"attacks": ATTACKS, "actors": 1} | options
    return robustness(points, suite, output, CONFIG, taught=taught, relearning=relearning, **options)


def table_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_ratios_are_those_of_the_scored_models(first):
    output, result = first
    scored = {row["model"]: row for row in table_of(output / "evaluation" / "metrics.csv")}
    variants = ["", "", "", "nf4", "nf4", FORGET, FORGET]
    assert sorted(row["variant"] for row in scored.values()) == variants
    rows = {(row.attack, row.metric): row for row in result.rows}
    assert len(rows) == 2 * 3 + 1

    def value(model, column):
        return float(scored[model][column])

    probability = rows[FORGET, "forget_Q_A_Prob"]
    found = (probability.before, probability.after, probability.reference_before, probability.reference_after)
    names = ("npo-step-00001", f"npo-step-00001.{FORGET}", "reference", f"reference.{FORGET}")
    assert found == pytest.approx(tuple(value(name, "forget_Q_A_Prob") for name in names))
    # Fine-tuning on the forget rows teaches both.
    gains = (found[1] - found[0], found[3] - found[2])
    assert min(gains) > 0.05
    assert probability.ratio == pytest.approx(min(1, gains[1] / gains[0]))
    rounded = rows["nf4", "forget_Q_A_Prob"]
    assert rounded.after != rounded.before
    assert rounded.ratio == pytest.approx(min(1, rounded.before / rounded.after))
    opening = rows["opening", "forget_opening_ROUGE"]
    assert opening.before == pytest.approx(value("npo-step-00001", "forget_Q_A_ROUGE"))
    assert opening.after == pytest.approx(value("npo-step-00001", "forget_opening_ROUGE"))
    assert all(row.ratio is not None and 0 <= row.ratio <= 1 for row in rows.values())


def test_models_are_attacked_alike_and_the_target_is_not(first):
    output, _ = first
    folders = sorted(path.parent.relative_to(output / "relearned") for path in output.rglob("attack.json"))
    assert [str(folder) for folder in folders] == [f"npo-step-00001/{FORGET}", f"reference/{FORGET}"]
    records = [json.loads((output / "relearned" / folder / "run.json").read_text()) for folder in folders]
    # 4 rows, 5 passes: all of them in each step.
    assert [(record["status"], record["steps"]) for record in records] == [("finished", 5)] * 2


def test_plans_differ_between_models_in_the_model_alone(points, tmp_path):
    plans = plan_relearning(points[1:], points[1], lessons("synthetic:tiny", "forget10"), tmp_path, RELEARN, CONFIG)
    named = [(plan.point.model_id, plan.attack) for plan in plans]
    models = ("reference", "npo-step-00001")
    assert named == [(model, attack) for model in models for attack in (FORGET, UNRELATED)]
    runs = [plan.run.model_dump(exclude={"name", "model"}) for plan in plans]
    assert runs[:2] == runs[2:]
    assert [plan.run.model.path for plan in plans] == [points[1].path] * 2 + [points[2].path] * 2
    for run, rows in zip(runs[:2], (4, 8), strict=True):
        assert (run["batch"]["rows"], run["steps"]) == (rows, 5)
        assert (run["data"]["format"], run["data"]["max_length"]) == ("plain", 128)
        assert len(Path(run["data"]["retain"][0]).read_text().splitlines()) == rows


def test_files(first):
    output, result = first
    rows = table_of(output / "robustness.csv")
    assert [row["attack"] for row in rows] == [FORGET] * 3 + ["nf4"] * 3 + ["opening"]
    assert [float(row["ratio"]) for row in rows] == [row.ratio for row in result.rows]
    about = json.loads((output / "robustness.json").read_text())
    assert (about["status"], about["reference"], about["metric"]) == ("complete", "reference", "extraction_strength")
    assert about["rows_taught"] == {FORGET: 4}
    assert (output / "robustness.png").read_bytes().startswith(b"\x89PNG")
    svg = (output / "robustness.svg").read_text()
    assert all(attack in svg for attack in ATTACKS)
    leaks = {(row["model"], row["column"]): float(row["value"]) for row in table_of(output / "leakage.csv")}
    for model in ("npo-step-00001", "reference"):
        assert leaks[model, "sampled_ROUGE_mean"] < leaks[model, "sampled_ROUGE_mean_upper"] <= 1
    assert robustness_table(result).row_count == 1
    bounds = leakage_table(result)
    assert bounds is not None
    assert bounds.row_count == 2


def test_the_same_call_does_nothing_again(first, points, suite, monkeypatch):
    output, result = first
    before = {
        path: path.stat().st_mtime_ns for path in output.rglob("*") if path.suffix in (".parquet", ".safetensors")
    }
    assert len(before) > 40
    assert attempt(points, suite, output) == result
    assert {path: path.stat().st_mtime_ns for path in before} == before

    def never(*_):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(robustness_relearn, "train", never)
    monkeypatch.setattr(stage, "evaluate", never)
    other = RELEARN.model_copy(update={"epochs": 1.0})
    with pytest.raises(UserError, match="holds this attack with other rows or settings"):
        attempt(points, suite, output, other)
    moved = [*points[:2], ModelPoint("npo-step-00001", points[0].path, "npo", "npo", 1)]
    with pytest.raises(UserError, match="holds this attack with other weights"):
        attempt(moved, suite, output)


def test_the_attacked_model_is_another_one(first, points):
    output, _ = first
    start = load_model(points[2].path, "fp32").state_dict()
    model = output / "relearned" / "npo-step-00001" / FORGET / "models" / "step-00005"
    assert any(not tensor.equal(start[name]) for name, tensor in load_model(str(model), "fp32").state_dict().items())


def test_a_fine_tune_that_diverges_is_a_missing_ratio(first, points, suite, tmp_path, monkeypatch):
    output, _ = first
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "records").symlink_to(output / "evaluation" / "records")
    monkeypatch.setattr(robustness_relearn, "train", lambda *_: Outcome("diverged", 2, "non-finite loss at step 3"))
    result = attempt(points, suite, tmp_path, attacks=(FORGET, "nf4"))
    rows = {row.attack: row for row in result.rows if row.metric == result.metric}
    assert (rows[FORGET].after, rows[FORGET].ratio) == (None, None)
    assert rows[FORGET].reason.startswith("the fine-tune diverged: non-finite loss at step 3")
    assert rows["nf4"].ratio is not None
    assert result.scores[0].robustness is None


def test_mistakes_are_found_before_a_worker_starts(points, suite, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(robustness_relearn, "train", never)
    monkeypatch.setattr(stage, "evaluate", never)
    target, reference, npo = points

    def refused(message, models=points, **options):
        with pytest.raises(UserError, match=message):
            attempt(models, suite, tmp_path / "out", **options)

    refused("recovery ratios compare with the model retrained .* --reference", [target, npo])
    refused(
        "2 models have the role 'reference'", [reference, npo, ModelPoint("r2", npo.path, "r", "x", 1, "reference")]
    )
    refused("no unlearned model was given", [target, reference])
    refused("unknown attack 'nf5'.*'nf4'", attacks=["nf5"])
    refused("'model_utility' is no measure of knowledge", metric="model_utility")
    refused("does not exist", [reference, ModelPoint("gone", str(tmp_path / "gone"), "gone", "npo", 1)])
    refused(
        "is what nf4 of 'npo-step-00001' is called", [*points, ModelPoint("npo-step-00001.nf4", npo.path, "n", "n", 1)]
    )
    refused("an attacked version already", [reference, ModelPoint("q", npo.path, "q", "npo", 1, quantisation="nf4")])
    refused(r"none of the attacks can be run \(paraphrase: .*no column", attacks=["paraphrase"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        attempt(points, suite, tmp_path / "file")
