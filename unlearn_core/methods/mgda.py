"""MGDA: the shortest convex combination of the two gradients (arXiv 1810.04650), with a bounded forget loss.

    lambda = argmin over the simplex of |lambda_1 g_R + lambda_2 h|^2

h is the gradient of UCE, -log(1 - p/2). A common descent direction, biased to the smaller gradient.
"""

from unlearn_core.combiners.min_norm import MinNorm
from unlearn_core.method import Composition, Method
from unlearn_core.parts import forget, retain

METHOD = Method(
    name="mgda",
    title="MGDA",
    paper="Sener and Koltun, 'Multi-task learning as multi-objective optimization', arXiv 1810.04650",
    equation="lambda_1 g_R + lambda_2 h of least norm, lambda in the simplex, h of UCE",
    compose=lambda _settings: Composition((retain(), forget("uce")), MinNorm()),
    deviations=("The forget loss is our choice.",),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
    },
)
