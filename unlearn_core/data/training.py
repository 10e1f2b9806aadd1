"""The tokenised row sets of a training run, checked before any worker starts."""

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

from transformers import PreTrainedTokenizerBase

from unlearn_core.data.config import DataConfig
from unlearn_core.data.generic import generic_documents, generic_examples
from unlearn_core.data.muse import MuseTexts, corpora, is_muse
from unlearn_core.data.refusals import refusal
from unlearn_core.data.rows import Conversation, Document, Row, TrainingRow, read_training_rows
from unlearn_core.data.sources import FILE_SUFFIXES, is_data_file
from unlearn_core.data.tofu import Benchmark, open_benchmark
from unlearn_core.data.tokenization import Example, Formatter
from unlearn_core.errors import UserError

SETS = ("forget", "retain", "generic", "refusal", "alternate")
"""`refusal` and `alternate` are the forget rows with another answer: the same ids in the same order."""


def training_sets(
    config: DataConfig,
    names: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    seed: int = 0,
    method: str | None = None,
) -> dict[str, list[Example]]:
    """Rows of each set that a method needs, tokenised, in the order of the splits' and files' rows.

    Args:
        config: benchmark, splits, files and format; of one request where there are several (`config.request`).
        names: the sets needed, of `SETS`; repeats count once.
        tokenizer: of the model to be trained.
        seed: the run's; picks the refusals.
        method: name of the method, for errors.

    Returns:
        Set name -> examples.

    Raises:
        UserError: a needed split is not named, does not exist or is empty; a file is missing or malformed; a row is
            too long or has no alternate answer; forget rows are also retain rows or generic documents, so that one
            row would be pushed both ways.
    """
    wanted = tuple(dict.fromkeys(names))
    if unknown := [name for name in wanted if name not in SETS]:
        raise ValueError(f"unknown sets {unknown}; expected some of {SETS}")
    if config.sequential:
        raise ValueError("the config has several requests; take one of them by config.request(index)")
    who = f"Method {method}" if method else "This run"
    formatter = Formatter(tokenizer, config.format, config.max_length, config.system_prompt)
    entries = _Entries(config.benchmark)
    rows: dict[str, Sequence[TrainingRow]] = {}
    for name in wanted:
        source = "forget" if name in ("refusal", "alternate") else name
        if source == "generic":
            if config.generic is None:
                raise UserError(
                    f"{who} trains on generic text, and data.generic is not set. Set data.generic.source to a hub "
                    "name such as Skylion007/openwebtext, a folder, or a .jsonl, .json or .txt file."
                )
            rows["generic"] = generic_documents(config.generic)
        elif source not in rows:
            named = config.forget if source == "forget" else config.retain
            if not named:
                raise UserError(
                    f"{who} trains on {name} rows, and data.{source} names no split. {entries.what_to_set(source)}"
                )
            rows[source] = [row for entry in named for row in entries.rows(entry, source)]
    _refuse_overlap(rows, config)

    sets: dict[str, list[Example]] = {}
    for name in wanted:
        if name == "generic":
            assert config.generic is not None
            documents = [row for row in rows["generic"] if isinstance(row, Document)]
            sets[name] = generic_examples(config.generic, documents, formatter)
            continue
        chosen = rows["retain" if name == "retain" else "forget"]
        if name == "refusal":
            chosen = [_answered(row, refusal(row.item_id, seed), name) for row in chosen]
        elif name == "alternate":
            chosen = [_answered(row, _alternate(row), name) for row in chosen]
        sets[name] = [example for row in chosen for example in _examples(row, formatter, config)]
    return sets


def open_rows(source: str) -> Benchmark | MuseTexts:
    """Open what `data.benchmark` names, TOFU or MUSE; a split is read when it is asked for.

    Args:
        source: as in the config: `synthetic:SIZE`, `synthetic-muse:SIZE`, a folder or a hub name.

    Raises:
        UserError: neither of the two. A hub name is looked up when a split is asked for.
    """
    if is_muse(source):
        return MuseTexts(source)
    try:
        return open_benchmark(source)
    except UserError as error:
        if inside := corpora(source):
            raise UserError(
                f"data.benchmark '{source}' holds MUSE corpora and is none itself; set it to one of: "
                f"{', '.join(inside)}"
            ) from error
        raise


@overload
def collect_rows(benchmark: Benchmark, splits: Sequence[str]) -> list[Row]: ...
@overload
def collect_rows(benchmark: MuseTexts, splits: Sequence[str]) -> list[Document]: ...
def collect_rows(benchmark: Benchmark | MuseTexts, splits: Sequence[str]) -> Sequence[Row | Document]:
    """Rows of several splits, one after the other."""
    return [row for split in splits for row in benchmark.split(split)]


