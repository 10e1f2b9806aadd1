"""CAGrad: conflict-averse gradient descent (arXiv 2110.14048).

    d = g_0 + lam g_w,  w = argmin over the simplex of <g_w, g_0> + C |g_0| |g_w|,  g_0 the mean,  lam = C |g_0| / |g_w|

h = -g_F. C = 0 is the mean; a large C tends to MGDA.
"""

from pydantic import Field

from unlearn_core.combiners.cagrad import CAGrad
from unlearn_core.method import Composition, Method, Settings
from unlearn_core.parts import forget, retain


class CAGradSettings(Settings):
    """Settings of the combiner."""

    c: float = Field(default=0.5, ge=0)
    """C: how far from the mean gradient, as a share of its norm."""


METHOD = Method(
    name="cagrad",
    title="CAGrad",
    paper="Liu et al., 'Conflict-averse gradient descent', arXiv 2110.14048",
    equation="the direction within C |g_0| of the mean that helps the worse-off loss most",
    compose=lambda s: Composition((retain(), forget()), CAGrad(c=s.c)),
    settings=CAGradSettings,
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.c": {"uniform": [0.1, 0.9]},
    },
)
