import json
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from unlearn_core.data.sources import looks_like_path
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.errors import MissingPackageError, UserError
from unlearn_core.models import QUANTISATIONS, SmallLlama, build_small_llama, check_model_source, load_model

CONFIG = SmallLlama(hidden_size=16, layers=2, heads=2, mlp_size=24, vocab_size=300, max_positions=32)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Ada was born in London."] * 3, 280)


@pytest.fixture
def folder(tokenizer, tmp_path):
    build_small_llama(CONFIG, tokenizer, seed=0).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def weights(model):
    return torch.cat([parameter.detach().float().flatten() for parameter in model.parameters()])


def test_a_small_llama_is_a_function_of_its_seed_and_leaves_the_global_state(tokenizer):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = build_small_llama(CONFIG, tokenizer, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(weights(first), weights(build_small_llama(CONFIG, tokenizer, seed=1)))
    assert not torch.equal(weights(first), weights(build_small_llama(CONFIG, tokenizer, seed=2)))


@pytest.mark.parametrize("tied", [True, False])
def test_a_small_llama_takes_sizes_and_ids_from_config_and_tokenizer(tokenizer, tied):
    model = build_small_llama(CONFIG.model_copy(update={"tie_embeddings": tied}), tokenizer, seed=0)
    ids = len(tokenizer)
    assert model.dtype == torch.float32 and not model.training
    assert model.config.vocab_size == ids
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    )
    # Per layer: 4 * 16^2 attention, 3 * 16 * 24 MLP, two norms of 16; a last norm; one or two embeddings.
    assert weights(model).numel() == 2 * (1024 + 1152 + 32) + 16 + ids * 16 * (1 if tied else 2)
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, ids)


def test_a_tokenizer_with_too_many_ids_is_refused(tokenizer):
    small = CONFIG.model_copy(update={"vocab_size": len(tokenizer) - 1})
    with pytest.raises(UserError, match=f"the tokenizer has {len(tokenizer)} ids, over vocab_size"):
        build_small_llama(small, tokenizer, seed=0)


def test_sizes_are_checked():
    with pytest.raises(ValidationError, match=r"hidden_size 16 must be a multiple of 2 \* heads = 6"):
        SmallLlama(hidden_size=16, heads=3)
    with pytest.raises(ValidationError, match="Extra inputs"):
        SmallLlama.model_validate({"hidden": 16})
    with pytest.raises(ValidationError, match="frozen"):
        CONFIG.layers = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_saving_and_loading_keep_the_weights(tokenizer, folder):
    model = build_small_llama(CONFIG, tokenizer, seed=0)
    check_model_source(str(folder))
    loaded = load_model(str(folder), "fp32")
    assert loaded.dtype == torch.float32 and not loaded.training
    assert torch.equal(weights(loaded), weights(model))
    half = load_model(str(folder), "bf16", attention="eager")
    assert half.dtype == torch.bfloat16
    assert torch.equal(weights(half), weights(model).to(torch.bfloat16).float())


def test_a_sharded_folder_is_whole_or_names_the_missing_shard(tokenizer, tmp_path):
    build_small_llama(CONFIG, tokenizer, seed=0).save_pretrained(tmp_path, max_shard_size="10KB")
    check_model_source(str(tmp_path))
    load_model(str(tmp_path), "fp32")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"lacks the weight file {shard.name}"):
        check_model_source(str(tmp_path))


def test_a_cut_off_weight_file_and_a_pointer_are_found(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:40], b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no whole safetensors file"):
            check_model_source(str(folder))


