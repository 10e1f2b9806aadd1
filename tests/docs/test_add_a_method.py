"""docs/add-a-method.md followed literally: its one file makes a method that every part of the package knows.

The whole way through Ray (train, evaluate, search) is run by `make docs-check`.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
FOLLOWED = """
import json, sys
from pathlib import Path
from pipelines import cli
from pipelines.runs import recipe_path
from unlearn_core.config import RunConfig, load_config
from unlearn_core.local import LocalContext, single_process_group
from unlearn_core.loop import run

def unlearn(*words):
    sys.argv = ["unlearn", *words]
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code, (words, stop.code)

model = sys.argv[1]
unlearn("space", "floor_ascent")
unlearn("plan", "--method", "floor_ascent", "--model", "Llama-3.2-1B", "--gpus", "1")
small = {
    "method.name": "floor_ascent", "name": "floor_ascent", "model.path": model, "data.benchmark": "synthetic:tiny",
    "batch.rows": 8, "batch.micro": 4, "steps": 2, "export_every": 2, "workers.count": 1, "zero.stage": 0,
}
with single_process_group():
    print(run(load_config(RunConfig, recipe_path("demo-ngdiff"), small), LocalContext(Path("run"))))
evaluation = Path("evaluation")  # of the kind that `unlearn evaluate` writes
evaluation.mkdir()
columns = "model,run,method,step,role,path,extraction_strength,model_utility"
point = "floor_ascent/step-00002,floor_ascent,floor_ascent,2,checkpoint,run/models/step-00002,0.2,0.6"
(evaluation / "metrics.csv").write_text(f"{columns}\\n{point}\\n")
about = {"status": "complete", "benchmark": "synthetic:tiny", "forget_split": "forget10"}
(evaluation / "evaluation.json").write_text(json.dumps(about))
unlearn("report", "evaluation", "-o", "report")
"""


def the_file() -> str:
    """The block of Python on the page."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    return code


def the_place() -> str:
    """Where the page says that it goes."""
    (place,) = re.findall(r"Put this into `(unlearn_core/methods/\w+\.py)`", PAGE)
    return place


def test_the_file_has_at_most_forty_lines_and_passes_the_linter():
    assert len(the_file().splitlines()) <= 40
    linter = [sys.executable, "-m", "ruff", "check", "--stdin-filename", str(ROOT / the_place()), "-"]
    subprocess.run(linter, input=the_file(), text=True, check=True, timeout=60, cwd=ROOT)


def test_one_new_file_makes_a_method_everywhere(taught, tmp_path):
    for package in ("unlearn_core", "tune", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.py")}
    (tmp_path / the_place()).write_text(the_file(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", FOLLOWED, str(taught)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "method.settings.floor: {log_uniform: [0.0001, 0.1]}" in done.stdout  # space, which search draws from
    assert "It fits" in done.stdout  # plan
    assert "Outcome(status='finished', step=2" in done.stdout  # train
    assert (tmp_path / "run" / "models" / "step-00002" / "model.safetensors").is_file()
    assert "Floor ascent" in (tmp_path / "report" / "frontier.svg").read_text(encoding="utf-8")
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert '"title":"Floor ascent"' in page and "1 checkpoint of 1 run of Floor ascent" in page
    after = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.py")}
    assert {str(path) for path in after - before} == {the_place()}
