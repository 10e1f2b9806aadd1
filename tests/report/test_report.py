"""What the page is made of, without a browser."""

import base64
import hashlib
import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import moocore
import numpy as np
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.report.answers import spread
from pipelines.report.content import content_of
from pipelines.report.curves import curves_of, read_log
from pipelines.report.gradient_plane import plane_of
from pipelines.report.inputs import sort_folders
from pipelines.report.models import Point
from pipelines.report.page import embedded, page_of
from pipelines.report.views import views, wants_log
from pipelines.report.write import report
from tests.report.large_evaluation import HOSTILE, many_points
from unlearn_core.errors import UserError
from unlearn_core.frontier import AXES
from unlearn_core.model_card import write_card


@pytest.fixture(scope="module")
def demo(recorded):
    return content_of(sort_folders([recorded / "demo" / "evaluation", recorded / "demo" / "robustness"]))


def test_folders_are_told_apart_and_mistakes_are_named(recorded, tmp_path):
    found = sort_folders(
        [recorded / "search" / "search-0", recorded / "demo" / "evaluation", recorded / "demo" / "runs" / "ngdiff"]
    )
    assert [folder.name for folder in found.every] == ["evaluation", "search-0", "ngdiff"]
    with pytest.raises(UserError, match="no folder given"):
        sort_folders([])
    with pytest.raises(UserError, match="given twice"):
        sort_folders([recorded / "demo" / "evaluation"] * 2)
    with pytest.raises(UserError, match=r"none does not exist; expected a folder that unlearn search"):
        sort_folders([tmp_path / "none"])
    with pytest.raises(UserError, match=r"name those: .*runs/grad_diff .*runs/ngdiff"):
        sort_folders([recorded / "demo" / "runs"])
    with pytest.raises(UserError, match="did not finish"):
        sort_folders([tmp_path])


def test_hypervolumes_are_moocores_and_the_summary_has_them(demo):
    data = demo.data
    views_by_key = {view["key"]: view for view in data["views"]}
    x, y = (views_by_key[key]["values"] for key in data["pair"])
    for method in ("", "ngdiff", "grad_diff"):
        places = [
            (x[n], y[n])
            for n, point in enumerate(data["points"])
            if point["role"] == "checkpoint" and method in ("", data["runs"][point["run"]]["method"])
        ]
        assert len(places) == (16 if method == "" else 8)
        area = moocore.hypervolume(np.array(places), ref=(0, 0), maximise=True)
        assert data["areas"]["|".join(data["pair"])][method] == pytest.approx(area, rel=1e-5)
        assert f"{area:.4f}" in demo.sentences[2]
    assert any("ngdiff at step 25 keeps most" in sentence for sentence in demo.sentences)
    assert any(
        sentence.startswith("Not in this report: no run with a second training seed") for sentence in demo.sentences
    )


def test_answers_are_of_the_checkpoint_that_reaches_the_retrained_model(demo):
    columns = demo.data["answers"]["columns"]
    assert columns["checkpoint:ngdiff"] == "ngdiff, step 25"
    assert list(columns)[:2] == ["target", "reference"]
    groups = [one["group"] for one in demo.data["answers"]["questions"]]
    assert groups.count("forget") == groups.count("retain") == 6


def test_evenly_spaced_rows_begin_with_the_first():
    assert spread(list(range(10)), 3) == [0, 3, 6]  # type: ignore[arg-type]
    assert spread(list(range(2)), 3) == [0, 1]  # type: ignore[arg-type]
    assert spread([], 3) == []


def test_a_thinned_log_keeps_its_ends_and_every_probe():
    log, counts = [], {"accepted": 0, "curvature": 0}
    for step in range(1, 1001):
        if step % 70 == 0:
            counts["accepted" if step % 140 else "curvature"] += 1
        log.append(
            {
                "step": step,
                "loss_forget": math.nan if step == 1 else 1 / step,
                "auto_probes": dict(counts),
                "seconds": 0.5,
            }
        )
    curves = curves_of(log, most=50)
    assert curves is not None
    assert curves.steps[0] == 1 and curves.steps[-1] == 1000 and curves.every == 20
    assert set(curves.probes) == set(range(70, 1001, 70)) <= set(curves.steps)
    assert curves.probes[70] == "accepted" and curves.probes[140] == "curvature"
    assert curves.series["loss_forget"][0] is None
    assert curves.seconds == 500 and curves.logged == 1000
    assert curves_of([]) is None


