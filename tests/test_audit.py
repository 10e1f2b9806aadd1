"""The audit of dependencies says passed only when every pin was audited."""

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLEAN = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1"}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.fixture(scope="module")
def audit():
    loader = importlib.machinery.SourceFileLoader("audit", str(ROOT / ".ci" / "audit"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("audit", loader))
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("found", "code", "says"),
    [
        ([CLEAN, CLEAN], 0, "2 pins, none with a known vulnerability"),
        ([CLEAN, BAD, SKIPPED], 1, "b 2: CVE-1"),
        ([CLEAN, SKIPPED], 2, "NOT RUN for 1 of 2 pins"),
        ([], 2, "NOT RUN"),
    ],
)
def test_verdict(audit, found, code, says):
    answer, said = audit.verdict({"dependencies": found})
    assert answer == code
    assert says in said


def test_a_tool_that_is_not_there_is_no_pass(audit, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["audit", "/no/such/tool"])
    assert audit.main() == 2
    assert "NOT RUN" in capsys.readouterr().out
