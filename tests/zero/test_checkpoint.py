"""A run that is cut and resumed is the run that was not, bit for bit; a checkpoint that does not fit is refused."""

import json
import re
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_runs import assert_bit_equal, exported, small_run, step_lines, train

from unlearn_core.errors import UserError
from unlearn_core.events import read_events
from unlearn_core.local import LocalContext
from unlearn_core.loop import run
from unlearn_core.method import compose
from unlearn_core.models import load_model
from unlearn_core.update import Update
from unlearn_core.zero.checkpoint import load_checkpoint
from unlearn_core.zero.engine import ZeroEngine

CUT, STEPS = 3, 6


class Cut(Exception):
    """The run is interrupted."""


class CutContext(LocalContext):
    """Interrupts a run right after a checkpoint."""

    def checkpoint(self, metrics, write):
        super().checkpoint(metrics, write)
        if metrics["step"] == CUT:
            raise Cut


def cut_run(rank, world_size, config, output):
    try:
        run(config, CutContext(output, rank, world_size))
    except Cut:
        return
    raise AssertionError("the run was not cut")


def count_steps(rank, world_size, config, output):
    """Run to the end; how many optimizer steps that took."""
    rates = []
    step = ZeroEngine.step
    ZeroEngine.step = lambda self, rate: (rates.append(rate), step(self, rate))[1]
    try:
        train(rank, world_size, config, output)
    finally:
        ZeroEngine.step = step
    return len(rates)


ADAMW = {"optimizer__name": "adamw"}
SGD = {"optimizer__name": "sgd", "optimizer__momentum": 0.9, "optimizer__learning_rate": 0.01}
CASES = [
    *((stage, "fp32", options) for stage in range(4) for options in (ADAMW, SGD)),
    (0, "bf16", ADAMW),
    (2, "bf16", ADAMW),
    (3, "bf16", SGD),
]


@pytest.mark.parametrize(
    ("stage", "dtype", "options"), CASES, ids=lambda v: v["optimizer__name"] if isinstance(v, dict) else v
)
def test_cut_and_resumed_equals_whole_bit_for_bit(stage, dtype, options, two_ranks, taught, tmp_path):
    schedule = {"optimizer__schedule": "cosine", "optimizer__warmup_steps": 2}
    config = small_run(taught, 2, 1, stage, dtype, steps=STEPS, checkpoint_every=CUT, **options, **schedule)
    two_ranks.run(train, config, tmp_path / "whole")
    two_ranks.run(cut_run, config, tmp_path / "cut")
    assert not (tmp_path / "cut" / "models").exists()
    assert two_ranks.run(count_steps, config, tmp_path / "cut") == [STEPS - CUT] * 2
    assert_bit_equal(exported(tmp_path / "cut", STEPS), exported(tmp_path / "whole", STEPS))
    timeless = [[{**line, "seconds": 0} for line in step_lines(tmp_path / name)] for name in ("cut", "whole")]
    assert timeless[0] == timeless[1]


@pytest.fixture(scope="module")
def checkpoint(two_ranks, taught, tmp_path_factory):
    """A checkpoint of two ranks at stage 2, and its config."""
    config = small_run(taught, 2, 1, 2, steps=STEPS, checkpoint_every=CUT)
    output = tmp_path_factory.mktemp("checkpointed")
    two_ranks.run(cut_run, config, output)
    return output / "checkpoints" / f"step-{CUT:05d}", config


def test_no_pickle(checkpoint):
    folder, _ = checkpoint
    names = ["manifest.json", "rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors", "state.json"]
    assert sorted(path.name for path in folder.rglob("*")) == names
    for name in names[1:3]:
        assert {key.split("/")[0] for key in load_file(folder / name)} == {"master", "optimizer", "rng"}
    state = json.loads((folder / "state.json").read_text())
    assert (state["step"], state["stage"], state["world_size"]) == (CUT, 2, 2)


def load_error(rank, world_size, config, folder, fingerprint):
    """The user's mistake that loading ends in."""
    model = load_model(config.model.path, config.model.dtype)
    engine = ZeroEngine(model, config.zero, config.optimizer, bf16=False, batch=config.batch)
    try:
        load_checkpoint(engine, Update(engine, compose("ngdiff", {}), config), folder, fingerprint)
    except UserError as error:
        return str(error)
    finally:
        engine.close()
    raise AssertionError("nothing was refused")


