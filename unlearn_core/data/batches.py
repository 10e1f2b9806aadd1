"""Which rows a training step sees: endless reshuffled passes, the same rows whatever the number of workers."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from unlearn_core.data.tokenization import Batch, Example, collate
from unlearn_core.errors import UserError

_SAME_ROWS = {"refusal": "forget", "alternate": "forget"}
"""Sets that hold another set's rows with other answers, and so follow its stream."""


class RowStream:
    """Endless row order: pass after pass over all rows, each pass a fresh permutation.

    The permutation of pass e sorts the output of PCG64 seeded by (seed, CRC-32 of the name, e), so any stretch of the
    stream can be asked for in any order: a resumed run goes on where it stopped, and every worker sees the same stream.
    """

    def __init__(self, n_rows: int, seed: int, name: str) -> None:
        """Fix the stream.

        Args:
            n_rows: rows of the set, at least 1.
            seed: the run's seed, from 0.
            name: streams of different names are independent, so the forget order says nothing about the retain order.
        """
        if n_rows < 1:
            raise UserError(f"the set '{name}' has no rows; expected at least one")
        if seed < 0:
            raise UserError(f"seed is {seed}; expected a whole number from 0")
        self.n_rows = n_rows
        self.seed = seed
        self.name = name

    def indices(self, start: int, count: int) -> np.ndarray:
        """Row indices at stream positions `start` to `start + count - 1`.

        Args:
            start: first position, from 0. Position p lies in pass p // n_rows.
            count: how many, from 0.

        Returns:
            (count,) int64 in [0, n_rows).
        """
        if start < 0 or count < 0:
            raise ValueError(f"start {start} and count {count} must not be negative")
        if count == 0:
            return np.empty(0, dtype=np.int64)
        first, last = start // self.n_rows, (start + count - 1) // self.n_rows
        rows = np.concatenate([self._permutation(epoch) for epoch in range(first, last + 1)])
        offset = start - first * self.n_rows
        return rows[offset : offset + count]

    def _permutation(self, epoch: int) -> np.ndarray:
        seeds = np.random.SeedSequence([self.seed, zlib.crc32(self.name.encode()), epoch])
        # Sorting raw bits, not Generator.permutation: numpy promises the bits for all versions, the method's draws not.
        return np.argsort(np.random.PCG64(seeds).random_raw(self.n_rows), kind="stable")


class PairedBatches:
    """One rank's micro-batches of every set, step by step.

    Step s takes stream positions s * global_batch to (s + 1) * global_batch - 1 of each set, cut into consecutive
    micro-batches; micro-batch k of rank r is the one numbered k * world_size + r. So for a given `micro_batch` the very
    same micro-batches are formed on any number of ranks, and sets are paired by position, each reshuffled on its own;
    only `refusal` and `alternate` follow the stream of `forget`, so that row b of all three is one row with three
    answers.
    """

    def __init__(
        self,
        sets: Mapping[str, Sequence[Example]],
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        seed: int,
        pad_id: int,
    ) -> None:
        """Check the sizes.

        Args:
            sets: examples by set name, such as `forget` and `retain`.
            global_batch: examples of each set per optimizer step, over all ranks.
            micro_batch: examples per forward pass of one rank.
            rank: this process, from 0 to world_size - 1.
            world_size: number of processes.
            seed: the run's seed, from 0.
            pad_id: any valid token id, see `collate`.

        Raises:
            UserError: a size below 1, global_batch not a multiple of micro_batch, or an empty set.
            ValueError: a set that follows `forget` has other item ids.
        """
        for label, value in (("global_batch", global_batch), ("micro_batch", micro_batch), ("world_size", world_size)):
            if value < 1:
                raise UserError(f"{label} is {value}; expected at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} must be from 0 to {world_size - 1}")
        if global_batch % micro_batch:
            below, above = global_batch - global_batch % micro_batch, global_batch + -global_batch % micro_batch
            raise UserError(
                f"global_batch {global_batch} is not a multiple of micro_batch {micro_batch}; "
                f"set global_batch to {f'{below} or ' if below else ''}{above}"
            )
        self.accumulation = -(-(global_batch // micro_batch) // world_size)
        """Micro-batches of one rank per set and step."""
        self.global_batch = global_batch
        self.micro_batch = micro_batch
        self.rank = rank
        self.world_size = world_size
        self.pad_id = pad_id
        self._sets = {name: tuple(examples) for name, examples in sets.items()}
        self._streams = {
            name: RowStream(len(examples), seed, _SAME_ROWS.get(name, name)) for name, examples in self._sets.items()
        }
        for name, source in _SAME_ROWS.items():
            if name in self._sets and source in self._sets:
                followed = [example.item_id for example in self._sets[source]]
                if [example.item_id for example in self._sets[name]] != followed:
                    raise ValueError(f"the set '{name}' must hold the rows of '{source}', in the same order")

    def micro_batches(self, step: int, name: str) -> list[Batch]:
        """This rank's micro-batches.

        Args:
            step: optimizer step, from 0.
            name: set.

        Returns:
            `accumulation` batches of `micro_batch` examples, right-padded each to its own longest, on the CPU. Where
            the ranks cannot have equally many, the last of some is a repeated one that does not count: every rank must
            make the same number of passes.
        """
        examples = self._examples(step, name)
        total = len(examples) // self.micro_batch
        found = []
        for k in range(self.accumulation):
            number = k * self.world_size + self.rank
            first = (number if number < total else self.rank % total) * self.micro_batch
            batch = collate(examples[first : first + self.micro_batch], self.pad_id)
            found.append(batch if number < total else replace(batch, counts=False))
        return found

    def label_tokens(self, step: int, name: str, skip_first: int = 0) -> int:
        """Label tokens of the step over ALL ranks, the one normaliser of a token loss; needs no communication.

        Args:
            step: optimizer step, from 0.
            name: set.
            skip_first: labels that the loss ignores at the start of every row, from 0. A row of fewer counts as none.

        Returns:
            The end-of-answer tokens included: at least `global_batch` for `skip_first` 0, possibly 0 else.
        """
        if skip_first < 0:
            raise ValueError(f"skip_first {skip_first} must not be negative")
        return sum(max(0, example.label_count - skip_first) for example in self._examples(step, name))

    def rows(self, step: int, name: str) -> int:
        """Rows of the step over ALL ranks, the normaliser of a row loss: `global_batch` for every step and set."""
        return self.global_batch

    def item_ids(self, step: int, name: str) -> list[str]:
        """Item ids of the step over all ranks, in stream order: `global_batch` of them."""
        return [example.item_id for example in self._examples(step, name)]

    def steps_per_epoch(self, name: str) -> int:
        """Steps from the start after which every row of the set was seen: its rows / global_batch, rounded up."""
        return -(-len(self._sets[name]) // self.global_batch)

    def _examples(self, step: int, name: str) -> list[Example]:
        examples = self._sets[name]
        positions = self._streams[name].indices(step * self.global_batch, self.global_batch)
        return [examples[i] for i in positions]
