"""theta_l <- theta_l + lam G_f,l for one layer l: SLUG, a single step along the forget gradient of a single layer.

"Targeted Unlearning with Single Layer Unlearning Gradient", ICML 2025 (arXiv 2407.11867):

1. G_f, G_r: gradients of the mean cross-entropy over forget and retain set at the start model, in one pass each.
2. Importance |G_f,l| / |theta_l| and alignment |cos(G_f,l, G_r,l)| of each weight matrix l.
3. Candidates: the Pareto set of (large importance, small alignment).
4. For each candidate, bisection on lam from |theta_l| / (10 |G_f,l|), at most 10 models, towards the smallest lam that
   meets the forget criterion.

Every (layer, lam) tried is a point of the trade-off between forgetting and utility and is returned.

Deviations. The paper edits vision-language and diffusion models and its code searches for a forget accuracy of 0; on
language models that forgets too much, so the search here stops at a threshold, such as the forget probability of a
model retrained without the forget data. Utility is the retain set's loss. A model whose criterion is not finite counts
as edited too far. Embeddings are left alone, as is an output layer that shares theirs; one of its own may be edited.
Norms and dot products are summed in fp64; gradients are summed in fp32 whatever the model's dtype.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from unlearn_core.data.tokenization import IGNORE, Example, collate
from unlearn_core.errors import UserError
from unlearn_core.evaluation.scoring import Score, score_examples

ITERATIONS = 10
"""Models tried for each candidate layer, at most."""
_FIRST_FRACTION = 0.1
"""Length of the first step as a fraction of the layer's norm."""

Criterion = Callable[[PreTrainedModel], float]
Report = Callable[[str, int, int], None]
"""Called with (what is done, how many are done, how many in all)."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Diagnostics of one weight matrix.

    Attributes:
        name: of the parameter.
        importance: |G_f| / |theta|, at least 0; 0 for a matrix of zeros.
        alignment: |cos(G_f, G_r)|, in [0, 1]; 0 where the retain gradient is zero.
        first_scale: lam of the first step, |theta| / (10 |G_f|); 0 where there is nothing to step along.
    """

    name: str
    importance: float
    alignment: float
    first_scale: float


@dataclass(frozen=True, slots=True)
class SlugPoint:
    """One model that the search tried.

    Attributes:
        layer: the edited parameter.
        scale: lam.
        forget: the criterion's value, lower is more forgotten; NaN or infinite for a broken model.
        retain_loss: mean negative log-likelihood per label token of the retain rows, nats; may be infinite or NaN.
        meets: whether forget <= threshold, and both values are finite.
    """

    layer: str
    scale: float
    forget: float
    retain_loss: float
    meets: bool


@dataclass(frozen=True, slots=True)
class SlugResult:
    """What a search found.

    Attributes:
        layers: every weight matrix, most important first.
        candidates: those that were searched, most important first.
        start: criterion and retain loss of the start model; its scale is 0 and its layer empty.
        points: every model tried, in order; all of a layer together.
        directions: candidate's name -> G_f of it (fp32, CPU), so that a point can be made again: theta + scale * G_f.
    """

    layers: tuple[Layer, ...]
    candidates: tuple[Layer, ...]
    start: SlugPoint
    points: tuple[SlugPoint, ...]
    directions: dict[str, Tensor]

    @property
    def best(self) -> SlugPoint | None:
        """See `best_point`."""
        return best_point(self.points)


def best_point(points: Sequence[SlugPoint]) -> SlugPoint | None:
    """The point that meets the threshold at the lowest retain loss; None where none meets it. Ties: the first."""
    return min((point for point in points if point.meets), key=lambda point: point.retain_loss, default=None)


def pareto_set(layers: Sequence[Layer]) -> list[Layer]:
    """Layers that no other layer beats strictly in both importance (more) and alignment (less).

    As in the authors' code a tie on either side does not exclude, so the set may hold a layer that another equals in
    one measure and beats in the other.

    Args:
        layers: any number.

    Returns:
        The set, most important first.
    """
    kept = [
        layer
        for layer in layers
        if not any(other.importance > layer.importance and other.alignment < layer.alignment for other in layers)
    ]
    return sorted(kept, key=lambda layer: (-layer.importance, layer.alignment, layer.name))


def bisect_scale(
    too_small: Callable[[float], bool], first: float, iterations: int = ITERATIONS
) -> list[tuple[float, bool]]:
    """Scales tried on the way to the smallest that is large enough: doubling until one is, then halving the gap.

    Args:
        too_small: whether a scale leaves too much; monotone in theory, asked once a scale.
        first: scale to begin with, above 0.
        iterations: scales to try, at least 1.

    Returns:
        (scale, too small) in the order tried. The lower end of the gap starts at 0.
    """
    low, high, scale = 0.0, math.inf, first
    tried: list[tuple[float, bool]] = []
    for _ in range(iterations):
        small = too_small(scale)
        tried.append((scale, small))
        if small:
            low = scale
        else:
            high = scale
        scale = 2.0 * scale if math.isinf(high) else 0.5 * (low + high)
    return tried


