"""CE-U: cross-entropy to the model's own distribution without the label (arXiv 2503.01224).

    minimise  alpha L_R  +  gamma mean_tokens CE( stopgrad softmax(z with z_y = -inf), softmax(z) )

Its gradient is NLUL's. The first answer token is left out; the paper has no retain loss (retain_weight 0).
"""

from pydantic import Field

from unlearn_core.combiners.weighted import WeightedSum
from unlearn_core.method import Composition, Method
from unlearn_core.parts import Weights, forget, retain


class CeuSettings(Weights):
    """Weights."""

    skip_first: int = Field(default=1, ge=0)
    """Answer tokens at the start of each row that do not count."""
    retain_weight: float = Field(default=0.0, ge=0)
    """alpha: weight of the retain loss; 0 for none."""


def compose(settings: CeuSettings) -> Composition:
    """The forget loss, with the retain loss where it has a weight."""
    loss = forget("ce_u", skip_first=settings.skip_first)
    if settings.retain_weight == 0:
        return Composition((loss,), WeightedSum([settings.forget_weight]))
    return Composition((retain(), loss), WeightedSum([settings.retain_weight, settings.forget_weight]))


METHOD = Method(
    name="ce_u",
    title="CE-U",
    paper="Yang, 'CE-U: cross entropy unlearning', arXiv 2503.01224",
    equation="CE(softmax(z without z_y), p)_F",
    compose=compose,
    settings=CeuSettings,
    deviations=("The mean is over the global batch's label tokens, not a mean of micro-batch means.",),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
    },
)
