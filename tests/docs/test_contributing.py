"""The method that CONTRIBUTING shows is the one in the package."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs
ROOT = Path(__file__).parents[2]


def without_comments(text: str) -> str:
    return re.sub(r" +#.*", "", text)


def test_the_method_in_contributing_is_the_one_in_the_package():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = page.split("`wga.py` without its imports", 1)[1].split("- `retain(...)`", 1)[0]
    source = (ROOT / "unlearn_core" / "methods" / "wga.py").read_text(encoding="utf-8")
    method = source[source.index("class WgaSettings") :].strip()
    assert without_comments(method) in without_comments(re.sub(r"^ {4}", "", shown, flags=re.MULTILINE))
