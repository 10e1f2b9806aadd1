"""PGU: forget only in directions that retain rows do not use (Hoang et al., arXiv 2312.04095).

    minimise  mean_tokens -log(1 - p)  -  w H(p)   on forget rows;     G <- G - G U U'   for each chosen weight

U spans the inputs of that weight's layer on retain rows: the leading singular directions that hold `retained` of the
summed singular values. Weights that are not chosen do not train. SGD only: with AdamW the step would leave the
complement.
"""

from pydantic import Field

from unlearn_core.combiners.weighted import WeightedSum
from unlearn_core.method import Composition, Method, ProjectionRule, Settings
from unlearn_core.parts import forget


class PguSettings(Settings):
    """Layers, protected share and entropy."""

    layers: tuple[str, ...] = ("mlp.down_proj.weight", "self_attn.o_proj.weight")
    """Regular expressions of the weights that train, each projected."""
    retained: float = Field(default=0.95, ge=0, le=1)
    """Share of the summed singular values (not their squares) that the protected directions hold."""
    entropy_weight: float = Field(default=0.2, ge=0)
    """w: weight of the entropy of forget rows, which is maximised."""


def compose(settings: PguSettings) -> Composition:
    """Two forget losses, summed, under a projection."""
    return Composition(
        objectives=(forget("nlul"), forget("negative_entropy", label="negative_entropy")),
        combiner=WeightedSum([1.0, settings.entropy_weight]),
        train_only=settings.layers,
        projection=ProjectionRule(settings.layers, settings.retained),
    )


METHOD = Method(
    name="pgu",
    title="PGU",
    paper="Hoang et al., 'Learn to unlearn for deep neural networks', arXiv 2312.04095",
    equation="-log(1 - p)_F - entropy_weight H(p)_F, projected off the retain activations",
    compose=compose,
    settings=PguSettings,
    deviations=(
        "Retain activations are measured on the retain rows; the paper subtracts the forget rows' from those of all "
        "training data.",
        "The paper reports image classifiers; use on language models is an extension.",
        "No offset inside the logarithm.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-4, 1.0]},
        "method.settings.retained": {"uniform": [0.5, 0.99]},
    },
    paper_settings={
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.0,
    },
)
