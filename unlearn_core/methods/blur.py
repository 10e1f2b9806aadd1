"""BLUR: forgetting has priority (arXiv 2506.08164).

    theta <- theta - eta ( g_R + (gamma - <g_R,h>/|h|^2) h )

h is the gradient of NPO's loss; <d, h> = gamma |h|^2 > 0 always, the retain loss has no such promise.
"""

from pydantic import Field

from unlearn_core.combiners.projection import BLUR
from unlearn_core.method import Composition, Method, Settings
from unlearn_core.parts import forget, retain


class BLURSettings(Settings):
    """Settings of the combiner."""

    gamma: float = Field(default=1.0, gt=0)
    """How much of the forget gradient is kept."""
    beta: float = Field(default=0.1, gt=0)
    """NPO's inverse temperature."""


METHOD = Method(
    name="blur",
    title="BLUR",
    paper="Reisizadeh et al., 'BLUR: a bi-level optimization approach for LLM unlearning', arXiv 2506.08164",
    equation="g_R + (gamma - <g_R,h>/|h|^2) h, h of NPO",
    compose=lambda s: Composition((retain(), forget("npo", beta=s.beta)), BLUR(gamma=s.gamma)),
    settings=BLURSettings,
    deviations=("Forget gradients of norm 0 leave the retain gradient alone.",),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.gamma": {"log_uniform": [0.1, 10.0]},
    },
)
