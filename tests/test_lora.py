"""Low-rank adapters: what trains, what is exported, and that frozen parts stay as they are."""

import json

import pytest
import torch
from method_cases import CASES, config_of
from training_runs import assert_bit_equal, exported, relative, small_run, step_lines, train

from benchmarks.exactness_methods import write_generic_text
from unlearn_core.config import LoraConfig
from unlearn_core.errors import UserError
from unlearn_core.loop import model_folder
from unlearn_core.models import load_model
from unlearn_core.trainable import add_adapters, set_trainable, without_dropout

LORA = {"model__lora": {"rank": 4, "alpha": 8.0}, "optimizer__learning_rate": 1e-2}


def test_an_adapted_model_starts_as_the_model_itself_and_trains_adapters_alone(taught):
    ids = torch.arange(7, 27).view(1, -1)
    model = load_model(str(taught), "fp32")
    before = model(ids).logits
    adapted = add_adapters(model, LoraConfig(rank=4, layers=("q_proj", "down_proj")), seed=0)
    assert torch.equal(adapted(ids).logits, before)
    training = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(training) == 2 * 2 * 2  # two layers, two projections, A and B
    assert all("lora_" in name and ("q_proj" in name or "down_proj" in name) for name in training)
    again = add_adapters(load_model(str(taught), "fp32"), LoraConfig(rank=4, layers=("q_proj", "down_proj")), seed=0)
    named = dict(again.named_parameters())
    assert all(torch.equal(p, named[name]) for name, p in adapted.named_parameters())


def test_a_layer_that_does_not_exist_is_named(taught):
    with pytest.raises(UserError, match=r"model\.lora\.layers \['q_prj'\]"):
        add_adapters(load_model(str(taught), "fp32"), LoraConfig(layers=("q_prj",)), seed=0)


@pytest.mark.parametrize("case", ["ngdiff", "mean_teacher"])
def test_every_stage_exports_the_same_merged_model(case, two_ranks, one_rank, taught, start, tmp_path):
    write_generic_text(tmp_path)
    rate = {"ngdiff": 0.3, "mean_teacher": 20.0}[case]
    options = {"model__lora": LORA["model__lora"], "steps": 3}
    reference = config_of(CASES[case], taught, tmp_path, rate, 1, 0, **options)
    one_rank.run(train, reference, tmp_path / "reference")
    expected = exported(tmp_path / "reference", 3)
    assert expected.keys() == start.keys()  # plain weights under plain names
    moved = {name for name in start if not torch.equal(expected[name], start[name])}
    assert moved == {name for name in start if "_proj" in name}
    change = {name: expected[name] - start[name] for name in moved}
    assert all(torch.linalg.matrix_rank(delta, rtol=1e-3) <= 4 for delta in change.values())
    for stage, offload in ((2, False), (3, False), (3, True)):
        output = tmp_path / f"{stage}-{offload}"
        layout = options | {"zero__offload_optimizer": offload}
        two_ranks.run(train, config_of(CASES[case], taught, tmp_path, rate, 2, stage, **layout), output)
        found = exported(output, 3)
        assert relative({name: found[name] - start[name] for name in moved}, change) <= 1e-4
        assert all(torch.equal(found[name], start[name]) for name in set(start) - moved)
    assert json.loads((model_folder(output, 3) / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    load_model(str(model_folder(output, 3)), "fp32")  # without peft


def test_the_optimizer_holds_adapters_alone(one_rank, taught, tmp_path):
    one_rank.run(train, small_run(taught, 1, 2, 2, steps=2, checkpoint_every=1, checkpoints__last=1, **LORA), tmp_path)
    (path,) = (tmp_path / "checkpoints").glob("*/rank-*.safetensors")
    adapters = 2 * 4 * (4 * (64 + 64) + 2 * (64 + 128) + (128 + 64))  # layers x rank x (in + out) of 7 projections
    assert path.stat().st_size < 1.2 * 12 * adapters + 20_000  # master and two moments in fp32


def test_lora_and_train_only_do_not_go_together(taught):
    with pytest.raises(UserError, match=r"model\.lora trains adapters alone"):
        small_run(taught, 1, model__train_only=["mlp"], **LORA)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_frozen_parts_stay_bit_equal(stage, two_ranks, taught, start, tmp_path):
    config = small_run(taught, 2, 2, stage, steps=2, model__freeze=["embeddings", "head", "norms"])
    two_ranks.run(train, config, tmp_path)
    found = exported(tmp_path, 2)
    frozen = {name for name in start if "embed" in name or "lm_head" in name or "norm" in name}
    assert_bit_equal({name: found[name] for name in frozen}, {name: start[name] for name in frozen})
    assert not any(torch.equal(found[name], start[name]) for name in set(start) - frozen)


def test_train_only_takes_regular_expressions(one_rank, taught, start, tmp_path):
    config = small_run(taught, 1, 2, steps=1, model__train_only=[r"layers\.1\.mlp"])
    one_rank.run(train, config, tmp_path)
    found = exported(tmp_path, 1)
    assert {name for name in start if not torch.equal(found[name], start[name])} == {
        name for name in start if "layers.1.mlp" in name
    }


def test_what_cannot_be_frozen_or_chosen_is_refused(taught):
    model = load_model(str(taught), "fp32")
    with pytest.raises(UserError, match=r"'mpl' matches no parameter; names look like"):
        set_trainable(model, (), ("mpl",))
    with pytest.raises(UserError, match="nothing is left to train"):
        set_trainable(model, ("norms",), ("norm",))


def test_tied_head_and_embeddings_freeze_together(tmp_path):
    from unlearn_core.data.trained_tokenizer import train_tokenizer
    from unlearn_core.models import SmallLlama, build_small_llama

    tokenizer = train_tokenizer(["some words"], 300)
    model = build_small_llama(SmallLlama(hidden_size=16, layers=1, heads=2, vocab_size=300), tokenizer, 0)
    set_trainable(model, ("head",), ())
    assert not model.get_input_embeddings().weight.requires_grad


def test_dropout_is_off():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.3)
            self.attention_dropout = 0.1

    block = Block()
    without_dropout(block)
    assert block.drop.p == block.attention_dropout == 0.0


def test_8_bit_adamw_keeps_one_byte_a_moment(one_rank, taught, tmp_path):
    config = small_run(taught, 1, 2, 2, steps=2, checkpoint_every=1, checkpoints__last=1, optimizer__name="adamw_8bit")
    one_rank.run(train, config, tmp_path)
    from safetensors.torch import load_file

    (path,) = (tmp_path / "checkpoints").glob("*/rank-*.safetensors")
    tensors = load_file(path)
    assert tensors["optimizer/0/state1"].dtype == tensors["optimizer/0/state2"].dtype == torch.uint8
    assert all(line["loss_retain"] > 0 for line in step_lines(tmp_path))
