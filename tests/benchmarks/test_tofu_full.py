"""The full TOFU benchmark: its rule of choice and report by hand, and every path on a CPU on made-up rows."""

import copy
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks import tofu_full, tofu_full_plan, tofu_full_report
from benchmarks.one_gpu import ROOT, Deadline
from benchmarks.tofu_full_pieces import PieceContext, Place
from benchmarks.tofu_full_plan import CONTESTS, FULL, SMOKE, Piece, choice, next_pieces
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.errors import UserError

# -- the rule ----------------------------------------------------------------------------------------------------------

TARGET = {"forget_Q_A_Prob": 0.9, **dict.fromkeys(tofu_full_plan.UTILITY, 0.8)}
REFERENCE = {"forget_Q_A_Prob": 0.1}


@pytest.mark.parametrize(("probability", "expected"), [(0.9, 0.0), (0.5, 0.5), (0.1, 1.0), (0.02, 0.9), (0.95, 0.0)])
def test_forgetting_is_nearness_to_the_reference(probability, expected):
    found = tofu_full_plan.forgetting({"forget_Q_A_Prob": probability}, TARGET, REFERENCE)
    assert found == pytest.approx(expected)


def test_a_target_that_knows_no_more_than_the_reference_is_told():
    with pytest.raises(UserError, match="nothing to forget"):
        tofu_full_plan.forgetting(TARGET, REFERENCE, TARGET)


def test_utility_is_a_harmonic_mean_of_shares_of_the_targets():
    values = dict.fromkeys(tofu_full_plan.UTILITY, 0.8)
    assert tofu_full_plan.utility(values, TARGET) == pytest.approx(1.0)
    assert tofu_full_plan.utility({**values, "ra_Truth_Ratio": 1.0}, TARGET) == pytest.approx(1.0)  # no more than 1
    assert tofu_full_plan.utility({**values, "ra_Truth_Ratio": 0.4}, TARGET) == pytest.approx(6 / 7)
    assert tofu_full_plan.utility({**values, "ra_Truth_Ratio": 0.0}, TARGET) == 0.0
    assert tofu_full_plan.score(0.5, 1.0) == pytest.approx(2 / 3)
    assert tofu_full_plan.score(0.0, 1.0) == 0.0


def made_up(piece, **fields):
    machine = {"device": "NVIDIA H200", "torch": "2", "source": "none"}
    return {"piece": vars(piece), "status": "done", "date": "2000-01-01", "machine": machine, "seconds": 60.0, **fields}


def unlearned(contest, grid, seed, forgetting, utility=0.9):
    piece = Piece("unlearn", contest, grid, seed)
    points = [
        {"epoch": 1, "forgetting": forgetting / 2, "utility": 1.0, "values": {}},
        {"epoch": 2, "forgetting": forgetting, "utility": utility, "values": {}},
    ]
    score = tofu_full_plan.score(forgetting, utility)
    return piece.name, made_up(piece, points=points, selected=2, score=score, reason="")


def final(contest, grid, seed, nf4=True):
    piece = Piece("final", contest, grid, seed)
    robustness = {"nf4": {"robustness": 0.9}, "relearning": {"robustness": 0.5 + 0.1 * seed}}
    missing = {} if nf4 else {"nf4": "needs bitsandbytes"}
    fields = {key: value for key, value in robustness.items() if nf4 or key != "nf4"}
    return piece.name, made_up(piece, selected=2, values=dict.fromkeys(tofu_full_report.SHOWN, 0.5), missing=missing,
                               **fields)  # fmt: skip


def taught():
    return {
        name: made_up(Piece("teach", model=name), values={**dict.fromkeys(tofu_full_report.SHOWN, 0.5), **values})
        for name, values in (("target", {"forget_Q_A_Prob": 0.9}), ("reference", {"forget_Q_A_Prob": 0.1}))
    }


def everything(best="ngdiff"):
    rows = taught()
    for number, name in enumerate(CONTESTS):
        level = 0.9 if name == best else 0.3 + 0.05 * number
        rows |= dict(unlearned(name, grid, 0, level - 0.1 * abs(grid - 1)) for grid in range(3))
        rows |= dict(unlearned(name, 1, seed, level + 0.01 * seed) for seed in (1, 2))
        rows |= dict(final(name, 1, seed) for seed in range(3))
    return rows


