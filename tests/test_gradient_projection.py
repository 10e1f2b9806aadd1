"""Projected gradients: orthogonal to retain inputs, so that a step leaves what the layers say about them as it was."""

import contextlib
import copy
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unlearn_core.data.tofu import open_benchmark
from unlearn_core.data.tokenization import Batch, Formatter, collate, load_tokenizer
from unlearn_core.errors import UserError
from unlearn_core.gradient_projection import RetainProjection, StreamingCovariance, project_out, retain_basis
from unlearn_core.models import load_model


def spread(*values):
    """A covariance with these S = sqrt(eigenvalues), in axes that are not the coordinates'."""
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))[0]
    return turn @ torch.diag(torch.tensor(values, dtype=torch.float64) ** 2) @ turn.T, turn


@pytest.mark.parametrize(
    ("retained", "kept"),
    [
        (0.0, 0),  # no projection
        (0.1, 1),  # at least one direction
        (0.4, 1),
        (0.69, 1),
        (0.7, 2),  # (4 + 3) / 10, and not (16 + 9) / 30
        (0.89, 2),
        (0.9, 3),
        (0.99, 3),
        (1.0, 4),
    ],
)
def test_directions_kept_by_hand(retained, kept):
    covariance, turn = spread(1.0, 4.0, 2.0, 3.0)
    basis = retain_basis(covariance, retained)
    assert basis.shape == (4, kept)
    torch.testing.assert_close(basis.T @ basis, torch.eye(kept, dtype=torch.float64))
    expected = turn[:, [1, 3, 2, 0][:kept]]  # by falling S
    torch.testing.assert_close(basis @ basis.T, expected @ expected.T)


def test_the_null_space_stays_free():
    inputs = torch.randn(5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = retain_basis(inputs.T @ inputs, 1.0)
    assert basis.shape == (32, 5)
    torch.testing.assert_close((inputs @ basis) @ basis.T, inputs)


def test_no_input_no_direction():
    assert retain_basis(torch.zeros(3, 3, dtype=torch.float64), 0.9).shape == (3, 0)


@pytest.mark.parametrize("retained", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(retained):
    with pytest.raises(UserError, match="expected a share from 0"):
        retain_basis(torch.eye(2), retained)
    with pytest.raises(UserError, match="expected a share from 0"):
        RetainProjection(nn.Linear(1, 1), [""], retained)


def test_projection_by_hand():
    gradient = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    along = torch.tensor([[0.6], [0.8]])
    # <(3, 4), u> = 5 leaves 0; <(1, 0), u> = 0.6 leaves (1 - 0.36, -0.48)
    torch.testing.assert_close(project_out(gradient, along), torch.tensor([[0.0, 0.0], [0.64, -0.48]]))
    assert project_out(gradient.bfloat16(), along).dtype == torch.bfloat16


def test_streaming_is_the_whole_sum():
    inputs = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    covariance = StreamingCovariance(8)
    for part in inputs.split(17):
        covariance.add(part)
    assert covariance.rows == 100 and covariance.sum_DD.dtype == torch.float64
    torch.testing.assert_close(covariance.sum_DD, inputs.double().T @ inputs.double())


@pytest.fixture(scope="module")
def model(taught):
    return load_model(str(taught), "fp32")


@pytest.fixture(scope="module")
def batches(taught):
    """(retain rows of differing length, forget rows)."""
    formatter = Formatter(load_tokenizer(str(taught)), "plain", 256)
    benchmark = open_benchmark("synthetic:tiny")

    def batch(split, count):
        rows = benchmark.split(split)[:count]
        return collate([formatter.example(r.item_id, r.question, r.answer) for r in rows], formatter.pad_id)

    retain = batch("retain90", 2)
    assert int((retain.attention_mask_BT == 0).sum()) > 0  # there is padding to leave out
    assert int(retain.attention_mask_BT.sum()) < 128  # a null space is left in the widest layer
    return retain, batch("forget10", 4)


def loss(model, batch):
    return model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, labels=batch.labels_BT).loss


def logits(model, batch):
    with torch.no_grad():
        return model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits[
            batch.attention_mask_BT.bool()
        ]


def ascend(model, projection, batch, rate):
    """One SGD step up the forget loss on the chosen weights alone."""
    chosen = projection.weights()
    for parameter, gradient in zip(chosen, torch.autograd.grad(loss(model, batch), chosen), strict=True):
        with torch.no_grad():
            parameter.add_(rate * gradient)


def test_a_step_leaves_retain_outputs_and_moves_forget_ones(model, batches):
    retain, forget = batches
    moved = {}
    for projected in (False, True):
        trained = copy.deepcopy(model)
        projection = RetainProjection(trained, ["down_proj"], 1.0)
        projection.collect([retain])
        if projected:
            projection.install()
        before, forget_before = logits(trained, retain), loss(trained, forget).item()
        ascend(trained, projection, forget, rate=5.0)
        moved[projected] = (
            ((logits(trained, retain) - before).norm() / before.norm()).item(),
            loss(trained, forget).item() - forget_before,
        )
    assert moved[False][0] > 1e-2  # the bare step does change them
    assert moved[True][0] < 1e-6
    assert moved[True][1] > 1e-3  # and the projected one still forgets


def test_projected_gradients_are_orthogonal_to_retain_inputs(model, batches):
    retain, forget = batches
    trained = copy.deepcopy(model)
    names = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    inputs = {}
    hooks = [
        trained.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs.update({name: args[0][retain.attention_mask_BT.bool()]})
        )
        for name in names
    ]
    logits(trained, retain)
    for hook in hooks:
        hook.remove()
    projection = RetainProjection(trained, ["down_proj"], 1.0)
    projection.collect([retain])
    projection.install()
    projection.install()  # again changes nothing
    gradients = torch.autograd.grad(loss(trained, forget), projection.weights())
    projection.remove()
    bare = torch.autograd.grad(loss(trained, forget), projection.weights())
    for name, gradient, whole in zip(names, gradients, bare, strict=True):
        scale = whole.norm() * inputs[name].norm()
        assert (gradient @ inputs[name].T).norm() < 1e-6 * scale
        assert (whole @ inputs[name].T).norm() > 1e-3 * scale
        assert 0 < gradient.norm() < whole.norm()