def test_bin_weights_are_refused_with_the_remedy(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for ask in (check_model_source, lambda name: load_model(name, "fp32")):
        with pytest.raises(UserError, match="convert it to safetensors"):
            ask(str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        check_model_source(str(folder))


def test_missing_folders_and_configs(tmp_path, folder):
    with pytest.raises(UserError, match="does not exist"):
        check_model_source(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"has no config\.json"):
        check_model_source(str(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no-such-architecture"}))
    with pytest.raises(UserError, match=r"cannot use .*config\.json"):
        check_model_source(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot use .*config\.json"):
        check_model_source(str(folder))


def test_a_broken_weight_index_is_named(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="is no weight index"):
        check_model_source(str(folder))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", 3])
def test_an_index_that_leads_out_of_its_folder_is_refused(folder, name):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(UserError, match=r"lies outside of its folder; refused"):
        check_model_source(str(folder))


def test_missing_tensors_are_an_error_not_random_numbers(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no weights for 1 tensors .* model\.norm\.weight"):
        load_model(str(folder), "fp32")


def test_wrong_dtype_attention_and_hub_name(folder, monkeypatch):
    with pytest.raises(UserError, match="unknown dtype 'fp16'; expected one of fp32, bf16"):
        load_model(str(folder), "fp16")
    with pytest.raises((UserError, MissingPackageError)):
        load_model(str(folder), "fp32", attention="flash_attention_2")
    with pytest.raises(UserError, match="cannot load a model"):
        load_model(str(folder), "fp32", attention="no-such-attention")
    check_model_source("owner/not-looked-up")


WIDE = CONFIG.model_copy(update={"hidden_size": 64, "mlp_size": 96})


@pytest.fixture(scope="module")
def wide(tokenizer, tmp_path_factory):
    """A folder of untied embeddings; rows of 64 weights are one block of nf4 each, rows of 96 straddle two or three."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    untied = WIDE.model_copy(update={"tie_embeddings": False})
    build_small_llama(untied, tokenizer, seed=0).save_pretrained(folder)
    return folder


NF4 = """-1.0 -0.6961928 -0.52507305 -0.39491749 -0.28444138 -0.18477343 -0.09105004 0.0 0.0795803 0.1609302 0.2461123
0.33791524 0.44070983 0.562617 0.72295684 1.0"""


def rounded(weight, quantisation):
    """Weights on the levels of int8 (255 a row) or of NF4 (the 16 of QLoRA's appendix E, 64 weights a scale)."""
    if quantisation == "int8":
        row_O1 = weight.half().float().abs().amax(dim=1, keepdim=True)
        return (weight.half().float() / row_O1 * 127).round() * row_O1 / 127
    levels = torch.tensor([float(level) for level in NF4.split()])
    block_N1 = weight.reshape(-1, 64).abs().amax(dim=1, keepdim=True)
    nearest = (weight.reshape(-1, 64, 1) / block_N1[:, :, None] - levels).abs().argmin(dim=-1)
    return (levels[nearest] * block_N1).reshape(weight.shape)


def linear_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("quantisation", "stored"), [("int8", torch.int8), ("nf4", torch.uint8)])
def test_quantised_linear_layers_hold_a_byte_or_half_a_byte_a_weight(wide, quantisation, stored, dtype):
    whole = load_model(str(wide), dtype)
    model = load_model(str(wide), dtype, quantisation=quantisation)
    assert not model.training and model.device == torch.device("cpu")
    plain, layers = linear_layers(whole), linear_layers(model)
    assert plain.keys() == layers.keys() and len(layers) == 2 * 7 + 1
    for name, layer in layers.items():
        if name == "lm_head":
            assert type(layer) is torch.nn.Linear and layer.weight.dtype == whole.dtype
            continue
        assert layer.weight.dtype == stored
        count = plain[name].weight.numel()
        assert layer.weight.numel() == (count if quantisation == "int8" else count // 2)
    assert model.get_input_embeddings().weight.dtype == whole.dtype == model.model.norm.weight.dtype
    # Two layers of 4 * 64^2 + 3 * 64 * 96 weights; scales lie beside the parameters.
    saved = 2 * (4 * 64**2 + 3 * 64 * 96) * (whole.dtype.itemsize - (1 if quantisation == "int8" else 0.5))
    assert whole.get_memory_footprint() - model.get_memory_footprint() == saved


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("attention", "mlp_size"), [("sdpa", 96), ("eager", 128), ("sdpa", 344)])
def test_an_nf4_model_in_fp32_computes_with_its_rounded_weights(tokenizer, tmp_path, tied, attention, mlp_size):
    config = WIDE.model_copy(update={"tie_embeddings": tied, "mlp_size": mlp_size})
    build_small_llama(config, tokenizer, seed=0).save_pretrained(tmp_path / "model")
    model = load_model(str(tmp_path / "model"), "fp32", attention, "nf4")
    expected = load_model(str(tmp_path / "model"), "fp32", attention)
    ids = torch.tensor([[1, 2, 3, 40, 50]])
    before = expected(input_ids=ids).logits
    for name, layer in linear_layers(expected).items():
        if name != "lm_head":
            layer.weight.data = rounded(layer.weight.data, "nf4")
    logits = model(input_ids=ids).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert 1e-3 < (logits - before).abs().max() < 0.3
    # The layout of the weights stays: a forward pass on a CPU with bf16 instructions would else pack them for that CPU.
    assert linear_layers(model)["model.layers.0.mlp.up_proj"].weight.shape == (64 * mlp_size // 2, 1)


def test_int8_weights_are_the_nearest_levels_of_their_row(wide):
    whole = linear_layers(load_model(str(wide), "fp32"))
    for name, layer in linear_layers(load_model(str(wide), "fp32", quantisation="int8")).items():
        if name != "lm_head":
            held = layer.weight.CB.float() * layer.weight.SCB[:, None] / 127
            step = layer.weight.SCB.max() / 127
            # fp16 arithmetic on the way may turn a weight halfway between two levels to the other one.
            off = (held - rounded(whole[name].weight.detach(), "int8")).abs()
            assert off.max() < 1.01 * step and (off > 1e-6).float().mean() < 0.05


@pytest.mark.parametrize(("quantisation", "dtype"), [("int8", "fp32"), ("int8", "bf16"), ("nf4", "bf16")])
def test_quantised_outputs_differ_a_little_and_repeat(wide, quantisation, dtype, caplog):
    ids = torch.tensor([[1, 2, 3, 40, 50], [9, 8, 7, 6, 5]])
    whole = load_model(str(wide), dtype)(input_ids=ids).logits
    model = load_model(str(wide), dtype, quantisation=quantisation)
    logits = model(input_ids=ids).logits
    assert torch.equal(logits, model(input_ids=ids).logits) and logits.dtype == whole.dtype
    assert 1e-3 < (logits - whole).abs().max() < 0.3
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes")]


def test_an_unknown_quantisation_and_a_missing_package(wide, monkeypatch):
    assert QUANTISATIONS == ("none", "int8", "nf4")
    with pytest.raises(UserError, match="unknown quantisation 'int4'; expected one of none, int8, nf4"):
        load_model(str(wide), "fp32", quantisation="int4")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingPackageError, match=r"needs the packages 'bitsandbytes' .*unlearn\[quantisation\]"):
        load_model(str(wide), "fp32", quantisation="int8")
    load_model(str(wide), "fp32")


@pytest.mark.parametrize("name", ["gpt2", "locuslab/TOFU", "meta-llama/Llama-3.2-1B-Instruct", "a/b.c-d_e"])
def test_hub_names(name):
    assert not looks_like_path(name)


@pytest.mark.parametrize("name", ["./x", "/x", "~/x", "../x", "a/b/c", "a/b/", "C:\\x", "a b/c", ""])
def test_paths(name):
    assert looks_like_path(name)


def test_what_starts_with_a_folder_here_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert looks_like_path("outputs/tarcet") and looks_like_path("outputs")
    assert not looks_like_path("other/target")
    assert Path("outputs").is_dir()
