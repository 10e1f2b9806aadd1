"""Every named method: what it says of itself, what it is composed of, and how `composed` makes any other."""

import numpy as np
import pytest

from unlearn_core.config import RunConfig
from unlearn_core.errors import UserError
from unlearn_core.method import compose, find_method, method_settings, methods
from unlearn_core.parts import COMBINERS, LOSSES

NEEDED = {"pdu": {"epsilon": 1.0}}
"""Settings without a default."""


def composition(name, **values):
    return compose(name, NEEDED.get(name, {}) | values)


def test_the_folder_is_the_registry():
    asked = (
        "finetune grad_ascent grad_diff ngdiff mean_teacher npo simnpo idk_dpo alt_po kl_min undial rmu wga satimp ce_u"
    )
    asked += " pdu ihl max_entropy nlul mollm loss_norm mgda moco pcgrad gru blur cagrad famo pgu composed"
    assert set(asked.split()) == methods().keys()


@pytest.mark.parametrize("method", methods().values(), ids=methods().keys())
def test_every_method_says_what_it_is(method):
    assert method.title and method.paper and method.equation
    parts = composition(method.name)
    assert len(parts.objectives) >= 1
    for key in {**method.search_space, **method.paper_settings}:
        node, *rest = key.split(".")
        assert node in RunConfig.model_fields, key
        if key.startswith("method.settings."):
            assert rest[1] in method.settings.model_fields, key
    # Retain rows are held, never pushed; forget rows are pushed.
    for objective in parts.objectives:
        assert not (objective.rows == "retain" and objective.maximise)
        assert objective.maximise == (objective.rows == "forget" and "cross_entropy" in str(objective.loss))


@pytest.mark.parametrize("name", methods())
def test_a_combiner_is_never_shared_between_runs(name):
    assert composition(name).combiner is not composition(name).combiner


def known_weights(name, **values):
    return composition(name, **values).combiner.weights(None, None, 0).tolist()


def test_constant_weights_need_no_gradient_kept_apart():
    assert known_weights("finetune") == [1.0]
    assert known_weights("grad_ascent") == [1.0]  # of a loss to climb
    assert known_weights("grad_diff", retain_weight=2, forget_weight=0.5) == [2.0, 0.5]
    assert known_weights("mean_teacher") == [1.0, 0.05]
    assert composition("grad_diff").extra_gradient_shards == 0


def test_what_each_method_keeps_in_memory():
    shards = {
        name: (composition(name).extra_gradient_shards, composition(name).extra_weight_shards) for name in methods()
    }
    assert shards["ngdiff"] == (1, 0)
    assert shards["mean_teacher"] == (0, 1)
    assert shards["gru"] == (2, 0)  # the retain gradient and its average
    assert shards["mollm"] == (2, 1)
    assert shards["famo"] == shards["pdu"] == shards["npo"] == (0, 0)


def test_ngdiff_weighs_by_norms():
    gram = np.array([[25.0, 3.0], [3.0, 1.0]])  # g_R = [3, 4], h = [1, 0]
    assert composition("ngdiff").combiner.weights(gram, np.ones(2), 0) == pytest.approx([0.2, 1.0])
    assert [objective.sign for objective in composition("ngdiff").objectives] == [1.0, -1.0]


def test_rows_in_gram_order():
    assert composition("ngdiff").sets == composition("grad_diff").sets == ("retain", "forget")
    assert composition("mean_teacher").sets == ("generic", "forget")
    assert composition("idk_dpo").sets == ("retain", "forget", "refusal")
    assert composition("alt_po").reference_sets == ("forget", "alternate")
    assert composition("npo").reference_sets == ("forget",)
    assert composition("pgu").sets == ("forget",)
    assert composition("pgu").data_sets == ("forget", "retain")


