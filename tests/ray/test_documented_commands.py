"""The commands of README and docs/ that train, evaluate, search or attack, run in the order of the pages at their
smallest size: a pair taught for one epoch, runs of two steps, the tiny benchmarks. `make docs-check` runs them in full.
"""

import json
import shlex

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tests.docs.documented_commands import at_hand, chosen, own_output, prepare

# Ray Data 2.60 sets deprecated fields of its own context.
pytestmark = [pytest.mark.docs, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")]


def test_commands_run_at_their_smallest_size(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    takers: dict[str, str] = {}
    ran = 0
    for block, words, why_not in chosen():
        if why_not:
            continue
        command = own_output(at_hand(words, tmp_path, "smallest"), block, takers)
        done = CliRunner().invoke(app, command[1:])
        assert done.exit_code == 0, f"{block}: {shlex.join(command)}\n{done.output}\n{done.exception!r}"
        ran += 1
    assert ran > 30
    report = tmp_path / "outputs" / "mine-report"  # of the page that goes from own rows to a report
    assert (report / "report.html").is_file()
    assert len(json.loads((report / "summary.json").read_text())["front"]) >= 1
