"""Any forget loss with any retain loss, penalty, combiner and teacher. The named methods are presets of this.

    theta <- theta - eta sum_k weight_k g_k,   weights from the combiner

For example NPO under NGDiff's combiner, with a KL penalty on generic text:

    method:
      name: composed
      settings:
        forget: {loss: npo, settings: {beta: 0.1}}
        generic: {loss: kl}
        combiner: {name: ngdiff}
"""

from typing import Any, Literal

from pydantic import Field

from unlearn_core.combiners.weighted import WeightedSum
from unlearn_core.errors import UserError
from unlearn_core.method import Composition, Method, Settings, TeacherRule
from unlearn_core.parts import LOSSES, combiner, objective


class LossPart(Settings):
    """A loss by name."""

    loss: str = "cross_entropy"
    """A name of unlearn_core/parts.py: cross_entropy, nlul, npo, simnpo, kl, ..."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The loss's own, such as beta; for hidden losses also `layer`, for any `skip_first`."""
    weight: float = Field(default=1.0, ge=0)
    """Its weight under the combiner weighted_sum."""


class CombinerPart(Settings):
    """A combiner by name."""

    name: str = "weighted_sum"
    """weighted_sum, loss_norm, ngdiff, min_norm, moco, pcgrad, gru, blur, cagrad, famo or primal_dual."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The combiner's own; weighted_sum takes its weights from the losses."""


class ComposedSettings(Settings):
    """The parts. Gram order: retain, generic, forget."""

    forget: LossPart = LossPart()
    """Loss on forget rows; cross_entropy is maximised, every other loss minimised."""
    retain: LossPart | None = LossPart()
    """Loss on retain rows; null for none."""
    generic: LossPart | None = None
    """Loss on generic text; null for none."""
    combiner: CombinerPart = CombinerPart()
    """How the gradients are weighed."""
    teacher_rate: float = Field(default=0.0, ge=0, le=1)
    """delta of an EMA teacher; 0 keeps the start model, where a loss needs one."""
    damping: float = Field(default=0.0, ge=0)
    """mu: pull towards the teacher."""
    freeze: tuple[Literal["embeddings", "head", "norms"], ...] = ()
    """Parts that do not train."""


def _goes_below(part: LossPart) -> bool:
    return part.loss in LOSSES and not LOSSES[part.loss].bounded_below_by_zero


TWO_ONLY = ("gru", "blur", "primal_dual")
"""Combiners that tell retain from forget by their place, so they take exactly one loss of each."""


def compose(settings: ComposedSettings) -> Composition:
    """The composition; `UserError` where parts do not fit each other."""
    chosen = [("retain", settings.retain), ("generic", settings.generic), ("forget", settings.forget)]
    given = [(rows, part) for rows, part in chosen if part is not None]
    objectives = tuple(objective(rows, part.loss, **part.settings) for rows, part in given)  # type: ignore[arg-type]
    name, options = settings.combiner.name, dict(settings.combiner.settings)
    if name in TWO_ONLY and len(objectives) != 2:
        raise UserError(f"combiner {name} weighs one loss to keep against one to forget; got {len(objectives)} losses")
    if name == "famo" and (objectives[-1].maximise or any(_goes_below(part) for _, part in given)):
        raise UserError(
            f"combiner famo needs losses that are minimised and never negative; not so the forget loss "
            f"'{settings.forget.loss}'. Take nlul, uce, npo, ihl or kl_to_uniform."
        )
    if name == "weighted_sum":
        if options:
            raise UserError("weighted_sum takes each loss's own `weight`, such as forget: {loss: nlul, weight: 0.1}")
        chooser = WeightedSum([part.weight for _, part in given])
    else:
        if name in ("moco", "famo"):
            options.setdefault("objectives", len(objectives))
        chooser = combiner(name, **options)
    needs = settings.teacher_rate > 0 or settings.damping > 0 or any(one.needs_teacher for one in objectives)
    return Composition(
        objectives=objectives,
        combiner=chooser,
        teacher=TeacherRule(settings.teacher_rate, settings.damping) if needs else None,
        freeze=settings.freeze,
    )


METHOD = Method(
    name="composed",
    title="Composed",
    paper="none: any pair of parts",
    equation="sum_k weight_k g_k of the parts named",
    compose=compose,
    settings=ComposedSettings,
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.forget.loss": {"choice": ["cross_entropy", "nlul", "npo", "simnpo", "uce", "wga", "ihl"]},
        "method.settings.forget.settings.beta": {
            "log_uniform": [0.01, 1.0],
            "when": {"method.settings.forget.loss": ["npo"]},
        },
        "method.settings.combiner.name": {"choice": ["weighted_sum", "ngdiff", "pcgrad", "min_norm"]},
    },
)
