"""The engine on a model whose odd tensor sizes do not divide by the ranks; objectives share few of its parameters."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from unlearn_core.config import BatchConfig, OptimizerConfig, ZeroConfig
from unlearn_core.data.packing import prepare
from unlearn_core.data.tokenization import Batch
from unlearn_core.objectives.likelihood import cross_entropy, cross_entropy_sum
from unlearn_core.zero.engine import ZeroEngine, deepspeed_config
from unlearn_core.zero.passes import Pass

STAGES = (0, 1, 2, 3)
LAYOUTS = [ZeroConfig(stage=stage) for stage in STAGES]
LAYOUTS += [ZeroConfig(stage=stage, offload_optimizer=True) for stage in (1, 2, 3)]
WEIGHTS = np.array([0.5, -2.0, 3.0])
STEPS = 3


class Scale(nn.Module):
    """One number."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, values):
        return values * self.factor


class Branches(nn.Module):
    """Even first tokens go through one head, odd ones through the other; 7 x 5, 11 x 5, 3 and 1 numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 5)
        self.even = nn.Linear(5, 11, bias=False)
        self.odd = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 11, bias=False))
        self.scale = Scale()

    def forward(self, input_ids, attention_mask, use_cache):
        head = self.even if int(input_ids[0, 0]) % 2 == 0 else self.odd
        return CausalLMOutput(logits=self.scale(head(self.embedding(input_ids))))


def data(step, objective, row):
    generator = torch.Generator().manual_seed(100 * step + 10 * objective + row)
    ids_BT = torch.randint(0, 7, (1, 6), generator=generator)
    ids_BT[:, 0] = objective % 2  # objectives 0 and 2 share a head, 1 has its own
    labels_BT = ids_BT.clone()
    labels_BT[:, : 1 + row] = -100  # rows have 5, 4, 3 and 2 labels
    return Batch(ids_BT, torch.ones_like(ids_BT), labels_BT)


TOKENS = 5 + 4 + 3 + 2


def optimizer(**changes):
    return OptimizerConfig(**{"name": "sgd", "learning_rate": 0.1, "momentum": 0.5, **changes})


def whole(engine):
    """Weights, gathered; through the fp32 master so that it shares nothing with the export."""
    from deepspeed.utils import safe_get_full_fp32_param

    if engine.engine.zero_optimization_stage() == 0:
        return {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    return {name: safe_get_full_fp32_param(p).clone() for name, p in engine.module.named_parameters()}


def layout_name(value):
    return f"{value.stage}{'-offload' * value.offload_optimizer}" if isinstance(value, ZeroConfig) else str(value)


def of_tokens(readout, inputs, index):
    return readout.token_sum(cross_entropy)


def rows_of(step, objective, rank, world_size, weight=1.0):
    rows = [prepare(data(step, objective, row), packed=True) for row in range(rank, 4, world_size)]
    return Pass(of_tokens, rows, TOKENS, weight)


def summed_objectives(rank, world_size, zero):
    """Three steps, the same weighted sum by one backward; losses and final weights."""
    engine = ZeroEngine(Branches(), zero, optimizer(), bf16=False, batch=BatchConfig(micro=1))
    losses = []
    for step in range(STEPS):
        passes = [rows_of(step, k, rank, world_size, float(WEIGHTS[k])) for k in range(3)]
        forwarded = engine.losses(*passes)
        found = engine.means(engine.gradient(*passes)[0], passes)
        assert forwarded == pytest.approx(found, rel=1e-6)
        losses.append(found)
        engine.step(0.1)
    weights = whole(engine)
    engine.close()
    return np.array(losses), weights


def swapping(rank, world_size, zero, bf16=False):
    """Losses at the start weights, seen through a swap after two steps; and whether the swap left any trace."""
    model = Branches().bfloat16() if bf16 else Branches()
    engine = ZeroEngine(model, zero, optimizer(), bf16=bf16, batch=BatchConfig(micro=1))
    start = [master.detach().clone() for master in engine.shards.master()]
    item = rows_of(0, 0, rank, world_size)
    first = engine.losses(item)
    for step in range(2):
        engine.gradient(rows_of(step, 0, rank, world_size))
        engine.step(0.1)
    before, moved = whole(engine), engine.losses(item)
    with engine.swapped(start):
        seen = engine.losses(item)
    after, again = whole(engine), engine.losses(item)
    engine.close()
    equal = all(torch.equal(before[name], after[name]) for name in before)
    return first, moved, seen, again, equal


def three_objectives(rank, world_size, zero):
    """Three steps of three objectives: Gram matrices, losses, combined gradients and the final weights."""
    from deepspeed.utils import safe_get_full_grad

    stage = zero.stage
    engine = ZeroEngine(Branches(), zero, optimizer(), bf16=False, batch=BatchConfig(micro=1))
    grams, losses, gradient = [], [], {}
    for step in range(STEPS):
        gradients = []
        for objective in range(3):
            if gradients:
                gradients[-1] = (gradients[-1][0], engine.take())
            item = rows_of(step, objective, rank, world_size)
            total, shard = engine.gradient(item)
            gradients.append((engine.means(total, [item])[0], shard))
        shards = [shard for _, shard in gradients]
        losses.append([loss for loss, _ in gradients])
        grams.append(engine.gram(shards))
        engine.combine(shards[-1], WEIGHTS[-1], list(zip(shards[:-1], WEIGHTS[:-1], strict=True)))
        for name, parameter in engine.module.named_parameters():
            found = parameter.grad if stage == 0 else safe_get_full_grad(parameter)
            gradient[f"{step}/{name}"] = found.detach().clone()
        engine.step(0.1)
    weights = whole(engine)
    engine.close()
    return np.array(grams), np.array(losses), gradient, weights


@pytest.fixture(scope="module")
def plain():
    """The same by autograd on whole tensors."""
    model = Branches()
    named = dict(model.named_parameters())
    sgd = torch.optim.SGD(named.values(), lr=0.1, momentum=0.5)
    grams, losses, combined = [], [], {}
    for step in range(STEPS):
        flat, values = [], []
        for objective in range(3):
            batches = [data(step, objective, row) for row in range(4)]
            sums = [cross_entropy_sum(model(b.input_ids_BT, None, False).logits, b.labels_BT) for b in batches]
            loss = torch.stack(sums).sum() / TOKENS
            parts = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
            flat.append(parts)
            values.append(loss.item())
        vectors = np.array([torch.cat([part.flatten() for part in parts]).double().numpy() for parts in flat])
        grams.append(vectors @ vectors.T)
        losses.append(values)
        for index, (name, parameter) in enumerate(named.items()):
            parameter.grad = sum(float(w) * parts[index] for w, parts in zip(WEIGHTS, flat, strict=True))
            combined[f"{step}/{name}"] = parameter.grad.clone()
        sgd.step()
    return np.array(grams), np.array(losses), combined, {name: p.detach() for name, p in named.items()}


@pytest.mark.parametrize("zero", LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("workers", [1, 2])
def test_three_objectives_on_odd_sizes(zero, workers, one_rank, two_ranks, plain):
    answers = (one_rank if workers == 1 else two_ranks).run(three_objectives, zero)
    grams, losses, gradient, weights = plain
    for found in answers:
        assert found[0] == pytest.approx(grams, rel=1e-5, abs=1e-8)
        assert found[1] == pytest.approx(losses, rel=1e-6)
        for name, expected in gradient.items():
            torch.testing.assert_close(found[2][name], expected, rtol=1e-5, atol=1e-7)
        for name, expected in weights.items():
            torch.testing.assert_close(found[3][name], expected, rtol=1e-5, atol=1e-7)
    # Every rank must choose the same weights, so the matrices are equal to the bit.
    assert all((found[0] == answers[0][0]).all() for found in answers)


@pytest.mark.parametrize("zero", LAYOUTS, ids=layout_name)
def test_a_summed_backward_takes_the_same_steps(zero, two_ranks, plain):
    _, losses, _, weights = plain
    for found, final in two_ranks.run(summed_objectives, zero):
        assert found == pytest.approx(losses, rel=1e-6)
        for name, expected in weights.items():
            torch.testing.assert_close(final[name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("zero", LAYOUTS, ids=layout_name)
def test_swapped_weights_are_seen_and_leave_no_trace(zero, bf16, two_ranks):
    for first, moved, seen, again, equal in two_ranks.run(swapping, zero, bf16):
        assert seen == first
        assert again == moved != first
        assert equal


def interrupted_accumulation(rank, world_size, zero):
    """Gram matrix of objective 0 on a fresh engine, and again after half of another objective was thrown away."""
    engine = ZeroEngine(Branches(), zero, optimizer(), bf16=False, batch=BatchConfig(micro=1))
    engine.gradient(rows_of(0, 0, rank, world_size))
    grams = [engine.gram([engine.take()])]
    engine.engine.set_gradient_accumulation_boundary(False)
    loss = engine.engine(prepare(data(1, 1, rank), packed=True), lambda readout: readout.token_sum(cross_entropy))
    engine.engine.backward(loss, scale_wrt_gas=False)
    engine.shards.reset()
    grams.append(engine.gram([engine.gradient(rows_of(0, 0, rank, world_size))[1]]))
    engine.close()
    return grams


@pytest.mark.parametrize("zero", LAYOUTS, ids=layout_name)
def test_discarded_gradients_leave_no_trace(zero, two_ranks):
    for fresh, again in two_ranks.run(interrupted_accumulation, zero):
        assert (fresh == again).all()
        assert fresh > 0


def fresh_bf16(rank, world_size, stage):
    model = Branches().bfloat16()
    before = {name: p.detach().clone().float() for name, p in model.named_parameters()}
    decay = optimizer(name="adamw", weight_decay=0.5)
    engine = ZeroEngine(model, ZeroConfig(stage=stage), decay, bf16=True, batch=BatchConfig(micro=1))
    states = [dict(engine.shards.optimizer_state(index)) for index in range(len(engine.shards.master()))]
    masters = torch.cat([tensor.detach().flatten() for tensor in engine.shards.master()])
    clipping = engine.engine.gradient_clipping()
    engine.close()
    return before, states, masters, clipping


def test_bf16_stage_0_starts_from_the_loaded_weights_and_no_state(two_ranks):
    for before, states, masters, _ in two_ranks.run(fresh_bf16, 0):
        assert not any(states)
        assert torch.equal(masters, torch.cat([tensor.flatten() for tensor in before.values()]))


@pytest.mark.parametrize("stage", STAGES)
def test_deepspeeds_own_clipping_is_off(stage, one_rank):
    config = deepspeed_config(ZeroConfig(stage=stage), bf16=True, micro_batch=1)
    assert config["gradient_clipping"] == 0.0
    assert one_rank.run(fresh_bf16, stage)[0][3] == 0.0


def finite_answers(rank, world_size, stage):
    engine = ZeroEngine(Branches(), ZeroConfig(stage=stage), optimizer(), bf16=False, batch=BatchConfig(micro=1))
    answers = [engine.weights_are_finite()]
    if rank == world_size - 1:
        with torch.no_grad():
            engine.shards.master()[0].flatten()[0] = torch.inf
    answers.append(engine.weights_are_finite())
    engine.close()
    return answers


@pytest.mark.parametrize("stage", STAGES)
def test_all_ranks_learn_of_one_bad_weight_on_one_of_them(stage, two_ranks):
    assert two_ranks.run(finite_answers, stage) == [[True, False], [True, False]]


class Renamed:
    """A DeepSpeed wrapper of a later version, by name."""


def test_a_deepspeed_whose_internals_moved_is_refused():
    from unlearn_core.zero.layouts import open_shards

    with pytest.raises(RuntimeError, match="No gradient access for DeepSpeed optimizer Renamed"):
        open_shards(SimpleNamespace(optimizer=Renamed()))
    moved = type("DeepSpeedZeroOptimizer", (), {"cpu_offload": False})
    with pytest.raises(RuntimeError, match=r"lacks averaged_gradients, all_grad_tensors.*constraints\.txt"):
        open_shards(SimpleNamespace(optimizer=moved()))
