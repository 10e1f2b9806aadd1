"""AltPO: direct preference optimisation of a plausible other answer over the true answer.

    minimise  alpha L_R  -  gamma (2/beta) mean_rows log sigmoid( beta (r_w - r_y) )
    r_w = log p(w|x) - log p_0(w|x),   r_y = log p(y|x) - log p_0(y|x)

w is a plausible other answer, y the answer to forget, p_0 the start model. Both answers go through one forward pass.
Source: Mekala et al., 'Alternate preference optimization', arXiv 2409.13474.
"""

from pydantic import Field

from unlearn_core.method import Composition, Method
from unlearn_core.parts import Weights, forget, retain, weighted_sum


class DpoSettings(Weights):
    """Temperature and weights."""

    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature."""


METHOD = Method(
    name="alt_po",
    title="AltPO",
    paper="Mekala et al., 'Alternate preference optimization', arXiv 2409.13474",
    equation="alpha L_R - gamma (2/beta) log sigmoid(beta (log-ratio of the other answer - log-ratio of the true one))",
    compose=lambda s: Composition((retain(), forget("alt_po", beta=s.beta)), weighted_sum(s)),
    settings=DpoSettings,
    deviations=(
        "Alternates are given with the rows (`alternate`, or the first perturbed answer); the paper generates them "
        "with the model itself.",
        "The start model's log-probabilities are computed once and joined by row id, not forwarded at every step.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.beta": {"log_uniform": [0.02, 0.5]},
        "method.settings.retain_weight": {"uniform": [0.5, 5.0]},
    },
)
