"""NGDiff: normalised gradient difference (arXiv 2410.22086).

    theta <- theta - eta ( g_R / |g_R|  -  g_F / |g_F| )

g_R and g_F are the gradients of the cross-entropy on the retain and on the forget batch; |.| is one global L2 norm over
all trainable parameters, taken after accumulation over micro-batches and reduction over workers.

The direction bisects g_R and -g_F: to first order the retain loss never rises and the forget loss never falls, whatever
the two losses' scales. Its length does not shrink as forgetting saturates, so choose the step on a frontier.
"""

from unlearn_core.combine import ngdiff
from unlearn_core.method import Method, Objective
from unlearn_core.objectives.likelihood import cross_entropy_sum

METHOD = Method(
    name="ngdiff",
    title="NGDiff",
    paper="Jin, Bu et al., 'Unlearning as multi-task optimization: a normalized gradient difference approach', "
    "arXiv 2410.22086",
    objectives=(Objective("retain", cross_entropy_sum), Objective("forget", cross_entropy_sum)),
    combine=lambda gram_KK, _settings: ngdiff(gram_KK),
    deviations=(
        "A constant or scheduled learning rate; the paper's automatic one is not built yet.",
        "The first-order guarantees hold for the combined gradient, not for AdamW's preconditioned step.",
        "A zero gradient (no direction) drops its term; a non-finite one ends the run before the step.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
    },
)
