"""Plain fine-tuning on the retain splits, with no forgetting: makes target and reference models.

    theta <- theta - eta g_R

g_R is the gradient of the mean cross-entropy over the global batch's label tokens.
"""

from unlearn_core.combiners.weighted import WeightedSum
from unlearn_core.method import Composition, Method
from unlearn_core.parts import retain

METHOD = Method(
    name="finetune",
    title="Fine-tune",
    paper="maximum likelihood",
    equation="L_R",
    compose=lambda _settings: Composition((retain(),), WeightedSum([1.0])),
)
