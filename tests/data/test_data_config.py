import pytest

from unlearn_core.config import RunConfig, build_config
from unlearn_core.data.config import DataConfig
from unlearn_core.errors import UserError

OLD = {"benchmark": "synthetic:tiny", "forget": ["forget10"], "retain": ["retain90"]}


def build(**data):
    values = {"name": "try", "model": {"path": "x"}, "method": {"name": "npo"}, "steps": 3, "data": data}
    return build_config(RunConfig, values)


def test_a_config_without_the_additions_is_written_as_before():
    # Its fingerprint hashes exactly this; a key more, and no run of before could be resumed.
    assert set(build(**OLD).model_dump(mode="json")["data"]) == {
        "benchmark", "forget", "retain", "format", "system_prompt", "max_length",
    }  # fmt: skip


@pytest.mark.parametrize(
    "addition",
    [
        {"documents": "truncate"},
        {"generic": {"source": "a/b"}},
        {"generic": {"source": "a/b", "length": 256}},
        {"generic": {"source": "a/b", "subset": "en"}},
        {"forget": [], "sequential": ["forget10"]},
    ],
)
def test_an_addition_in_use_is_kept_and_changes_the_fingerprint(addition):
    config = build(**OLD | addition)
    assert config.fingerprint() != build(**OLD).fingerprint()
    dumped = config.model_dump(mode="json")["data"]
    assert DataConfig.model_validate(dumped) == config.data
    assert set(addition) <= set(dumped)


def test_benchmark_may_be_left_out_for_files_alone():
    assert build(forget=["a.jsonl"], retain=["b.json", "c.txt"]).data.benchmark is None
    for data in ({"forget": ["forget10"]}, {"forget": ["a.jsonl"], "retain": ["retain90"]}, {"sequential": ["s"]}):
        with pytest.raises(UserError, match=r"data\.benchmark is not set, and '(forget10|retain90|s)' is no file"):
            build(**data)


def test_requests():
    one = build(**OLD).data
    assert one.requests == 1 and one.request(0) == one
    several = build(**OLD | {"forget": [], "sequential": ["forget10", "a.jsonl"]}).data
    assert several.requests == 2
    assert several.request(1) == DataConfig.model_validate(OLD | {"forget": ["a.jsonl"]})
    assert several.request(0).requests == 1
    for config, index in ((one, 1), (several, 2), (several, -1)):
        with pytest.raises(IndexError, match=f"request {index} of "):
            config.request(index)
    with pytest.raises(UserError, match=r"data\.forget must be empty; it is \['forget10'\]"):
        build(**OLD | {"sequential": ["forget05"]})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"documents": "cut"}, r"data\.documents"),
        ({"generic": {"documents": 5}}, r"data\.generic\.source: missing"),
        ({"generic": {"source": "a/b", "length": 1}}, r"data\.generic\.length"),
        ({"generic": {"source": "a/b", "lenght": 1}}, "Did you mean 'length'"),
    ],
)
def test_wrong_values(data, says):
    with pytest.raises(UserError, match=says):
        build(**OLD | data)
