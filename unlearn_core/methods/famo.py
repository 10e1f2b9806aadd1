"""FAMO: weights that make all losses fall at the same relative speed, without a second gradient (arXiv 2306.03792).

    z = softmax(w);   weights (z_i / D_i) / sum_j (z_j / D_j),  D_i = L_i - min_i
    w follows each loss's progress over the step

Needs positive losses to be minimised: the forget loss is UCE. Cost: a forward pass of both batches before and after.
"""

from pydantic import Field

from unlearn_core.combiners.famo import FAMO
from unlearn_core.method import Composition, Method, Settings
from unlearn_core.parts import forget, retain


class FAMOSettings(Settings):
    """Settings of the combiner."""

    step_size: float = Field(default=0.025, gt=0)
    """Adam's rate of w."""
    weight_decay: float = Field(default=1e-3, ge=0)
    """Weight decay of w."""


METHOD = Method(
    name="famo",
    title="FAMO",
    paper="Liu et al., 'FAMO: fast adaptive multitask optimization', arXiv 2306.03792",
    equation="sum_k (z_k / L_k) g_k / sum_j (z_j / L_j), z learned from each loss's progress",
    compose=lambda s: Composition((retain(), forget("uce")), FAMO(step_size=s.step_size, weight_decay=s.weight_decay)),
    settings=FAMOSettings,
    deviations=(
        "The losses before the step come from a forward pass of their own, so that accumulation stays exact.",
        "The forget loss is our choice.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
    },
)