def test_a_log_cut_off_by_a_kill_is_read_and_a_damaged_one_is_not(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2 is damaged"):
        read_log(tmp_path)


def test_the_arrow_of_ngdiff_is_the_papers(recorded, demo):
    log = read_log(recorded / "demo" / "runs" / "ngdiff")
    config = next(run["config"] for run in demo.data["runs"] if run["label"] == "ngdiff")
    plane = plane_of(log, config)
    assert plane.names == ("retain", "forget") and plane.ascends == (False, True) and plane.why_not == ""  # type: ignore[union-attr]
    for record, direction in zip(log, plane.directions, strict=True):  # type: ignore[union-attr]
        # g_R/|g_R| - g_F/|g_F| (arXiv 2410.22086) where g_R lies along x and g_F at the logged angle.
        cosine = record["cosine"]
        assert direction == pytest.approx((1 - cosine, -math.sqrt(1 - cosine**2)), rel=1e-6)
        assert math.hypot(*direction) == pytest.approx(record["update_norm"], rel=1e-4)


def test_no_arrow_where_d_does_not_follow_from_the_log(recorded, demo):
    log = read_log(recorded / "demo" / "runs" / "ngdiff")
    config = next(run["config"] for run in demo.data["runs"] if run["label"] == "ngdiff")
    longer = [{**record, "update_norm": 2 * record["update_norm"]} for record in log]
    other = plane_of(longer, config)
    assert set(other.directions) == {None} and "logged length" in other.why_not  # type: ignore[union-attr]
    assert plane_of(log, None).why_not.startswith("the run's configuration is not at hand")  # type: ignore[union-attr]
    assert "diagnostics: true" in plane_of([{"step": 1, "loss_a": 1.0, "loss_b": 1.0}], config)  # type: ignore[operator]
    assert "two objectives" in plane_of([{"step": 1, "loss_a": 1.0}], config)  # type: ignore[operator]
    assert "not at hand" in plane_of([], config)  # type: ignore[operator]


def test_axes_turn_columns_so_that_higher_is_better():
    points = [
        Point("a", 1, "checkpoint", {"extraction_strength": 0.25, "odd": 1.0}),
        Point("a", 2, "checkpoint", {"odd": 50.0}),
    ]
    found = {view.key: view for view in views(points, None)}
    assert found["axis:extraction_strength"].values == (0.75, None)
    assert found["raw:extraction_strength"].values == (0.25, None)
    assert found["axis:extraction_strength"].reference == AXES["extraction_strength"].reference
    assert found["raw:odd"].log and found["raw:odd"].reference is None
    assert not wants_log([0.0, 1.0, 100.0]) and not wants_log([1.0, 5.0]) and not wants_log([None])


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.scripts, self.attributes, self.at = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "script":
            self.at = dict(attrs)
            self.scripts.append((self.at, ""))

    def handle_data(self, data):
        if self.at is not None:
            self.scripts[-1] = (self.at, self.scripts[-1][1] + data)

    def handle_endtag(self, tag):
        self.at = None if tag == "script" else self.at


def test_the_page_is_one_file_and_names_its_scripts_by_their_hashes(tmp_path):
    page, _ = report([many_points(tmp_path / "evaluation", runs=2, steps=2)], tmp_path / "out")
    text = page.read_text()
    tags = Tags(text)
    loads = [
        row for row in tags.attributes if row[1] == "src" or (row[1] == "href" and not (row[2] or "").startswith("#"))
    ]
    assert loads == [("link", "href", "data:,")]
    policy = next(value for tag, name, value in tags.attributes if name == "content" and "default-src" in (value or ""))
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    run = [body for attributes, body in tags.scripts if attributes.get("type") != "application/json"]
    assert {base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in run} == allowed
    assert "script-src 'sha256-" in policy and "script-src 'unsafe-inline'" not in policy
    assert HOSTILE not in text and "&lt;/script&gt;&lt;script&gt;window.broken" in text


def test_texts_cannot_end_the_data_element():
    text = embedded({"a": HOSTILE + "<!--\u2028&"})
    assert not re.search("[<>&\u2028]", text)
    assert json.loads(text) == {"a": HOSTILE + "<!--\u2028&"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded(math.nan)


def test_pictures_stand_beside_the_page_and_a_failed_report_leaves_the_old_one(tmp_path, monkeypatch):
    evaluation = many_points(tmp_path / "evaluation", runs=2, steps=2)
    output = tmp_path / "out"
    report([evaluation], output)
    names = {path.name for path in output.iterdir()}
    assert names == {"report.html", "frontier.png", "frontier.svg", "frontier.pdf", "frontier.csv", "summary.json"}
    assert (output / "frontier.pdf").read_bytes().startswith(b"%PDF")
    before = (output / "report.html").read_bytes()
    monkeypatch.setattr("pipelines.frontier.save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report([evaluation], output)
    assert (output / "report.html").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation", "out"}


def test_searches_and_evaluations_of_other_benchmarks_do_not_share_a_page(recorded):
    with pytest.raises(UserError, match="one report for each benchmark"):
        content_of(sort_folders([recorded / "search" / "search-0", recorded / "demo" / "evaluation"]))


def test_a_search_shows_what_its_summary_says(recorded):
    data = content_of(sort_folders([recorded / "search" / f"search-{n}" for n in (0, 1)])).data
    assert data["pair"] == ["objective:forgetting", "objective:utility"]
    band = data["bands"][0]
    assert band["label"].endswith("2 search seeds") and set(band["surfaces"]) == {"25", "50", "75"}
    roles = [point["role"] for point in data["points"]]
    assert roles.count("target") == roles.count("reference") == 1
    assert roles.count("checkpoint") == 120
    again = [point for point in data["points"] if point["role"] == "rerun"]
    for point in again:
        run, parent = data["runs"][point["run"]], data["runs"][point["parent"][0]]
        assert run["family"] == parent["family"] and run["seed"] != parent["seed"]


def test_runs_alone_make_a_page_of_curves(recorded, tmp_path):
    page, content = report([recorded / "demo" / "runs" / "ngdiff"], tmp_path / "out")
    assert content.data["pair"] is None and len(content.data["curves"]) == 1
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]
    assert 'id="frontier"' not in page.read_text()
    assert page_of(replace(content, title="<b>")).count("<title>&lt;b&gt;</title>") == 1


def test_the_command_prints_the_summary_and_json(recorded, tmp_path):
    folder = str(recorded / "demo" / "evaluation")
    told = CliRunner().invoke(app, ["report", folder, "-o", str(tmp_path / "out")])
    assert told.exit_code == 0, told.output
    assert "11 checkpoints non-dominated" in told.output and "report.html" in told.output
    told = CliRunner().invoke(app, ["report", folder, "-o", str(tmp_path / "out"), "--json"])
    assert json.loads(told.stdout)["page"] == str(tmp_path / "out" / "report.html")


def test_rows_and_versions_of_a_run_are_those_of_its_card(recorded, tmp_path):
    run = tmp_path / "ngdiff"
    shutil.copytree(recorded / "demo" / "runs" / "ngdiff", run)
    rows = [{"rows": "forget10", "request": 1, "count": 40, "label_tokens": 500, "sha256": "ab" * 32}]
    (run / "models" / "step-00040").mkdir(parents=True)
    record = json.loads((run / "run.json").read_text())
    write_card(run / "models" / "step-00040", record, 40, rows, versions={"torch": "2.13.0"})
    facts = dict(content_of(sort_folders([run])).facts)
    assert facts["Run ngdiff"] == [("versions", "torch 2.13.0"), ("forget10 rows", f"40, SHA-256 {'ab' * 32}")]
