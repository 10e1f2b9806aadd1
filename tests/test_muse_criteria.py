"""The six criteria of MUSE from tables written by hand and run folders that hold a run.json alone."""

import io
import json
import math

import pandas as pd
import pytest
from rich.console import Console

from pipelines.muse_criteria import CRITERIA, UTILITY, CurvePoint, criteria, print_criteria, write_criteria
from unlearn_core.config import RunConfig, build_config
from unlearn_core.data.muse import MuseTexts
from unlearn_core.errors import UserError

SOURCE = "synthetic-muse:tiny"
SIZES = [len(MuseTexts(SOURCE).split(f"scal/forget_{k}")) for k in (1, 2, 3, 4)]


@pytest.fixture
def run(tmp_path):
    def make(name, *, steps=10, learning_rate=1e-4, benchmark=SOURCE, **data):
        config = build_config(
            RunConfig,
            {
                "name": name,
                "model": {"path": "model"},
                "data": {"benchmark": benchmark, "retain": ["raw/retain1"], **data},
                "method": {"name": "ngdiff"},
                "optimizer": {"learning_rate": learning_rate},
                "steps": steps,
            },
        )
        folder = tmp_path / name
        folder.mkdir()
        record = {"run": name, "method": "ngdiff", "config": config.model_dump(mode="json")}
        (folder / "run.json").write_text(json.dumps(record))
        return folder

    return make


def row(model, utility, folder=None, step=0, role="checkpoint", **columns: float):
    path = f"{folder}/models/step-{step:05d}" if folder else f"/models/{model}"
    values = dict.fromkeys((column for _, column in CRITERIA.values()), 0.5) | {UTILITY: utility} | columns
    name = folder.name if folder else model
    return {"model": model, "run": name, "method": "ngdiff", "step": step, "role": role, "path": path, **values}


TARGET = row("target", 0.9, role="target")
REFERENCE = row("retrained", 0.8, role="reference")


def of(found, model):
    return {criterion.name: criterion for entry in found if entry.model == model for criterion in entry.criteria}


def utilities(criterion):
    return [(point.at, point.utility) for point in criterion.curve]


def test_the_first_four_are_columns():
    only = row("m", 0.4, forget_verbmem_ROUGE=0.1, forget_knowmem_ROUGE=0.2, privleak=-30.0)
    found = of(criteria(pd.DataFrame([only]), []), "m")
    assert [found[name].value for name in ("C1", "C2", "C3", "C4")] == [0.1, 0.2, -30.0, 0.4]
    assert list(found) == ["C1", "C2", "C3", "C4", "C5", "C6"]


def test_a_missing_column_gives_the_evaluations_reason():
    table = pd.DataFrame([row("m", 0.4, privleak=math.nan), row("n", 0.4, privleak=math.nan)])
    found = criteria(table, [], {"m": {"privleak": "no reference"}})
    assert (of(found, "m")["C3"].value, of(found, "m")["C3"].reason) == (None, "no reference")
    assert of(found, "n")["C3"].reason == "privleak has no finite value"


def test_scalability_takes_the_last_model_of_each_size(run):
    folders = [run(f"s{k}", forget=[f"scal/forget_{k}"], steps=10 * k) for k in (1, 2, 3, 4)]
    ends = [row(f"s{k}-end", 0.9 - k / 10, folders[k - 1], 10 * k) for k in (1, 2, 3, 4)]
    early = row("s2-early", 0.1, folders[1], 5)
    found = criteria(pd.DataFrame([TARGET, REFERENCE, *ends, early]), folders)
    for model in ("s1-end", "s4-end", "s2-early"):
        c5 = of(found, model)["C5"]
        assert utilities(c5) == [(0, 0.9), (1, 0.8), (2, 0.7), (3, 0.9 - 0.3), (4, 0.5)]
        assert (c5.value, c5.reason) == (0.5, "")
        assert [point.documents for point in c5.curve] == [0, *SIZES]
    assert c5.curve[2] == CurvePoint(2, "scal/forget_2", SIZES[1], "s2-end", 0.7)
    assert [entry.model for entry in found if not entry.last] == ["s2-early"]
    assert of(found, "retrained")["C5"].reason == "scalability is of unlearned models"
    assert of(found, "s1-end")["C6"].reason == (
        "sustainability needs one run with data.sequential sust/forget_1 to forget_4; this run forgets scal/forget_1"
    )


def test_runs_that_differ_in_more_than_the_size_are_two_curves(run):
    a1, a2 = (run(f"a{k}", forget=[f"scal/forget_{k}"]) for k in (1, 2))
    b1 = run("b1", forget=["scal/forget_1"], learning_rate=1e-3)
    table = pd.DataFrame([row("a1", 0.6, a1, 10), row("a2", 0.5, a2, 10), row("b1", 0.3, b1, 10)])
    found = criteria(table, [a1, a2, b1])
    assert utilities(of(found, "a1")["C5"]) == [(1, 0.6), (2, 0.5)]
    assert utilities(of(found, "b1")["C5"]) == [(1, 0.3)]
    assert of(found, "a1")["C5"].reason == "the curve has no run over scal/forget_3, scal/forget_4"


def test_two_runs_alike_over_one_size_are_refused(run):
    one, two = run("one", forget=["scal/forget_1"]), run("two", forget=["scal/forget_1"], steps=20)
    table = pd.DataFrame([row("one", 0.6, one, 10), row("two", 0.5, two, 20)])
    with pytest.raises(UserError, match=r"one and .*two both forget scal/forget_1 .* leave one of them out"):
        criteria(table, [one, two])


