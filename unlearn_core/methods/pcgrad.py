"""PCGrad: each gradient loses its component against the other (arXiv 2001.06782).

    where <g_R, h> < 0:   g_R <- g_R - <g_R,h>/|h|^2 h,   h <- h - <g_R,h>/|g_R|^2 g_R;   theta <- theta - eta (g_R + h)

h = -g_F, the ascent of the forget likelihood.
"""

from unlearn_core.combiners.projection import PCGrad
from unlearn_core.method import Composition, Method
from unlearn_core.parts import forget, retain

METHOD = Method(
    name="pcgrad",
    title="PCGrad",
    paper="Yu et al., 'Gradient surgery for multi-task learning', arXiv 2001.06782",
    equation="g_R - min(<g_R,h>, 0)/|h|^2 h + h - min(<g_R,h>, 0)/|g_R|^2 g_R, h = -g_F",
    compose=lambda _settings: Composition((retain(), forget()), PCGrad()),
    deviations=(
        "With more than two objectives the order is cyclic, not shuffled.",
        "The forget loss, plain ascent, is our choice.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
    },
)
