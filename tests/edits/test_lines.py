"""Interpolation and task vectors: hand numbers, exact ends, written models."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from unlearn_core.edits.interpolation import interpolated, write_interpolation
from unlearn_core.edits.streamed_weights import StreamedWeights
from unlearn_core.edits.task_vector import negated, write_task_vector
from unlearn_core.errors import UserError


@pytest.fixture(scope="module")
def other(taught, tmp_path_factory):
    """A second model of the same architecture: every weight moved by its own noise."""
    folder = tmp_path_factory.mktemp("other") / "model"
    torch.manual_seed(1)
    StreamedWeights(taught).write(folder, lambda name, tensor: tensor + torch.randn_like(tensor), {"step": 0})
    return folder


@pytest.mark.parametrize(("weight", "expected"), [(0.0, [1.0, -2.0]), (0.25, [2.0, -1.0]), (1.0, [5.0, 2.0])])
def test_interpolation_by_hand(weight, expected):
    unlearned, target = torch.tensor([1.0, -2.0]), torch.tensor([5.0, 2.0])
    assert torch.equal(interpolated(unlearned, target, weight), torch.tensor(expected))


@pytest.mark.parametrize(("weight", "expected"), [(0.0, [1.0, -2.0]), (0.5, [-1.0, -4.0]), (2.0, [-7.0, -10.0])])
def test_task_vector_by_hand(weight, expected):
    start, reinforced = torch.tensor([1.0, -2.0]), torch.tensor([5.0, 2.0])
    assert torch.equal(negated(start, reinforced, weight), torch.tensor(expected))


def test_half_precision_is_computed_in_fp32():
    start = torch.tensor([256.0]).bfloat16()
    assert interpolated(start, torch.tensor([258.0]).bfloat16(), 0.5).item() == 257.0  # no bf16 number
    assert negated(start, torch.tensor([254.0]).bfloat16(), 0.5).item() == 257.0


def test_whole_numbers_are_left_alone():
    ids = torch.tensor([1, 2])
    assert interpolated(ids, ids + 5, 0.5) is ids
    assert negated(ids, ids + 5, 0.5) is ids


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_written_interpolation(taught, other, tmp_path, weight):
    write_interpolation(StreamedWeights(taught), StreamedWeights(other), weight, tmp_path / "new", {"step": 1})
    old, far, new = (load_file(folder / "model.safetensors") for folder in (taught, other, tmp_path / "new"))
    for name in old:
        if weight in (0.0, 1.0):
            assert torch.equal(new[name], (far if weight else old)[name])  # the ends to the bit
        else:
            torch.testing.assert_close(new[name], old[name] + weight * (far[name] - old[name]))


def test_written_task_vector(taught, other, tmp_path):
    write_task_vector(StreamedWeights(taught), StreamedWeights(other), 0.5, tmp_path / "new", {"step": 1})
    old, far, new = (load_file(folder / "model.safetensors") for folder in (taught, other, tmp_path / "new"))
    for name in old:
        torch.testing.assert_close(new[name], 1.5 * old[name] - 0.5 * far[name])


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), float("inf")])
def test_interpolation_stays_between(taught, other, tmp_path, weight):
    with pytest.raises(UserError, match="expected a number from 0 to 1"):
        write_interpolation(StreamedWeights(taught), StreamedWeights(other), weight, tmp_path / "new", {})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_task_vector_is_subtracted_a_finite_amount(taught, other, tmp_path, weight):
    with pytest.raises(UserError, match="expected a finite number from 0"):
        write_task_vector(StreamedWeights(taught), StreamedWeights(other), weight, tmp_path / "new", {})


def test_the_first_models_dtype_is_kept(taught, other, tmp_path):
    half = {name: tensor.bfloat16() for name, tensor in load_file(taught / "model.safetensors").items()}
    (tmp_path / "half").mkdir()
    save_file(half, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "half" / "config.json").write_text((taught / "config.json").read_text())
    write_interpolation(StreamedWeights(tmp_path / "half"), StreamedWeights(other), 0.5, tmp_path / "new", {"step": 1})
    new, far = load_file(tmp_path / "new" / "model.safetensors"), load_file(other / "model.safetensors")
    for name, tensor in half.items():
        assert torch.equal(new[name], (0.5 * tensor.float() + 0.5 * far[name]).bfloat16())
