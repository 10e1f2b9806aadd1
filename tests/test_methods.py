import numpy as np
import pytest

from unlearn_core.config import RunConfig
from unlearn_core.errors import UserError
from unlearn_core.method import find_method, method_settings, methods

GRAM = np.array([[25.0, 3.0], [3.0, 1.0]])  # g_R = [3, 4], g_F = [1, 0]


def weights(name, gram=GRAM, **values):
    method = find_method(name)
    return method.combine(gram, method_settings(method, values)).tolist()


def test_the_folder_is_the_registry():
    assert {"finetune", "grad_ascent", "grad_diff", "ngdiff"} <= methods().keys()


@pytest.mark.parametrize("method", methods().values(), ids=methods().keys())
def test_every_method_says_what_it_is(method):
    assert method.title
    assert method.paper
    assert 1 <= len(method.objectives) == len(set(method.rows))
    assert len(method.combine(np.eye(len(method.rows)), method.settings())) == len(method.rows)
    for key in method.search_space:
        node, *rest = key.split(".")
        assert node in RunConfig.model_fields, key
        if key.startswith("method.settings."):
            assert rest[-1] in method.settings.model_fields, key
    retain_weight = dict(zip(method.rows, weights(method.name, np.eye(len(method.rows))), strict=True)).get(
        "retain", 1.0
    )
    assert retain_weight > 0  # the retain loss is minimised


def test_weights_by_hand():
    one = np.array([[4.0]])
    assert weights("finetune", one) == [1.0]
    assert weights("grad_ascent", one) == [-1.0]
    assert weights("grad_diff") == [1.0, -1.0]
    assert weights("grad_diff", retain_weight=2, forget_weight=0.5) == [2.0, -0.5]
    assert weights("ngdiff") == pytest.approx([0.2, -1.0])


def test_rows_in_gram_order():
    assert find_method("ngdiff").rows == find_method("grad_diff").rows == ("retain", "forget")
    assert find_method("grad_ascent").rows == ("forget",)
    assert find_method("finetune").rows == ("retain",)


def test_an_unknown_method_lists_the_known_ones_and_the_nearest():
    with pytest.raises(
        UserError, match=r"Unknown method 'ngdif'. Did you mean 'ngdiff'\?.*finetune, grad_ascent, grad_diff"
    ):
        find_method("ngdif")
    with pytest.raises(UserError, match=r"Unknown method 'zzz'\. Known methods"):
        find_method("zzz")


def test_unknown_or_bad_settings_list_the_valid_ones():
    with pytest.raises(UserError, match=r"grad_diff: gamma: .*Valid keys: retain_weight, forget_weight\."):
        method_settings(find_method("grad_diff"), {"gamma": 1})
    with pytest.raises(UserError, match=r"forget_weight: .*greater than or equal to 0"):
        method_settings(find_method("grad_diff"), {"forget_weight": -1})
    with pytest.raises(UserError, match=r"ngdiff: retain_weight: .*Valid keys: none\."):
        method_settings(find_method("ngdiff"), {"retain_weight": 1})
