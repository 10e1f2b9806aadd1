"""Sub-commands with folders in an object store, from one node to the next, without Ray."""

import csv
import io
import json
from functools import partial

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from test_log_commands import tofu_log

from pipelines import cli, locations, terminal
from pipelines.model_points import absolute, check_models, discover_run, identity, same_place, weight_bytes
from pipelines.muse_criteria import _lies_in
from pipelines.runs import resolve_model
from pipelines.watch_command import one_star
from unlearn_core.data.tokenization import load_tokenizer
from unlearn_core.edits.streamed_weights import StreamedWeights
from unlearn_core.errors import UserError
from unlearn_core.models import check_model_source, load_model
from unlearn_core.storage import mirror_folder, pull, push

OWN = ("--benchmark", "own", "--forget-split", "two")
NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def run(monkeypatch, capsys):
    """Call `unlearn ...`; gives (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["unlearn", *map(str, arguments)])
        monkeypatch.setattr(terminal, "out", Console(width=400, highlight=False))
        monkeypatch.setattr(terminal, "err", Console(stderr=True, width=400, highlight=False))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Call it to become another node: one without mirrors."""
    count = iter(range(100))
    return lambda: monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path / f"node{next(count)}"))


def stored(bucket, folder, key):
    """Put a folder in the store."""
    place = mirror_folder(bucket.uri(key))
    StreamedWeights(folder).write(place, lambda _, old: old, {"step": 0})
    push(place)
    return bucket.uri(key)


@pytest.fixture
def pair(bucket, taught, tmp_path):
    """URIs of two models, the second one moved in one matrix."""
    other = tmp_path / "other"
    StreamedWeights(taught).write(other, lambda name, old: old + 1.0 if name == NAME else old, {"step": 0})
    return stored(bucket, taught, "pair/unlearned"), stored(bucket, other, "pair/target")


def test_a_line_of_models_from_store_to_store(run, bucket, pair, taught, elsewhere):
    elsewhere()
    output = bucket.uri("runs/line")
    arguments = ("edit", "interpolate", "--unlearned", pair[0], "--target", pair[1], "-a", 0.25, "-a", 1, "-o", output)
    code, shown, told = run(*arguments)
    assert code == 0, told
    assert f"in the store: {output}" in shown
    keys = bucket.keys("runs/line")
    assert {"run.json", "points.json", "models/step-00002/complete.json"} <= set(keys)
    assert not any(".part" in key for key in keys)
    record = json.loads(bucket.read("runs/line/run.json"))
    assert record["run"] == "line" and record["config"]["target"] == pair[1]
    elsewhere()
    code, shown, told = run(*arguments)  # another node finds it done
    assert code == 0 and "in the store" not in shown, told
    elsewhere()
    assert resolve_model(output) == f"{output}/models/step-00002" and resolve_model(pair[0]) == pair[0]
    model = load_model(resolve_model(output), "fp32")
    moved = load_file(taught / "model.safetensors")[NAME] + 1.0
    torch.testing.assert_close(dict(model.named_parameters())[NAME].detach(), moved)
    load_tokenizer(resolve_model(output))


def test_points_of_a_run_in_a_store(bucket, pair, elsewhere, run, monkeypatch):
    output = bucket.uri("runs/line")
    assert run("edit", "interpolate", "--unlearned", pair[0], "--target", pair[1], "-a", 1, "-o", output)[0] == 0
    elsewhere()
    monkeypatch.setattr("unlearn_core.storage.SMALL", 100_000)  # these weights count as large
    place = pull(output, small_only=True)
    weights = place / "models" / "step-00001" / "model.safetensors"
    points = discover_run(place)
    assert not weights.exists()
    check_models(points, require_reference=False)
    assert weights.exists() and weight_bytes(points[0]) == weights.stat().st_size
    uri = f"{output}/models/step-00001"
    assert absolute(points[0]) == uri and same_place(points[0].path, uri)
    assert _lies_in(uri, place) and not _lies_in(uri, place.parent) and not _lies_in(bucket.uri("x"), place)
    here = identity(points[0])
    assert here["path"] == uri
    elsewhere()
    assert identity(discover_run(pull(output))[0]) == here  # so its records count on every node
    star = one_star("target", pair[1])
    assert (star.role, absolute(star)) == ("target", pair[1])
    assert one_star("reference", output).run == "line"