def measure_layer(name: str, weight: Tensor, forget_gradient: Tensor, retain_gradient: Tensor) -> Layer:
    """Importance, alignment and first scale of one weight matrix.

    Args:
        name: of the parameter.
        weight: theta_l, any float dtype.
        forget_gradient: G_f,l, same shape.
        retain_gradient: G_r,l, same shape.
    """
    weight_norm, forget_norm = _norm(weight), _norm(forget_gradient)
    retain_norm = _norm(retain_gradient)
    if weight_norm == 0.0 or forget_norm == 0.0:
        return Layer(name, 0.0, 0.0, 0.0)
    cosine = 0.0
    if retain_norm > 0.0:
        # Divided before the product: two tiny gradients' product of norms could underflow.
        dot = float(
            (forget_gradient.double() / forget_norm).flatten() @ (retain_gradient.double() / retain_norm).flatten()
        )
        cosine = min(1.0, abs(dot))
    return Layer(name, forget_norm / weight_norm, cosine, _FIRST_FRACTION * weight_norm / forget_norm)


def weight_matrices(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters that SLUG may edit: two-dimensional, and no embedding (nor what shares one)."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and id(parameter) not in embeddings
    }


def mean_gradients(
    model: PreTrainedModel,
    examples: Sequence[Example],
    names: Sequence[str],
    pad_id: int,
    micro_batch: int,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Gradient of the cross-entropy per label token over all examples, at the model's present weights.

    Args:
        model: in evaluation mode (no dropout); its device is used. Its gradients are left empty.
        examples: one pass over these; the sum of their losses is divided by all their label tokens.
        names: parameters to differentiate; all others are treated as constants.
        pad_id: any valid token id.
        micro_batch: rows of one forward pass; changes rounding and memory only.
        advance: called with the rows done so far.

    Returns:
        Name -> fp32 gradient on the CPU.

    Raises:
        UserError: a gradient is not finite.
    """
    total = sum(example.label_count for example in examples)
    chosen = dict(model.named_parameters())
    sums = {name: torch.zeros_like(chosen[name], dtype=torch.float32) for name in names}
    with _only_these_learn(model, sums):
        for start in range(0, len(examples), micro_batch):
            batch = collate(examples[start : start + micro_batch], pad_id).to(model.device)
            logits_BTV = model(
                input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False
            ).logits
            predicts_BT = batch.labels_BT[:, 1:] != IGNORE
            logits_NV = logits_BTV[:, :-1][predicts_BT].float()
            (F.cross_entropy(logits_NV, batch.labels_BT[:, 1:][predicts_BT], reduction="sum") / total).backward()
            if advance is not None:
                advance(min(start + micro_batch, len(examples)))
    gradients = {name: tensor.cpu() for name, tensor in sums.items()}
    broken = [name for name, tensor in gradients.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(
            f"the gradient of '{broken[0]}' and {len(broken) - 1} other matrices is not finite; expected a model that "
            "gives its own rows finite losses. Check the model, or load it with dtype fp32"
        )
    return gradients


def mean_probability(scores: Sequence[Score]) -> float:
    """Mean over rows of exp(mean log-probability per label token): TOFU's Probability, in [0, 1]."""
    return math.fsum(math.exp(-score.avg_loss) for score in scores) / len(scores)


def mean_loss(scores: Sequence[Score]) -> float:
    """Negative log-likelihood per label token over all rows, nats; rows count by their label tokens."""
    log_probs = [log_prob for score in scores for log_prob in score.log_probs]
    return -sum(log_probs) / len(log_probs)


def forget_probability(examples: Sequence[Example], token_budget: int) -> Criterion:
    """The default criterion: the mean probability that a model gives the answers to be forgotten.

    Args:
        examples: the forget rows.
        token_budget: most tokens of one forward pass.

    Returns:
        model -> value in [0, 1]; 1 means known by heart; NaN where the model's logits are.
    """
    return lambda model: mean_probability(score_examples(model, examples, token_budget))


def slug(
    model: PreTrainedModel,
    forget: Sequence[Example],
    retain: Sequence[Example],
    *,
    criterion: Criterion,
    threshold: float,
    scored_retain: Sequence[Example] | None = None,
    pad_id: int,
    most_layers: int | None = None,
    iterations: int = ITERATIONS,
    micro_batch: int = 4,
    token_budget: int = 4096,
    report: Report | None = None,
) -> SlugResult:
    """Search all (layer, lam) of SLUG. The model's weights are what they were when it returns.

    Args:
        model: the start model in evaluation mode, in fp32 or bf16, whole on one device.
        forget: rows whose gradient is taken.
        retain: the same for utility.
        criterion: model -> a number to bring down, such as `forget_probability(...)`.
        threshold: the edit is large enough when criterion <= threshold.
        scored_retain: rows of the retain loss that chooses among points; None for all of `retain`.
        pad_id: any valid token id.
        most_layers: search only so many of the Pareto set, the most important ones; None for all.
        iterations: models tried for each layer.
        micro_batch: rows of one forward and backward pass.
        token_budget: most tokens of one forward pass when scoring retain rows.
        report: told of progress.

    Returns:
        The measures, all points and the gradients to make them again.

    Raises:
        UserError: the start model meets the threshold already, has no finite criterion, its gradients are not finite
            or zero on every matrix.
    """
    tell = report or (lambda *_: None)
    scored = retain if scored_retain is None else scored_retain

    def measure(layer: str, scale: float) -> SlugPoint:
        value, loss = criterion(model), mean_loss(score_examples(model, scored, token_budget))
        finite = math.isfinite(value) and math.isfinite(loss)
        return SlugPoint(layer, scale, value, loss, finite and value <= threshold)

    start = measure("", 0.0)
    if not start.forget > threshold:
        raise UserError(
            f"the start model's forget criterion is {start.forget:.4g}, the threshold {threshold:.4g}: nothing is left "
            "to forget, or the model is broken. Expected a criterion above the threshold; lower the threshold or give "
            "another model"
        )
    matrices = weight_matrices(model)
    names = list(matrices)
    forget_G, retain_G = (
        mean_gradients(model, rows, names, pad_id, micro_batch, _counter(tell, f"{name} gradient", len(rows)))
        for name, rows in (("forget", forget), ("retain", retain))
    )
    measured = [measure_layer(name, matrices[name].detach().cpu(), forget_G[name], retain_G[name]) for name in names]
    candidates = pareto_set([layer for layer in measured if layer.importance > 0.0])[:most_layers]
    if not candidates:
        raise UserError(
            "the forget gradient is zero on every weight matrix; expected rows that the model can learn from"
        )

    points: list[SlugPoint] = []
    total = len(candidates) * iterations
    for layer in candidates:
        with _scaled_edit(matrices[layer.name], forget_G[layer.name]) as apply:

            def too_small(scale: float, layer: Layer = layer, apply: Callable[[float], None] = apply) -> bool:
                apply(scale)
                points.append(measure(layer.name, scale))
                tell("models tried", len(points), total)
                return points[-1].forget > threshold and math.isfinite(points[-1].forget)

            bisect_scale(too_small, layer.first_scale, iterations)
    return SlugResult(
        layers=tuple(sorted(measured, key=lambda layer: (-layer.importance, layer.name))),
        candidates=tuple(candidates),
        start=start,
        points=tuple(points),
        directions={layer.name: forget_G[layer.name] for layer in candidates},
    )


def edited(weight: Tensor, direction: Tensor, scale: float) -> Tensor:
    """New weights theta + scale * G_f, computed in fp32 (ascent of the forget loss for scale > 0)."""
    return weight.float() + scale * direction


@contextmanager
def _scaled_edit(parameter: nn.Parameter, direction: Tensor) -> Iterator[Callable[[float], None]]:
    """Gives a function that sets the parameter to its start plus scale * direction; puts the start back at the end."""
    start = parameter.detach().clone()
    on_device = direction.to(parameter.device)

    def apply(scale: float) -> None:
        with torch.no_grad():
            parameter.copy_(edited(start, on_device, scale))

    try:
        yield apply
    finally:
        with torch.no_grad():
            parameter.copy_(start)


@contextmanager
def _only_these_learn(model: PreTrainedModel, sums: dict[str, Tensor]) -> Iterator[None]:
    """Each gradient is added to its fp32 sum and freed as soon as the backward pass has made it."""
    learned = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    hooks = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in sums)
        if name in sums:

            def add(parameter: Tensor, total: Tensor = sums[name]) -> None:
                total.add_(cast(Tensor, parameter.grad))
                parameter.grad = None

            parameter.grad = None
            hooks.append(parameter.register_post_accumulate_grad_hook(add))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(learned[name])


def _counter(tell: Report, stage: str, total: int) -> Callable[[int], None]:
    return lambda done: tell(stage, done, total)


def _norm(tensor: Tensor) -> float:
    return float(tensor.double().norm())
