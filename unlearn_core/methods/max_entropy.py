"""Maximum entropy: push forget rows towards the uniform distribution (arXiv 2410.08109).

    minimise  alpha L_R  +  gamma mean_tokens ( log V - H(p) )

the KL divergence from the model to the uniform distribution over V tokens.
"""

from unlearn_core.method import Composition, Method
from unlearn_core.parts import Weights, forget, retain, weighted_sum

METHOD = Method(
    name="max_entropy",
    title="Max entropy",
    paper="Yuan et al., 'A closer look at machine unlearning for large language models', arXiv 2410.08109",
    equation="alpha L_R + gamma KL(p || uniform)",
    compose=lambda s: Composition((retain(), forget("kl_to_uniform")), weighted_sum(s)),
    settings=Weights,
    deviations=("The mean is over the global batch's label tokens, not a mean of micro-batch means.",),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.forget_weight": {"uniform": [0.1, 1.0]},
    },
)
