"""KL minimisation: gradient ascent on forget rows, the start model held on retain rows (TOFU, arXiv 2401.06121).

    minimise  alpha KL(p_0 || p) on retain rows  -  gamma L_F

p_0 is the start model, kept as weight shards and swapped in for its forward pass.
"""

from unlearn_core.method import Composition, Method, TeacherRule
from unlearn_core.parts import Weights, forget, retain, weighted_sum

METHOD = Method(
    name="kl_min",
    title="KL minimisation",
    paper="Maini et al., 'TOFU', arXiv 2401.06121",
    equation="alpha KL(p_0 || p)_R - gamma L_F",
    compose=lambda s: Composition((retain("kl"), forget()), weighted_sum(s), teacher=TeacherRule()),
    settings=Weights,
    deviations=("KL covers answer tokens only; the leading implementation averages over prompt and padding as well.",),
    search_space={
        "optimizer.learning_rate": {"log_uniform": [1e-6, 1e-3]},
        "method.settings.forget_weight": {"uniform": [0.1, 1.0]},
    },
)
