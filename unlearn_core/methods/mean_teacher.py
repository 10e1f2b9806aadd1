"""Mean teacher with negative log-unlikelihood (Klochkov, arXiv 2504.13388).

    minimise  alpha mean_F -log(1 - p)  +  beta R(w | v; generic text)  +  mu/2 |w - v|^2
    v <- v + delta (w - v)   after every step

w is the student, v its EMA teacher, R the KL divergence from teacher to student on generic text, or its quadratic form
(QKL). The slow teacher turns plain SGD into a damped natural-gradient path of step delta alpha: it prefers directions
in which generic text does not change. NLUL keeps its gradient on memorised tokens, where that of the likelihood
vanishes. The update's order, and how clipping scales damping and teacher, are in unlearn_core/mean_teacher.py.

Where we differ from the author's code: see `deviations` below.
"""

from typing import Literal

from pydantic import Field

from unlearn_core.combiners.weighted import WeightedSum
from unlearn_core.method import Composition, Method, Settings, TeacherRule
from unlearn_core.parts import forget, objective


class MeanTeacherSettings(Settings):
    """Settings of the paper's MUSE News runs."""

    forget_loss: Literal["nlul", "nlul_surrogate", "cross_entropy", "npo"] = "nlul"
    """NLUL exactly, the author's surrogate with tolerance, or the two losses that do not leave the start."""
    tolerance: float = Field(default=0.02, gt=0)
    """tol of `nlul_surrogate`: its weight is p / (1 + tol - p)."""
    npo_beta: float = Field(default=0.1, gt=0)
    """beta of `npo`."""
    penalty: Literal["kl", "qkl"] = "kl"
    """R: KL(teacher | student), or its quadratic form, whose gradient is F_v (z_w - z_v)."""
    forget_weight: float = Field(default=0.05, ge=0)
    """alpha; the paper has 0.05 for News and 0.1 for Books."""
    penalty_weight: float = Field(default=1.0, ge=0)
    """beta."""
    teacher_rate: float = Field(default=0.005, ge=0, le=1)
    """delta: share of the student in the teacher after each step; 0 keeps the start model as teacher."""
    damping: float = Field(default=5.0, ge=0)
    """mu: weight of the pull towards the teacher; 0 for none."""
    freeze: tuple[Literal["embeddings", "head", "norms"], ...] = ("embeddings", "head", "norms")
    """Parts that do not train."""


def compose(settings: MeanTeacherSettings) -> Composition:
    """The generic-text penalty and the forget loss, summed."""
    options = {
        "nlul_surrogate": {"tol": settings.tolerance},
        "npo": {"beta": settings.npo_beta, "length_normalised": True},
    }.get(settings.forget_loss, {})
    return Composition(
        objectives=(objective("generic", settings.penalty), forget(settings.forget_loss, **options)),
        combiner=WeightedSum([settings.penalty_weight, settings.forget_weight]),
        teacher=TeacherRule(settings.teacher_rate, settings.damping),
        freeze=settings.freeze,
    )


METHOD = Method(
    name="mean_teacher",
    title="Mean teacher + NLUL",
    paper="Klochkov, 'A mean teacher algorithm for unlearning of language models', arXiv 2504.13388",
    equation="alpha (-log(1 - p))_F + beta KL(p_v || p_w) + mu/2 |w - v|^2, v an EMA of w",
    compose=compose,
    settings=MeanTeacherSettings,
    deviations=(
        "Exact NLUL by default; the author's code has the surrogate, whose gradient vanishes above p = 0.98.",
        "Losses are means over the label tokens of the global batch, not means of micro-batch means.",
        "The penalty covers label tokens, without the last position of a chunk, which predicts nothing.",
        "NPO, where chosen, is the textbook loss with the log-ratio divided by the row's length; the author's code "
        "divides by the padded length.",
        "A convergence test or stop rule is left to the search; every export is a point of the frontier.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-5, 1e-1]},
        "method.settings.teacher_rate": {"log_uniform": [1e-3, 5e-2]},
        "method.settings.forget_weight": {"log_uniform": [1e-2, 1.0]},
        "method.settings.damping": {"log_uniform": [0.1, 20.0]},
        "method.settings.penalty": {"choice": ["kl", "qkl"]},
    },
    paper_settings={
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 5e-4,
        "optimizer.momentum": 0.95,
        "optimizer.gradient_clipping": 1.0,
        "batch.rows": 40,
        "data.generic.length": 512,
        "data.max_length": 1024,
    },
)
