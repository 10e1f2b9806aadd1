"""Tables of what commands wrote, against files with known numbers."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from pipelines.frames import (
    read_answers,
    read_evaluation,
    read_frontier,
    read_robustness,
    read_run,
    read_search,
)
from unlearn_core.errors import UserError
from unlearn_core.publish import write_json

RECORDED = Path(__file__).parent / "report" / "recorded"


def test_steps_of_a_run(tmp_path):
    write_json(tmp_path / "run.json", {"run": "a", "method": "ngdiff", "status": "running", "steps": 9})
    assert read_run(tmp_path).empty  # before its first step
    lines = [
        {"step": 1, "loss_retain": 0.5, "learning_rate": 1e-3, "auto_probes": {"accepted": 0, "flat": 1}},
        {"step": 2, "loss_retain": 0.25, "cosine": -0.5, "learning_rate": 1e-3, "auto_probes": {"accepted": 1}},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "loss_re'  # being written
    (tmp_path / "metrics.jsonl").write_text(text)
    table = read_run(str(tmp_path))
    assert list(table.index) == [1, 2]
    assert list(table["loss_retain"]) == [0.5, 0.25]
    assert list(table["auto_probes/accepted"]) == [0, 1]
    assert math.isnan(table.loc[1, "cosine"])
    assert (table.attrs["method"], table.attrs["status"], table.attrs["fingerprint"]) == ("ngdiff", "running", None)


def test_models_of_an_evaluation(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "model,run,method,step,role,path,variant,model_utility,privleak\n"
        "start,,,0,target,/m,,0.5,\n"
        "7,007,npo,30,checkpoint,/n,int8,0.25,-3\n"
    )
    with pytest.raises(UserError, match=r"has no evaluation\.json; give the folder of a finished evaluation"):
        read_evaluation(tmp_path)
    missing = {"start": {"privleak": "no reference"}}
    write_json(tmp_path / "evaluation.json", {"suite": "tofu", "missing": missing})
    table = read_evaluation(tmp_path)
    assert list(table["run"]) == ["", "007"]  # names, not numbers
    assert list(table.index) == ["start", "7"]
    assert list(table["variant"]) == ["", "int8"]
    assert list(table["step"]) == [0, 30]
    assert table.loc["7", "privleak"] == -3.0
    assert math.isnan(table.loc["start", "privleak"])
    assert (table.attrs["suite"], table.attrs["missing"]) == ("tofu", missing)


def test_answers_of_an_evaluation(tmp_path):
    demo = RECORDED / "demo" / "evaluation"
    table = read_answers(demo, group="forget")
    assert table.groupby("model").size().to_dict() == dict.fromkeys(table["model"].unique(), 6)
    assert set(table["group"]) == {"forget"}
    one = read_answers(demo, model="demo-target", group="forget")
    assert list(one["generation"]) == list(table.loc[table["model"] == "demo-target", "generation"])
    assert list(one["generation"]) == list(one["answer"])  # it knows them by heart
    assert len(read_answers(demo, model="demo-target")) > len(one)
    with pytest.raises(UserError, match=r"no records of the group 'forgot'; it has forget, ra, retain, wf"):
        read_answers(demo, group="forgot")
    with pytest.raises(UserError, match="no records of the model 'demo'; it has demo-reference"):
        read_answers(demo, model="demo")
    with pytest.raises(UserError, match="give an evaluation"):
        read_answers(tmp_path)
    (tmp_path / "records" / "a").mkdir(parents=True)
    pd.DataFrame({"item_id": ["x"], "prob": [0.5]}).to_parquet(tmp_path / "records" / "a" / "ra.parquet")
    assert read_answers(tmp_path).to_dict("records") == [{"model": "a", "group": "ra", "item_id": "x", "prob": 0.5}]


def test_scored_steps_of_a_search(tmp_path):
    folder = RECORDED / "search" / "search-0"
    table = read_search(folder)
    scored = table.dropna(subset="step")
    lines = [line for path in folder.glob("trials/*/steps.jsonl") for line in path.read_text().splitlines()]
    assert len(scored) == len(lines)
    assert set(table["trial"]) == {int(path.name) for path in (folder / "trials").iterdir()}
    assert scored["on_front"].any()
    assert {"config/optimizer.learning_rate", "value/utility", "value/forgetting"} <= set(table.columns)
    with pytest.raises(UserError, match="holds no search"):
        read_search(tmp_path)


def test_points_of_a_frontier_and_attacks(tmp_path):
    with pytest.raises(UserError, match=r"has no summary\.json; give the folder of a frontier"):
        read_frontier(tmp_path)
    write_json(tmp_path / "summary.json", {"hypervolume": 0.5})
    with pytest.raises(UserError, match=r"has no frontier\.csv"):  # a search has a summary.json too
        read_frontier(tmp_path)
    (tmp_path / "frontier.csv").write_text("model,step,forgetting,on_front\na,4,0.5,True\nb,8,0.25,False\n")
    points = read_frontier(tmp_path)
    assert list(points.loc[points["on_front"], "model"]) == ["a"]
    assert points.attrs == {"hypervolume": 0.5}
    with pytest.raises(UserError, match=r"has no robustness\.json"):
        read_robustness(tmp_path)
    write_json(tmp_path / "robustness.json", {"reference": "r", "skipped": {"int4": "no GPU"}})
    (tmp_path / "robustness.csv").write_text("model,attack,before,after,ratio\na,relearn,0.5,0.75,\n")
    attacks = read_robustness(tmp_path)
    assert (attacks.loc[0, "after"], attacks.attrs["skipped"]) == (0.75, {"int4": "no GPU"})
    assert math.isnan(attacks.loc[0, "ratio"])
