"""SLUG: measures, Pareto set and bisection by hand; the whole search on a small taught model."""

import copy
import itertools
import math

import pytest
import torch

from unlearn_core.data.tofu import open_benchmark
from unlearn_core.data.tokenization import Formatter, collate, load_tokenizer
from unlearn_core.edits.slug import (
    Layer,
    SlugPoint,
    best_point,
    bisect_scale,
    edited,
    forget_probability,
    mean_gradients,
    mean_loss,
    mean_probability,
    measure_layer,
    pareto_set,
    slug,
    weight_matrices,
)
from unlearn_core.errors import UserError
from unlearn_core.evaluation.scoring import Score, score_examples
from unlearn_core.models import load_model


def layers(*measures):
    return [Layer(chr(ord("a") + n), importance, alignment, 1.0) for n, (importance, alignment) in enumerate(measures)]


@pytest.mark.parametrize(
    ("measures", "kept"),
    [
        ([(1.0, 0.5)], "a"),
        ([(1.0, 0.5), (2.0, 0.1)], "b"),  # b is better in both
        ([(1.0, 0.1), (2.0, 0.5)], "ba"),  # one each
        ([(3.0, 0.9), (2.0, 0.5), (1.0, 0.1), (1.5, 0.7), (0.5, 0.1)], "abce"),  # d loses to b; e ties c in alignment
        ([(1.0, 0.5), (1.0, 0.2)], "ba"),  # a tie in importance is kept
        ([(1.0, 0.5), (1.0, 0.5)], "ab"),
        ([], ""),
    ],
)
def test_pareto_set_by_hand(measures, kept):
    assert "".join(layer.name for layer in pareto_set(layers(*measures))) == kept


def test_bisection_by_hand():
    # Doubling until 4 is enough (3 is needed), then halving [2, 4].
    tried = bisect_scale(lambda scale: scale < 3.0, 1.0, 6)
    assert tried == [(1.0, True), (2.0, True), (4.0, False), (3.0, False), (2.5, True), (2.75, True)]


def test_bisection_goes_down_from_a_first_step_that_is_enough():
    assert [scale for scale, _ in bisect_scale(lambda scale: scale < 1.0, 8.0, 5)] == [8.0, 4.0, 2.0, 1.0, 0.5]


def test_bisection_never_met_doubles():
    assert [scale for scale, _ in bisect_scale(lambda _: True, 0.5, 4)] == [0.5, 1.0, 2.0, 4.0]


def test_measures_by_hand():
    weight = torch.tensor([[6.0, 8.0]])  # norm 10
    layer = measure_layer("w", weight, torch.tensor([[3.0, 4.0]]), torch.tensor([[-4.0, -3.0]]))
    assert layer.importance == pytest.approx(0.5)
    assert layer.alignment == pytest.approx(24 / 25)  # |-12 - 12| / (5 * 5)
    assert layer.first_scale == pytest.approx(10 / 50)


def test_degenerate_measures():
    one, zero = torch.ones(1, 2), torch.zeros(1, 2)
    assert measure_layer("w", one, zero, one) == Layer("w", 0.0, 0.0, 0.0)
    assert measure_layer("w", zero, one, one) == Layer("w", 0.0, 0.0, 0.0)
    assert measure_layer("w", one, one, zero).alignment == 0.0
    tiny = torch.full((1, 2), 1e-30)
    assert measure_layer("w", one, tiny, tiny).alignment == pytest.approx(1.0)


def test_probability_and_loss_by_hand():
    scores = [Score((-math.log(2),), (True,)), Score((-math.log(4),) * 3, (True,) * 3)]
    assert mean_probability(scores) == pytest.approx(0.375)  # rows count alike
    assert mean_loss(scores) == pytest.approx((math.log(2) + 3 * math.log(4)) / 4)  # tokens count alike


def test_best_point():
    points = [
        SlugPoint("a", 1.0, 0.05, 2.0, True),
        SlugPoint("a", 2.0, 0.01, 1.0, True),
        SlugPoint("b", 1.0, 0.5, 0.1, False),
    ]
    assert best_point(points) is points[1]
    assert best_point(points[2:]) is None


@pytest.fixture(scope="module")
def rows(taught):
    """Forget and retain examples and the pad id."""
    formatter = Formatter(load_tokenizer(str(taught)), "plain", 256)
    benchmark = open_benchmark("synthetic:tiny")
    forget, retain = (
        [formatter.example(row.item_id, row.question, row.answer) for row in benchmark.split(name)]
        for name in ("forget10", "retain90")
    )
    return forget, retain[:12], formatter.pad_id


@pytest.fixture(scope="module")
def model(taught):
    return load_model(str(taught), "fp32")