def test_another_config_is_refused(checkpoint, two_ranks):
    folder, config = checkpoint
    for message in two_ranks.run(load_error, config, folder, "0123456789abcdef"):
        assert f"made by another config (fingerprint {config.fingerprint()}, now 0123456789abcdef)" in message


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (("rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors"), "it was not written whole"),
        (("state.json",), "not a whole checkpoint: state.json cannot be read"),
    ],
)
def test_an_incomplete_checkpoint_is_refused(lost, said, checkpoint, two_ranks, tmp_path):
    folder, config = checkpoint
    shutil.copytree(folder, tmp_path / "copy")
    for name in lost:
        (tmp_path / "copy" / name).unlink()
    for message in two_ranks.run(load_error, config, tmp_path / "copy", config.fingerprint()):
        assert said in message


def test_a_shard_of_another_shape_is_refused(checkpoint, two_ranks, tmp_path):
    folder, config = checkpoint
    shutil.copytree(folder, tmp_path / "copy")
    for rank in range(2):
        path = tmp_path / "copy" / f"rank-{rank:05d}-of-00002.safetensors"
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        tensors["master/0"] = tensors["master/0"][:-1].clone()
        save_file(tensors, path, metadata=metadata)
    for message in two_ranks.run(load_error, config, tmp_path / "copy", config.fingerprint()):
        assert "the checkpoint's shard 0 has" in message


def copied(checkpoint, output, *names):
    """The checkpoint under other names in a run's folder."""
    folder, _ = checkpoint
    for name in names:
        shutil.copytree(folder, output / "checkpoints" / name)
    return output / "checkpoints"


def events(output):
    return [(event["kind"], event["text"]) for event in read_events(output)]


def cut_file(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "truncated": (lambda folder: cut_file(folder / "rank-00001-of-00002.safetensors"), r"has \d+ bytes, written were"),
    "a bit flipped": (lambda folder: flip_a_bit(folder / "rank-00000-of-00002.safetensors"), "is altered"),
    "a file deleted": (lambda folder: (folder / "state.json").unlink(), "state.json is gone"),
    "manifest garbled": (lambda folder: cut_file(folder / "manifest.json"), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_that_is_said(damage, checkpoint, two_ranks, tmp_path):
    _, config = checkpoint
    act, said = DAMAGES[damage]
    folder = copied(checkpoint, tmp_path, f"step-{CUT:05d}", f"step-{CUT + 1:05d}")
    act(folder / f"step-{CUT + 1:05d}")
    if damage == "manifest garbled":
        (folder / f"step-{CUT + 1:05d}" / "manifest.json").write_text("{")
    assert two_ranks.run(count_steps, config, tmp_path) == [STEPS - CUT] * 2
    ((kind, text),) = events(tmp_path)
    assert kind == "checkpoint_damaged"
    assert re.search(said, text)
    assert text.endswith(f"going on from step-{CUT:05d}")


def test_with_none_whole_it_begins_again_and_says_so(checkpoint, two_ranks, tmp_path):
    _, config = checkpoint
    flip_a_bit(copied(checkpoint, tmp_path, f"step-{CUT:05d}") / f"step-{CUT:05d}" / "rank-00000-of-00002.safetensors")
    assert two_ranks.run(count_steps, config, tmp_path) == [STEPS] * 2
    ((_, text),) = events(tmp_path)
    assert text.endswith("going on at the beginning")


def test_a_half_written_checkpoint_does_not_count(checkpoint, two_ranks, tmp_path):
    _, config = checkpoint
    folder = copied(checkpoint, tmp_path, f"step-{CUT:05d}", f"step-{CUT + 1:05d}")
    (folder / f"step-{CUT + 1:05d}" / "manifest.json").unlink()  # killed while it was being written
    (folder / ".step-00005-rank-00000.part").mkdir()
    assert two_ranks.run(count_steps, config, tmp_path) == [STEPS - CUT] * 2
    assert events(tmp_path) == []
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{CUT:05d}", f"step-{STEPS:05d}"]
