"""Part (a): does a step of plain SGD help both aims at once? Static weights against NGDiff.

    g = c g_R - (1 - c) g_F          GradDiff, c constant
    g = g_R / |g_R| - g_F / |g_F|    NGDiff

On every step, with the batches of that step:

    retain sign     <g, g_R> >= 0,  else the step raises the retain loss to first order
    forget sign     <g, g_F> <= 0,  else the step lowers the forget loss to first order
    retain loss     L_R(theta - eta g) <= L_R(theta)

at the rate eta = min( share x 2 <g_R, g> / (g' H_R g),  length / |g| ). The first term is below the bound at which an
exactly quadratic retain loss stops falling; it exists only where slope and curvature along g are positive. The second
caps the step's length. g is the gradient that the loop's engine is about to step along; g_R, g_F, the curvature (a
Hessian-vector product) and the losses are worked out apart from it, on an fp64 copy of the model.
"""

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper_shapes_model import Probe
from benchmarks.paper_shapes_runs import run_config, run_loop
from unlearn_core.data.packing import PassInputs
from unlearn_core.objectives.likelihood import cross_entropy
from unlearn_core.update import StepRows, Update
from unlearn_core.zero.engine import ZeroEngine

WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""c of each GradDiff run."""
SHARE = 0.5
"""Of the bound on the rate; a half is the minimum of the parabola."""
SIGN_TOLERANCE = 1e-5
"""A sign counts as wrong when the cosine is beyond this on the wrong side: g is fp32."""
LOSS_TOLERANCE = 1e-7
"""A rise counts when it is above this share of the loss: the weights are rounded to fp32 after the step."""


@dataclass
class Signs:
    """What was seen on each step of one run."""

    name: str
    retain_cosine: list[float] = field(default_factory=list)
    """cos(g, g_R); wrong when negative."""
    forget_cosine: list[float] = field(default_factory=list)
    """cos(g, g_F); wrong when positive."""
    between: list[float] = field(default_factory=list)
    """cos(g_R, g_F)."""
    rise: list[float] = field(default_factory=list)
    """(L_R after - L_R before) / L_R before, on the step's own batch."""
    retain_loss: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    bound: list[float | None] = field(default_factory=list)
    """2 <g_R, g> / (g' H_R g); None where slope or curvature is not positive."""
    forget: list[float] = field(default_factory=list)
    """Forget probability before every tenth step, and at the end."""
    retain: list[float] = field(default_factory=list)

    def shares(self) -> dict[str, Any]:
        """Shares of the steps that went wrong, and how often the rate was set by the bound, not the length."""
        steps = len(self.rise)
        wrong = [cosine < -SIGN_TOLERANCE for cosine in self.retain_cosine]
        risen = [rise > LOSS_TOLERANCE for rise in self.rise]
        bounds = zip(self.bound, self.rate, strict=True)
        return {
            "steps": steps,
            "retain sign wrong": sum(wrong) / steps,
            "forget sign wrong": sum(cosine > SIGN_TOLERANCE for cosine in self.forget_cosine) / steps,
            "retain loss rose": sum(risen) / steps,
            "rose though the retain sign was right": sum(up and not no for up, no in zip(risen, wrong, strict=True))
            / steps,
            "rate set by the bound": sum(bound is not None and rate == SHARE * bound for bound, rate in bounds) / steps,
            "forget probability": (self.forget[0], self.forget[-1]),
            "retain probability": (self.retain[0], self.retain[-1]),
        }


def measure_signs(folder: Path, probe: Probe, steps: int, length: float) -> list[Signs]:
    """Each static weight and NGDiff, from the same start with the same batches.

    Args:
        folder: of the start model.
        probe: for forget and retain probability along the run.
        steps: of each run.
        length: largest length of a step, in weights' units.
    """
    methods = [
        *((f"GradDiff c={c}", "grad_diff", {"retain_weight": c, "forget_weight": round(1 - c, 10)}) for c in WEIGHTS),
        ("NGDiff", "ngdiff", {}),
    ]
    return [_run(folder, probe, steps, length, *method) for method in methods]