@pytest.mark.parametrize("name", ["undial", "ce_u"])
def test_a_retain_weight_of_zero_leaves_the_retain_rows_out(name):
    assert composition(name).sets == ("forget",)
    assert composition(name, retain_weight=0.5).sets == ("retain", "forget")


def settings_of(name):
    return {"gru": {}, "primal_dual": {"epsilon": 0.5}, "min_norm": {"normalize": "l2"}}.get(name, {})


@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_any_forget_loss_goes_with_any_combiner(loss, combiner):
    settings = {"coefficient": 2.0} if loss == "rmu_forget" else {}
    if combiner == "famo" and loss in ("cross_entropy", "nlul_surrogate", "wga", "satimp", "negative_entropy"):
        with pytest.raises(UserError, match="famo needs losses that are minimised and never negative"):
            compose("composed", {"forget": {"loss": loss}, "combiner": {"name": combiner}})
        return
    parts = compose(
        "composed",
        {
            "forget": {"loss": loss, "settings": settings},
            "combiner": {"name": combiner, "settings": settings_of(combiner)},
        },
    )
    assert isinstance(parts.combiner, COMBINERS[combiner])
    assert parts.sets[:2] == ("retain", "forget")
    assert (parts.teacher is not None) == (LOSSES[loss].kind == "teacher" or loss == "rmu_retain")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"forget": {"loss": "nulu"}}, r"Unknown loss 'nulu'\. Did you mean 'nlul'\?"),
        ({"forget": {"loss": "npo", "settings": {"gamma": 1}}}, r"loss npo has no setting gamma\. Valid: beta"),
        ({"forget": {"loss": "rmu_forget"}}, r"loss rmu_forget needs coefficient"),
        ({"retain": {"loss": "idk_dpo"}}, r"idk_dpo needs a second answer .* not retain"),
        ({"combiner": {"name": "ngdif"}}, r"Unknown combiner 'ngdif'\. Did you mean 'ngdiff'"),
        ({"combiner": {"name": "gru"}, "retain": None}, r"combiner gru weighs one loss to keep against one .* got 1"),
        ({"combiner": {"name": "weighted_sum", "settings": {"weights_K": [1]}}}, r"takes each loss's own `weight`"),
        ({"combiner": {"name": "primal_dual"}}, r"combiner primal_dual needs epsilon"),
    ],
)
def test_parts_that_do_not_fit_are_refused(values, said):
    with pytest.raises(UserError, match=said):
        compose("composed", values)


def test_three_losses_with_ngdiffs_combiner():
    parts = compose("composed", {"generic": {"loss": "kl"}, "combiner": {"name": "ngdiff"}, "teacher_rate": 0.01})
    assert [objective.name for objective in parts.objectives] == ["retain", "generic", "forget"]
    assert parts.teacher.rate == 0.01


def test_an_unknown_method_lists_the_known_ones_and_the_nearest():
    with pytest.raises(UserError, match=r"Unknown method 'ngdif'. Did you mean 'ngdiff'\?.*grad_ascent, grad_diff"):
        find_method("ngdif")
    with pytest.raises(UserError, match=r"Unknown method 'zzz'\. Known methods"):
        find_method("zzz")


def test_unknown_or_bad_settings_list_the_valid_ones():
    with pytest.raises(
        UserError, match=r"grad_diff: gamma: unknown setting\. Valid keys: retain_weight, forget_weight\."
    ):
        method_settings(find_method("grad_diff"), {"gamma": 1})
    with pytest.raises(UserError, match=r"forget_weight: .*greater than or equal to 0 \(got -1\)"):
        method_settings(find_method("grad_diff"), {"forget_weight": -1})
    with pytest.raises(UserError, match=r"ngdiff: retain_weight: unknown setting\. Valid keys: none\."):
        method_settings(find_method("ngdiff"), {"retain_weight": 1})
    with pytest.raises(UserError, match=r"pdu: epsilon: missing, and it has no default; set method\.settings\.epsilon"):
        compose("pdu", {})
