"""IHL: inverted hinge loss (LoKU, arXiv 2408.06621).

    minimise  alpha L_R  +  gamma mean_tokens ( 1 + p_y - max_{v != y} p_v )

The label falls below its strongest rival and no further. LoKU's initialisation of adapters (FILA) is not part of it.
"""

from unlearn_core.method import Composition, Method
from unlearn_core.parts import Weights, forget, retain, weighted_sum

METHOD = Method(
    name="ihl",
    title="IHL",
    paper="Cha et al., 'Towards robust and parameter-efficient knowledge unlearning for LLMs' (LoKU), arXiv 2408.06621",
    equation="alpha L_R + gamma (1 + p - max_{v != y} p_v)",
    compose=lambda s: Composition((retain(), forget("ihl")), weighted_sum(s)),
    settings=Weights,
    deviations=("The mean is over the global batch's label tokens, not a mean of micro-batch means.",),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.forget_weight": {"uniform": [0.1, 1.0]},
    },
)
