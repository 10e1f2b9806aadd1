"""MOLLM: a common descent direction of three losses (Pan et al., arXiv 2412.20412).

    L_1 = L_R,   L_2 = KL(p_0 || p) on retain rows,   L_3 = -log(1 - p/k) on forget rows
    lambda = argmin over the simplex of |sum_i lambda_i g_i|^2;   theta <- theta - eta sum_i lambda_i g_i

UCE, the third loss, is bounded for k > 1. No weights to tune: it yields a point, not a front.
"""

from typing import Literal

from pydantic import Field

from unlearn_core.combiners.min_norm import MinNorm
from unlearn_core.method import Composition, Method, Settings, TeacherRule
from unlearn_core.parts import forget, retain


class MollmSettings(Settings):
    """Constant of UCE and scale of the gradients."""

    k: float = Field(default=2.0, ge=1)
    """Constant of UCE: -log(1 - p/k); 1 is NLUL."""
    normalize: Literal["none", "l2"] = "l2"
    """Whether each gradient is first scaled to unit norm; without it the smallest gradient rules. At the start that is
    the KL's, which is zero there: `none` never leaves the start unless weight decay does."""
    rescale: bool = False
    """Give the direction the mean norm of the gradients."""


def compose(settings: MollmSettings) -> Composition:
    """Three objectives under the min-norm rule."""
    return Composition(
        objectives=(retain(), retain("kl", label="kl"), forget("uce", k=settings.k)),
        combiner=MinNorm(normalize=settings.normalize, rescale=settings.rescale),
        teacher=TeacherRule(),
    )


METHOD = Method(
    name="mollm",
    title="MOLLM",
    paper="Pan et al., 'Multi-objective large language model unlearning', arXiv 2412.20412",
    equation="sum_i lambda_i g_i of least norm, g_i of L_R, KL(p_0 || p)_R and UCE_F, by default scaled to norm 1",
    compose=compose,
    settings=MollmSettings,
    deviations=(
        "The paper's code is not published. That UCE has k = 2 is taken from a sibling paper of its authors; whether "
        "gradients are normalised first is not known: `normalize` and `rescale` offer both.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.normalize": {"choice": ["none", "l2"]},
    },
)