def test_padding_is_not_counted_and_batches_add_up(model, batches):
    retain, _ = batches
    singles = []
    for row in range(2):
        length = int(retain.attention_mask_BT[row].sum())
        singles.append(
            Batch(
                *(
                    part[row : row + 1, :length]
                    for part in (retain.input_ids_BT, retain.attention_mask_BT, retain.labels_BT)
                )
            )
        )
    together, apart = (RetainProjection(model, ["o_proj", "down_proj"], 0.8) for _ in range(2))
    together.collect([retain])
    apart.collect(singles)
    assert together.ranks() == apart.ranks()
    for key, basis in together.state().items():
        other = apart.state()[key]
        torch.testing.assert_close(basis @ basis.T, other @ other.T, atol=1e-4, rtol=0)


def test_layers_of_one_input_share_a_basis(model, batches):
    projection = RetainProjection(model, ["_proj"], 0.9)
    projection.collect([batches[0], batches[0]])
    prefix = "model.layers.0"
    assert [key for key in projection.state() if key.startswith(prefix)] == [
        ",".join(f"{prefix}.self_attn.{name}_proj" for name in "qkv"),
        f"{prefix}.self_attn.o_proj",
        ",".join(f"{prefix}.mlp.{name}_proj" for name in ("gate", "up")),
        f"{prefix}.mlp.down_proj",
    ]
    assert len(projection.ranks()) == 14
    # q alone, in a second projection, comes to the same basis as in the group.
    alone = RetainProjection(model, [r"layers\.0\.self_attn\.k_proj"], 0.9)
    alone.collect([batches[0]])
    assert alone.ranks() == {f"{prefix}.self_attn.k_proj": projection.ranks()[f"{prefix}.self_attn.k_proj"]}


def test_state_survives_a_file(model, batches, tmp_path):
    first = RetainProjection(model, ["mlp"], 0.9)
    first.collect([batches[0]])
    save_file(first.state(), tmp_path / "projection.safetensors")
    second = RetainProjection(model, ["mlp"], 0.9)
    second.load_state(load_file(tmp_path / "projection.safetensors"))
    assert second.ranks() == first.ranks()
    found = []
    for projection in (first, second):
        projection.install()
        found.append(torch.autograd.grad(loss(model, batches[1]), projection.weights()))
        projection.remove()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with pytest.raises(UserError, match="is of other layers"):
        RetainProjection(model, ["down_proj"], 0.9).load_state(first.state())
    narrow = {key: basis[:-1] for key, basis in first.state().items()}
    with pytest.raises(UserError, match="collect again for this model"):
        second.load_state(narrow)


