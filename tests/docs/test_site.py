"""The site builds from docs/ without a warning, with every page in it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs
DOCS = Path(__file__).parents[2] / "docs"


def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", tmp_path / "trees", DOCS, tmp_path]
    built = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=120)
    assert built.returncode == 0, built.stderr
    pages = {page.stem for page in DOCS.glob("*.md")}
    assert pages == {page.stem for page in tmp_path.glob("*.html")} - {"genindex", "search"}
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{page}.html"' in index for page in pages - {"index"})
