"""GradDiff: gradient difference with constant weights (Liu et al., arXiv 2203.12817; TOFU, arXiv 2401.06121).

    theta <- theta - eta ( alpha g_R - gamma g_F )

the gradient of  alpha L_R - gamma L_F  with L the mean cross-entropy over label tokens. The weights are known before
the backward pass, so both losses are summed in one gradient; `diagnostics: true` keeps the two apart, to log their
norms and their angle, for one more gradient shard.

Where we differ: the mean is over the global batch's label tokens, not a mean of micro-batch means.
"""

from unlearn_core.method import Composition, Method
from unlearn_core.parts import Weights, forget, retain, weighted_sum

METHOD = Method(
    name="grad_diff",
    title="GradDiff",
    paper="Maini et al., 'TOFU: a task of fictitious unlearning for LLMs', arXiv 2401.06121",
    equation="alpha L_R - gamma L_F",
    compose=lambda s: Composition((retain(), forget()), weighted_sum(s)),
    settings=Weights,
    deviations=(
        "The mean is over the global batch's label tokens, not a mean of micro-batch means, so that it does not "
        "depend on the number of workers.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.forget_weight": {"uniform": [0.1, 1.0]},
        "method.settings.retain_weight": {"uniform": [1.0, 5.0]},
    },
)
