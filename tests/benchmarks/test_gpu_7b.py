"""The 7B benchmark's every path on a CPU with a two-layer model, and its bounds on rows that are made up here."""

import contextlib
import copy
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from benchmarks import gpu_7b, gpu_7b_measure, one_gpu
from benchmarks.gpu_7b_shapes import CASES, EVALUATION, SHAPES, run_config, step_flops, step_tokens
from benchmarks.gpu_7b_table import gates_of, report
from benchmarks.gpu_7b_text import text_rows
from benchmarks.one_gpu import ROOT, Deadline, RowFile, run_child
from unlearn_core.errors import UserError
from unlearn_core.method import compose

ALONE = """
    import contextlib, sys
    for name in ("ray", "datasets", "pandas", "rich", "typer", "scipy", "pyarrow", "matplotlib", "optuna", "moocore",
                 "botorch", "sklearn", "peft", "rouge_score", "accelerate", "aiohttp"):
        sys.modules[name] = None
    from pathlib import Path
    from benchmarks import gpu_7b
    from benchmarks.gpu_7b_shapes import CASES, EVALUATION
    with gpu_7b.alone():  # one group for all: DeepSpeed cannot begin anew in a process
        gpu_7b.alone = contextlib.nullcontext
        for method in (*CASES, EVALUATION):
            words = ["run", "--shape", "tiny", "--method", method, *sys.argv[2:], "--output", sys.argv[1]]
            gpu_7b.main(words + ["--profile"] * (method == "ngdiff"))
        for method, changes in (  # how 8B lies
            ("ratios_adamw", ["--set", "zero.stage=3", "--set", "zero.park_gradients=true"]),
            ("ngdiff_autolr", ["--set", "zero.park_gradients=true"]),
            ("ratios_momentum", ["--set", "zero.teacher_on_host=true"]),
        ):
            words = ["run", "--shape", "tiny", "--method", method, *sys.argv[2:], "--output", sys.argv[1] + ".eight"]
            assert gpu_7b.main([*words, *changes]) == 0
        short = ["--method", "grad_diff", "--seconds", "1", "--text", "docs", "--output", sys.argv[1] + ".short"]
        assert gpu_7b.main(["run", "--shape", "tiny", *short]) == 1
    gpu_7b.run_child = None  # nothing is left to run
    sys.exit(gpu_7b.main(["--shapes", "tiny", *sys.argv[2:], "--output", sys.argv[1]]))
"""
QUICK = ["--rounds", "2", "--text", "docs"]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOFU_DIR": ""}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Rows of every method on the tiny shape, made by a process that has few packages; and what it printed."""
    path = tmp_path_factory.mktemp("gpu_7b") / "rows.jsonl"
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(ALONE), str(path), *QUICK]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {row["method"]: row for row in RowFile(path, gpu_7b.KEY).read()}, done.stdout, path


def test_every_method_is_measured_where_there_is_little_but_torch_transformers_and_deepspeed(measured):
    rows, said, path = measured
    assert set(rows) == {*CASES, EVALUATION}
    for method, row in rows.items():
        if method == "ngdiff_8bit" and row["status"] != "done":
            assert row["status"] == gpu_7b.MISSING and "bitsandbytes" in row["reason"]
            continue
        assert row["status"] == "done", row
        assert f"tiny {method}: done already" in said
        assert row["device"] == "CPU" and row["matrix_flops"] > 1e6 and "BPE" in row["text"]
        if method == EVALUATION:
            assert row["scoring"]["tokens_a_second"] > 0 and row["generation"]["tokens"] == 15
            continue
        for figures in row["figures"].values():
            assert all(math.isfinite(number) and number > 0 for number in figures.values())
        for log in row["log"].values():
            assert all(math.isfinite(number) for number in log.values())
        assert row["plan"]["tensors"] > 0
        for parts in row["parts"].values():
            assert parts["forward and backward"] > 0 and parts["rest"] >= 0
    assert "aten::mm" in (path.parent / "gpu_7b_profiles/tiny-ngdiff.txt").read_text(encoding="utf-8")


