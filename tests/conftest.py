"""What tests of training share: a small taught model, and processes to train it in."""

import os
from pathlib import Path

import pytest
from rank_processes import Ranks


def pytest_collection_modifyitems(config, items):
    """Groups for `make test PROCESSES=2`, whose processes take one group after the other: what starts Ray, first since
    it takes longest; of the rest each file, for what its tests share.
    """
    if not config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    root = Path(__file__).parent

    def group(item: pytest.Item) -> str:
        place = item.path.relative_to(root)
        return "ray" if place.parts[0] == "ray" and place.name != "test_documented_commands.py" else str(place)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: not group(item).startswith("ray"))


@pytest.fixture(scope="session")
def one_rank():
    """A single process with torch.distributed."""
    ranks = Ranks(1)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def two_ranks():
    """Two processes of one torch.distributed group."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
    """Folder of a Llama of 0.1M parameters, untied embeddings, taught synthetic:tiny; with its tokenizer."""
    from benchmarks.exactness import make_model

    folder = tmp_path_factory.mktemp("taught") / "model"
    make_model(folder)
    return folder


@pytest.fixture(scope="session")
def start(taught):
    """The taught model's weights."""
    from safetensors.torch import load_file

    return load_file(taught / "model.safetensors")


@pytest.fixture(scope="session")
def truth(taught):
    """Combined gradient of each step and final weights of the plain single-process fp32 reference."""
    from benchmarks.exactness import make_config, reference

    return reference(make_config(taught, 0, 1, 1, "fp32"))


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """An S3 bucket on the loopback, the environment that leads to it, and an empty folder for mirrors."""
    from object_store import Bucket

    made = Bucket()
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path / "mirror"))
    yield made
    made.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """With UNLEARN_REQUIRE_DATA set (CI), a test skipped for want of real data is a failure."""
    report = (yield).get_result()
    if report.skipped and os.environ.get("UNLEARN_REQUIRE_DATA"):
        reason = str(report.longrepr)
        if "TOFU_DIR" in reason or "GOLDEN_DIR" in reason:
            report.outcome = "failed"
            report.longrepr = f"UNLEARN_REQUIRE_DATA is set, so this must not be skipped: {reason}"
