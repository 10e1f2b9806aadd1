import datetime
import math

import pytest

from unlearn_core.config import FinetuneConfig, OptimizerConfig, RunConfig, build_config, load_config, parse_overrides
from unlearn_core.errors import UserError

VALUES = {
    "name": "try",
    "model": {"path": "somewhere"},
    "data": {"benchmark": "synthetic:tiny", "forget": ["forget10"], "retain": ["retain90"]},
    "method": {"name": "ngdiff"},
    "steps": 10,
}


def build(overrides=None, **changes):
    return build_config(RunConfig, VALUES | changes, overrides)


def test_defaults():
    config = build()
    assert config.batch.rows == 32
    assert config.optimizer.gradient_clipping == 0.0
    assert config.data.forget == ("forget10",)


def test_an_unknown_key_lists_the_valid_ones_and_the_nearest():
    with pytest.raises(UserError) as error:
        build(stepz=3)
    assert "stepz: unknown key. Did you mean 'steps'?" in str(error.value)
    assert "batch, checkpoint_every, checkpoints, data, diagnostics, export_every" in str(error.value)


def test_an_unknown_nested_key_lists_the_keys_of_its_own_node():
    with pytest.raises(UserError) as error:
        build({"optimizer.learnin_rate": 1.0})
    assert "optimizer.learnin_rate: unknown key. Did you mean 'learning_rate'?" in str(error.value)
    assert "betas, epsilon, gradient_clipping" in str(error.value)
    assert "export_every" not in str(error.value)


def test_a_key_of_an_optional_node_is_explained_too():
    values = {"model": {"build": {"layerz": 2}}, "benchmark": "b", "target": ["a"], "reference": ["b"], "epochs": 1}
    with pytest.raises(UserError, match=r"Did you mean 'layers'.*hidden_size"):
        build_config(FinetuneConfig, values)


def test_a_missing_key():
    with pytest.raises(UserError, match=r"steps: missing, and it has no default\.") as error:
        build_config(RunConfig, {key: value for key, value in VALUES.items() if key not in ("steps", "model")})
    assert "model: missing" in str(error.value)  # every mistake at once


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0),
        ("name", "a/b"),
        ("zero.stage", 4),
        ("optimizer.learning_rate", -1e-4),
        ("optimizer.learning_rate", math.nan),
        ("optimizer.learning_rate", math.inf),
        ("optimizer.momentum", 1.0),
        ("batch.rows", 0),
        ("workers.count", 0),
        ("model.dtype", "fp16"),
        ("seed", "one"),
    ],
)
def test_a_value_out_of_range_is_named(key, value):
    with pytest.raises(UserError) as error:
        build({key: value})
    assert f"{key}: " in str(error.value)
    assert f"(got {value!r})" in str(error.value)


def test_finetune_starts_from_exactly_one_model():
    values = {"benchmark": "b", "target": ["full"], "reference": ["retain90"], "epochs": 1}
    for model in ({}, {"path": "x", "build": {"layers": 1}}):
        with pytest.raises(UserError, match=r"exactly one of model\.path .* and model\.build"):
            build_config(FinetuneConfig, values | {"model": model})
    assert build_config(FinetuneConfig, values | {"model": {"build": {"layers": 1}}}).model.build.layers == 1


def test_accumulation_must_come_out_whole():
    with pytest.raises(
        UserError, match=r"batch\.rows 30 .* batch\.micro 4 x workers\.count 2 = 8 rows a pass; set batch\.rows=32"
    ):
        build({"batch.rows": 30, "workers.count": 2})
    values = {"model": {"path": "x"}, "benchmark": "b", "target": ["full"], "reference": ["retain90"], "epochs": 1}
    with pytest.raises(UserError, match=r"batch\.rows 3 .* set batch\.rows=4"):
        build_config(FinetuneConfig, values, {"batch.rows": 3})
    assert build({"batch.rows": 24, "workers.count": 3}).batch.rows == 24


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        build().steps = 3


def test_overrides_are_read_as_yaml():
    pairs = ["a.b=1e-4", "c=3", "d=null", "e=[forget10, forget05]", "f=true", "g=text", "h=", "i=x=y"]
    found = parse_overrides(pairs)
    assert found == {
        "a.b": 1e-4, "c": 3, "d": None, "e": ["forget10", "forget05"], "f": True, "g": "text", "h": None, "i": "x=y"
    }  # fmt: skip
    assert isinstance(found["a.b"], float)
    config = build(
        {**parse_overrides(["optimizer.learning_rate=1e-4", "data.forget=[a, b]", "data.system_prompt=null"])}
    )
    assert config.optimizer.learning_rate == 1e-4
    assert config.data.forget == ("a", "b")
    assert config.data.system_prompt is None


