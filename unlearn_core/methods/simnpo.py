"""SimNPO: NPO without a reference, normalised by length (Fan et al., arXiv 2410.07163).

    minimise  alpha L_R  -  gamma (2/beta) mean_rows log sigmoid( -(beta / |y|) log p(y|x) - beta delta )

|y| is the number of answer tokens, its end included.
"""

from pydantic import Field

from unlearn_core.method import Composition, Method
from unlearn_core.parts import Weights, forget, retain, weighted_sum


class SimNpoSettings(Weights):
    """Temperature, margin and weights."""

    beta: float = Field(default=4.5, gt=0)
    """Inverse temperature."""
    delta: float = Field(default=0.0, ge=0)
    """Margin, nats a token."""
    forget_weight: float = Field(default=0.125, ge=0)
    """gamma: weight of the forget loss."""


METHOD = Method(
    name="simnpo",
    title="SimNPO",
    paper="Fan et al., 'Simplicity prevails: rethinking negative preference optimization', arXiv 2410.07163",
    equation="alpha L_R - gamma (2/beta) log sigmoid(-beta log p / |y| - beta delta)",
    compose=lambda s: Composition((retain(), forget("simnpo", beta=s.beta, delta=s.delta)), weighted_sum(s)),
    settings=SimNpoSettings,
    deviations=(
        "The margin delta stands inside beta's bracket, as in the leading implementation; the paper writes gamma "
        "outside it.",
        "The mean is over the global batch's rows.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.beta": {"uniform": [2.0, 6.0]},
        "method.settings.delta": {"uniform": [0.0, 2.0]},
        "method.settings.forget_weight": {"log_uniform": [0.05, 1.0]},
    },
)