def test_the_layouts_of_8b_are_measured_as_well(measured):
    rows = RowFile(measured[2].with_name("rows.jsonl.eight"), gpu_7b.KEY).read()
    assert [row["status"] for row in rows] == ["done"] * 3
    assert {key for row in rows for key in row["overrides"]} == {
        key for case in CASES.values() for key in case.more.get("llama-3.1-8b", {})
    }
    assert all(math.isfinite(seconds) for row in rows for one in row["seconds"].values() for seconds in one)


def test_a_method_does_what_its_name_says(measured):
    rows, _, _ = measured
    assert math.isclose(rows["ngdiff"]["log"]["ngdiff"]["update_norm"] ** 2,
                        2 - 2 * rows["ngdiff"]["log"]["ngdiff"]["cosine"], rel_tol=1e-3)  # fmt: skip
    assert "norm_forget" not in rows["grad_diff"]["log"]["grad_diff"]  # one summed backward
    assert "gradient kept aside" in rows["ngdiff"]["parts"]["ngdiff"]
    assert "gradient kept aside" not in rows["grad_diff"]["parts"]["grad_diff"]
    assert "probes" in rows["ngdiff_autolr"]["parts"]["ngdiff_autolr probing"]
    assert "probes" not in rows["ngdiff_autolr"]["parts"]["ngdiff_autolr"]
    assert {"teacher's passes", "teacher's update"} <= rows["mean_teacher"]["parts"]["mean_teacher"].keys()
    assert rows["npo"]["reference_seconds"] > 0
    assert len(rows["ratios_adamw"]["ratios"]["ngdiff / grad_diff"]) == 2
    assert len(rows["ratios_adamw"]["ratios"]["autolr"]) == 2
    assert len(rows["ratios_momentum"]["ratios"]["mean_teacher / grad_diff"]) == 2


def test_rows_of_a_cpu_are_no_result(measured):
    rows, said, path = measured
    assert "No result" in said and "PASS" not in said and "FAIL" not in said
    assert path.with_suffix(".md").read_text(encoding="utf-8").strip() in said
    assert report(list(rows.values()))[1] is False


def start(path, *words):
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu_7b", *words, "--output", str(path)]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_killed_command_leaves_a_partial_row_and_is_run_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = tmp_path / "rows.jsonl"
    rows = RowFile(path, gpu_7b.KEY)
    child = start(path, "run", "--shape", "tiny", "--method", "ngdiff", "--rounds", "1000000", "--text", "docs")
    until = time.monotonic() + 400
    while not (rows.read() and any(rows.read()[0].get("seconds", {}).get("ngdiff", []))):
        assert child.poll() is None and time.monotonic() < until
        time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (row,) = rows.read()
    assert row["status"] == "partial" and row["seconds"]["ngdiff"]
    text, failed = report([{**row, "device": "NVIDIA H200"}])
    assert "tiny ngdiff: partial" in text and "| tiny | ngdiff |" not in text and not failed

    assert gpu_7b.main(["--shapes", "tiny", "--methods", "ngdiff", *QUICK, "--output", str(path)]) == 0
    (row,) = rows.read()
    assert row["status"] == "done" and len(row["seconds"]["ngdiff"]) == 2


