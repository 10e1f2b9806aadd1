"""Order sequences into batches of bounded size."""

from collections.abc import Iterator, Sequence


def batches_by_tokens(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Group sequences of similar length so that each batch, padded to its longest, stays within a budget.

    Longest first: a budget that is too large for the device fails on the first batch, not after an hour.

    Args:
        lengths: tokens of each sequence.
        token_budget: most tokens of a batch, padding included. A longer sequence makes a batch by itself.

    Yields:
        Indices into `lengths`, each exactly once.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # batch[0] is the longest of its batch, so every row is padded to its length.
        if batch and (len(batch) + 1) * lengths[batch[0]] > token_budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