class _Entries:
    """Reads what `data.forget` and `data.retain` name: own files by their suffix, else splits of the benchmark."""

    def __init__(self, source: str | None) -> None:
        self._source = source

    @cached_property
    def benchmark(self) -> Benchmark | MuseTexts:
        """Opened when first needed: a run on own files alone has none."""
        assert self._source is not None, "checked by DataConfig"
        return open_rows(self._source)

    def what_to_set(self, name: str) -> str:
        if self._source is None:
            return f"Set data.{name} to a .jsonl, .json or .txt file, or set data.benchmark and name its splits."
        return f"Set data.{name}, for example to one of: {', '.join(self.benchmark.splits)}."

    def rows(self, entry: str, name: str) -> Sequence[TrainingRow]:
        if is_data_file(entry):
            path = Path(entry).expanduser()
            if not path.is_file():
                raise self._no_such_file(entry, name)
            return read_training_rows(path, entry)
        if Path(entry).expanduser().is_file():
            raise UserError(
                f"data.{name} names the file '{entry}'; expected one ending in {', '.join(FILE_SUFFIXES)}. "
                "Convert it to JSON lines, one object a line."
            )
        return self.benchmark.split(entry)

    def _no_such_file(self, entry: str, name: str) -> UserError:
        stem = re.sub(r"\.[^.]+$", "", entry)
        near: list[str] = []
        # The hint must not become the error: a benchmark that cannot be opened has no splits to suggest.
        with contextlib.suppress(UserError, ImportError):
            if self._source is not None:
                near = [f"the split '{split}'" for split in difflib.get_close_matches(stem, self.benchmark.splits, 1)]
        folder = Path(entry).expanduser().parent
        if not near and folder.is_dir():
            files = [path.name for path in folder.iterdir() if is_data_file(path.name)]
            near = [f"'{folder / file}'" for file in difflib.get_close_matches(Path(entry).name, files, 1, cutoff=0.8)]
        hint = f" Did you mean {near[0]}?" if near else ""
        return UserError(
            f"data.{name} names the file '{entry}', which does not exist.{hint} Give the path of a "
            f"{', '.join(FILE_SUFFIXES)} file, or the name of a split, which has no such ending."
        )


def _examples(row: TrainingRow, formatter: Formatter, config: DataConfig) -> list[Example]:
    if isinstance(row, Document):
        return formatter.document(row.item_id, row.text, config.documents)
    if isinstance(row, Conversation):
        return [formatter.conversation(row.item_id, row.turns, row.answer)]
    return [formatter.example(row.item_id, row.question, row.answer)]


def _answered(row: TrainingRow, answer: str, name: str) -> TrainingRow:
    if isinstance(row, Document):
        raise UserError(
            f"{row.item_id} is a text without a question, and the set '{name}' needs one to answer differently. "
            "Forget rows of question and answer (or of messages), or choose a method without such answers."
        )
    return dataclasses.replace(row, answer=answer)


def _alternate(row: TrainingRow) -> str:
    if isinstance(row, Document):
        return ""  # refused by `_answered`, in the same words as for refusals
    if row.alternate is not None:
        return row.alternate
    if isinstance(row, Row) and row.perturbed_answers:
        return row.perturbed_answers[0]
    raise UserError(
        f"{row.item_id} has no alternate answer. In your own file, give the row an 'alternate'; in TOFU, forget a "
        "split with perturbed answers, such as forget10_perturbed in place of forget10."
    )


def _content(row: TrainingRow) -> tuple[object, ...]:
    """What a row teaches, without its ids: a question is a chat of one turn."""
    if isinstance(row, Document):
        return (row.text.strip(),)
    turns = (("user", row.question),) if isinstance(row, Row) else row.turns
    return (*((role, text.strip()) for role, text in turns), row.answer.strip())


def _refuse_overlap(rows: Mapping[str, Sequence[TrainingRow]], config: DataConfig) -> None:
    forget = rows.get("forget", ())
    for name in ("retain", "generic"):
        kept = {_content(row) for row in rows.get(name, ())}
        both = [row.item_id for row in forget if _content(row) in kept]
        if not both:
            continue
        count = f"{len(both)} of {len(forget)} forget rows are also"
        if name == "retain":
            raise UserError(
                f"{count} retain rows (first: {both[0]}): data.forget {list(config.forget)} and data.retain "
                f"{list(config.retain)} must not overlap. In TOFU forget01, forget05 and forget10 go with retain99, "
                "retain95 and retain90; in MUSE every forget split goes with raw/retain1."
            )
        source = config.generic.source if config.generic else ""
        raise UserError(
            f"{count} generic documents (first: {both[0]}): take them out of data.generic.source '{source}', "
            "which a method keeps the model's answers on."
        )