def test_what_does_not_fit_is_a_row(tmp_path, monkeypatch, capsys):
    def build(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 250.00 MiB.")

    monkeypatch.setattr(gpu_7b_measure.Bench, "build", build)
    monkeypatch.setattr(gpu_7b, "alone", contextlib.nullcontext)
    path = tmp_path / "rows.jsonl"
    words = ["run", "--shape", "tiny", "--method", "ngdiff", "--output", str(path), "--text", "docs"]
    assert gpu_7b.main(words) == 0
    (row,) = RowFile(path, gpu_7b.KEY).read()
    assert row["status"] == "does not fit" and "250.00 MiB" in row["reason"]
    monkeypatch.setattr(gpu_7b, "run_child", None)
    assert gpu_7b.main(["--shapes", "tiny", "--methods", "ngdiff", "--output", str(path), "--text", "docs"]) == 0
    assert "does not fit already" in capsys.readouterr().out


def test_a_child_that_dies_is_a_failed_row_and_the_others_are_still_run(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(gpu_7b, "run_child", lambda module, words, seconds: asked.append(words) or "killed by signal 9")
    path = tmp_path / "rows.jsonl"
    words = ["--shapes", "tiny", "--methods", "ngdiff", "npo", "--output", str(path), "--set", "zero.stage=3"]
    assert gpu_7b.main(words) == 1
    assert [row["status"] for row in RowFile(path, gpu_7b.KEY).read()] == ["failed", "failed"]
    assert len(asked) == 2 and asked[0][-2:] == ["--set", "zero.stage=3"]


def test_time_that_runs_out_leaves_the_row_partial(measured):
    (row,) = RowFile(measured[2].with_name("rows.jsonl.short"), gpu_7b.KEY).read()
    assert row["status"] == "partial" and "rounds" in row["reason"] and "figures" not in row


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "--shape", "7b", "--method", "ngdiff"], "llama-2-7b"),
        (["run", "--shape", "tiny", "--method", "gdiff"], "ngdiff_autolr"),
        (["run", "--shape", "tiny", "--method", "ngdiff", "--set", "zero.stag=1"], "stage"),
        (["run", "--shape", "tiny", "--method", "ngdiff", "--text", "/nowhere"], "/nowhere"),
    ],
)
def test_a_mistake_is_told_before_a_row_is_begun(tmp_path, capsys, words, told):
    path = tmp_path / "rows.jsonl"
    assert gpu_7b.main([*words, "--output", str(path)]) == 2
    assert told in capsys.readouterr().err and not path.exists()


def test_text_of_a_folder(tmp_path):
    (tmp_path / "a.txt").write_text("one two three four " * 40, encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "five six seven " * 40}) + "\n", encoding="utf-8")
    rows = text_rows(300, 16, str(tmp_path))
    assert all(len(one.input_ids) == 16 and one.label_count == 15 for one in (*rows.forget, *rows.retain))
    assert max(i for one in rows.forget for i in one.input_ids) < 300
    assert "seven" in rows.formatter.decode(rows.retain[-1].input_ids)
    assert not {one.item_id for one in rows.forget} & {one.item_id for one in rows.retain}
    with pytest.raises(UserError, match="too few for two rows"):
        text_rows(300, 4096, str(tmp_path))


def test_text_that_is_always_there(monkeypatch):
    monkeypatch.delenv("TOFU_DIR", raising=False)
    rows = text_rows(300, 1024)
    assert len(rows.forget) > 100 and "Python's manual pages" in rows.source


