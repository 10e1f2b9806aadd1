"""Mistakes that need no worker to be found: names of layers, adapters, methods and optimizers that do not fit."""

import pytest
from method_cases import CASES, config_of

from benchmarks.exactness_methods import write_generic_text
from unlearn_core.errors import UserError
from unlearn_core.preflight import preflight


@pytest.fixture
def configured(taught, tmp_path):
    write_generic_text(tmp_path)
    return lambda name, **changes: config_of(CASES[name], taught, tmp_path, 1e-3, 1, 0, **changes)


@pytest.mark.parametrize("name", CASES)
def test_every_case_passes(name, configured):
    preflight(configured(name))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("ngdiff", {"model__lora": {"layers": ["qproj"]}}, r"model\.lora\.layers \['qproj'\]"),
        ("ngdiff", {"model__train_only": ["nothing_here"]}, r"'nothing_here' matches no parameter; names look like"),
        ("pgu", {"method__settings": {"layers": ["dwn_proj"]}}, r"'dwn_proj' matches no parameter"),
        ("pgu", {"optimizer__name": "adamw"}, r"only plain SGD's step stays in the projection.*now adamw"),
        ("pgu", {"model__lora": {"rank": 2}}, r"model\.lora trains adapters instead"),
        ("rmu", {"method__settings": {"layer": 9}}, r"layer 9, and the model has layers 0 to 1\. Set method\.settings"),
        ("mean_teacher", {"data__generic": None}, r"data\.generic"),
        ("alt_po", {"data__forget": ["forget10"]}, r"alternate"),
    ],
)
def test_mistakes_are_found(name, changes, said, configured):
    with pytest.raises(UserError, match=said):
        preflight(configured(name, **changes))


def test_a_list_given_as_text_is_told_how_to_write(configured):
    with pytest.raises(UserError, match=r"expected a list; write \[mine\.jsonl\]"):
        configured("ngdiff", data__forget="mine.jsonl")
