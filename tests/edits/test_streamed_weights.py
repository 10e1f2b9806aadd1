"""Folders are edited tensor by tensor, and come out as whole models with nothing else changed."""

import json
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from unlearn_core.edits.streamed_weights import StreamedWeights, check_same_tensors
from unlearn_core.errors import UserError
from unlearn_core.models import load_model
from unlearn_core.publish import is_complete

MARKER = {"step": 1}


@pytest.fixture(scope="module")
def sharded(taught, tmp_path_factory):
    """The taught model in bf16, in several files with an index."""
    folder = tmp_path_factory.mktemp("sharded") / "model"
    model = AutoModelForCausalLM.from_pretrained(taught, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(taught / name, folder / name)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.mark.parametrize("source", ["taught", "sharded"])
def test_an_edit_of_nothing_copies_every_byte(source, request, tmp_path):
    folder = request.getfixturevalue(source)
    StreamedWeights(folder).write(tmp_path / "copy", lambda name, tensor: tensor, MARKER)
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == names | {"complete.json"}
    assert all((tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert json.loads((tmp_path / "copy" / "complete.json").read_text()) == MARKER


def test_what_belongs_to_the_source_alone_stays_there(taught, tmp_path):
    shutil.copytree(taught, tmp_path / "old")
    for stray in ("complete.json", "pytorch_model.bin", "notes.md"):
        (tmp_path / "old" / stray).write_text('{"step": 99}')
    StreamedWeights(tmp_path / "old").write(tmp_path / "new", lambda name, tensor: tensor, MARKER)
    assert json.loads((tmp_path / "new" / "complete.json").read_text()) == MARKER
    assert not (tmp_path / "new" / "pytorch_model.bin").exists()
    assert not (tmp_path / "new" / "notes.md").exists()


@pytest.mark.parametrize(("source", "dtype"), [("taught", "fp32"), ("sharded", "bf16")])
def test_an_edited_folder_loads_with_the_edit_and_the_old_dtype(source, dtype, request, tmp_path):
    folder = request.getfixturevalue(source)
    weights = StreamedWeights(folder)
    counted = []
    weights.write(tmp_path / "new", lambda name, tensor: -2.0 * tensor.float(), MARKER, counted.append)
    old, new = (load_model(str(path), dtype).state_dict() for path in (folder, tmp_path / "new"))
    assert all(torch.equal(new[name], -2.0 * old[name]) for name in old)
    assert StreamedWeights(tmp_path / "new").dtypes == weights.dtypes == {"F32" if dtype == "fp32" else "BF16"}
    assert len(counted) == len(weights.names) == len(old)
    assert sum(counted) == weights.bytes == sum(tensor.numel() * tensor.element_size() for tensor in old.values())


def test_one_tensor_is_held_at_a_time(sharded, tmp_path):
    held, most = [], 0

    def edit(name, tensor):
        nonlocal most
        changed = tensor.float() + 1.0
        held.extend([weakref.ref(tensor), weakref.ref(changed)])
        most = max(most, sum(reference() is not None for reference in held))
        return changed

    StreamedWeights(sharded).write(tmp_path / "new", edit, MARKER)
    assert 2 <= most <= 4  # the old and new tensor, and at most the pair before
    assert len(held) > 30


def test_scalars_empty_and_whole_number_tensors_survive(taught, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(taught, folder)
    odd = {"count": torch.tensor(7), "none": torch.empty(0, 4), "half": torch.tensor([1.5, -2.0]).half()}
    save_file(odd, folder / "model.safetensors", metadata={"format": "pt"})
    StreamedWeights(folder).write(tmp_path / "new", lambda name, tensor: tensor * 2, MARKER)
    new = load_file(tmp_path / "new" / "model.safetensors")
    assert new["count"] == 14 and new["count"].dtype == torch.int64
    assert new["none"].shape == (0, 4)
    assert torch.equal(new["half"], torch.tensor([3.0, -4.0]).half())


def test_models_that_do_not_match_are_refused(taught, tmp_path):
    weights = load_file(taught / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    changes = {
        "fewer": {k: v for k, v in weights.items() if k != name},
        "more": weights | {"extra": torch.ones(1)},
        "wider": weights | {name: torch.ones(64, 129)},
    }
    other = {}
    for kind, tensors in changes.items():
        shutil.copytree(taught, tmp_path / kind)
        save_file(tensors, tmp_path / kind / "model.safetensors", metadata={"format": "pt"})
        other[kind] = StreamedWeights(tmp_path / kind)
    base = StreamedWeights(taught)
    check_same_tensors(base, StreamedWeights(taught))
    with pytest.raises(UserError, match=f"fewer' has no tensor '{name}' and .*taught.*' has"):
        check_same_tensors(base, other["fewer"])
    with pytest.raises(UserError, match=r"model' has no tensor 'extra' and .*more' has"):
        check_same_tensors(base, other["more"])
    with pytest.raises(UserError, match=r"is \[64, 128\] in .* and \[64, 129\] in"):
        check_same_tensors(base, other["wider"])


def test_two_dtypes_may_meet(taught, sharded):
    check_same_tensors(StreamedWeights(taught), StreamedWeights(sharded))


def test_an_edit_that_overflows_leaves_no_folder(sharded, tmp_path):
    with pytest.raises(UserError, match="overflows bfloat16; take a smaller edit weight"):
        StreamedWeights(sharded).write(tmp_path / "new", lambda name, tensor: tensor.double() * 1e39, MARKER)
    assert list(tmp_path.iterdir()) == []


def test_an_edit_of_another_shape_is_a_bug(taught, tmp_path):
    with pytest.raises(ValueError, match="expected"):
        StreamedWeights(taught).write(tmp_path / "new", lambda name, tensor: tensor[:1], MARKER)
    assert not is_complete(tmp_path / "new")


def test_a_missing_folder_is_told():
    with pytest.raises(UserError, match="does not exist"):
        StreamedWeights("./none")
