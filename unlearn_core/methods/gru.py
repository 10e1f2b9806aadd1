"""GRU: the forget gradient loses what goes against an average of the retain gradient (arXiv 2503.09117).

    r <- m g_R + (1 - m) r;   where <h, r> < 0:  h <- h - <h,r>/|r|^2 r;   theta <- theta - eta (h + alpha g_R)

h = -g_F. A wrapper: `composed` puts it on any forget loss.
"""

from pydantic import Field

from unlearn_core.combiners.projection import GRU
from unlearn_core.method import Composition, Method, Settings
from unlearn_core.parts import forget, retain


class GRUSettings(Settings):
    """Settings of the combiner."""

    moving_average: float = Field(default=0.8, gt=0, le=1)
    """m: weight of the new retain gradient."""
    retain_weight: float = Field(default=0.0, ge=0)
    """alpha: weight of the retain gradient itself."""


METHOD = Method(
    name="gru",
    title="GRU",
    paper="Wang et al., 'GRU: mitigating the trade-off between unlearning and retention', arXiv 2503.09117",
    equation="alpha g_R + h - min(<h,r>, 0)/|r|^2 r, h = -g_F, r an EMA of g_R",
    compose=lambda s: Composition(
        (retain(), forget()), GRU(moving_average=s.moving_average, retain_weight=s.retain_weight)
    ),
    settings=GRUSettings,
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.moving_average": {"uniform": [0.5, 1.0]},
    },
)
