"""MoCo: min-norm weights from tracked gradients (Fernando et al., arXiv 2210.12624), with a bounded forget loss.

    y_i <- y_i - beta (y_i - g_i);   lambda <- Proj( lambda - gamma (Y'Y + rho I) lambda )
    theta <- theta - eta Y lambda

The buffers take out the noise of small batches, at one fp32 gradient shard each.
"""

from pydantic import Field

from unlearn_core.combiners.moco import MoCo
from unlearn_core.method import Composition, Method, Settings
from unlearn_core.parts import forget, retain


class MoCoSettings(Settings):
    """Settings of the combiner."""

    beta: float = Field(default=0.5, gt=0, le=1)
    """Rate of the tracking buffers."""
    gamma: float = Field(default=0.1, gt=0)
    """Step of the weights."""
    rho: float = Field(default=0.0, ge=0)
    """Regularisation of the weights."""


METHOD = Method(
    name="moco",
    title="MoCo",
    paper="Fernando et al., 'Mitigating gradient bias in multi-objective learning', arXiv 2210.12624",
    equation="sum_i lambda_i y_i, y_i an EMA of g_i, lambda by projected descent on |sum_i lambda_i y_i|^2",
    compose=lambda s: Composition((retain(), forget("uce")), MoCo(beta=s.beta, gamma=s.gamma, rho=s.rho)),
    settings=MoCoSettings,
    deviations=(
        "Buffers start as the first gradient.",
        "The forget loss is our choice.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.beta": {"uniform": [0.1, 1.0]},
    },
)
