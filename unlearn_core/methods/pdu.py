"""PDU: forget as far as a bound on the retain loss allows, by a primal-dual rule (arXiv 2506.05314).

    minimise over theta   gamma mean_tokens (max_v z_v - mean_v z_v)^2 on forget rows  +  lambda (L_R - epsilon)
    lambda <- max(0, lambda + step (L_R - epsilon))      once an optimizer step

epsilon is the retain loss to keep to: a little above the start model's. Sweeping it traces a frontier.
"""

from pydantic import Field

from unlearn_core.combiners.primal_dual import PrimalDual
from unlearn_core.method import Composition, Method, Settings
from unlearn_core.parts import forget, retain


class PduSettings(Settings):
    """Bound and dual step."""

    epsilon: float = Field(gt=0)
    """Retain loss to keep to, nats a token; no default: a little above the start model's."""
    initial: float = Field(default=1.0, ge=0)
    """lambda at the start."""
    step_size: float = Field(default=1.0, ge=0)
    """Step of lambda."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps before lambda moves."""
    forget_weight: float = Field(default=1.0, ge=0)
    """gamma: weight of the forget loss."""


def compose(settings: PduSettings) -> Composition:
    """The forget loss, and the retain loss under its multiplier."""
    multiplier = PrimalDual(
        epsilon=settings.epsilon,
        initial=settings.initial,
        step_size=settings.step_size,
        warmup_steps=settings.warmup_steps,
        forget_weight=settings.forget_weight,
    )
    return Composition((retain(), forget("logit_spread")), multiplier)


METHOD = Method(
    name="pdu",
    title="PDU",
    paper="Entesari et al., 'Constrained entropic unlearning: a primal-dual framework', arXiv 2506.05314",
    equation="lambda L_R + gamma (max_v z - mean_v z)^2, lambda by dual ascent on L_R - epsilon",
    compose=compose,
    settings=PduSettings,
    deviations=(
        "The dual variable follows the retain loss reduced over all ranks, once an optimizer step; the leading "
        "implementation updates it on each rank at every micro-batch.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.epsilon": {"log_uniform": [0.05, 2.0]},
    },
)
