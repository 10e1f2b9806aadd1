"""The examples of docs/python-api.md and the notebook run top to bottom, on the recorded results of a demo."""

import os
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "report" / "recorded" / "demo"
NOTEBOOK = ROOT / "docs" / "notebooks" / "first-look.ipynb"

pytestmark = pytest.mark.docs


@pytest.fixture
def after_the_demo(tmp_path, monkeypatch):
    """A folder in which the demo has been run; the working folder."""
    demo = tmp_path / "outputs" / "demo"
    shutil.copytree(RECORDED, demo)
    for path in demo.rglob("*"):
        if path.suffix in (".json", ".csv"):
            path.write_text(path.read_text().replace("FOLDER", str(tmp_path / "outputs")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def test_the_examples_of_the_page_run(after_the_demo, capsys):
    page = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/python-api.md", "exec"), names)
    assert names["best"].startswith("ngdiff-step-")
    assert names["wide"].shape == (6, 4)  # questions and models whose answers are recorded
    assert capsys.readouterr().out.count("\n") > 15


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of Jupyter's client and zmq
def test_the_notebook_runs_top_to_bottom(after_the_demo):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(after_the_demo)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    said = "".join(output["text"] for output in outputs if output.output_type == "stream")
    assert re.search(r"hypervolume 0\.[1-9]\d+; alone", said), said
    if place := os.environ.get("NOTEBOOK_OUTPUT"):  # to renew the outputs that the repository's file holds
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            cell.outputs = [one for one in cell.get("outputs", []) if one.get("name") != "stderr"]
            if cell.cell_type != "code":
                del cell["outputs"]
        nbformat.write(notebook, place)
