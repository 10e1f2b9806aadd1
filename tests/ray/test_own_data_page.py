"""docs/own-model-and-metric.md followed literally: its rows, its nine lines of YAML, its commands, up to the report."""

import json

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tests.docs.snippets import blocks, commands
from unlearn_core.data.tokenization import train_tokenizer
from unlearn_core.models import SmallLlama, build_small_llama

# Ray Data 2.60 sets deprecated fields of its own context.
pytestmark = [pytest.mark.docs, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")]
MODEL = "outputs/demo/finetune/target"
"""What the page trains; here a model of the same form that has learned nothing."""
SMALLEST = {"train": ["--set", "steps=4", "--set", "export_every=2"]}


def test_own_rows_to_a_report(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = [block for block in blocks() if block.page == "own-model-and-metric.md"]
    forget, retain = (block.text for block in page if block.language == "json")
    (tmp_path / "my-forget.jsonl").write_text(forget)
    (tmp_path / "my-retain.jsonl").write_text(retain)
    (tmp_path / "mine.yaml").write_text(next(block.text for block in page if block.language == "yaml"))
    tokenizer = train_tokenizer([forget, retain], 300)
    (tmp_path / MODEL).mkdir(parents=True)
    tokenizer.save_pretrained(tmp_path / MODEL)
    size = SmallLlama(hidden_size=32, layers=1, heads=2)
    build_small_llama(size, tokenizer, seed=0).save_pretrained(tmp_path / MODEL)
    said = ""
    for words in commands(next(block for block in page if block.language == "bash")):
        assert words[0] == "unlearn"
        ran = CliRunner().invoke(app, [*words[1:], *SMALLEST.get(words[1], [])])
        assert ran.exit_code == 0, f"{' '.join(words)}\n{ran.output}\n{ran.exception!r}"
        said = ran.output
    report = tmp_path / "outputs" / "mine-report" / "report.html"
    assert report.is_file() and str(report.name) in said
    summary = json.loads((report.parent / "summary.json").read_text())
    assert len(summary["front"]) >= 1