def test_the_rate_of_the_highest_score_is_chosen_and_the_smaller_one_among_equals():
    rows = dict(unlearned("npo", grid, 0, level) for grid, level in enumerate((0.2, 0.5, 0.5)))
    assert choice("npo", rows) == 1
    rows |= [unlearned("npo", 2, 0, 0.6)]
    assert choice("npo", rows) == 2
    rows["npo-rate2-seed0"]["status"] = "diverged"
    assert choice("npo", rows) == 1
    del rows["npo-rate0-seed0"]
    assert choice("npo", rows) is None
    assert choice("npo", {name: {**row, "status": "diverged"} for name, row in rows.items()}) is None


def test_pieces_come_in_an_order_that_leaves_a_whole_comparison_behind():
    first = [piece.name for piece in next_pieces({})]
    assert first[:3] == ["reference", "target", "ngdiff-rate0-seed0"] and len(first) == 2 + 3 * 7
    assert first[2:9] == [f"{name}-rate0-seed0" for name in CONTESTS]
    names = [piece.name for piece in next_pieces(everything())]
    assert len(names) == 2 + 21 + 3 * 7 + 2 * 7 == len(set(names))
    assert names[23:30] == [f"{name}-rate1-seed0-final" for name in CONTESTS]
    assert names.index("rmu-rate1-seed1-final") < names.index("ngdiff-rate1-seed2")
    assert names.index("ngdiff-rate1-seed1") < names.index("ngdiff-rate1-seed1-final")


# -- the report --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("best", ["ngdiff", "rmu"])
def test_whichever_method_wins_is_named(best):
    rows = everything(best)
    words = " ".join(tofu_full_report.reading(rows))
    assert words.startswith(f"{CONTESTS[best].title} has the highest mean score, 0.9")
    assert "beats all others' best" in words
    page = tofu_full_report.page(rows)
    assert "Nothing is missing" in page and "premise" in page.lower() and "holds." in page
    assert tofu_full_report.missing_pieces(rows) == []


def test_seeds_that_overlap_are_no_lead():
    rows = everything()
    rows |= [unlearned("npo", 1, 2, 0.905)]
    assert "Its seeds overlap with those of: NPO" in " ".join(tofu_full_report.reading(rows))


def test_the_table_has_means_and_ranges_of_seeds():
    text = tofu_full_report.table(everything(), False)
    line = next(line for line in text.splitlines() if line.startswith("| NGDiff | 0.0001 | 3 |"))
    assert "| 0.91 (0.9 to 0.92) |" in line  # forgetting 0.9, 0.91, 0.92
    assert line.endswith("| 0.9 | 0.6 (0.5 to 0.7) |")  # 4-bit, relearning
    assert "No result" not in text and "A smoke run" in tofu_full_report.table(everything(), True)


def test_everything_that_is_missing_is_named():
    rows = everything()
    del rows["npo-rate1-seed2"], rows["npo-rate1-seed2-final"], rows["rmu-rate0-seed0"]
    rows["simnpo-rate1-seed1"] = {**rows["simnpo-rate1-seed1"], "status": "failed", "reason": "out of memory"}
    rows["mean_teacher-rate0-seed0"] = {**rows["mean_teacher-rate0-seed0"], "status": "diverged", "reason": "NaN"}
    rows |= [final("ngdiff", 1, 0, nf4=False)]
    named = tofu_full_report.missing_pieces(rows)
    assert named == [
        "npo-rate1-seed2", "npo-rate1-seed2-final", "simnpo-rate1-seed1: out of memory", "rmu-rate0-seed0",
        "rmu: its chosen rate, three seeds of it and their final measurements",
    ]  # fmt: skip
    text = tofu_full_report.table(rows, False)
    assert "nf4: needs bitsandbytes" in text and "| Mean teacher + NLUL | 0.003 | diverged: NaN |" in text
    assert "Incomplete: 5 parts" in tofu_full_report.page(rows)
    assert tofu_full_report.page(taught()) == ""
    assert "reference" in tofu_full_report.table({"target": taught()["target"]}, False)
    assert "Nothing has been measured" in tofu_full_report.table({}, False)


def test_a_target_that_was_not_taught_enough_is_told():
    rows = copy.deepcopy(everything())
    rows["target"]["values"]["forget_Q_A_Prob"] = 0.7
    assert "does NOT hold" in tofu_full_report.table(rows, False)


