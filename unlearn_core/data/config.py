"""The part of a run's config that says which rows are forgotten, which are kept, and how they become tokens."""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from unlearn_core.data.sources import FILE_SUFFIXES, is_data_file
from unlearn_core.strict import Strict


class GenericConfig(Strict):
    """Generic text, such as web pages, for methods that hold the model to what it says there."""

    source: str
    """Hub name (its split train is streamed), a folder, or a .jsonl, .json, .parquet or .txt file."""
    subset: str | None = None
    """Configuration of a hub data set that has several, such as en of allenai/c4; null where it has one."""
    documents: int = Field(default=20000, ge=1)
    """How many documents are read at most: the first ones, always the same."""
    length: int = Field(default=512, ge=2)
    """Tokens of a chunk; only full chunks are used."""
    text_key: str = "text"
    """Key of the text in a row."""


class DataConfig(Strict):
    """Which rows are forgotten and which are kept. An entry that ends in .json, .jsonl or .txt is a file of yours."""

    benchmark: str | None = None
    """TOFU: `synthetic:SIZE`, a folder of its files, or a hub name such as locuslab/TOFU; MUSE: `synthetic-muse:SIZE`,
    a folder that holds raw/, train/, scal/ or sust/, or a hub name such as muse-bench/MUSE-News. Null where every entry
    is a file."""
    forget: tuple[str, ...] = ()
    """Splits and files to forget, for example [forget10], [raw/forget] or [mine.jsonl]. Empty only for plain
    fine-tuning and for `sequential`."""
    retain: tuple[str, ...] = ()
    """Splits and files to keep, for example [retain90]. Empty only for methods without a retain objective."""
    sequential: tuple[str, ...] = ()
    """Forget splits or files of requests that arrive one after the other, in place of `forget`; empty for one
    request."""
    generic: GenericConfig | None = None
    """Generic text; null for methods that use none."""
    documents: Literal["chunk", "truncate"] = "chunk"
    """Rows that are texts without a question: `chunk` trains on all pieces of max_length tokens, `truncate` on the
    first one alone."""
    format: Literal["chat", "plain"] = "chat"
    """`chat` uses the tokenizer's chat template; `plain` writes Question: ... Answer: ... Texts without a question
    are the same in both."""
    system_prompt: str | None = None
    """System message of the chat format; null for none."""
    max_length: int = Field(default=512, ge=8)
    """Tokens a row may have. A longer question with its answer is an error, never cut in silence; for texts see
    `documents`."""

    @model_validator(mode="after")
    def _entries_can_be_found(self) -> "DataConfig":
        if self.sequential and self.forget:
            raise ValueError(
                f"data.sequential {list(self.sequential)} lists the forget sets of the requests, so data.forget must "
                f"be empty; it is {list(self.forget)}"
            )
        splits = [entry for entry in (*self.forget, *self.retain, *self.sequential) if not is_data_file(entry)]
        if self.benchmark is None and splits:
            raise ValueError(
                f"data.benchmark is not set, and {splits[0]!r} is no file ending in {', '.join(FILE_SUFFIXES)}; "
                "set data.benchmark to what has this split, or give such a file (convert a table to JSON lines)"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_unused_additions(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A run that uses none of these must keep the fingerprint that it had before they existed.
        added = ("sequential", "generic", "documents")
        unused = {name for name in added if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in handler(self).items() if name not in unused}

    @property
    def requests(self) -> int:
        """How many forget requests are served, one after the other: 1 unless `sequential` lists them."""
        return max(1, len(self.sequential))

    def request(self, index: int) -> "DataConfig":
        """The data of one request alone: its forget set in place of `sequential`.

        Args:
            index: from 0 to `requests` - 1.

        Raises:
            IndexError: no such request.
        """
        if not 0 <= index < self.requests:
            raise IndexError(f"request {index} of {self.requests}; expected 0 to {self.requests - 1}")
        if not self.sequential:
            return self
        return self.model_copy(update={"forget": (self.sequential[index],), "sequential": ()})
