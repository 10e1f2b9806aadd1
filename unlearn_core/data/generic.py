"""Generic text, such as web pages: what a model should go on saying, for methods that distil on it.

Chunks are `length` tokens long and full (Klochkov 2025, arXiv 2504.13388, trains on chunks of 512); what is left over
at the end of a document is dropped. That paper draws chunks with replacement; here they come in reshuffled passes, as
every set does.
"""

import functools
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from unlearn_core.data.config import GenericConfig
from unlearn_core.data.files import read_values, read_whole
from unlearn_core.data.hub import hub_errors, import_datasets
from unlearn_core.data.rows import Document, parse_document
from unlearn_core.data.sources import looks_like_path
from unlearn_core.data.tokenization import Example, Formatter
from unlearn_core.errors import UserError

_SUFFIXES = (".parquet", ".jsonl", ".json", ".txt")


def generic_documents(config: GenericConfig) -> list[Document]:
    """The first `config.documents` documents of the source, always the same ones in the same order.

    Args:
        config: the source is a file (`.json`, `.jsonl` or `.parquet` with a text under `text_key` in each row, or one
            document in a `.txt` file), a folder of such files (of one kind: parquet if there are any, else JSON lines,
            else JSON, else `.txt`; in order of their paths, folders inside it included), or a hub name, of which the
            split `train` is streamed and kept in memory for the next call.

    Returns:
        Documents with ids `generic/{index:05d}`; blank ones are left out, and count.

    Raises:
        UserError: no such file or folder, a malformed row, or a hub that cannot be reached.
    """
    path = Path(config.source).expanduser()
    if path.is_dir():
        files = _files_of(path)
        if not files:
            raise UserError(
                f"data.generic.source '{config.source}' holds no {', '.join(_SUFFIXES)} file; "
                "give a folder with files of texts"
            )
        values = (value for file in files for value in _values(file))
    elif path.is_file() and path.suffix.lower() in _SUFFIXES:
        values = _values(path)
    elif path.is_file():
        raise UserError(
            f"data.generic.source '{config.source}' is a file of an unknown kind; expected one ending in "
            f"{', '.join(_SUFFIXES)}. Convert it, for example to JSON lines."
        )
    elif path.suffix.lower() in _SUFFIXES or looks_like_path(config.source):
        raise UserError(
            f"data.generic.source '{config.source}' does not exist; give a .json, .jsonl, .parquet or .txt file, "
            "a folder of such files, or a hub name such as Skylion007/openwebtext"
        )
    else:
        values = iter(_from_hub(config.source, config.subset, config.documents))
    documents = []
    for index, (where, value) in enumerate(islice(values, config.documents)):
        if not _blank(value, config.text_key):
            documents.append(parse_document(value, f"generic/{index:05d}", where, config.text_key))
    return documents


def generic_examples(config: GenericConfig, documents: list[Document], formatter: Formatter) -> list[Example]:
    """Full chunks of the documents.

    Args:
        config: gives the tokens of a chunk, a beginning-of-text token included where the tokenizer adds one.
        documents: from `generic_documents`.
        formatter: the run's.

    Returns:
        Examples of exactly `config.length` tokens, all but the first one labels; never empty.

    Raises:
        UserError: no document has that many tokens.
    """
    examples = [
        Example(f"{document.item_id}#{k}", piece, 1)
        for document in documents
        for k, piece in enumerate(formatter.pieces(document.text, config.length))
        if len(piece) == config.length
    ]
    if not examples:
        raise UserError(
            f"none of the {len(documents)} documents read from data.generic.source '{config.source}' has "
            f"{config.length} tokens, so there is no full chunk; lower data.generic.length, raise "
            "data.generic.documents, or give a source of longer texts"
        )
    return examples


def _blank(value: Any, key: str) -> bool:
    text = value.get(key) if isinstance(value, dict) else value
    return isinstance(text, str) and not text.strip()


def _files_of(folder: Path) -> list[Path]:
    return next((found for suffix in _SUFFIXES if (found := sorted(folder.rglob(f"*{suffix}")))), [])


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix.lower() == ".txt":
        # Not parted at blank lines: they are those of paragraphs here, and few paragraphs fill a chunk.
        yield str(path), read_whole(path)
    else:
        yield from read_values(path)


@functools.lru_cache(maxsize=1)
def _from_hub(source: str, subset: str | None, documents: int) -> tuple[tuple[str, Any], ...]:
    datasets = import_datasets()
    with hub_errors(source):
        try:
            rows = list(islice(datasets.load_dataset(source, subset, split="train", streaming=True), documents))
        except ValueError as error:
            raise UserError(
                f"cannot stream the split 'train' of hub data set '{source}', data.generic.subset {subset}: {error}. "
                "Set data.generic.subset to one of its configurations, or download its files and give their folder"
            ) from error
    return tuple((f"{source}, row {index}", row) for index, row in enumerate(rows))
