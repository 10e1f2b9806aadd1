"""Plain fine-tuning on the retain splits: makes target and reference models; no forgetting.

    theta <- theta - eta g_R
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
