"""The search space: plain data in and out, conditional domains, coordinates, what a mistake says."""

import numpy as np
import pytest
import yaml

from tune.space import INACTIVE, Space, space_of_methods, space_yaml
from unlearn_core.config import RunConfig, build_config
from unlearn_core.errors import UserError
from unlearn_core.method import methods

DATA = {
    "rate": [
        {"log_uniform": [0.01, 1.0], "when": {"method": ["a", "b"]}},
        {"log_uniform": [1.0, 100.0], "when": {"method": ["c"]}},
    ],
    "method": {"choice": ["a", "b", "c"]},
    "layers": {"int_uniform": [1, 4], "when": {"method": ["b"]}},
    "share": {"uniform": [-1.0, 1.0]},
    "optimizer": {"fixed": "sgd", "when": {"method": ["c"]}},
}
SEARCHABLE = [name for name, method in methods().items() if method.search_space]


def test_order_follows_the_conditions_and_inactive_keys_are_absent():
    space = Space.from_data(DATA)
    assert space.domains[0].key == "method"
    assert space.dimension == 5
    by_key = {domain.label: n for n, domain in enumerate(space.varying)}
    unit_D = np.full(5, 0.5)
    unit_D[by_key["method"]] = 0.99
    assert space.decode(unit_D) == pytest.approx({"method": "c", "rate": 10.0, "share": 0.0, "optimizer": "sgd"})
    unit_D[by_key["method"]] = 0.4
    assert space.decode(unit_D) == pytest.approx({"method": "b", "rate": 0.1, "layers": 3, "share": 0.0})


@pytest.mark.parametrize("unit", [0.0, 1.0])
def test_both_ends_of_each_range_are_reached_exactly(unit):
    domains = {domain.label: domain.at(unit) for domain in Space.from_data(DATA).varying}
    ends = {"rate [a|b]": (0.01, 1.0), "rate [c]": (1.0, 100.0), "layers [b]": (1, 4), "share": (-1.0, 1.0)}
    assert {label: domains[label] for label in ends} == {label: both[int(unit)] for label, both in ends.items()}


def test_every_whole_number_has_an_equal_share():
    (domain,) = Space.from_data({"layers": {"int_uniform": [1, 4]}}).varying
    values = [domain.at(unit) for unit in np.linspace(0, 1, 400, endpoint=False) + 1 / 800]
    assert [values.count(n) for n in (1, 2, 3, 4)] == [100] * 4


def test_encode_is_the_inverse_of_decode():
    space, rng = Space.from_data(DATA), np.random.default_rng(0)
    for unit_D in rng.random((200, space.dimension)):
        config = space.decode(unit_D)
        assert space.decode(space.encode(config)) == pytest.approx(config)
        used = [domain.active(config) for domain in space.varying]
        coordinates_D = space.encode(config)
        ranges = [d.kind in ("uniform", "log_uniform") for d in space.varying]
        for ours, given, active, is_range in zip(coordinates_D, unit_D, used, ranges, strict=True):
            assert ours == (pytest.approx(given) if active and is_range else ours)
            assert active or ours == INACTIVE


def test_configs_that_decode_alike_have_the_same_features():
    space = Space.from_data(DATA)
    labels = [domain.label for domain in space.varying]
    one, other = np.full(5, 0.3), np.full(5, 0.3)
    one[labels.index("method")] = other[labels.index("method")] = 0.1
    other[labels.index("layers [b]")] = 0.9  # not used under a
    other[labels.index("rate [c]")] = 0.9
    features_NF = space.features([one, other])
    assert features_NF.shape == (2, 3 + 4)
    assert (features_NF[0] == features_NF[1]).all() and features_NF.min() >= 0 and features_NF.max() <= 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "varies nothing"),
        ({"a": {"fixed": 1}}, "varies nothing"),
        ({"a": 3}, "is no domain"),
        ({"a": {"normal": [0, 1]}}, "expected one of log_uniform"),
        ({"a": {"uniform": [1, 0]}}, "low < high"),
        ({"a": {"log_uniform": [0, 1]}}, "above 0"),
        ({"a": {"uniform": [1, 2, 3]}}, "two numbers"),
        ({"a": {"choice": [1, 1]}}, "repeat a value"),
        ({"a": {"choice": []}}, "needs a list"),
        ({"a": {"uniform": [0, 1], "when": {"b": [1]}}}, "names b"),
        ({"b": {"choice": [1, 2]}, "a": {"uniform": [0, 1], "when": {"b": [3]}}}, "it cannot be"),
        ({"a": [{"uniform": [0, 1]}, {"uniform": [1, 2]}]}, "active at once"),
    ],
)
def test_a_mistake_is_told_with_its_key_and_a_remedy(data, says):
    with pytest.raises(UserError, match=says):
        Space.from_data(data)


def test_a_strange_config_is_refused():
    space = Space.from_data(DATA)
    with pytest.raises(UserError, match="lacks rate"):
        space.encode({"method": "a"})
    with pytest.raises(UserError, match="does not vary layers"):
        space.encode({"method": "a", "rate": 0.1, "share": 0.0, "layers": 2})
    with pytest.raises(UserError, match="outside"):
        space.encode({"method": "a", "rate": 5.0, "share": 0.0})


@pytest.mark.parametrize("name", SEARCHABLE)
def test_every_methods_space_survives_yaml_and_makes_valid_runs(name):
    data = space_of_methods([name])
    space = Space.from_data(yaml.safe_load(space_yaml(data)))
    assert space == Space.from_data(data) and Space.from_data(space.to_data()) == space
    base = {
        "name": "x",
        "model": {"path": "m"},
        "data": {"benchmark": "synthetic:tiny", "forget": ["forget10"], "retain": ["retain90"]},
        "method": {"name": name},
        "steps": 3,
    }
    for unit_D in np.random.default_rng(1).random((5, space.dimension)):
        config = space.decode(unit_D)
        run = build_config(RunConfig, base, config)
        methods()[name].settings(**run.method.settings)


def test_methods_keep_their_own_ranges_and_optimizer_beside_others():
    space = Space.from_data(space_of_methods(["ngdiff", "mean_teacher", "composed"]))
    seen = {}
    for unit_D in np.random.default_rng(0).random((300, space.dimension)):
        config = space.decode(unit_D)
        seen.setdefault(config["method.name"], []).append(config)
        if config.get("method.settings.forget.loss") != "npo":
            assert "method.settings.forget.settings.beta" not in config
    assert {config["optimizer.name"] for config in seen["mean_teacher"]} == {"sgd"}
    assert {config["optimizer.schedule"] for config in seen["ngdiff"]} == {"constant", "auto"}
    assert all(config["optimizer.learning_rate"] <= 1e-3 for config in seen["ngdiff"])
    assert max(config["optimizer.learning_rate"] for config in seen["mean_teacher"]) > 1e-3
    assert any("method.settings.forget.settings.beta" in config for config in seen["composed"])
    with pytest.raises(UserError, match="has no search space"):
        space_of_methods(["finetune"])
    with pytest.raises(UserError, match="once"):
        space_of_methods(["npo", "npo"])