def test_matrices_are_the_weights_of_linear_layers(model):
    names = set(weight_matrices(model))
    assert names == {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    assert "lm_head.weight" in names  # untied in this model
    tied = copy.deepcopy(model)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    assert set(weight_matrices(tied)) == names - {"lm_head.weight"}


def test_gradients_are_those_of_the_mean_over_all_label_tokens(model, rows):
    _, examples, pad_id = rows
    examples = examples[:5]
    names = ["model.layers.0.self_attn.q_proj.weight", "lm_head.weight"]
    batch = collate(examples, pad_id)
    whole = copy.deepcopy(model)
    # transformers' own loss is the mean over the batch's label tokens
    whole(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, labels=batch.labels_BT).loss.backward()
    done = []
    found = mean_gradients(model, examples, names, pad_id, 2, done.append)
    assert list(found) == names
    assert done == [2, 4, 5]
    for name in names:
        expected = whole.get_parameter(name).grad
        assert (found[name] - expected).norm() < 1e-5 * expected.norm()
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_half_precision_gradients_are_summed_in_fp32(taught, model, rows):
    _, examples, pad_id = rows
    name = "model.layers.1.mlp.down_proj.weight"
    found = mean_gradients(load_model(str(taught), "bf16"), examples, [name], pad_id, 1)[name]
    exact = mean_gradients(model, examples, [name], pad_id, 4)[name]
    assert found.dtype == torch.float32
    assert (found - found.bfloat16().float()).abs().max() > 0  # a bf16 sum would have no such digits
    assert (found - exact).norm() < 0.05 * exact.norm()


@pytest.fixture(scope="module")
def search(model, rows):
    """(result, threshold, start weights) of a search towards half the start's forget probability."""
    forget, retain, pad_id = rows
    criterion = forget_probability(forget, 4096)
    threshold = 0.5 * criterion(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    told = []
    result = slug(
        model,
        forget,
        retain,
        criterion=criterion,
        threshold=threshold,
        pad_id=pad_id,
        most_layers=2,
        iterations=4,
        report=lambda *stage: told.append(stage),
    )
    assert told[-1] == ("models tried", 8, 8)
    assert ("forget gradient", len(forget), len(forget)) in told
    return result, threshold, before


def test_a_search_tries_every_candidate_and_leaves_the_model(model, search):
    result, _, before = search
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert len(result.candidates) == 2 and len(result.points) == 8
    assert [key for key, _ in itertools.groupby(result.points, key=lambda point: point.layer)] == [
        layer.name for layer in result.candidates
    ]
    assert len(result.layers) == len(weight_matrices(model))
    assert [layer.importance for layer in result.layers] == sorted(
        (layer.importance for layer in result.layers), reverse=True
    )
    assert result.points[0].scale == pytest.approx(result.candidates[0].first_scale)
    assert set(result.directions) == {layer.name for layer in result.candidates}


def test_the_search_comes_down_to_the_threshold(search):
    result, threshold, _ = search
    assert result.start.forget == pytest.approx(2 * threshold) and result.start.scale == 0.0
    assert result.best is not None and result.best.forget <= threshold
    assert all(point.meets == (point.forget <= threshold) for point in result.points)
    assert result.best.retain_loss == min(point.retain_loss for point in result.points if point.meets)
    assert result.best.retain_loss > result.start.retain_loss


def test_a_point_can_be_made_again(model, rows, search):
    result, _, _ = search
    forget, retain, _ = rows
    point = result.points[-1]
    again = copy.deepcopy(model)
    weight = again.get_parameter(point.layer)
    with torch.no_grad():
        weight.copy_(edited(weight, result.directions[point.layer], point.scale))
    assert forget_probability(forget, 4096)(again) == pytest.approx(point.forget, rel=1e-5)
    assert mean_loss(score_examples(again, retain, 4096)) == pytest.approx(point.retain_loss, rel=1e-5)


def test_a_start_that_forgot_already_is_refused(model, rows):
    forget, retain, pad_id = rows
    with pytest.raises(UserError, match="nothing is left to forget"):
        slug(model, forget, retain, criterion=lambda _: 0.1, threshold=0.2, pad_id=pad_id)
    with pytest.raises(UserError, match="or the model is broken"):
        slug(model, forget, retain, criterion=lambda _: math.nan, threshold=0.2, pad_id=pad_id)


def test_a_broken_model_counts_as_edited_too_far(model, rows):
    """The criterion is a stand-in: 1 at the start, then NaN for every scale; the search must go down, never up."""
    forget, retain, pad_id = rows
    answers = itertools.chain([1.0], itertools.repeat(math.nan))
    result = slug(
        model,
        forget[:2],
        retain[:2],
        criterion=lambda _: next(answers),
        threshold=0.5,
        pad_id=pad_id,
        most_layers=1,
        iterations=3,
    )
    first = result.points[0].scale
    assert [point.scale for point in result.points] == [first, first / 2, first / 4]
    assert not any(point.meets for point in result.points) and result.best is None


def test_a_model_without_a_forget_gradient_is_told(model, rows):
    forget, retain, pad_id = rows
    dead = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in dead.parameters():
            parameter.zero_()
    with pytest.raises(UserError, match="zero on every weight matrix"):
        slug(dead, forget[:2], retain[:2], criterion=lambda _: 1.0, threshold=0.5, pad_id=pad_id)