def _run(
    folder: Path, probe: Probe, steps: int, length: float, name: str, method: str, settings: dict[str, Any]
) -> Signs:
    seen = Signs(name)
    rows_now: list[StepRows] = []
    copies: list[Any] = []
    engine_step = ZeroEngine.step

    def before(update: Update, rows: StepRows, step: int) -> None:
        rows_now[:] = [rows]
        if not copies:
            copies.append(copy.deepcopy(update.engine.module).double())
        if step % 10 == 0:
            _look(seen, probe, update.engine.module)

    def measured_step(self: ZeroEngine, learning_rate: float) -> None:
        """The optimizer step at the rate found here instead of the configured one; plain SGD, so no state."""
        rows, exact = rows_now[0], copies[0]
        retain, forget = (inputs[0] for inputs in rows.inputs)
        exact.load_state_dict(self.module.state_dict())
        g = [parameter.grad.detach().double() for parameter in self.module.parameters()]
        retain_loss, g_retain, curved = _gradient(exact, retain, g)
        _, g_forget, _ = _gradient(exact, forget)
        slope, norm = _dot(g, g_retain), math.sqrt(_dot(g, g))
        bound = 2 * slope / curved if slope > 0 and curved > 0 else None
        rate = min(length / norm, math.inf if bound is None else SHARE * bound)
        engine_step(self, rate)
        exact.load_state_dict(self.module.state_dict())
        with torch.no_grad():
            after = _loss(exact, retain)
        norm_retain, norm_forget = math.sqrt(_dot(g_retain, g_retain)), math.sqrt(_dot(g_forget, g_forget))
        seen.retain_cosine.append(slope / (norm * norm_retain))
        seen.forget_cosine.append(_dot(g, g_forget) / (norm * norm_forget))
        seen.between.append(_dot(g_retain, g_forget) / (norm_retain * norm_forget))
        seen.rise.append(float(after) / retain_loss - 1)
        seen.retain_loss.append(retain_loss)
        seen.rate.append(rate)
        seen.bound.append(bound)

    def after(update: Update, step: int, _metrics: dict[str, Any]) -> None:
        if step + 1 == steps:
            _look(seen, probe, update.engine.module)

    # Attention must be the plain one: the fused ones have no second derivative.
    config = run_config(
        folder, method, settings, {"name": "sgd", "learning_rate": 1e-3}, steps, model={"attention": "eager"}
    )
    ZeroEngine.step = measured_step
    try:
        outcome = run_loop(config, before, after)
    finally:
        ZeroEngine.step = engine_step
    assert outcome == "finished", f"{name}: {outcome}"
    return seen


def _look(seen: Signs, probe: Probe, model: Any) -> None:
    seen.forget.append(probe.forget_probability(model))
    seen.retain.append(probe.retain_probability(model))


def _loss(model: Any, inputs: PassInputs) -> torch.Tensor:
    output = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, use_cache=False)
    logits_NV = output.logits.flatten(0, 1)[inputs.predictors_N]
    return cross_entropy(logits_NV, inputs.targets_N) / len(inputs.targets_N)


def _gradient(
    model: Any, inputs: PassInputs, along: list[torch.Tensor] | None = None
) -> tuple[float, list[torch.Tensor], float]:
    """Loss, its gradient, and d' H d along a direction d (0 without one)."""
    parameters = list(model.parameters())
    loss = _loss(model, inputs)
    gradient = torch.autograd.grad(loss, parameters, create_graph=along is not None)
    curved = 0.0
    if along is not None:
        slope = sum((g * d).sum() for g, d in zip(gradient, along, strict=True))
        product = torch.autograd.grad(slope, parameters)  # type: ignore[arg-type]
        curved = _dot(product, along)
    return float(loss.detach()), [g.detach() for g in gradient], curved


def _dot(left: Any, right: Any) -> float:
    return float(sum((a * b).sum() for a, b in zip(left, right, strict=True)))
