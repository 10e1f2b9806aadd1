import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from unlearn_core.data.sources import looks_like_path
from unlearn_core.data.tokenization import train_tokenizer
from unlearn_core.errors import MissingPackageError, UserError
from unlearn_core.models import SmallLlama, build_small_llama, check_model_source, load_model

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
