"""Parts (b), (c) and (d): what the mean teacher needs, how its rate sets the pace, and what it keeps of generic text.

    minimise  alpha L_forget(w) + KL(v || w on generic text) + mu/2 |w - v|^2;    v <- v + delta (w - v)

Where the student relaxes much faster than the teacher moves, eta mu / (1 - m) >> delta for rate eta and momentum m, the
gap w - v follows -alpha (F + mu)^-1 grad L_forget(v) and each step moves the teacher by delta times it: the path
depends on delta x steps alone.

(b) With the likelihood, or NPO, grad L_forget vanishes where the model knows the forget rows by heart; with NLUL not.
(c) Half the rate, twice the steps to a stated forget probability.
(d) At equal forget probability, generic KL against that of AdamW with the same loss and a frozen teacher.

Embeddings, head and norms are frozen in all runs, as by the method's default; no gradient clipping.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.paper_shapes_model import Probe
from benchmarks.paper_shapes_runs import Curve, Watch, run_config, watched

FROZEN = ("embeddings", "head", "norms")
LEVELS = (0.9, 0.7, 0.5, 0.3, 0.1)
"""Forget probabilities at which runs are compared."""

SLOW = {"forget_weight": 0.05, "damping": 5.0}
SLOW_RATE = 0.01
MOMENTUM = 0.9
"""alpha and mu of the paper's News runs; SGD's rate is 20 times the paper's, so that the student relaxes in
(1 - m) / (eta mu) = 2 steps while the teacher needs 1 / delta = 10 to 80."""
TEACHER_RATES = (0.1, 0.05, 0.025, 0.0125)
REACHED = 0.5
"""Forget probability whose steps are counted in (c)."""
LOSSES = {"nlul": "NLUL", "cross_entropy": "plain likelihood", "npo": "NPO"}
LONGER = 4
"""Likelihood and NPO get this many times the steps in which NLUL reaches 0.5."""


def leaving_the_start(folder: Path, probe: Probe) -> list[Curve]:
    """Part (b): one run for each forget loss, the settings of (c) with its second rate."""
    curves: list[Curve] = []
    steps = 400
    for loss, title in LOSSES.items():
        settings = {**SLOW, "teacher_rate": TEACHER_RATES[1], "forget_loss": loss}
        # The gradient of the forget loss is logged apart from the penalty's.
        config = run_config(folder, "mean_teacher", settings, _sgd(SLOW_RATE), steps, diagnostics=True)
        curves.append(watched(config, title, probe, Watch(10, looks=("forget", "kl"))))
        if loss == "nlul":
            steps = 10 * math.ceil(LONGER * (curves[0].steps_to(REACHED) or steps) / 10)
    return curves


def pace(folder: Path, probe: Probe) -> tuple[list[Curve], dict[str, Any]]:
    """Part (c): runs at halved and halved again rates, and with a teacher that does not move."""
    curves = []
    for number, delta in enumerate((*TEACHER_RATES, 0.0)):
        settings = {**SLOW, "teacher_rate": delta}
        steps = 400 * 2 ** min(number, len(TEACHER_RATES) - 1) if delta else 400
        config = run_config(folder, "mean_teacher", settings, _sgd(SLOW_RATE), steps)
        curves.append(watched(config, f"delta = {delta:g}", probe, Watch(10, stop_below=REACHED, looks=("forget",))))
    steps = [curve.steps_to(REACHED) for curve in curves[:-1]]
    ratios = [b / a if a and b else None for a, b in itertools.pairwise(steps)]
    slope, offset = None, None
    if all(steps):
        slope, offset = (float(x) for x in np.polyfit([1 / delta for delta in TEACHER_RATES], steps, 1))
    return curves, {
        "rates": TEACHER_RATES,
        "steps": steps,
        "ratios": ratios,
        "least squares: steps = offset + slope / rate": {"offset": offset, "slope": slope},
        "still teacher, lowest forget probability": min(curves[-1].forget),
        "still teacher, steps": curves[-1].steps[-1],
    }


ALPHAS = (0.002, 0.01, 0.05)
ADAM_RATES = (3e-5, 1e-4, 3e-4, 1e-3)
MEAN_TEACHERS = ((20.0, 0.02), (20.0, 0.05), (100.0, 0.05), (100.0, 0.1))
"""(mu / alpha, delta). SGD's rate follows: eta mu / (1 - m) = 0.5, but at most 0.1."""
FAMILIES = {"mean_teacher": "mean teacher + NLUL, SGD", "nlul": "NLUL + KL to the start, AdamW"}


def equal_forgetting(folder: Path, probe: Probe) -> tuple[dict[str, list[Curve]], dict[str, Any]]:
    """Part (d): twelve runs for each family, the same three forget weights in both."""
    curves: dict[str, list[Curve]] = {family: [] for family in FAMILIES}
    seen = ("forget", "kl", "retain")
    for alpha in ALPHAS:
        for rate in ADAM_RATES:
            optimizer = {"name": "adamw", "learning_rate": rate, "betas": [0.9, 0.95]}
            config = run_config(folder, "nlul", {"forget_weight": alpha}, optimizer, 600, model={"freeze": FROZEN})
            look = Watch(1 if rate >= 3e-4 else 4, stop_below=LEVELS[-1], looks=seen)
            curves["nlul"].append(watched(config, f"alpha {alpha:g}, rate {rate:g}", probe, look))
        for ratio, delta in MEAN_TEACHERS:
            damping = ratio * alpha
            settings = {"forget_weight": alpha, "damping": damping, "teacher_rate": delta}
            optimizer = _sgd(min(0.1, 0.5 * (1 - MOMENTUM) / damping))
            config = run_config(folder, "mean_teacher", settings, optimizer, 600)
            name = f"alpha {alpha:g}, mu {damping:g}, delta {delta:g}"
            curves["mean_teacher"].append(watched(config, name, probe, Watch(4, stop_below=LEVELS[-1], looks=seen)))
    return curves, comparison(curves)


def comparison(curves: dict[str, list[Curve]]) -> dict[str, Any]:
    """Lowest and middle generic KL of each family at each level, over all settings and for each forget weight."""
    table: dict[str, Any] = {"levels": LEVELS, "runs": {}}
    for family, runs in curves.items():
        table["runs"][family] = len(runs)
        table[family] = [_at_level(runs, level) for level in LEVELS]
        for alpha in ALPHAS:
            some = [run for run in runs if run.settings["forget_weight"] == alpha]
            table[f"{family}, alpha {alpha:g}"] = [_at_level(some, level) for level in LEVELS]
    table["lower at"] = {
        f"{kind} KL{where}": {
            f"{level:g}": min(
                FAMILIES, key=lambda f, n=n, kind=kind, where=where: table[f + where][n][kind] or math.inf
            )
            for n, level in enumerate(LEVELS)
        }
        for kind in ("lowest", "middle")
        for where in ("", *(f", alpha {alpha:g}" for alpha in ALPHAS))
    }
    return table


def _at_level(runs: Sequence[Curve], level: float) -> dict[str, Any]:
    found = [(kl, run) for run in runs if (kl := run.kl_at(level)) is not None]
    if not found:
        return {"reached": 0, "lowest": None, "middle": None}
    lowest, best = min(found, key=lambda pair: pair[0])
    return {
        "reached": len(found),
        "lowest": lowest,
        "middle": median(kl for kl, _ in found),
        "lowest by": best.name,
        "its steps": best.steps_to(level),
        "its retain probability": best.retain_at(level),
    }


def _sgd(rate: float) -> dict[str, Any]:
    return {"name": "sgd", "learning_rate": rate, "momentum": MOMENTUM}
