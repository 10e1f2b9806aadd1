"""The tokenised row sets of a training run, checked before any worker starts."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from unlearn_core.config import DataConfig
from unlearn_core.data.rows import Row
from unlearn_core.data.tofu import Benchmark, open_benchmark
from unlearn_core.data.tokenization import Example, Formatter
from unlearn_core.errors import UserError
from unlearn_core.method import Method


def training_sets(config: DataConfig, method: Method, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Example]]:
    """Rows of each set that the method needs, tokenised, in the order of the splits' files.

    Args:
        config: benchmark, splits and format.
        method: says which of "forget" and "retain" it trains on.
        tokenizer: of the model to be trained.

    Returns:
        Set name -> examples.

    Raises:
        UserError: a needed split is not named, does not exist or is empty; a row is too long; forget and retain rows
            overlap, so that one row would be pushed both ways.
    """
    benchmark = open_benchmark(config.benchmark)
    named = {"forget": config.forget, "retain": config.retain}
    formatter = Formatter(tokenizer, config.format, config.max_length, config.system_prompt)
    rows: dict[str, list[Row]] = {}
    for name in method.rows:
        if not named[name]:
            raise UserError(
                f"Method {method.name} trains on {name} rows, and data.{name} names no split. "
                f"Set data.{name}, for example to one of: {', '.join(benchmark.splits)}."
            )
        rows[name] = collect_rows(benchmark, named[name])
    _refuse_overlap(rows, named)
    return {
        name: [formatter.example(row.item_id, row.question, row.answer) for row in chosen]
        for name, chosen in rows.items()
    }


def collect_rows(benchmark: Benchmark, splits: Sequence[str]) -> list[Row]:
    """Rows of several splits, one after the other."""
    return [row for split in splits for row in benchmark.split(split)]


def _refuse_overlap(rows: dict[str, list[Row]], named: dict[str, tuple[str, ...]]) -> None:
    if not {"forget", "retain"} <= rows.keys():
        return
    kept = {(row.question, row.answer) for row in rows["retain"]}
    both = [row.item_id for row in rows["forget"] if (row.question, row.answer) in kept]
    if both:
        raise UserError(
            f"{len(both)} of {len(rows['forget'])} forget rows are also retain rows (first: {both[0]}): data.forget "
            f"{list(named['forget'])} and data.retain {list(named['retain'])} must not overlap. "
            "In TOFU forget01, forget05 and forget10 go with retain99, retain95 and retain90."
        )
