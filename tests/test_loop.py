"""The training loop in plain processes: what it writes, what it refuses, how it stops, what methods do."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file
from training_runs import assert_bit_equal, exported, small_run, step_lines, train

from unlearn_core.data.tofu import open_benchmark
from unlearn_core.data.tokenization import Formatter, collate, load_tokenizer
from unlearn_core.errors import UserError
from unlearn_core.loop import METRICS, Outcome, model_folder
from unlearn_core.model_card import read_facts
from unlearn_core.models import load_model
from unlearn_core.publish import is_complete
from unlearn_core.zero.engine import ZeroEngine

KEYS = ["step", "loss_retain", "loss_forget", "norm_retain", "norm_forget", "cosine", "update_norm", "learning_rate"]


def sabotaged(rank, world_size, config, output, after, spoil):
    """The loop, with `spoil(engine)` called on the last rank alone after optimizer step `after`; outcome and steps."""
    steps = []
    step = ZeroEngine.step

    def spoiled(self, rate):
        step(self, rate)
        steps.append(rate)
        if len(steps) == after and rank == world_size - 1:
            with torch.no_grad():
                spoil(self)

    ZeroEngine.step = spoiled
    try:
        return train(rank, world_size, config, output), len(steps)
    finally:
        ZeroEngine.step = step


def spoil_forward_weights(engine):
    """What the next forward pass of this rank reads."""
    parameter = next(engine.module.parameters())
    parameter.data.fill_(math.nan)
    if hasattr(parameter, "ds_tensor"):  # stage 3: small parameters stay gathered, large ones come from the shards
        parameter.ds_tensor.fill_(math.nan)


def spoil_one_master_weight(engine):
    engine.shards.master()[-1].flatten()[-1] = math.inf


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_nan_on_one_rank_stops_all_before_the_step(stage, two_ranks, taught, tmp_path):
    config = small_run(taught, 2, 1, stage, steps=6, export_every=2)
    outcomes = two_ranks.run(sabotaged, config, tmp_path, 3, spoil_forward_weights)
    for outcome, steps in outcomes:
        assert (outcome.status, outcome.step, steps) == ("diverged", 3, 3)
        assert "non-finite loss or gradient at step 4" in outcome.reason
    assert [line["step"] for line in step_lines(tmp_path)] == [1, 2, 3]
    # The last good model and checkpoint are whole, and those of the same run left alone.
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["step-00002"]
    assert is_complete(model_folder(tmp_path, 2))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00002"]
    assert all(tensor.isfinite().all() for tensor in exported(tmp_path, 2).values())
    resumed = two_ranks.run(train, config, tmp_path)
    two_ranks.run(train, config, tmp_path / "good")
    assert resumed == [Outcome("finished", 6)] * 2
    assert_bit_equal(exported(tmp_path, 6), exported(tmp_path / "good", 6))
    assert [line["step"] for line in step_lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_bad_weight_on_one_rank_is_never_exported_or_saved(stage, two_ranks, taught, tmp_path):
    config = small_run(taught, 2, 1, stage, steps=6, export_every=2)
    for outcome, steps in two_ranks.run(sabotaged, config, tmp_path, 4, spoil_one_master_weight):
        assert (outcome.status, outcome.step, steps) == ("diverged", 4, 4)
        assert "non-finite weights after step 4" in outcome.reason
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["step-00002"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00002"]


def test_metrics_have_the_documented_keys_and_numbers(two_ranks, taught, tmp_path):
    changes = {"optimizer__schedule": "linear", "optimizer__warmup_steps": 2, "optimizer__learning_rate": 8e-4}
    two_ranks.run(train, small_run(taught, 2, 1, steps=6, **changes), tmp_path)
    lines = step_lines(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["learning_rate"] for line in lines] == pytest.approx([4e-4, 8e-4, 8e-4, 6e-4, 4e-4, 2e-4])
    for line in lines:
        assert list(line) == [*KEYS, "seconds"]
        # NGDiff: |d|^2 = 2 (1 - cosine)
        assert line["update_norm"] == pytest.approx(math.sqrt(2 * (1 - line["cosine"])), rel=1e-6)
        assert line["seconds"] > 0
    facts = read_facts(model_folder(tmp_path, 6))  # every export has its card
    assert facts is not None
    assert [one["rows"] for one in facts["data"]] == ["retain", "forget"]
    assert all(one["count"] > 0 and len(one["sha256"]) == 64 for one in facts["data"])


def test_a_new_run_and_a_restart_drop_lines_of_steps_still_to_be_done(two_ranks, taught, tmp_path):
    config = small_run(taught, 2, 1, steps=4, checkpoint_every=2)
    two_ranks.run(train, config, tmp_path)
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00002", "step-00004"]
    # A killed run: two steps past its checkpoint, the last line cut off.
    later = [json.dumps({**json.loads(lines[-1]), "step": step}) for step in (5, 6)]
    (tmp_path / METRICS).write_text("\n".join([*lines, *later, '{"step": 7, "lo']))
    two_ranks.run(train, config, tmp_path)
    assert (tmp_path / METRICS).read_text().splitlines() == lines
    # Without any checkpoint everything starts anew.
    two_ranks.run(train, config, tmp_path / "new")
    for manifest in (tmp_path / "new" / "checkpoints").glob("*/manifest.json"):
        manifest.unlink()
    two_ranks.run(train, config, tmp_path / "new")
    assert [line["step"] for line in step_lines(tmp_path / "new")] == [1, 2, 3, 4]


def mistake(rank, world_size, config, output):
    try:
        train(rank, world_size, config, output)
    except UserError as error:
        return str(error)
    raise AssertionError("nothing was refused")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__retain": ["full"]}, r"4 of 4 forget rows are also retain rows .* must not overlap"),
        ({"data__forget": []}, r"Method ngdiff trains on forget rows, and data\.forget names no split"),
        ({"data__retain": []}, r"Method ngdiff trains on retain rows, and data\.retain names no split"),
        ({"method__name": "grad_ascent", "data__forget": []}, r"grad_ascent trains on forget rows"),
        ({"method__name": "ngdif"}, r"Did you mean 'ngdiff'"),
        ({"data__max_length": 10}, r"max_length 10"),
    ],
)
def test_mistakes_are_refused_before_training(changes, said, one_rank, taught, tmp_path):
    (message,) = one_rank.run(mistake, small_run(taught, 1, **changes), tmp_path)
    assert re.search(said, message)
    assert not (tmp_path / METRICS).exists()


def mean_losses(folder):
    """Mean loss of the exported model on forget and on retain rows."""
    formatter = Formatter(load_tokenizer(str(folder)), "plain", 512)
    model = load_model(str(folder), "fp32")
    losses = {}
    for split in ("forget10", "retain90"):
        rows = open_benchmark("synthetic:tiny").split(split)
        batch = collate([formatter.example(r.item_id, r.question, r.answer) for r in rows], formatter.pad_id)
        with torch.no_grad():
            output = model(batch.input_ids_BT, attention_mask=batch.attention_mask_BT, labels=batch.labels_BT)
        losses[split] = output.loss.item()
    return losses


def test_methods_move_the_losses_their_way(two_ranks, taught, tmp_path):
    before = mean_losses(taught)
    after = {}
    for name in ("finetune", "grad_ascent", "grad_diff", "ngdiff"):
        optimizer = {"optimizer__learning_rate": 3e-4, "optimizer__epsilon": 1e-6, "optimizer__weight_decay": 0.0}
        two_ranks.run(train, small_run(taught, 2, 1, steps=10, method__name=name, **optimizer), tmp_path / name)
        after[name] = mean_losses(model_folder(tmp_path / name, 10))
        assert [line["step"] for line in step_lines(tmp_path / name)] == list(range(1, 11))
    assert after["finetune"]["retain90"] < before["retain90"] - 0.01
    for name in ("grad_ascent", "grad_diff", "ngdiff"):
        assert after[name]["forget10"] > before["forget10"] + 0.01, name
    assert after["ngdiff"]["retain90"] < after["grad_ascent"]["retain90"] - 0.01
    single = step_lines(tmp_path / "grad_ascent")[0]
    assert list(single) == ["step", "loss_forget", "norm_forget", "update_norm", "learning_rate", "seconds"]
    assert single["update_norm"] == pytest.approx(single["norm_forget"])
    assert list(step_lines(tmp_path / "finetune")[0])[1] == "loss_retain"


def test_single_objective_methods_ignore_the_other_set(one_rank, taught, tmp_path):
    config = small_run(taught, 1, steps=1, method__name="finetune", data__forget=[], optimizer__name="sgd")
    one_rank.run(train, config, tmp_path / "without")
    one_rank.run(
        train, small_run(taught, 1, steps=1, method__name="finetune", optimizer__name="sgd"), tmp_path / "with"
    )
    assert_bit_equal(exported(tmp_path / "without", 1), exported(tmp_path / "with", 1))
    start = load_file(taught / "model.safetensors")
    assert any(not torch.equal(start[name], tensor) for name, tensor in exported(tmp_path / "with", 1).items())
