"""WGA: weighted gradient ascent (Wang et al., arXiv 2502.19301).

    minimise  alpha L_R  +  gamma mean_tokens stopgrad(p^beta) log p

The weight lets forgotten tokens go: ascent stops where p is already small.
"""

from pydantic import Field

from unlearn_core.method import Composition, Method
from unlearn_core.parts import Weights, forget, retain, weighted_sum


class WgaSettings(Weights):
    """Exponent and weights."""

    beta: float = Field(default=1.0, ge=0)
    """Exponent of the weight; 0 is plain ascent."""


METHOD = Method(
    name="wga",
    title="WGA",
    paper="Wang et al., 'Rethinking LLM unlearning objectives', arXiv 2502.19301",
    equation="alpha L_R + gamma p^beta log p",
    compose=lambda s: Composition((retain(), forget("wga", beta=s.beta)), weighted_sum(s)),
    settings=WgaSettings,
    deviations=("The mean is over the global batch's label tokens, not a mean of micro-batch means.",),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.beta": {"uniform": [0.5, 5.0]},
        "method.settings.forget_weight": {"uniform": [0.1, 1.0]},
    },
    paper_settings={
        "optimizer.learning_rate": 1e-05,
    },
)
