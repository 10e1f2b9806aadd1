"""What is exported is what was trained, in a layout that transformers loads by itself."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from training_runs import small_run, train
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_core.config import BatchConfig, OptimizerConfig, ZeroConfig
from unlearn_core.data.packing import prepare
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.data.tokenization import Example, collate, load_tokenizer
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.loop import model_folder
from unlearn_core.models import SmallLlama, build_small_llama, load_model
from unlearn_core.objectives.likelihood import cross_entropy
from unlearn_core.publish import is_complete
from unlearn_core.zero import export
from unlearn_core.zero.engine import ZeroEngine
from unlearn_core.zero.passes import Pass

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Folders of two small Llamas, by whether input and output embeddings are one."""
    root = tmp_path_factory.mktemp("untrained")
    tokenizer = train_tokenizer([row.question for row in open_benchmark("synthetic:tiny").split("full")], 320)
    for tied in (False, True):
        size = SmallLlama(
            hidden_size=32, layers=2, heads=2, mlp_size=64, vocab_size=320, max_positions=64, tie_embeddings=tied
        )
        build_small_llama(size, tokenizer, 0).save_pretrained(root / str(tied))
        tokenizer.save_pretrained(root / str(tied))
    return {tied: root / str(tied) for tied in (False, True)}


def step_and_export(rank, world_size, model_path, stage, dtype, folder, max_bytes, buffer):
    """One step, then an export; the trained weights by DeepSpeed's own gathering of the fp32 master, and logits."""
    from deepspeed.utils import safe_get_full_fp32_param

    model = load_model(str(model_path), dtype)
    if buffer:
        model.model.register_buffer("scale", torch.tensor([2.5, 3.5]))
    engine = ZeroEngine(
        model, ZeroConfig(stage=stage), OptimizerConfig(learning_rate=1e-2), dtype == "bf16", BatchConfig(micro=1)
    )
    batch = collate([Example("a", tuple(range(5, 25)), 4)], 0)
    inputs = prepare(batch, packed=True)
    engine.gradient(Pass(lambda readout, _, __: readout.token_sum(cross_entropy), [inputs], 16 * world_size))
    engine.step(1e-2)
    if stage == 0:
        named = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    else:
        named = {n: safe_get_full_fp32_param(p).to(DTYPES[dtype]) for n, p in engine.module.named_parameters()}
    everywhere = dataclasses.replace(inputs, predictors_N=torch.arange(20))
    with torch.no_grad():
        logits_TV = engine.engine(everywhere, lambda r: torch.nn.functional.linear(r.hidden_ND, r.weight_VD))
    if rank == 0:
        folder.mkdir()
    whole, export.MAX_FILE_BYTES = export.MAX_FILE_BYTES, max_bytes or export.MAX_FILE_BYTES
    try:
        export.export_weights(engine, folder)
    finally:
        export.MAX_FILE_BYTES = whole
    engine.close()
    return named, logits_TV[None]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("stage", "tied"), [(0, True), (1, False), (2, True), (2, False), (3, True), (3, False)])
def test_from_pretrained_gives_the_trained_weights_bit_for_bit(stage, tied, dtype, two_ranks, untrained, tmp_path):
    folder = tmp_path / "model"
    named, logits_BTV = two_ranks.run(step_and_export, untrained[tied], stage, dtype, folder, None, False)[0]
    assert ("lm_head.weight" in named) is not tied
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.dtype == DTYPES[dtype]
    assert loaded.config.tie_word_embeddings is tied
    assert loaded.config.use_cache is True
    found = dict(loaded.named_parameters())
    assert found.keys() == named.keys()
    before = dict(load_model(str(untrained[tied]), dtype).named_parameters())
    for name, expected in named.items():
        assert torch.equal(found[name], expected), name
        assert not torch.equal(found[name], before[name]), name
    ids_BT = torch.tensor([list(range(5, 25))])
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(ids_BT).logits, logits_BTV, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("stage", "tied"), [(2, True), (3, False)])
def test_several_files_with_a_right_index(stage, tied, two_ranks, untrained, tmp_path):
    limit = 30_000
    whole, split = tmp_path / "whole", tmp_path / "split"
    two_ranks.run(step_and_export, untrained[tied], stage, "fp32", whole, None, False)
    two_ranks.run(step_and_export, untrained[tied], stage, "fp32", split, limit, False)
    index = json.loads((split / "model.safetensors.index.json").read_text())
    files = sorted(split.glob("*.safetensors"))
    assert len(files) > 3
    assert [path.name for path in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    expected = load_file(whole / "model.safetensors")
    seen = {}
    for path in files:
        tensors = load_file(path)
        assert all(index["weight_map"][name] == path.name for name in tensors)
        # One module, the embedding, is larger than the limit alone.
        assert len(tensors) == 1 or sum(t.numel() * t.element_size() for t in tensors.values()) <= limit
        assert not seen.keys() & tensors.keys()
        seen |= tensors
    assert seen.keys() == expected.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in expected.values())
    loaded = dict(AutoModelForCausalLM.from_pretrained(split).named_parameters())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert not (whole / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("stage", [2, 3])
def test_persistent_buffers_are_exported_and_others_not(stage, two_ranks, untrained, tmp_path):
    two_ranks.run(step_and_export, untrained[True], stage, "fp32", tmp_path / "model", None, True)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert tensors["model.scale"].tolist() == [2.5, 3.5]
    assert not [name for name in tensors if "inv_freq" in name]


def test_a_run_publishes_model_tokenizer_and_marker(two_ranks, taught, tmp_path):
    config = small_run(taught, 2, 1, 3, steps=3, export_every=2)
    two_ranks.run(train, config, tmp_path)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["step-00002", "step-00003"]
    folder = model_folder(tmp_path, 2)
    assert is_complete(folder)
    assert json.loads((folder / "complete.json").read_text()) == {"step": 2, "method": "ngdiff", "run": "exactness"}
    text = "Who wrote it? Ünser Ann."
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == load_tokenizer(str(taught))(text).input_ids
    assert load_tokenizer(str(folder)).chat_template == load_tokenizer(str(taught)).chat_template
    load_model(str(folder), "bf16")
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pth")]
