"""A model loaded for training is the model of the folder, wherever its parts lie."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import untrained  # noqa: F401  (a fixture)
from training_runs import small_run

from unlearn_core.models import load_model
from unlearn_core.zero.loading import load_for_training

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def loaded(rank, world_size, config):
    """Every parameter, gathered, and the buffers; how many elements this rank held of them."""
    import deepspeed

    model = load_for_training(config)
    held = sum(getattr(p, "ds_tensor", p).numel() for p in model.parameters())
    found = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            found[name] = parameter.detach().clone()
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    return found | {name: buffer.clone() for name, buffer in model.named_buffers()}, held, tied


def config_of(path, stage, dtype="fp32"):
    return small_run(path, 2, stage=stage, dtype=dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("stage", [0, 3])
def test_every_weight_is_the_folders(stage, tied, dtype, two_ranks, untrained):  # noqa: F811
    expected = load_model(str(untrained[tied]), dtype)
    names = dict(expected.named_parameters()) | dict(expected.named_buffers())
    whole = sum(p.numel() for p in expected.parameters())
    for found, held, is_tied in two_ranks.run(loaded, config_of(untrained[tied], stage, dtype)):
        assert found.keys() == names.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in names.items())
        assert all(found[name].dtype == tensor.dtype for name, tensor in names.items())
        assert is_tied == tied
        assert whole / 2 <= held < 0.51 * whole if stage == 3 else held == whole


def test_tensors_of_other_names_are_loaded_as_transformers_does(two_ranks, untrained, tmp_path):  # noqa: F811
    for path in untrained[False].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    # The base model's own names, which transformers puts in their place.
    renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for found, _, _ in two_ranks.run(loaded, config_of(tmp_path, 3)):
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_parts_of_a_tensor_are_read_alone(untrained):  # noqa: F811
    from unlearn_core.edits.streamed_weights import StreamedWeights

    weights = StreamedWeights(str(untrained[False]))
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        flat = weights.tensor(name).flatten()
        for start, stop in ((0, len(flat)), (1, 2), (3, len(flat) - 5), (len(flat) - 1, len(flat)), (30, 34)):
            if stop <= len(flat):
                assert torch.equal(weights.elements(name, start, stop), flat[start:stop])
    assert json.loads((untrained[False] / "config.json").read_text())["vocab_size"] == 320
