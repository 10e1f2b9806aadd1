"""SatImp: ascent weighted by saturation and importance (Yang et al., arXiv 2505.11953).

minimise  alpha L_R  +  gamma mean_tokens stopgrad( p^beta1 (1 - p)^beta2 ) log p
"""

from pydantic import Field

from unlearn_core.method import Composition, Method
from unlearn_core.parts import Weights, forget, retain, weighted_sum


class SatImpSettings(Weights):
    """Exponents and weights."""

    beta1: float = Field(default=5.0, ge=0)
    """Exponent of p: how much forgotten tokens are left alone."""
    beta2: float = Field(default=1.0, ge=0)
    """Exponent of 1 - p: how much memorised tokens are left alone."""
    forget_weight: float = Field(default=0.1, ge=0)
    """gamma: weight of the forget loss."""


METHOD = Method(
    name="satimp",
    title="SatImp",
    paper="Yang et al., 'Exploring criteria of loss reweighting to enhance LLM unlearning', arXiv 2505.11953",
    equation="alpha L_R + gamma p^beta1 (1 - p)^beta2 log p",
    compose=lambda s: Composition((retain(), forget("satimp", beta1=s.beta1, beta2=s.beta2)), weighted_sum(s)),
    settings=SatImpSettings,
    deviations=("The mean is over the global batch's label tokens, not a mean of micro-batch means.",),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.beta1": {"uniform": [1.0, 8.0]},
        "method.settings.beta2": {"uniform": [0.5, 2.0]},
    },
)
