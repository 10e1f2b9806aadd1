"""NGDiff: normalised gradient difference (arXiv 2410.22086).

    theta <- theta - eta ( g_R / |g_R|  -  g_F / |g_F| )

g_R and g_F are the gradients of the cross-entropy on the retain and on the forget batch; |.| is one global L2 norm over
all trainable parameters, taken after accumulation over micro-batches and reduction over workers. With
`optimizer.schedule: auto` the rate eta is the paper's automatic one (GeN, arXiv 2407.02772; unlearn_core/autolr.py).

The direction bisects g_R and -g_F: to first order the retain loss never rises and the forget loss never falls, whatever
the two losses' scales. Its length does not shrink as forgetting saturates, so choose the step on a frontier.

Where we differ from the paper: see `deviations` below.
"""

from unlearn_core.combiners.bisector import Bisector
from unlearn_core.method import Composition, Method
from unlearn_core.parts import forget, retain

METHOD = Method(
    name="ngdiff",
    title="NGDiff",
    paper="Jin, Bu et al., 'Unlearning as multi-task optimization: a normalized gradient difference approach', "
    "arXiv 2410.22086",
    equation="g_R / |g_R| - g_F / |g_F|",
    compose=lambda _settings: Composition((retain(), forget()), Bisector()),
    deviations=(
        "The first-order guarantees hold for the combined gradient, not for AdamW's preconditioned step.",
        "AutoLR's clip, smoothing and acceptance test follow GeN's code; whether the paper's runs used them is not "
        "known to us. A probe below its rounding noise is refused, and the optimizer's state advances once.",
        "A zero gradient (no direction) drops its term; a non-finite one ends the run before the step.",
    ),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "optimizer.schedule": {"choice": ["constant", "auto"]},
    },
    paper_settings={"optimizer.name": "adamw", "optimizer.schedule": "auto", "optimizer.auto.every": 10},
)