def test_overrides_make_missing_nodes_and_leave_the_given_values_alone():
    assert build({"zero.stage": 3}).zero.stage == 3
    assert "zero" not in VALUES
    assert VALUES["steps"] == 10


@pytest.mark.parametrize("pair", ["steps", "=3", "data.forget=[a"])
def test_a_bad_override_is_a_users_mistake(pair):
    with pytest.raises(UserError, match="--set"):
        parse_overrides([pair])


def test_an_override_through_a_value():
    with pytest.raises(UserError, match="'steps' is a value, not a group"):
        build({"steps.more": 1})


def test_a_yaml_date_is_text():
    day = datetime.date(2024, 1, 2)  # what YAML makes of name: 2024-01-02
    assert build(name=day).name == "2024-01-02"
    with pytest.raises(UserError, match=r"steps: .*got '2024-01-02'"):
        build(steps=day)


def test_files(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: try\nsteps: 10\nmodel: {path: somewhere}\nmethod: {name: ngdiff}\n"
        "data: {benchmark: 'synthetic:tiny', forget: [forget10], retain: [retain90]}\n"
        "optimizer: {learning_rate: 1e-4}\n"
    )
    assert load_config(RunConfig, path, {"steps": 4}) == build({"optimizer.learning_rate": 1e-4, "steps": 4})
    path.write_text("steps: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(RunConfig, path)
    path.write_text("- 1\n")
    with pytest.raises(UserError, match="holds list"):
        load_config(RunConfig, path)
    with pytest.raises(UserError, match="Cannot read the config"):
        load_config(RunConfig, tmp_path / "nowhere.yaml")
    path.write_text("steps: 1\nstepz: 2\n")
    with pytest.raises(UserError, match=r"run\.yaml is not a valid RunConfig"):
        load_config(RunConfig, path)


def test_the_fingerprint_follows_what_changes_numbers():
    prints = {
        build(overrides).fingerprint()
        for overrides in (
            None,
            {"seed": 1},
            {"steps": 11},
            {"optimizer.learning_rate": 2e-5},
            {"optimizer.gradient_clipping": 1.0},
            {"batch.rows": 16},
            {"method.name": "grad_diff"},
            {"method.settings": {"a": 1}},
            {"data.forget": ["forget05"]},
            {"model.path": "elsewhere"},
            {"export_every": 5},
        )
    }
    assert len(prints) == 11
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in prints)


@pytest.mark.parametrize(
    "overrides",
    [
        {"workers.count": 4},
        {"workers.max_restarts": 0},
        {"workers.minimum": 1},
        {"checkpoint_every": 2},
        {"checkpoints.last": 1},
        {"zero.stage": 3},
        {"batch.micro": 2},
    ],
)
def test_the_fingerprint_does_not_follow_where_it_runs(overrides):
    assert build(overrides).fingerprint() == build().fingerprint()


def test_when_models_are_exported_and_checkpoints_taken():
    assert [step for step in range(1, 11) if build().exports_at(step)] == [10]
    assert [step for step in range(1, 11) if build().checkpoints_at(step)] == [10]
    assert [step for step in range(1, 11) if build(export_every=4).exports_at(step)] == [4, 8, 10]
    assert [step for step in range(1, 11) if build(export_every=4).checkpoints_at(step)] == [4, 8, 10]
    both = build(export_every=4, checkpoint_every=3)
    assert [step for step in range(1, 11) if both.checkpoints_at(step)] == [3, 6, 9, 10]
    assert [step for step in range(1, 11) if both.exports_at(step)] == [4, 8, 10]


def rates(schedule, warmup, steps):
    config = OptimizerConfig(learning_rate=0.8, schedule=schedule, warmup_steps=warmup)
    return [config.rate(step, steps) for step in range(steps)]


def test_schedules_by_hand():
    assert rates("constant", 0, 3) == [0.8, 0.8, 0.8]
    assert rates("constant", 2, 4) == pytest.approx([0.4, 0.8, 0.8, 0.8])
    assert rates("linear", 0, 4) == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert rates("linear", 2, 6) == pytest.approx([0.4, 0.8, 0.8, 0.6, 0.4, 0.2])
    half = 0.4 * math.sqrt(0.5)  # 0.4 (1 + cos(pi / 4)) = 0.4 + half
    assert rates("cosine", 0, 4) == pytest.approx([0.8, 0.4 + half, 0.4, 0.4 - half])
    assert rates("cosine", 4, 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])
