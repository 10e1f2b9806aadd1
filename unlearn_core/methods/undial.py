"""UNDIAL: self-distillation towards the start model with the label's logit lowered (Dong et al., arXiv 2402.10052).

    minimise  alpha L_R  +  gamma mean_tokens CE( softmax(z_0 - beta e_y), softmax(z) )

z_0 are the start model's logits. The paper has no retain loss: retain_weight 0 leaves its rows out altogether.
"""

from pydantic import Field

from unlearn_core.combiners.weighted import WeightedSum
from unlearn_core.method import Composition, Method, TeacherRule
from unlearn_core.parts import Weights, forget, retain


class UndialSettings(Weights):
    """Strength and weights."""

    beta: float = Field(default=10.0, ge=0)
    """How much the label's logit is lowered."""
    retain_weight: float = Field(default=0.0, ge=0)
    """alpha: weight of the retain loss; 0 for none."""


def compose(settings: UndialSettings) -> Composition:
    """The distillation loss, with the retain loss where it has a weight."""
    loss = forget("undial", beta=settings.beta)
    if settings.retain_weight == 0:
        return Composition((loss,), WeightedSum([settings.forget_weight]), teacher=TeacherRule())
    weights = WeightedSum([settings.retain_weight, settings.forget_weight])
    return Composition((retain(), loss), weights, teacher=TeacherRule())


METHOD = Method(
    name="undial",
    title="UNDIAL",
    paper="Dong et al., 'UNDIAL: self-distillation with adjusted logits', arXiv 2402.10052",
    equation="alpha L_R + gamma CE(softmax(z_0 - beta e_y), p)",
    compose=compose,
    settings=UndialSettings,
    deviations=(
        "Prompt and padding are masked; the leading implementation averages over them and lowers a wrong vocabulary "
        "entry there.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-5, 1e-3]},
        "method.settings.beta": {"uniform": [3.0, 30.0]},
    },
    paper_settings={
        "optimizer.learning_rate": 0.0001,
    },
)
