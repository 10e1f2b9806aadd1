"""The page: template, style, scripts, plotly.js and the data as one HTML text that needs no other file."""

import base64
import hashlib
import json
from importlib import resources
from importlib.metadata import version
from typing import Any

from pipelines.report.content import Content
from unlearn_core.errors import MissingPackageError

SCRIPTS = ("base", "frontier", "table", "run", "gradient", "answers", "attacks", "start")
"""In the order in which they run; each uses what those before it define."""


def page_of(content: Content) -> str:
    """The report as HTML.

    Raises:
        MissingPackageError: jinja2 or plotly is not installed.
    """
    try:
        from jinja2 import Environment
        from markupsafe import Markup
    except ImportError as error:
        raise MissingPackageError("The report needs jinja2: pip install jinja2") from error
    folder = resources.files("pipelines.report") / "page"

    def part(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    data = content.data
    first, scripts = part("theme.js"), [_plotly(), *(part(f"{name}.js") for name in SCRIPTS)]
    template = Environment(autoescape=True, trim_blocks=True).from_string(part("report.html.j2"))
    # Only our own files and the escaped data go in as they are; all else is escaped by the template.
    return template.render(
        title=content.title,
        sentences=content.sentences,
        facts=content.facts,
        costs=data["costs"],
        version=version("unlearn"),
        has={
            "frontier": any(point["role"] == "checkpoint" for point in data["points"]),
            "curves": bool(data["curves"]),
            "answers": data["answers"] is not None and bool(data["answers"]["questions"]),
            "attacks": any(one["rows"] for one in data["attacks"]),
        },
        style=Markup(part("report.css")),
        first=Markup(first),
        scripts=[Markup(script) for script in scripts],
        # By their hashes: a script that got into the page by any other way would not run.
        allowed=Markup(" ".join(_hash(script) for script in (first, *scripts))),
        data=Markup(embedded(data)),
    )


def embedded(value: Any) -> str:
    """JSON that may stand inside a script element: no text in it can end the element or begin a comment.

    Raises:
        ValueError: a number that JSON has no word for.
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _hash(script: str) -> str:
    """As a Content-Security-Policy names it; of the text between the tags."""
    digest = hashlib.sha256(script.replace("\r\n", "\n").encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingPackageError("The report's pictures need plotly: pip install 'plotly>=7,<8'") from error
    script = get_plotlyjs()
    assert "</script" not in script.lower()
    return script
