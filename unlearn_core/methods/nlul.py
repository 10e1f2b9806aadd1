"""NLUL with a frozen reference: the AdamW baseline of the mean-teacher paper (arXiv 2504.13388).

    minimise  alpha KL(p_0 || p) on generic text  +  gamma mean_tokens -log(1 - p) on forget rows

The mean teacher with delta = mu = 0.
"""

from pydantic import Field

from unlearn_core.method import Composition, Method, TeacherRule
from unlearn_core.parts import Weights, forget, objective, weighted_sum


class NlulSettings(Weights):
    """Weights."""

    forget_weight: float = Field(default=0.05, ge=0)
    """gamma: weight of the forget loss."""


METHOD = Method(
    name="nlul",
    title="NLUL + KL",
    paper="Klochkov, arXiv 2504.13388 (its AdamW baseline)",
    equation="alpha KL(p_0 || p) + gamma (-log(1 - p))_F",
    compose=lambda s: Composition(
        (objective("generic", "kl"), forget("nlul")),
        weighted_sum(s),
        teacher=TeacherRule(),
    ),
    settings=NlulSettings,
    deviations=(
        "The mean is over the global batch's label tokens, not a mean of micro-batch means.",
        "Exact NLUL, without the author's tolerance.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.forget_weight": {"log_uniform": [0.01, 1.0]},
    },
    paper_settings={
        "optimizer.learning_rate": 1e-06,
        "optimizer.betas": (0.9, 0.95),
        "optimizer.weight_decay": 0.01,
    },
)