def test_the_frontier_is_drawn(tmp_path):
    assert tofu_full_report.draw(everything(), tmp_path / "a.png") == "" and (tmp_path / "a.png").stat().st_size > 5000
    assert "no run has points" in tofu_full_report.draw(taught(), tmp_path / "b.png")


# -- pieces ------------------------------------------------------------------------------------------------------------


def test_sizes_are_as_said():
    llama = FULL.llama
    size = 2 * llama.vocab_size * llama.hidden_size
    size += llama.layers * (4 * llama.hidden_size**2 + 3 * llama.hidden_size * llama.mlp_size)
    assert 95e6 < size < 100e6
    assert len(CONTESTS) == 7 and all(len(set(contest.rates)) == 3 for contest in CONTESTS.values())
    assert all(list(contest.rates) == sorted(contest.rates) for contest in CONTESTS.values())


def folder_of_rows(folder: Path) -> Path:
    """The built-in synthetic rows as TOFU's files."""
    benchmark = open_benchmark("synthetic:tiny")
    folder.mkdir()
    for split in benchmark.splits:
        lines = []
        for row in benchmark.split(split):
            value = {"question": row.question, "answer": row.answer}
            if row.paraphrased_answer is not None:
                value["paraphrased_answer"] = row.paraphrased_answer
            if row.perturbed_answers:
                value["perturbed_answer"] = list(row.perturbed_answers)
            lines.append(json.dumps(value) + "\n")
        (folder / f"{split}.json").write_text("".join(lines), encoding="utf-8")
    return folder


def test_a_cut_keeps_forget_and_retain_apart(tmp_path):
    source = folder_of_rows(tmp_path / "rows")
    assert tofu_full_plan.cut_benchmark(source, tmp_path / "cut", 0) == source
    cut = open_benchmark(str(tofu_full_plan.cut_benchmark(source, tmp_path / "cut", 3)))
    texts = {name: [row.question for row in cut.split(name)] for name in ("full", "forget10", "retain90")}
    assert texts["full"] == texts["retain90"] + texts["forget10"] and len(texts["full"]) == 6
    assert [row.question for row in cut.split("forget10_perturbed")] == texts["forget10"]


def test_rows_of_other_sizes_rows_or_machines_are_done_again(tmp_path, monkeypatch):
    place = Place(SMOKE, folder_of_rows(tmp_path / "rows"), tmp_path / "work", Deadline(100.0))
    piece, results = Piece("teach", model="reference"), tmp_path / "results"
    row = {**tofu_full.row_of(piece, place, {"device": "CPU"}), "status": "done"}
    tofu_full.write_json(results / "reference.json", row)
    assert set(tofu_full.whole_rows(results, place)) == {"reference"}
    assert [one.name for one in tofu_full.pending(place, results)] == ["target"]
    other = Place(FULL, place.source, place.work, Deadline(100.0))
    assert tofu_full.whole_rows(results, other) == {}
    monkeypatch.setattr(tofu_full, "device_name", lambda: "NVIDIA H200")
    assert tofu_full.whole_rows(results, place) == {}


def test_a_run_ends_itself_only_where_it_can_go_on(tmp_path):
    assert PieceContext(tmp_path, Deadline(1000.0)).stop_reason() == ""
    assert PieceContext(tmp_path, Deadline(1.0)).stop_reason() == "stopped"
    unlearning = PieceContext(tmp_path, None)
    assert unlearning.stop_reason() == ""
    unlearning.checkpoint({}, lambda folder: pytest.fail("a run that starts anew needs no checkpoint"))


def test_mistakes_are_told(monkeypatch, capsys):
    monkeypatch.delenv("TOFU_DIR", raising=False)
    assert tofu_full.main([]) == 2 and "TOFU_DIR is not set" in capsys.readouterr().err
    monkeypatch.setenv("TOFU_DIR", "/nowhere")
    monkeypatch.setattr(tofu_full.torch.cuda, "is_available", lambda: False)
    assert tofu_full.main([]) == 2 and "--smoke" in capsys.readouterr().err
    monkeypatch.setattr(tofu_full.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tofu_full, "device_name", lambda: "a GPU")
    assert tofu_full.main([]) == 2


