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
    equation="g_0 + C |g_0| g_z / |g_z|, z minimising <g_z, g_0> + C |g_0| |g_z|, g_0 the mean of g_R and -g_F",
    compose=lambda s: Composition((retain(), forget()), CAGrad(c=s.c)),
    settings=CAGradSettings,
    deviations=(
        "The dual is solved exactly, not by iteration. Public code divides the result by 1 + C^2; this does not.",
        "The forget loss, plain ascent, is our choice.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.c": {"uniform": [0.1, 0.9]},
    },
)
