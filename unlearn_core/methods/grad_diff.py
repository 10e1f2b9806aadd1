"""GradDiff: gradient difference with constant weights (Liu et al., arXiv 2203.12817; TOFU, arXiv 2401.06121).

    theta <- theta - eta ( alpha g_R - gamma g_F )

the gradient of  alpha L_R - gamma L_F  with L the mean cross-entropy over label tokens.
"""

import numpy as np
from pydantic import Field

from unlearn_core.combine import weighted_sum
from unlearn_core.method import Method, Objective, Settings
from unlearn_core.objectives.likelihood import cross_entropy_sum


class GradDiffSettings(Settings):
    """Weights of the two losses."""

    retain_weight: float = Field(default=1.0, ge=0)
    """alpha: weight of the retain loss."""
    forget_weight: float = Field(default=1.0, ge=0)
    """gamma: weight of the forget loss, which is maximised."""


METHOD = Method(
    name="grad_diff",
    title="GradDiff",
    paper="Maini et al., 'TOFU: a task of fictitious unlearning for LLMs', arXiv 2401.06121",
    objectives=(Objective("retain", cross_entropy_sum), Objective("forget", cross_entropy_sum)),
    combine=lambda gram_KK, settings: weighted_sum(np.array([settings.retain_weight, -settings.forget_weight])),
    settings=GradDiffSettings,
    deviations=(
        "The mean is over the global batch's label tokens, not a mean of micro-batch means, so that it does not "
        "depend on the number of workers.",
        "Both gradients are kept apart until the step, to report their norms and angle; the update is the summed one.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.forget_weight": {"uniform": [0.1, 1.0]},
        "method.settings.retain_weight": {"uniform": [1.0, 5.0]},
    },
)
