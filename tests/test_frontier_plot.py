import csv
import io
import json
import re
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("moocore")

from rich.console import Console

from pipelines.evaluated_models import read_evaluations
from pipelines.frontier import _panel, _place, frontier, summary_table
from pipelines.frontier_plot import Panel, Trajectory, draw, save
from unlearn_core.errors import MissingPackageError, UserError
from unlearn_core.frontier import AXES

COLUMNS = ["model", "run", "method", "step", "role", "path", "extraction_strength", "model_utility"]
STARS = [
    ["target", "full", "finetune", 5, "target", "/m/full", 0.8, 0.6],
    ["reference", "retrain", "finetune", 5, "reference", "/m/retrain", 0.1, 0.6],
]


def checkpoint(run, step, strength, utility, method=None):
    return [f"{run}-{step}", run, method or run, step, "checkpoint", f"/m/{run}/{step}", strength, utility]


# Positions (forgetting, utility): zeta (0.2, 0.6) (0.5, 0.5) (0.6, 0.2); ngdiff (0.4, 0.4) (0.7, 0.3). Not beaten:
# the first, second and last. Area beyond (0, 0): 0.2 * 0.6 + 0.3 * 0.5 + 0.2 * 0.3 = 0.33.
ROWS = [
    *STARS,
    checkpoint("zeta", 0, 0.8, 0.6),
    checkpoint("zeta", 2, 0.4, 0.2),
    checkpoint("zeta", 1, 0.5, 0.5),
    checkpoint("ngdiff", 1, 0.6, 0.4),
    checkpoint("ngdiff", 2, 0.3, 0.3),
]


def evaluation(folder, rows, columns=COLUMNS, **settings):
    folder.mkdir()
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    content = {"status": "complete", "benchmark": "synthetic:small", "forget_split": "forget10", **settings}
    (folder / "evaluation.json").write_text(json.dumps(content))
    return folder


