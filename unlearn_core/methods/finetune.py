"""Plain fine-tuning on the retain splits, with no forgetting: makes target and reference models.

    theta <- theta - eta g_R

g_R is the gradient of the mean cross-entropy over the global batch's label tokens.
"""

import numpy as np

from unlearn_core.combine import weighted_sum
from unlearn_core.method import Method, Objective
from unlearn_core.objectives.likelihood import cross_entropy_sum

METHOD = Method(
    name="finetune",
    title="Fine-tune",
    paper="maximum likelihood",
    objectives=(Objective("retain", cross_entropy_sum),),
    combine=lambda gram_KK, _settings: weighted_sum(np.array([1.0])),
)
