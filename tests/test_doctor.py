"""The doctor's checks, shown the facts of clusters with several nodes; nothing here starts Ray."""

import dataclasses
import json

import pytest

from pipelines import doctor, node_facts
from pipelines.doctor import Node, checks
from unlearn_core.errors import UserError

VERSIONS = {"ray": "2.60.0", "torch": "2.13.0", "transformers": "5.23.0", "deepspeed": "0.19.8", "unlearn": "0.1.0"}


def node(name, **other):
    """A node with which nothing is wrong."""
    healthy = Node(
        name, 2, python="3.11.7", versions=VERSIONS, code="c0de", gpus=["H100", "H100"], output="ok",
        free_output_gib=900.0, free_temp_gib=90.0, shared_memory_gib=64.0, model="found", data="cached",
    )  # fmt: skip
    return dataclasses.replace(healthy, **other)


def report(*nodes, unseen=(), driver=None, need_gib=20.0):
    """Check name -> (status, found, remedy)."""
    found = checks(driver or node("driver"), nodes, unseen, need_gib)
    return {check.name: (check.status, check.found, check.remedy) for check in found}


def test_a_healthy_cluster_is_ok_throughout():
    found = report(node("a"), node("b"))
    assert {status for status, _, _ in found.values()} == {"ok"}
    assert list(found) == [
        "nodes", "Python", "ray", "torch", "transformers", "deepspeed", "unlearn", "unlearn's code", "GPUs", "output",
        "free disk", "model", "data", "shared memory", "clocks",
    ]  # fmt: skip
    assert found["nodes"][1] == "2 answered"
    assert found["free disk"][1] == "at least 90 GiB"


def test_what_was_not_asked_for_is_not_checked():
    found = report(node("a", output=None, free_output_gib=None, model=None, data=None))
    assert not {"output", "model", "data"} & set(found)


@pytest.mark.parametrize(
    ("change", "check", "status", "says", "remedy"),
    [
        ({"error": "does not answer within 60 s"}, "nodes", "failed", "b: does not answer", "Ray log"),
        ({"python": "3.12.1"}, "Python", "failed", "driver 3.11.7; b: 3.12.1", "constraints.txt"),
        ({"versions": VERSIONS | {"torch": "2.9.0"}}, "torch", "failed", "driver 2.13.0; b: 2.9.0", "constraints.txt"),
        ({"versions": VERSIONS | {"deepspeed": None}}, "deepspeed", "failed", "b: missing", "constraints.txt"),
        ({"code": "0ther"}, "unlearn's code", "failed", "driver c0de; b: 0ther", "unlearn submit"),
        ({"gpus": ["H100"]}, "GPUs", "failed", "b: 1 x H100", "b (Ray counts 2)"),
        ({"gpus": "no libcuda"}, "GPUs", "failed", "b: no libcuda", "CUDA build"),
        ({"gpus": ["A100", "A100"]}, "GPUs", "warning", "a: 2 x H100; b: 2 x A100", "alike"),
        ({"ray_gpus": 0}, "GPUs", "warning", "b: 2 x H100", "b (Ray counts 0): start Ray there with --num-gpus"),
        ({"output": "cannot be read and written: Permission denied"}, "output", "failed", "b: cannot", "mount"),
        ({"free_output_gib": 3.0}, "free disk", "warning", "b output: 3.0 GiB", "Below 20 GiB"),
        ({"free_temp_gib": 19.9}, "free disk", "warning", "b temporary files: 19.9 GiB", "--need-gib"),
        ({"model": "does not exist"}, "model", "failed", "b: does not exist", "shared storage"),
        ({"data": "not checked offline"}, "data", "warning", "not checked offline: b", "HF_HUB_OFFLINE"),
        ({"shared_memory_gib": 0.0625}, "shared memory", "warning", "b: 0.06 GiB", "--shm-size"),
        ({"shared_memory_gib": None}, "shared memory", "warning", "b: none", "--shm-size"),
        ({"clock_difference": -5.5}, "clocks", "warning", "b: -5.5 s", "chrony"),
    ],
)
def test_what_is_wrong_with_one_node_is_told_with_a_remedy(change, check, status, says, remedy):
    found = report(node("a"), node("b", **change))
    assert found[check][0] == status
    assert says in found[check][1]
    assert remedy in found[check][2]
    assert [name for name, (how, _, _) in found.items() if how != "ok"] == [check]


def test_nodes_that_differ_among_each_other_by_clock():
    assert report(node("a", clock_difference=-3.0), node("b", clock_difference=3.0))["clocks"][0] == "warning"
    assert report(node("a", clock_difference=-2.0), node("b", clock_difference=2.0))["clocks"][0] == "ok"


def test_a_folder_of_the_same_name_that_is_not_shared():
    found = report(node("a"), node("b"), unseen=["b"])["output"]
    assert found[:2] == ("failed", "b: is another folder: its file does not arrive here")


def test_nodes_without_gpus_among_those_with_are_no_difference():
    assert report(node("head", ray_gpus=0, gpus=[]), node("b"))["GPUs"][0] == "ok"


def test_a_driver_without_unlearn_is_told():
    assert report(node("a"), driver=node("driver", code=None))["unlearn's code"][0] == "failed"


def test_a_cluster_where_nobody_answers():
    assert list(report(node("a", error="lost"))) == ["nodes"]


QUESTION = {"node": "n1", "model": None, "data": None, "output": None, "nonce": ".nonce", "secret": "s3"}


def test_the_output_question_is_answered_by_files(tmp_path):
    ask = QUESTION | {"output": str(tmp_path / "new" / "out")}
    with doctor._driver_file(ask["output"], ask):
        assert node_facts._output(tmp_path / "new" / "out", ask) == "ok"
        assert (tmp_path / "new" / "out" / ".nonce-n1").read_text() == "s3"
        (tmp_path / "elsewhere").mkdir()
        assert "driver's file is not here" in node_facts._output(tmp_path / "elsewhere", ask)
        assert "other content" in node_facts._output(tmp_path / "new" / "out", ask | {"secret": "other"})
    assert not (tmp_path / "new").exists()  # made for the question alone
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "result").touch()
    with doctor._driver_file(str(tmp_path / "kept"), ask):
        assert (tmp_path / "kept" / ".nonce").is_file()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["result"]


def test_an_output_that_the_driver_cannot_write_is_a_mistake(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="cannot be written from here"),
        doctor._driver_file(str(tmp_path / "file"), QUESTION),
    ):
        pass


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty cache, and no hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_how_models_are_reached(offline, monkeypatch):
    from huggingface_hub import constants

    def reach(name):
        return node_facts._reachable(name, "config.json", "model")

    assert reach(None) is None
    assert reach(str(offline)) == "found"
    assert reach("/no/such/model") == reach("./none") == reach("a/b/c") == reach("not a name") == "does not exist"
    assert reach("org/model") == "not checked offline"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert reach("org/model").startswith("the hub is not reached: ")


def test_facts_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(node_facts, "_gpus", lambda: [])  # seconds: a process that imports torch
    (tmp_path / ".nonce").write_text("s3")
    facts = node_facts.collect(QUESTION | {"output": str(tmp_path), "data": str(tmp_path)})
    found = Node("here", **facts)
    assert found.output == "ok" and found.data == "found" and found.model is None
    assert found.free_output_gib is not None and found.free_output_gib > 0 and found.free_temp_gib > 0
    assert found.versions["ray"] and found.code
    assert json.loads(json.dumps(dataclasses.asdict(found)))["host"]
    assert node_facts._version("no-such-package") is None