def test_no_share_no_projection(model, batches):
    projection = RetainProjection(model, ["down_proj"], 0.0)
    projection.collect([batches[0]])
    bare = torch.autograd.grad(loss(model, batches[1]), projection.weights())
    projection.install()
    same = torch.autograd.grad(loss(model, batches[1]), projection.weights())
    projection.remove()
    assert set(projection.ranks().values()) == {0}
    assert all(torch.equal(a, b) for a, b in zip(bare, same, strict=True))


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["down_poj"], "'down_poj' in its name; the layers' last names are down_proj, gate_proj"),
        (["("], "is no regular expression"),
        (["embed"], "no linear layer's weight has 'embed'"),
        ([], "no pattern was given"),
    ],
)
def test_wrong_patterns_are_told(model, patterns, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        RetainProjection(model, patterns, 0.9)


def test_layers_are_chosen_by_their_weights_names(model):
    projection = RetainProjection(model, [r"1\.mlp\.down_proj\.weight$", "o_proj.weight"], 0.9)
    assert list(projection.layers) == [
        "model.layers.0.self_attn.o_proj",
        "model.layers.1.self_attn.o_proj",
        "model.layers.1.mlp.down_proj",
    ]
    assert [id(w) for w in projection.weights()] == [id(layer.weight) for layer in projection.layers.values()]


def test_use_out_of_order_is_told(model):
    projection = RetainProjection(model, ["down_proj"], 0.9)
    with pytest.raises(RuntimeError, match="collect"):
        projection.install()
    with pytest.raises(UserError, match="saw no retain token"):
        projection.collect([])


def test_a_layer_that_sees_a_part_of_the_tokens_is_refused(model, batches):
    projection = RetainProjection(model, ["lm_head"], 0.9)
    with pytest.raises(UserError, match="see every token in place"):
        projection.collect(
            [batches[0]],
            lambda b: model(input_ids=b.input_ids_BT, attention_mask=b.attention_mask_BT, logits_to_keep=1),
        )


def summed(rank, world_size):
    """A job for the ranks: each adds its own rows."""
    torch.manual_seed(0)
    covariance = StreamingCovariance(4)
    covariance.add(torch.randn(6, 4)[rank::world_size])
    covariance.all_reduce()
    return covariance.rows, covariance.sum_DD.tolist()


def test_ranks_sum_their_rows(two_ranks):
    torch.manual_seed(0)
    inputs = torch.randn(6, 4).double()
    for rows, total in two_ranks.run(summed):
        assert rows == 6
        torch.testing.assert_close(torch.tensor(total, dtype=torch.float64), inputs.T @ inputs)


def one_row(taught, split, row):
    formatter = Formatter(load_tokenizer(str(taught)), "plain", 256)
    chosen = open_benchmark("synthetic:tiny").split(split)[row]
    return collate([formatter.example(chosen.item_id, chosen.question, chosen.answer)], formatter.pad_id)


def prepared(taught, retain):
    """The model with nothing but the projected weights learning."""
    model = load_model(str(taught), "fp32")
    projection = RetainProjection(model, ["down_proj"], 1.0)
    projection.collect(retain)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for weight in projection.weights():
        weight.requires_grad_(True)
    projection.install()
    return model, projection


def zero_step(rank, world_size, taught, stage):
    """A job for the ranks: one SGD step of rate 1 on a row of each rank, under ZeRO; the projected weights after it."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model, projection = prepared(taught, [one_row(taught, "retain90", rank)])
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(projection.weights(), lr=1.0),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": stage},
        },
        dist_init_required=not deepspeed.comm.is_initialized(),
    )
    engine.backward(loss(engine, one_row(taught, "forget10", rank)))
    engine.step()
    whole = deepspeed.zero.GatheredParameters(projection.weights()) if stage == 3 else contextlib.nullcontext()
    with whole:
        return [weight.detach().clone().numpy() for weight in projection.weights()]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_zero_step_is_the_projected_step(two_ranks, taught, stage):
    model, projection = prepared(taught, [one_row(taught, "retain90", rank) for rank in range(2)])
    parts = [torch.autograd.grad(loss(model, one_row(taught, "forget10", n)), projection.weights()) for n in range(2)]
    for found in two_ranks.run(zero_step, taught, stage):
        for weight, gradients, new in zip(projection.weights(), zip(*parts, strict=True), found, strict=True):
            step = sum(gradients) / 2  # DeepSpeed takes the ranks' mean
            missed = (weight.detach() - step - torch.from_numpy(new)).norm()
            assert missed < 1e-5 * step.norm()
