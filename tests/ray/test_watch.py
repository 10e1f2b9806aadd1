"""Evaluation beside a real training in one Ray session: neither waits for the other, and numbers are those of later."""

import json

import pandas as pd
import pytest
from training_runs import small_run, step_lines

from pipelines import growing_evaluation
from pipelines.evaluate import discover_run, evaluate
from pipelines.watch import train_and_watch
from unlearn_core.data.tokenization import Formatter, load_tokenizer
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.engine import measure
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.suite import Aggregates, Suite
from unlearn_core.models import load_model

# Ray 2.60 and its dependencies; Ray Data sets deprecated fields of its own context.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")

STEPS, EXPORTS = 300, (100, 200, 300)
CONFIG = EvaluationConfig(style="plain", max_length=128)


def mean_loss(records, reference, compat):
    rows = records["forget"]
    return Aggregates({"forget_loss": sum(row.avg_loss for row in rows) / len(rows)}, {})


SUITE = Suite(
    name="small",
    source="by hand",
    forget="two lines",
    items=tuple(
        Item(item_id=text, group="forget", prompt=f"Who is {text}?", answer=f"{text} writes.", generate=False)
        for text in ("Ada", "Ben")
    ),
    columns=("forget_loss",),
    aggregate=mean_loss,
    headline=("forget_loss",),
)


def test_evaluation_runs_beside_training(cluster, taught, tmp_path, monkeypatch):
    rounds, steps_at_end = [], []

    def noted(models, *arguments, **options):
        began_at = len(step_lines(tmp_path / "run"))
        table = evaluate(models, *arguments, **options)
        steps_at_end.append(len(step_lines(tmp_path / "run")))
        status = json.loads((tmp_path / "run" / "run.json").read_text())["status"]
        rounds.append((began_at, status, [point.step for point in models], options["actors"]))
        return table

    monkeypatch.setattr(growing_evaluation, "evaluate", noted)
    # One worker of the cluster's two CPUs; long enough that an evaluation, which starts a process, ends before it does.
    run = small_run(taught, 1, 2, 2, steps=STEPS, export_every=EXPORTS[0])
    done = train_and_watch(
        run, tmp_path / "run", SUITE, tmp_path / "scores", CONFIG, criterion="max:forget_loss", keep="best", poll_s=0.1
    )
    assert done.error is None
    assert (done.outcome.status, done.outcome.step) == ("finished", STEPS)
    assert sorted(step for _, _, steps, _ in rounds for step in steps) == list(EXPORTS)
    first_began_at, first_status, first_steps, first_actors = rounds[0]
    assert first_steps == [EXPORTS[0]]
    assert (first_status, first_actors) == ("running", 1), "no evaluation ended while the training ran"
    assert EXPORTS[0] <= first_began_at < STEPS
    assert steps_at_end[0] > first_began_at  # the training took steps while the model was scored
    assert [line["step"] for line in step_lines(tmp_path / "run")] == list(range(1, STEPS + 1))

    assert done.choice is not None
    assert done.choice.best is not None
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    left = discover_run(tmp_path / "run")
    assert {point.path for point in left} == {
        str(tmp_path / "run" / name) for name in (best["model"], record["last_model"])
    }
    # Scored in this process, from what is left on disk, they have the numbers that they had beside the training.
    table = pd.read_csv(tmp_path / "scores" / "metrics.csv").set_index("model")["forget_loss"]
    assert len(table) == len(EXPORTS)
    for point in left:
        formatter = Formatter(load_tokenizer(point.path), CONFIG.style, CONFIG.max_length)
        records = measure(load_model(point.path, "fp32"), formatter, SUITE.items, CONFIG)
        loss = mean_loss({"forget": records}, None, False).values["forget_loss"]
        assert table[point.model_id] == pytest.approx(loss, rel=1e-4)
    assert table.idxmax() == best["model_id"]