def test_a_piece_whose_command_dies_is_a_failed_row_and_the_budget_ends_the_rest(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOFU_DIR", str(folder_of_rows(tmp_path / "rows")))
    work, results = tmp_path / "work", tmp_path / "results"

    def dies(module, words, seconds):
        left = [name for name in ("reference", "target") if not (results / f"{name}.json").is_file()]
        tofu_full.write_json(work / "current.json", {"name": left[0]})
        return "killed by signal 9"

    monkeypatch.setattr(tofu_full, "run_child", dies)
    where = ["--work", str(work), "--results", str(results)]
    assert tofu_full.main(["--smoke", *where]) == 1
    said = capsys.readouterr().out
    assert "- reference: killed by signal 9" in said and "- target: killed by signal 9" in said
    tofu_full.write_json(work / "clock.json", {"seconds": 1499.0})
    assert tofu_full.main(["--smoke", *where]) == 1
    assert "25.0 of 25 minutes are used" in capsys.readouterr().out


EVERY_PATH = """
    import contextlib, sys
    for name in ("ray", "datasets", "pandas", "rich", "typer", "pyarrow", "optuna", "moocore", "botorch", "sklearn",
                 "peft", "aiohttp", *sys.argv[4:]):
        sys.modules[name] = None
    from dataclasses import replace
    from pathlib import Path
    from benchmarks import tofu_full, tofu_full_pieces, tofu_full_plan
    from benchmarks.one_gpu import Deadline
    find = tofu_full_pieces.importlib.util.find_spec
    tofu_full_pieces.importlib.util.find_spec = lambda name: None if name in sys.argv[4:] else find(name)
    kept = ("ngdiff_autolr", "mean_teacher", "rmu")
    for name in set(tofu_full_plan.CONTESTS) - set(kept):
        del tofu_full_plan.CONTESTS[name]
    tofu_full_plan.SEEDS = tofu_full.reports.SEEDS = (0, 1)
    scale = replace(tofu_full_plan.SMOKE, cut=0, teach_epochs=12, epochs=1, answer=4)

    class Short(Deadline):
        asked = 0
        @property
        def left(self):
            self.asked += 1
            return 1000.0 if self.asked < 6 else 0.0

    source, work, results = map(Path, sys.argv[1:4])
    with tofu_full.alone():
        tofu_full.alone = contextlib.nullcontext
        tofu_full.work(tofu_full_pieces.Place(scale, source, work, Short(1.0)), results)
        place = tofu_full_pieces.Place(scale, source, work, Deadline(10000.0))
        tofu_full.work(place, results)
    sys.exit(tofu_full.finish(place, results, True))
"""


@pytest.mark.parametrize("lacking", [(), ("scipy", "rouge_score", "bitsandbytes", "matplotlib")])
def test_every_path(tmp_path, lacking):
    source, work, results = folder_of_rows(tmp_path / "rows"), tmp_path / "work", tmp_path / "results"
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(EVERY_PATH), *map(str, (source, work, results))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *lacking], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    said = done.stdout + done.stderr[-4000:]
    rows = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*.json")}
    assert "reference: stopped after step" in said and "it goes on in the next command" in said, said
    assert {row["status"] for row in rows.values()} <= {"done", "diverged"}, said
    finals = [row for name, row in rows.items() if name.endswith("-final")]
    assert len(finals) == 6 and len(rows) == 2 + 9 + 3 + 6, sorted(rows)
    assert all(row["machine"]["device"] == "CPU" and row["date"] for row in rows.values())
    target, reference = rows["target"]["values"], rows["reference"]["values"]
    assert target["forget_Q_A_Prob"] > reference["forget_Q_A_Prob"]
    for row in finals:
        assert 0 <= row["relearning"]["robustness"] <= 1 and "privleak" in row["values"]
        assert ("nf4" in row) == (not lacking) and ("forget_Q_A_ROUGE" in row["values"]) == (not lacking)
        assert ("forget_quality" in row["values"]) == (not lacking)
    assert "A smoke run on a cut of TOFU: no result" in done.stdout
    if lacking:
        for told in ("package scipy", "package rouge_score", "nf4: ", "forget_quality: ", "no picture: matplotlib"):
            assert told in done.stdout, told
    else:
        assert (results / "frontier.png").is_file() and (results / "table.md").is_file()
    assert not list(work.glob("*/runs/*")), "runs leave nothing behind"
    assert done.returncode == 0, said
