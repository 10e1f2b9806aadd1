"""LossNorm: each gradient divided by its loss (a baseline of arXiv 2410.22086).

    theta <- theta - eta ( g_R / L_R  -  g_F / L_F )

A memorised forget row has a loss near 0: the divisor is held above 1e-3.
"""

from unlearn_core.combiners.weighted import LossNorm
from unlearn_core.method import Composition, Method
from unlearn_core.parts import forget, retain

METHOD = Method(
    name="loss_norm",
    title="LossNorm",
    paper="Jin, Bu et al., arXiv 2410.22086 (a baseline there)",
    equation="g_R / L_R - g_F / L_F",
    compose=lambda _settings: Composition((retain(), forget()), LossNorm()),
    deviations=("A floor under the losses keeps the weights finite.",),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
    },
)
