"""Gradient ascent on the forget set (Jang et al., arXiv 2210.01504).

    theta <- theta + eta g_F

No retain objective: nothing holds the model together, so expect utility to fall with forgetting.
"""

import numpy as np

from unlearn_core.combine import weighted_sum
from unlearn_core.method import Method, Objective
from unlearn_core.objectives.likelihood import cross_entropy_sum

METHOD = Method(
    name="grad_ascent",
    title="Gradient ascent",
    paper="Jang et al., 'Knowledge unlearning for mitigating privacy risks in language models', arXiv 2210.01504",
    objectives=(Objective("forget", cross_entropy_sum),),
    combine=lambda gram_KK, _settings: weighted_sum(np.array([-1.0])),
    search_space={"optimizer.learning_rate": {"log_uniform": [1e-6, 1e-4]}},
)
