"""Every code block of README, CONTRIBUTING and docs/, and the commands in it."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
"""The notebook of dated results is among them; commands in it ran when it was written."""
COMMANDS = ("unlearn", "python", "make", "pip")


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        page: its name.
        line: where it begins, from 1.
        language: `bash`, `yaml`, ...; `console` of an indented block that begins with a command, else "" of one.
        text: what stands in it.
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    """All blocks of all pages, in their order; those that lay out the site's index are left out."""
    found = []
    for page in PAGES:
        for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
            if token.type not in ("fence", "code_block") or token.info.startswith("{"):
                continue
            language = token.info.strip()
            if not language and token.content.split()[0] in COMMANDS:
                language = "console"
            assert token.map is not None
            found.append(Block(page.name, token.map[0] + 1, language, token.content))
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """Words of each command of a shell block: without comments, assignments before it, pipes and files it writes."""
    script = block.text.startswith("#!")
    for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
        if script and not line.strip().startswith("unlearn "):
            continue  # of a script the shell checks the rest
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            del words[0]
        if words and words[0] == ".venv/bin/unlearn":
            words[0] = "unlearn"
        ends = [n for n, word in enumerate(words) if word in ("|", ">", "&", "&&")]
        if words:
            yield words[: ends[0]] if ends else words


def yaml_lines(text: str) -> int:
    """Lines of a YAML file that say something."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in text.splitlines())
