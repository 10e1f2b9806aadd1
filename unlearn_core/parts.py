"""The parts that methods are composed of, by name: forget and retain losses, and combiners.

A method's file picks from here; `method.name: composed` lets a config pick any forget loss, retain loss and combiner.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pydantic import Field

from unlearn_core.combiners.bisector import Bisector
from unlearn_core.combiners.cagrad import CAGrad
from unlearn_core.combiners.combiner import Combiner
from unlearn_core.combiners.famo import FAMO
from unlearn_core.combiners.min_norm import MinNorm
from unlearn_core.combiners.moco import MoCo
from unlearn_core.combiners.primal_dual import PrimalDual
from unlearn_core.combiners.projection import BLUR, GRU, PCGrad
from unlearn_core.combiners.weighted import LossNorm, WeightedSum
from unlearn_core.errors import UserError
from unlearn_core.method import Settings
from unlearn_core.objective import Kind, Objective, Rows
from unlearn_core.objectives import bounded, divergence, likelihood, preference, representation, weighted


class Weights(Settings):
    """Constant weights of the two losses."""

    retain_weight: float = Field(default=1.0, ge=0)
    """alpha: weight of the retain loss."""
    forget_weight: float = Field(default=1.0, ge=0)
    """gamma: weight of the forget loss."""


@dataclass(frozen=True)
class Loss:
    """A loss and how the loop must feed it."""

    function: Callable[..., torch.Tensor]
    kind: Kind = "token"
    climbs_on_forget: bool = False
    """Whether forgetting means maximising it: the likelihood of forget rows."""
    references: bool = False
    bounded_below_by_zero: bool = True
    """Whether it is never negative, as FAMO needs, when it is minimised."""
    fixed: Mapping[str, Any] | None = None
    """Fields of `Objective` that come with the loss."""


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(likelihood.cross_entropy, climbs_on_forget=True),
    "nlul": Loss(bounded.nlul),
    "nlul_surrogate": Loss(bounded.nlul_surrogate, bounded_below_by_zero=False),
    "uce": Loss(bounded.uce),
    "ihl": Loss(bounded.ihl),
    "logit_spread": Loss(bounded.logit_spread),
    "wga": Loss(weighted.wga, bounded_below_by_zero=False),
    "satimp": Loss(weighted.satimp, bounded_below_by_zero=False),
    "ce_u": Loss(weighted.ce_u),
    "npo": Loss(preference.npo, "row", references=True),
    "simnpo": Loss(preference.simnpo, "row"),
    "idk_dpo": Loss(preference.dpo, "pair", fixed={"preferred": "refusal"}),
    "alt_po": Loss(preference.dpo, "pair", fixed={"preferred": "alternate"}),
    "kl": Loss(divergence.kl_teacher_first, "teacher", fixed={"least_at_teacher": True}),
    "reverse_kl": Loss(divergence.kl_student_first, "teacher", fixed={"least_at_teacher": True}),
    "qkl": Loss(divergence.qkl, "teacher", fixed={"least_at_teacher": True}),
    "undial": Loss(divergence.undial, "teacher"),
    "negative_entropy": Loss(divergence.negative_entropy, bounded_below_by_zero=False),
    "kl_to_uniform": Loss(divergence.kl_to_uniform),
    "rmu_forget": Loss(representation.rmu_forget, "hidden", fixed={"control": 0}),
    "rmu_retain": Loss(representation.rmu_retain, "hidden"),
}
"""Every loss by its name in configs."""

COMBINERS: dict[str, Callable[..., Combiner]] = {
    "weighted_sum": WeightedSum,
    "loss_norm": LossNorm,
    "ngdiff": Bisector,
    "min_norm": MinNorm,
    "moco": MoCo,
    "pcgrad": PCGrad,
    "gru": GRU,
    "blur": BLUR,
    "cagrad": CAGrad,
    "famo": FAMO,
    "primal_dual": PrimalDual,
}
"""Every combiner by its name in configs."""


def objective(
    rows: Rows, loss: str, *, label: str = "", layer: int = 0, skip_first: int = 0, **settings: Any
) -> Objective:
    """An objective on one set of rows.

    Args:
        rows: forget, retain or generic.
        loss: a name of `LOSSES`.
        label: name in logs; the set's by default.
        layer: of hidden losses.
        skip_first: label tokens of each row that do not count.
        settings: of the loss, such as beta.

    Raises:
        UserError: unknown loss or setting; a pair loss on rows that have no second answer.
    """
    part = _pick("loss", loss, LOSSES)
    if part.kind == "pair" and rows != "forget":
        raise UserError(f"{loss} needs a second answer to each question, which only forget rows have; not {rows}")
    _check_settings(f"loss {loss}", part.function, settings)
    return Objective(
        rows=rows,
        loss=partial(part.function, **settings) if settings else part.function,
        kind=part.kind,
        maximise=part.climbs_on_forget and rows == "forget",
        references=part.references,
        label=label,
        layer=layer,
        skip_first=skip_first,
        **(part.fixed or {}),
    )


def combiner(name: str, **settings: Any) -> Combiner:
    """A fresh combiner; `UserError` for an unknown name or setting."""
    kind = _pick("combiner", name, COMBINERS)
    _check_settings(f"combiner {name}", kind, settings)
    return kind(**settings)


def retain(loss: str = "cross_entropy", **settings: Any) -> Objective:
    """An objective on retain rows."""
    return objective("retain", loss, **settings)


def forget(loss: str = "cross_entropy", **settings: Any) -> Objective:
    """An objective on forget rows; cross-entropy is climbed, every other loss descended."""
    return objective("forget", loss, **settings)


def weighted_sum(settings: Weights) -> WeightedSum:
    """Constant weights, retain first."""
    return WeightedSum([settings.retain_weight, settings.forget_weight])


def with_control_seed(steering: Objective, seed: int) -> Objective:
    """The same RMU objective with another random direction."""
    return replace(steering, control=seed)


def _pick(what: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UserError(f"Unknown {what} '{name}'.{hint} Known: {', '.join(known)}.")
    return known[name]


def _check_settings(what: str, function: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    signature = inspect.signature(function)
    takes = [p.name for p in signature.parameters.values() if what.startswith("combiner") or p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(settings) - set(takes))
    if unknown:
        raise UserError(f"{what} has no setting {', '.join(unknown)}. Valid: {', '.join(takes) or 'none'}.")
    missing = [
        name for name in takes if signature.parameters[name].default is inspect.Parameter.empty and name not in settings
    ]
    if missing:
        raise UserError(f"{what} needs {', '.join(missing)}.")