def test_sustainability_takes_the_last_step_of_each_request(run):
    folder = run("seq", sequential=[f"sust/forget_{k}" for k in (1, 2, 3, 4)], steps=10)
    rows = [row(f"step-{step}", 0.9 - step / 100, folder, step) for step in (5, 10, 15, 20, 30, 40)]
    found = criteria(pd.DataFrame([*rows, TARGET]), [folder])
    c6 = of(found, "step-5")["C6"]
    assert [point.model for point in c6.curve] == ["target", "step-10", "step-20", "step-30", "step-40"]
    assert [point.split for point in c6.curve] == ["", *(f"sust/forget_{k}" for k in (1, 2, 3, 4))]
    assert utilities(c6) == [(0, 0.9), (1, 0.8), (2, 0.9 - 0.2), (3, 0.9 - 0.3), (4, 0.5)]
    assert (c6.value, c6.reason) == (0.5, "")
    assert [point.documents for point in c6.curve[1:]] == [SIZES[0]] * 4
    assert "this run forgets sust/forget_1, sust/forget_2" in of(found, "step-5")["C5"].reason


def test_requests_whose_models_were_not_evaluated_are_named(run):
    folder = run("seq", sequential=["sust/forget_1", "sust/forget_2", "sust/forget_3"], steps=10)
    rows = [row("a", 0.7, folder, 10), row("b", 0.6, folder, 15), row("c", math.nan, folder, 30)]
    c6 = of(criteria(pd.DataFrame(rows), [folder]), "b")["C6"]
    assert utilities(c6) == [(1, 0.7)]
    assert c6.reason == "no model was evaluated after request 2 of 3"
    early = of(criteria(pd.DataFrame(rows[1:2]), [folder]), "b")["C6"]
    assert (early.value, early.reason) == (None, "no model was evaluated after request 1, 2, 3 of 3")


def test_variants_of_a_model_and_models_without_a_step(run):
    folder = run("seq", sequential=["sust/forget_1", "sust/forget_2"], steps=10)
    rows = [row(f"seq-{step}", step / 100, folder, step) | {"variant": ""} for step in (10, 20)]
    rows += [row("seq-20-int8", 0.05, folder, 20) | {"variant": "int8"}]
    hub = TARGET | {"step": math.nan, "variant": math.nan, "path": "muse-bench/MUSE-News_target"}
    found = criteria(pd.DataFrame([*rows, hub]), [folder])
    assert utilities(of(found, "seq-20")["C6"]) == [(0, 0.9), (1, 0.1), (2, 0.2)]
    assert "needs the run folder" in of(found, "seq-20-int8")["C6"].reason
    assert [entry.step for entry in found] == [10, 20, 20, 0]


def test_models_without_their_run_folder(tmp_path, run):
    (tmp_path / "edit").mkdir()
    (tmp_path / "edit" / "run.json").write_text(json.dumps({"run": "edit", "method": "interpolation", "config": {}}))
    folder = run("other", forget=["raw/forget"])
    rows = [row("m", 0.4), row("e", 0.4, tmp_path / "edit", 1), row("o", 0.4, folder, 10)]
    found = criteria(pd.DataFrame(rows), [tmp_path / "edit", folder, tmp_path])
    for model in ("m", "e"):
        assert of(found, model)["C5"].reason == "scalability needs the run folder of the model, with its config"
    assert of(found, "o")["C5"].reason == (
        "scalability needs a run for each of scal/forget_1 to forget_4; this run forgets raw/forget"
    )


def test_a_corpus_out_of_reach_has_no_sizes(run, tmp_path):
    folder = run("s1", forget=["scal/forget_1"], benchmark=str(tmp_path / "moved"))
    (point,) = of(criteria(pd.DataFrame([row("s1", 0.4, folder, 10)]), [folder]), "s1")["C5"].curve
    assert point.documents is None


def test_tables_of_other_evaluations_and_broken_runs(run):
    with pytest.raises(UserError, match=r"has no column forget_knowmem_ROUGE, .* the six criteria are MUSE's"):
        criteria(pd.DataFrame([{"model": "m", "privleak": 0.0}]), [])
    folder = run("broken", forget=["raw/forget"])
    (folder / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*broken/run\.json"):
        criteria(pd.DataFrame([row("m", 0.4, folder, 10)]), [folder])


def test_printed_and_written(run, tmp_path):
    folder = run("seq", sequential=["sust/forget_1", "sust/forget_2"], steps=10)
    rows = [TARGET, row("seq-10", 0.7, folder, 10), row("seq-20", 0.6, folder, 20, privleak=math.nan)]
    found = criteria(pd.DataFrame(rows), [folder])
    screen = io.StringIO()
    print_criteria(found, Console(file=screen, width=200))
    shown = screen.getvalue()
    lines = {line.split()[1].strip("│"): line for line in shown.splitlines() if line.startswith("│")}
    assert set(lines) == {"target", "seq-20"}
    assert "0.90 > 0.70 > 0.60" in lines["seq-20"] and "0.600" in lines["seq-20"]
    number = next(line[1] for line in shown.splitlines() if line.endswith("privleak has no finite value"))
    assert f"- ({number})" in lines["seq-20"]
    assert "Earlier models of these runs that are left out here: 1." in shown

    write_criteria(tmp_path / "criteria.json", found)
    written = json.loads((tmp_path / "criteria.json").read_text())
    assert [entry["model"] for entry in written] == ["target", "seq-10", "seq-20"]
    c6 = written[2]["criteria"][5]
    assert (c6["name"], c6["value"]) == ("C6", 0.6)
    assert c6["curve"][1] == {
        "at": 1,
        "split": "sust/forget_1",
        "documents": SIZES[0],
        "model": "seq-10",
        "utility": 0.7,
    }
