"""cluster.yaml is what Ray's cluster launcher accepts, and installs what the tests ran with."""

from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROOT = Path(__file__).parents[1]


def accepted(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_ray_accepts_it():
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    accepted(config)
    with pytest.raises(Exception, match="idle_minutes"):
        accepted(config | {"idle_minutes": 5})


def test_it_installs_the_tested_versions():
    commands = " ".join(yaml.safe_load((ROOT / "cluster.yaml").read_text())["setup_commands"])
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    assert torch in commands
    assert "unlearn/constraints.txt" in commands
