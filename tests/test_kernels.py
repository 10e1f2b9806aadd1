"""What is asked for and cannot be had is said before a step is taken."""

import sys
from types import SimpleNamespace

import pytest
import torch

from unlearn_core.config import ModelConfig
from unlearn_core.data.packing import prepare
from unlearn_core.errors import MissingPackageError, UserError
from unlearn_core.forward import Forward
from unlearn_core.kernels import blocks, speed_up
from unlearn_core.parts import objective


def model(kind="llama"):
    return SimpleNamespace(config=SimpleNamespace(model_type=kind), modules=lambda: [])


@pytest.fixture
def liger(monkeypatch):
    """A stand-in for the package, whose own kernels need a GPU; notes what it was asked for."""
    asked = []
    patch = SimpleNamespace(
        MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": None},
        _apply_liger_kernel_to_instance=lambda **arguments: asked.append(arguments),
    )
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", SimpleNamespace(monkey_patch=patch))
    return asked


CONFIG = ModelConfig(path="x", kernels="liger")


def test_liger_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(MissingPackageError, match=r"unlearn\[liger\]"):
        speed_up(model(), CONFIG)


def test_liger_needs_a_gpu(liger, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a GPU"):
        speed_up(model(), CONFIG)
    assert liger == []


def test_liger_leaves_the_loss_alone(liger, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    mine = model()
    speed_up(mine, CONFIG)
    assert liger == [{"model": mine, "cross_entropy": False, "fused_linear_cross_entropy": False}]
    with pytest.raises(UserError, match="no kernels for 'mamba', only for llama"):
        speed_up(model("mamba"), CONFIG)


def test_a_model_without_blocks_is_not_compiled():
    with pytest.raises(UserError, match="knows no blocks"):
        speed_up(model(), ModelConfig(path="x", compile=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # from torch while it traces
def test_blocks_compile_once_for_packed_rows_of_any_lengths():
    """Traced whole, without the compiler proper: a graph for packed rows, one for rows without padding."""
    from test_forward import gradients, model_of, relative, rows

    own, compiled = Forward(model_of("llama")), Forward(model_of("llama"))
    for block in blocks(compiled.model):
        block.compile(dynamic=True, backend="eager")
    part = objective("forget", "cross_entropy")
    torch._dynamo.utils.counters.clear()
    for seed, lengths in enumerate([(5, 17, 4, 11), (9, 5, 14), (20, 6, 7, 8, 9), (12, 12), (4, 30)]):
        inputs = prepare(rows(seed, lengths), packed=True)
        expected, found = (
            gradients(one.model, one(inputs, lambda readout, inputs=inputs: part.sum(readout, inputs, {}, None, None)))
            for one in (own, compiled)
        )
        assert relative(found, expected) < 1e-6
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]
