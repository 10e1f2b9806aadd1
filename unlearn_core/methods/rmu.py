"""RMU: steer the hidden states of forget rows to a random direction (Li et al., arXiv 2403.03218).

    minimise  alpha mean |h_l - h_l^0|^2 on retain rows  +  gamma mean |h_l - c u|^2 on forget rows

h_l is the output of block `layer`, h_l^0 the start model's, u a fixed unit vector drawn from `control_seed`, the
squared distance a mean over the D entries. The paper trains three MLP down-projections up to that layer (`train_only`).
"""

from pydantic import Field

from unlearn_core.combiners.weighted import WeightedSum
from unlearn_core.method import Composition, Method, TeacherRule
from unlearn_core.parts import Weights, forget, retain, with_control_seed


class RmuSettings(Weights):
    """Layer, direction and weights."""

    layer: int = Field(default=7, ge=0)
    """Block whose output is steered, from 0."""
    coefficient: float = Field(default=2.0, gt=0)
    """c: length of the direction."""
    control_seed: int = Field(default=0, ge=0)
    """Seed of u."""
    train_only: tuple[str, ...] = ()
    """Regular expressions of the weights that train, such as [layers.[567].mlp.down_proj]; empty for all."""


def compose(settings: RmuSettings) -> Composition:
    """Both distances, summed."""
    steer = with_control_seed(
        forget("rmu_forget", layer=settings.layer, coefficient=settings.coefficient), settings.control_seed
    )
    return Composition(
        objectives=(retain("rmu_retain", layer=settings.layer), steer),
        combiner=WeightedSum([settings.retain_weight, settings.forget_weight]),
        teacher=TeacherRule(),
        train_only=settings.train_only,
    )


METHOD = Method(
    name="rmu",
    title="RMU",
    paper="Li et al., 'The WMDP benchmark', arXiv 2403.03218",
    equation="alpha |h - h_0|^2_R + gamma |h - c u|^2_F",
    compose=compose,
    settings=RmuSettings,
    deviations=(
        "u comes from a seed, equal on every rank, not from each rank's own random state.",
        "Hidden states are compared at answer tokens, the end of answer included.",
        "The last block's output is taken after the final norm, as transformers reports it.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.coefficient": {"log_uniform": [1.0, 100.0]},
        "method.settings.retain_weight": {"log_uniform": [0.5, 100.0]},
    },
)
