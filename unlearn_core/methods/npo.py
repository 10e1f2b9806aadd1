"""NPO: negative preference optimisation (Zhang et al., arXiv 2404.05868).

    minimise  alpha L_R  -  gamma (2/beta) mean_rows log sigmoid( -beta (log p(y|x) - log p_0(y|x)) )

p_0 is the start model; log p sums over the answer's tokens. beta -> 0 is gradient ascent. `length_normalised` divides
the log-ratio by the answer's length.
"""

from pydantic import Field

from unlearn_core.method import Composition, Method
from unlearn_core.parts import Weights, forget, retain, weighted_sum


class NpoSettings(Weights):
    """Temperature and weights."""

    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature; towards 0 it is gradient ascent."""
    length_normalised: bool = False
    """Divide the log-ratio by the number of answer tokens."""


METHOD = Method(
    name="npo",
    title="NPO",
    paper="Zhang et al., 'Negative preference optimization', arXiv 2404.05868",
    equation="alpha L_R - gamma (2/beta) log sigmoid(-beta log(p / p_0))",
    compose=lambda s: Composition(
        (retain(), forget("npo", beta=s.beta, length_normalised=s.length_normalised)),
        weighted_sum(s),
    ),
    settings=NpoSettings,
    deviations=(
        "The start model's log-probabilities are computed once and joined by row id, not forwarded at every step.",
        "The mean is over the global batch's rows. Retain loss: mean over label tokens.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.beta": {"log_uniform": [0.01, 1.0]},
        "method.settings.retain_weight": {"uniform": [0.5, 5.0]},
    },
    paper_settings={
        "method.settings.beta": 0.1,
        "optimizer.learning_rate": 1e-05,
    },
)