def table(output):
    with open(output / "frontier.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_front_and_hypervolume_by_hand(tmp_path):
    summary = frontier([evaluation(tmp_path / "eval", ROWS)], tmp_path / "out")
    assert [(m.run, m.step) for m in summary.front] == [("zeta", 0), ("zeta", 1), ("ngdiff", 2)]
    assert summary.hypervolume == pytest.approx(0.33)
    # zeta alone: 0.2 * 0.6 + 0.3 * 0.5 + 0.1 * 0.2; ngdiff alone: 0.4 * 0.4 + 0.3 * 0.3
    assert summary.hypervolume_by_method == pytest.approx({"ngdiff": 0.25, "zeta": 0.29})
    # Without zeta step 1, its stair of height 0.5 falls to ngdiff step 1 (0.4) up to 0.4 and to 0.3 beyond.
    assert [m.contribution for m in summary.front] == pytest.approx([0.02, 0.04, 0.04])
    assert summary.reference_point == (0.0, 0.0)
    assert summary.candidates == 5 and summary.not_drawn == () and summary.companion is None


def test_files_hold_every_model_and_the_reference_is_no_candidate(tmp_path):
    summary = frontier([evaluation(tmp_path / "eval", ROWS)], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "frontier.csv",
        "frontier.pdf",
        "frontier.png",
        "frontier.svg",
        "summary.json",
    ]
    rows = table(tmp_path / "out")
    assert len(rows) == len(ROWS)
    # The reference, at (0.9, 0.6), would beat all others if it took part.
    assert [row["on_front"] for row in rows] == ["False", "False", "True", "False", "True", "False", "True"]
    assert rows[1]["reason"] == "the reference is not a candidate"
    assert float(rows[4]["forgetting"]) == 0.5 and float(rows[4]["extraction_strength"]) == 0.5
    assert float(rows[4]["hypervolume_contribution"]) == pytest.approx(0.04)
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["hypervolume"] == summary.hypervolume and written["reference_point"] == [0.0, 0.0]
    assert written["front"][1]["step"] == 1 and "(0, 0)" in written["caption"]
    assert (tmp_path / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_svg_keeps_words_as_text_and_repeats_byte_for_byte(tmp_path):
    folder = evaluation(tmp_path / "eval", ROWS)
    frontier([folder], tmp_path / "one")
    frontier([folder], tmp_path / "two")
    svg = (tmp_path / "one" / "frontier.svg").read_text()
    words = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    for word in (
        "target",
        "retrained",
        "zeta",  # not a method of this package: its name
        "NGDiff",  # one of them: its title
        "better",
        "Model utility",
        "1 \N{MINUS SIGN} extraction strength",
    ):
        assert word in words
    for name in ("frontier.svg", "frontier.png", "frontier.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_diverged_checkpoint_is_listed_with_its_reason_and_not_drawn(tmp_path):
    rows = [*ROWS, checkpoint("zeta", 3, 0.1, "nan"), checkpoint("zeta", 4, "", 0.6)]
    missing = {"zeta-3": {"model_utility": "7 of 9 losses are NaN"}}
    summary = frontier([evaluation(tmp_path / "eval", rows, missing=missing)], tmp_path / "out")
    assert summary.hypervolume == pytest.approx(0.33)
    assert [(m.model, m.reason) for m in summary.not_drawn] == [
        ("zeta-3", "model_utility is nan: 7 of 9 losses are NaN"),
        ("zeta-4", "extraction_strength is missing"),
    ]
    listed = table(tmp_path / "out")[-2]
    assert listed["reason"].startswith("model_utility is nan")
    assert listed["forgetting"] == "" and listed["on_front"] == "False"
    assert "2 checkpoints" in summary.caption


def test_nothing_but_diverged_checkpoints_still_gives_a_table(tmp_path):
    rows = [*STARS, checkpoint("zeta", 1, "nan", "nan")]
    summary = frontier([evaluation(tmp_path / "eval", rows)], tmp_path / "out")
    assert summary.front == () and summary.hypervolume == 0.0 and summary.candidates == 0
    assert len(table(tmp_path / "out")) == 3


def test_reference_point_and_axes_can_be_chosen(tmp_path):
    columns = [*COLUMNS, "forget_Q_A_Prob"]
    rows = [[*row, 0.5 if row[0] == "zeta-1" else 1.0] for row in ROWS]
    folder = evaluation(tmp_path / "eval", rows, columns)
    summary = frontier([folder], tmp_path / "a", reference_point=(0.4, 0.1))
    assert summary.hypervolume == pytest.approx(0.1 * 0.4 + 0.2 * 0.2)  # zeta step 1, then ngdiff step 2
    chosen = frontier([folder], tmp_path / "b", forgetting="forget_Q_A_Prob")
    assert chosen.hypervolume == pytest.approx(0.5 * 0.5)
    for bad in ((1.0, 0.0), (0.0, float("nan"))):
        with pytest.raises(UserError, match="reference-point"):
            frontier([folder], tmp_path / "c", reference_point=bad)
    assert not (tmp_path / "c").exists()


def test_forget_quality_gets_a_second_panel_with_its_own_volume(tmp_path):
    columns = [*COLUMNS, "forget_quality"]
    quality = {"zeta-1": 1e-10, "ngdiff-2": 1e-300, "target": 1e-22, "zeta-0": ""}
    rows = [[*row, quality.get(row[0], 1e-20)] for row in ROWS]
    summary = frontier([evaluation(tmp_path / "eval", rows, columns)], tmp_path / "out")
    assert summary.companion is not None
    assert summary.companion.hypervolume == pytest.approx(10 * 0.5)  # zeta step 1 from the floor of -20
    assert summary.companion.reference_point == (-20.0, 0.0)
    assert summary.companion.not_drawn == 1 and "lacks 1 more" in summary.caption
    assert summary.hypervolume == pytest.approx(0.33)


def test_runs_of_one_name_in_two_evaluations_stay_apart_and_the_target_counts_once(tmp_path):
    first = evaluation(tmp_path / "seed0", [*STARS, checkpoint("zeta", 1, 0.5, 0.5)])
    other = [*checkpoint("zeta", 1, 0.4, 0.4)]
    other[5] = "/elsewhere/zeta/1"
    second = evaluation(tmp_path / "seed1", [*STARS, other])
    summary = frontier([first, second], tmp_path / "out")
    assert {member.run for member in summary.front} == {"zeta@seed0", "zeta@seed1"}
    assert summary.repeated == 2
    assert [row["role"] for row in table(tmp_path / "out")].count("target") == 1


def test_same_checkpoint_scored_twice_alike_is_one_point(tmp_path):
    first, second = (evaluation(tmp_path / name, ROWS) for name in ("one", "two"))
    summary = frontier([first, second], tmp_path / "out")
    assert summary.candidates == 5 and summary.repeated == len(ROWS)
    assert {member.run for member in summary.front} == {"zeta", "ngdiff"}


def test_equal_names_of_different_data_are_refused(tmp_path):
    first = evaluation(tmp_path / "one", ROWS, benchmark_fingerprint="aa")
    second = evaluation(tmp_path / "two", ROWS, benchmark_fingerprint="bb")
    with pytest.raises(UserError, match=r"differ in benchmark_fingerprint: 'aa' in .*one; 'bb' in .*two"):
        frontier([first, second], tmp_path / "out")


@pytest.mark.parametrize(("field", "value"), [("benchmark", "locuslab/TOFU"), ("forget_split", "forget05")])
def test_mixed_evaluations_are_refused_by_value(tmp_path, field, value):
    first = evaluation(tmp_path / "one", ROWS)
    second = evaluation(tmp_path / "two", ROWS, **{field: value})
    with pytest.raises(
        UserError, match=rf"differ in {field}: '(synthetic:small|forget10)' in .*one; '{value}' in .*two"
    ):
        frontier([first, second], tmp_path / "out")


def test_user_mistakes_are_named(tmp_path):
    whole = evaluation(tmp_path / "whole", ROWS)
    with pytest.raises(UserError, match=r"no evaluation\.json"):
        frontier([tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(UserError, match="'running', expected 'complete'"):
        frontier([evaluation(tmp_path / "half", ROWS, status="running")], tmp_path / "out")
    with pytest.raises(UserError, match="No evaluation given"):
        frontier([], tmp_path / "out")
    with pytest.raises(UserError, match="given twice"):
        frontier([whole, tmp_path / "." / "whole"], tmp_path / "out")
    with pytest.raises(UserError, match=r"'colour' is not a forgetting axis.*extraction_strength"):
        frontier([whole], tmp_path / "out", forgetting="colour")
    with pytest.raises(UserError, match=r"no column exact_memorization.*extraction_strength, model_utility"):
        frontier([whole], tmp_path / "out", forgetting="exact_memorization")
    with pytest.raises(UserError, match="no checkpoint"):
        frontier([evaluation(tmp_path / "stars", STARS)], tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        frontier([whole], tmp_path / "file")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["moocore", "matplotlib"])
def test_a_missing_package_is_named_and_nothing_is_written(tmp_path, monkeypatch, package):
    folder = evaluation(tmp_path / "eval", ROWS)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=f"pip install {package}"):
        frontier([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (checkpoint("zeta", 1, 1.5, 0.5), r"metrics\.csv:2: extraction_strength = 1\.5"),
        (checkpoint("zeta", 1, "high", 0.5), "could not convert"),
        (checkpoint("zeta", 1.5, 0.5, 0.5), r"step '1\.5'"),
        (checkpoint("zeta", "", 0.5, 0.5), "expected a number"),
        ([*checkpoint("zeta", 1, 0.5, 0.5)[:4], "judge", "/m", 0.5, 0.5], "role 'judge'"),
    ],
)
def test_malformed_rows_are_named_by_line(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        frontier([evaluation(tmp_path / "eval", [row])], tmp_path / "out")


def test_a_model_twice_in_one_evaluation_is_refused(tmp_path):
    with pytest.raises(UserError, match="'zeta-1' twice"):
        frontier([evaluation(tmp_path / "eval", [ROWS[4], ROWS[4]])], tmp_path / "out")


def test_summary_table_names_members_volume_and_losses(tmp_path):
    rows = [*ROWS, checkpoint("zeta", 3, 0.1, "nan")]
    summary = frontier([evaluation(tmp_path / "eval", rows)], tmp_path / "out")
    screen = io.StringIO()
    Console(width=120, file=screen).print(summary_table(summary))
    text = screen.getvalue()
    assert "0.3300" in text and "ngdiff 0.2500" in text and "(0, 0)" in text
    assert "3 of 5 checkpoints" in text and "1 model without a position" in text


def drawn(tmp_path, rows):
    """The figure's main axes for these rows, through the same panel that `frontier` draws."""
    models, _, _ = read_evaluations([evaluation(tmp_path / "eval", rows)], ())
    placed = _place(models, AXES["extraction_strength"], AXES["model_utility"], (0.0, 0.0))
    return draw([_panel(placed)]).axes[0]


def by_gid(ax, prefix) -> list[Any]:
    return [artist for artist in ax.get_children() if (artist.get_gid() or "").startswith(prefix)]


def test_trajectories_follow_the_steps_and_the_frontier_is_a_staircase(tmp_path):
    ax = drawn(tmp_path, ROWS)
    (zeta,) = by_gid(ax, "trajectory zeta")
    np.testing.assert_allclose(zeta.get_xydata(), [[0.2, 0.6], [0.5, 0.5], [0.6, 0.2]])
    (stairs,) = by_gid(ax, "staircase")
    corners = [[0, 0.6], [0.2, 0.6], [0.2, 0.5], [0.5, 0.5], [0.5, 0.3], [0.7, 0.3], [0.7, 0]]
    np.testing.assert_allclose(stairs.get_xydata(), corners)


def test_stars_are_above_every_point_even_where_all_coincide(tmp_path):
    rows = [[*row[:6], 0.8, 0.6] for row in ROWS]
    ax = drawn(tmp_path, rows)
    (target,), (reference,) = by_gid(ax, "star target"), by_gid(ax, "star retrained")
    others = [a.get_zorder() for a in ax.collections if not (a.get_gid() or "").startswith("star")]
    assert target.get_zorder() > max(others) and reference.get_zorder() > target.get_zorder()
    # The one on top is the smaller, so that both show; colours differ in lightness and not only in hue.
    assert reference.get_sizes()[0] < target.get_sizes()[0]
    assert abs(reference.get_facecolor()[0][:3].mean() - target.get_facecolor()[0][:3].mean()) > 0.3


def test_labels_lie_apart_with_six_methods_of_twenty_steps(tmp_path):
    rng = np.random.default_rng(3)
    rows = [*STARS]
    for method in ("a", "b", "c", "d", "e", "f"):
        for step in range(20):
            forgotten = 0.2 + 0.7 * step / 20 + rng.normal(0, 0.01)
            rows.append(checkpoint(method, step, 1 - forgotten, 0.6 - 0.3 * forgotten**2 + rng.normal(0, 0.02)))
    ax = drawn(tmp_path, rows)
    boxes = [note.get_window_extent() for note in ax.texts if note.get_text()]
    assert len(boxes) > 10
    for n, one in enumerate(boxes):
        # Half a pixel of rounding between a text's trial and its place.
        assert not any(one.padded(-0.5).overlaps(other.padded(-0.5)) for other in boxes[:n])


def test_figure_needs_no_front_and_no_stars(tmp_path):
    none = np.zeros((0, 2))
    run = Trajectory("zeta", "zeta", (3,), np.array([[0.5, 0.0]]), np.array([True]), np.array([0.0]))
    panel = Panel(AXES["extraction_strength"], AXES["model_utility"], (run,), none, none, (0.0, 0.0), 0.0, 0)
    figure = draw([panel])
    save(figure, tmp_path / "alone")
    assert not by_gid(figure.axes[0], "staircase")  # a utility of 0 is not beyond the reference point
    assert (tmp_path / "alone.svg").is_file() and (tmp_path / "alone.png").is_file()