def test_weights_come_from_the_seed():
    shape, cpu = SHAPES["tiny"], torch.device("cpu")
    first, second, other = (shape.model(cpu, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert first["lm_head.weight"].dtype == torch.bfloat16
    assert abs(float(first["lm_head.weight"].float().std()) - 0.02) < 0.002


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llama-2-7b", 6_738_415_616), ("llama-3.1-8b", 8_030_261_248), ("llama-3.2-1b", 1_235_814_400)],
)
def test_shapes_are_the_published_ones(name, parameters):
    with torch.device("meta"):
        model = SHAPES[name].model(torch.device("meta"))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_flops_of_a_step():
    """By hand for the two-layer shape: D 64, MLP 128, V 512; 2 rows of 32 tokens, 31 of each labelled."""
    tiny = SHAPES["tiny"]
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    attention = 2 * 2 * (2 * 32 * 32 // 2) * 64 * 2 * 2  # layers, products, half of the pairs of two rows, D, 2 FLOPs
    forward = 2 * weights * 64 + attention // 2 + 2 * 512 * 64 * 62
    assert tiny.forward_flops(2, 62) == forward
    grad_diff, teacher = compose("grad_diff", {}), compose("mean_teacher", {})
    assert step_flops(tiny, grad_diff, False) == 6 * forward
    assert step_flops(tiny, compose("ngdiff", {}), True) == 8 * forward
    assert step_flops(tiny, teacher, False) == 7 * forward
    assert step_tokens(tiny, teacher) == 128
    seven = SHAPES["llama-2-7b"]
    assert seven.forward_flops(8, 8 * 1023) / (2 * 6.738e9 * 8192) == pytest.approx(1.0, abs=0.03)


def test_layouts_fit_an_h200_by_the_plan():
    room = 139.8 * 2**30
    for name, case in (("llama-2-7b", "ngdiff"), ("llama-3.1-8b", "ngdiff"), ("llama-3.1-8b", "ratios_adamw")):
        planned = gpu_7b_measure.planned(SHAPES[name], CASES[case], {}, "cuda")
        assert 100 * 2**30 < planned["tensors"] < planned["total"] < room, (name, case)


def test_figures_count_a_probe_in_every_tenth_step():
    seconds = {"ngdiff_autolr": [1.0, 1.0, 3.0], "ngdiff_autolr probing": [1.5, 1.5, 1.5]}
    found = gpu_7b_measure.figures(SHAPES["tiny"], CASES["ngdiff_autolr"], seconds, 1e9)["ngdiff_autolr"]
    assert found["step_seconds"] == pytest.approx(1.05)
    assert found["tokens_a_second"] == pytest.approx(128 / 1.05)
    flops = step_flops(SHAPES["tiny"], compose("ngdiff", {}), False) * (1 + 0.1 * 2 / 6)
    assert found["mfu"] == pytest.approx(flops / 1.05 / 1e9)
    assert gpu_7b_measure.ratios(seconds)["autolr"] == pytest.approx([0.05, 0.05, -0.05])


def test_layouts_are_those_of_the_training_run():
    parked = run_config(SHAPES["llama-3.1-8b"], CASES["ngdiff"], CASES["ngdiff"].contenders[0], {})
    assert parked.zero.park_gradients and parked.zero.activation_checkpointing and parked.optimizer.name == "adamw"
    seven = run_config(SHAPES["llama-2-7b"], CASES["ngdiff"], CASES["ngdiff"].contenders[0], {})
    assert not (seven.zero.park_gradients or seven.zero.offload_optimizer) and seven.model.dtype == "bf16"
    changed = run_config(SHAPES["tiny"], CASES["ngdiff"], CASES["ngdiff"].contenders[0], {"zero.stage": 3})
    assert changed.zero.stage == 3
    for case in CASES.values():
        optimizers = [run_config(SHAPES["tiny"], case, one, {}).optimizer for one in case.contenders]
        assert len({(one.name, one.learning_rate, one.momentum) for one in optimizers}) == 1


# -- bounds, on rows that nobody measured ------------------------------------------------------------------------------


def made_up(shape, method, **fields):
    row = {
        "device": "NVIDIA H200", "shape": shape, "method": method, "settings": "x", "status": "done", "overrides": {},
        "date": "2000-01-01", "machine": {"device": "NVIDIA H200", "source": "none"}, "plan": {}, "memory": {},
        "figures": {method: {"step_seconds": 1.0, "tokens_a_second": 1.0, "mfu": 0.5}}, "ratios": {}, "parts": {},
    }  # fmt: skip
    return {**row, **fields}


def good_rows():
    peak = {"allocated": 100 * 2**30, "reserved": 101 * 2**30}
    return [
        made_up("llama-2-7b", "ngdiff", memory=peak, plan={"tensors": 95 * 2**30},
                figures={"ngdiff": {"step_seconds": 2.0, "tokens_a_second": 8192.0, "mfu": 0.36}}),
        made_up("llama-3.1-8b", "ngdiff", memory=peak),
        made_up("llama-2-7b", "ratios_adamw", figures={},
                ratios={"ngdiff / grad_diff": [1.0, 1.04, 1.2], "autolr": [0.03, 0.04, 0.06]}),
        made_up("llama-2-7b", "ratios_momentum", figures={}, ratios={"mean_teacher / grad_diff": [1.2]}),
    ]  # fmt: skip


def verdicts(rows):
    return [gate.verdict for gate in gates_of(rows)]


def test_all_bounds_hold():
    assert verdicts(good_rows()) == ["PASS"] * 7
    text, failed = report(good_rows())
    assert not failed and text.count("PASS") == 7 and "| llama-2-7b | ngdiff | 2 | 8,192 | 0.360 | 100.0 |" in text
    assert "-5.0%" in text


@pytest.mark.parametrize(
    ("row", "change", "gate"),
    [
        (0, lambda row: row["figures"]["ngdiff"].update(mfu=0.349), 2),
        (2, lambda row: row["ratios"].update({"ngdiff / grad_diff": [1.0, 1.051, 1.2]}), 3),
        (3, lambda row: row["ratios"].update({"mean_teacher / grad_diff": [1.23]}), 4),
        (2, lambda row: row["ratios"].update(autolr=[0.051]), 5),
        (0, lambda row: row["plan"].update(tensors=89 * 2**30), 6),
    ],
)
def test_each_bound_can_be_missed(row, change, gate):
    rows = copy.deepcopy(good_rows())
    change(rows[row])
    assert verdicts(rows) == ["FAIL" if k == gate else "PASS" for k in range(7)]
    assert report(rows)[1] is True


def test_out_of_memory_misses_the_bound_and_8_bit_serves_for_8b():
    rows = good_rows()
    for row in rows[:2]:
        row["status"] = "does not fit"
    assert verdicts(rows)[:3] == ["FAIL", "not measured", "not measured"]
    rows.append(made_up("llama-3.1-8b", "ngdiff_8bit", status="does not fit"))
    assert verdicts(rows)[1] == "FAIL"
    rows[-1]["status"] = "done"
    assert verdicts(rows)[1] == "PASS"


def test_rows_that_are_partial_changed_or_of_a_cpu_count_for_nothing():
    none = ["not measured"] * 7
    assert verdicts([{**row, "status": "partial"} for row in good_rows()]) == none
    assert verdicts([{**row, "overrides": {"zero.stage": 3}} for row in good_rows()]) == none
    assert report([{**row, "device": "CPU"} for row in good_rows()])[0].count("PASS") == 0
    assert "Nothing has been measured" in report([])[0]


def test_separate_commands_serve_where_no_turns_were_taken():
    rows = [
        made_up("llama-3.1-8b", "grad_diff"),
        made_up("llama-3.1-8b", "ratios_adamw", status="does not fit"),
        made_up("llama-3.1-8b", "ngdiff",
                figures={"ngdiff": {"step_seconds": 1.03, "tokens_a_second": 1.0, "mfu": 0.5}}),
        made_up("llama-2-7b", "ngdiff_autolr", ratios={"autolr": [0.02]}),
    ]  # fmt: skip
    text, _ = report([*rows, *good_rows()[2:]])
    assert "llama-3.1-8b: ngdiff / grad_diff 1.030, from two commands on this machine, not in turns." in text


# -- what both GPU benchmarks stand on ---------------------------------------------------------------------------------


def test_a_row_replaces_the_one_of_its_key(tmp_path):
    rows = RowFile(tmp_path / "rows.jsonl", ("a", "b"))
    assert rows.read() == [] and rows.find({"a": 1, "b": 1}) is None
    rows.put({"a": 1, "b": 1, "n": 1})
    rows.put({"a": 1, "b": 2, "n": 2})
    rows.put({"a": 1, "b": 1, "n": 3})
    assert [row["n"] for row in rows.read()] == [3, 2]
    with pytest.raises(ValueError, match="JSON"):
        rows.put({"a": 1, "b": 1, "n": math.nan})
    assert [row["n"] for row in rows.read()] == [3, 2]


def test_a_child_is_ended_at_its_limit():
    began = time.monotonic()
    assert run_child("timeit", ["-n1", "-r1", "__import__('time').sleep(60)"], 2.0) == "ended after 2 s, its limit"
    assert time.monotonic() - began < 20
    assert run_child("timeit", ["-n1", "-r1", "1"], 60.0) == ""
    assert run_child("timeit", ["-n1", "-r1", "__import__('os')._exit(3)"], 60.0) == "exit code 3"
    assert run_child("timeit", ["-n1", "-r1", "__import__('os').kill(__import__('os').getpid(), 9)"], 60.0) == (
        "killed by signal 9"
    )


def test_a_deadline_counts_down():
    deadline = Deadline(0.0)
    assert deadline.left <= 0 <= deadline.spent and one_gpu.device_name() in ("CPU", one_gpu.device_name())