def test_an_evaluation_is_imported_drawn_and_exported(run, bucket, tmp_path, elsewhere):
    logs = []
    for name, loss in (("full", 0.1), ("retain", 2.0), ("npo", 1.0)):
        bucket.write(f"saves/{name}/TOFU_EVAL.json", json.dumps(tofu_log(loss, strength=1 / (1 + loss))).encode())
        logs.append(f"{name}={bucket.uri(f'saves/{name}/TOFU_EVAL.json')}" + ("@60" if name == "npo" else ""))
    evaluation, picture = bucket.uri("published"), bucket.uri("deep/er/frontier")
    code, _, told = run(*("logs", "import", *logs, "--target", "full", "--reference", "retain", "-o", evaluation, *OWN))
    assert code == 0, told
    rows = list(csv.DictReader(io.StringIO(bucket.read("published/metrics.csv").decode())))
    assert [row["model"] for row in rows] == ["full", "retain", "npo-step-00060"]
    assert rows[0]["path"] == bucket.uri("saves/full/TOFU_EVAL.json")
    elsewhere()
    code, _, told = run("frontier", evaluation, "-o", picture, "--forgetting", "extraction_strength")
    assert code == 0, told
    assert {"frontier.csv", "frontier.png", "frontier.svg"} <= set(bucket.keys("deep/er/frontier"))
    elsewhere()
    target = bucket.uri("again/TOFU_EVAL.json")
    code, _, told = run("logs", "export", evaluation, "--model", "npo-step-00060", "-o", target)
    assert code == 0 and bucket.keys("again") == ["TOFU_EVAL.json"], told
    code, shown, told = run("logs", "check", target)
    assert code == 0 and "largest relative difference" in shown, told
    local = tmp_path / "plain"
    assert run("frontier", evaluation, "-o", local)[0] == 0 and (local / "frontier.png").is_file()


def test_mistakes_are_told(run, bucket, pair):
    missing = bucket.uri("no-such-run")
    for arguments in (
        ("frontier", missing, "-o", "x"),
        ("edit", "interpolate", "--unlearned", missing, "--target", pair[1]),
    ):
        code, _, told = run(*arguments, *(() if "-o" in arguments else ("-o", bucket.uri("x"))))
        assert code == 2 and f"'{missing}' does not exist or is empty" in told
    for place in ("FOLDER", "-o"):
        code, _, told = run(
            "frontier", *(("x", "-o", "ftp://host/x") if place == "-o" else ("ftp://host/x", "-o", "x"))
        )
        assert code == 2 and "unknown scheme 'ftp'" in told
    code, _, told = run("frontier", "s3://me:hush@bucket/x", "-o", "x")
    assert code == 2 and "holds credentials" in told and "hush" not in told and "me:" not in told
    assert bucket.keys("x") == []


def test_results_that_cannot_be_brought_are_named(run, bucket, monkeypatch):
    if bucket.server is None:
        pytest.skip("needs a server that can refuse")
    from pipelines import import_logs

    bucket.write("TOFU_EVAL.json", json.dumps(tofu_log(1.0)).encode())
    whole = import_logs.import_logs

    def broken(*arguments, **more):
        bucket.server.refuse = True
        return whole(*arguments, **more)

    monkeypatch.setattr(import_logs, "import_logs", broken)
    monkeypatch.setattr(locations, "Syncing", partial(locations.Syncing, wait=0.01))
    output = bucket.uri("published")
    code, _, told = run("logs", "import", f"a={bucket.uri('TOFU_EVAL.json')}@1", "-o", output, *OWN)
    place = mirror_folder(output)
    assert code == 2 and f"Everything is in {place}" in told and (place / "evaluation.json").is_file()
    assert "not-a-real-secret" not in told


def test_a_model_without_all_its_files_is_refused(bucket, pair, elsewhere):
    bucket.delete("pair/target/model.safetensors")
    elsewhere()
    with pytest.raises(UserError, match="holds no weights"):
        check_model_source(pair[1])
    with pytest.raises(UserError, match="does not exist or is empty"):
        load_model(bucket.uri("pair/none"), "fp32")
