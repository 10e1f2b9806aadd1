"""Real text as token rows for `benchmarks.gpu_7b`: what a training step reads should repeat words as text does.

The text is that of a folder where one is given (`TOFU_DIR`, or `--text`), else what every Python and this source tree
bring along: Python's own manual pages and this repository's. A byte-level BPE of at most 8,192 ids is trained on it, so
its ids are among those of every model measured here; the model's other ids occur in no row. Speed and memory do not
depend on which ids occur.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

from benchmarks.one_gpu import ROOT
from unlearn_core.data.tokenization import Example, Formatter
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.errors import UserError

MOST_IDS = 8192
MOST_BYTES = 4_000_000
"""Of text that is read; a few million bytes train the tokenizer in seconds and give a million tokens."""
SUFFIXES = (".txt", ".md", ".json", ".jsonl")


@dataclass(frozen=True)
class TextRows:
    """Rows of equal length."""

    forget: list[Example]
    retain: list[Example]
    pad_id: int
    source: str
    """Which text and which ids, in words."""
    formatter: Formatter


def text_rows(vocabulary: int, length: int, folder: str | None = None) -> TextRows:
    """Rows of `length` tokens; all but the first are labels.

    Args:
        vocabulary: ids of the model.
        length: tokens of a row.
        folder: of text files; None for `TOFU_DIR`, and without that for the text that is always there.

    Raises:
        UserError: no such folder, or too little text for a row of each set.
    """
    folder = folder or os.environ.get("TOFU_DIR")
    texts, where = _folder_texts(folder) if folder else _own_texts()
    tokenizer = train_tokenizer(texts, min(vocabulary, MOST_IDS))
    formatter = Formatter(tokenizer, "plain", length)
    ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    pieces = [tuple(ids[k : k + length]) for k in range(0, len(ids) - length + 1, length)]
    if len(pieces) < 2:
        raise UserError(f"{where} has {len(ids)} tokens, too few for two rows of {length}; give more text")
    rows = [Example(f"text/{n}", piece, 1) for n, piece in enumerate(pieces)]
    half = len(rows) // 2
    source = f"{where}: {len(ids):,} tokens of a BPE of {len(tokenizer):,} ids trained on it"
    return TextRows(rows[:half], rows[half:], formatter.pad_id, source, formatter)


def batch_of(rows: Sequence[Example], number: int, size: int) -> list[Example]:
    """Rows of the micro-batch of this number; from the beginning again when all have come."""
    return [rows[(number * size + k) % len(rows)] for k in range(size)]


def _own_texts() -> tuple[list[str], str]:
    texts = [topics.topics[name] for name in sorted(topics.topics)]
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    texts += [path.read_text(encoding="utf-8") for path in files if path.is_file()]
    return _first(texts), "Python's manual pages and this repository's"


def _folder_texts(folder: str) -> tuple[list[str], str]:
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise UserError(f"text folder '{folder}' does not exist; give a folder of {', '.join(SUFFIXES)} files")
    files = sorted(path for path in place.iterdir() if path.suffix in SUFFIXES)
    texts = [text for path in files for text in _texts_of(path)]
    if not texts:
        raise UserError(f"text folder '{folder}' holds no text; expected {', '.join(SUFFIXES)} files")
    return _first(texts), f"the text of folder {place.name}"


def _texts_of(path: Path) -> list[str]:
    """A file's text; of JSON lines every string that is longer than a word."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if not path.suffix.startswith(".json"):
        return [text]
    found: list[str] = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        values = value.values() if isinstance(value, dict) else [value]
        found.append(" ".join(one for one in values if isinstance(one, str)))
    return [one for one in found if one]


def _first(texts: Sequence[str]) -> list[str]:
    kept, size = [], 0
    for text in texts:
        if size > MOST_BYTES:
            break
        kept.append(text)
        size += len(text)
    return kept
