"""Gradient ascent on the forget set (Jang et al., arXiv 2210.01504).

    theta <- theta + eta g_F

No retain objective: nothing holds the model together, so expect utility to fall with forgetting.
"""

from unlearn_core.combiners.weighted import WeightedSum
from unlearn_core.method import Composition, Method
from unlearn_core.parts import forget

METHOD = Method(
    name="grad_ascent",
    title="Gradient ascent",
    paper="Jang et al., 'Knowledge unlearning for mitigating privacy risks in language models', arXiv 2210.01504",
    equation="-L_F",
    compose=lambda _settings: Composition((forget(),), WeightedSum([1.0])),
    search_space={"optimizer.learning_rate": {"log_uniform": [1e-6, 1e-4]}},
)
