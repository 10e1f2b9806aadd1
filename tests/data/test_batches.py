import numpy as np
import pytest

from unlearn_core.data.batches import PairedBatches, RowStream
from unlearn_core.data.tokenization import IGNORE, Example
from unlearn_core.errors import UserError


def examples(name, count):
    # Row i: prompt of 2 tokens, i % 3 + 1 labels; ids tell the row.
    return [Example(f"{name}/{i:05d}", (1, 2, *([10 + i] * (i % 3 + 1))), 2) for i in range(count)]


SETS = {"forget": examples("forget", 5), "retain": examples("retain", 11)}


def paired(rank=0, world_size=1, global_batch=8, micro_batch=2, seed=7, sets=SETS):
    return PairedBatches(sets, global_batch, micro_batch, rank, world_size, seed, pad_id=0)


def test_each_pass_covers_every_row_once_and_passes_differ():
    stream = RowStream(50, seed=1, name="forget")
    passes = [stream.indices(50 * e, 50) for e in range(3)]
    for order in passes:
        assert sorted(order) == list(range(50))
    assert not np.array_equal(passes[0], passes[1])
    assert not np.array_equal(passes[1], passes[2])


def test_random_access_agrees_with_reading_from_the_start():
    stream = RowStream(7, seed=3, name="retain")
    whole = stream.indices(0, 100)
    assert whole.dtype == np.int64
    for start, count in ((0, 1), (6, 2), (13, 30), (7, 7), (99, 1), (20, 0)):
        assert (
            RowStream(7, seed=3, name="retain").indices(start, count).tolist() == whole[start : start + count].tolist()
        )


def test_streams_depend_on_seed_and_name():
    order = RowStream(40, 0, "forget").indices(0, 40).tolist()
    assert RowStream(40, 0, "forget").indices(0, 40).tolist() == order
    assert RowStream(40, 0, "retain").indices(0, 40).tolist() != order
    assert RowStream(40, 1, "forget").indices(0, 40).tolist() != order


def test_the_stream_stays_what_it_was():
    # numpy promises PCG64's and SeedSequence's output for all versions; a change here breaks every resumed run.
    assert RowStream(8, seed=0, name="forget").indices(0, 8).tolist() == [1, 6, 7, 2, 0, 4, 3, 5]


def test_one_row_repeats():
    assert RowStream(1, 0, "x").indices(5, 3).tolist() == [0, 0, 0]


def test_wrong_stream_arguments():
    with pytest.raises(UserError, match="'forget' has no rows"):
        RowStream(0, 0, "forget")
    with pytest.raises(UserError, match="seed is -1"):
        RowStream(3, -1, "forget")
    with pytest.raises(ValueError, match="must not be negative"):
        RowStream(3, 0, "forget").indices(-1, 2)


def row_of(batch, b):
    labels = batch.labels_BT[b]
    return int(labels[labels != IGNORE][0]) - 10


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("name", ["forget", "retain"])
def test_the_union_over_ranks_is_the_same_for_every_world_size(world_size, name):
    for step in range(4):
        ranks = [paired(rank, world_size).micro_batches(step, name) for rank in range(world_size)]
        assert {len(batches) for batches in ranks} == {4 // world_size}
        # Micro-batch k of rank r is number k * world_size + r, so reading round-robin gives the global order.
        seen = [row_of(ranks[r][k], b) for k in range(4 // world_size) for r in range(world_size) for b in range(2)]
        assert [f"{name}/{row:05d}" for row in seen] == paired().item_ids(step, name)
        assert paired(world_size - 1, world_size).item_ids(step, name) == paired().item_ids(step, name)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_label_tokens_are_the_sum_over_all_ranks(world_size):
    for step in range(3):
        counted = sum(
            int((batch.labels_BT != IGNORE).sum())
            for rank in range(world_size)
            for batch in paired(rank, world_size).micro_batches(step, "retain")
        )
        assert {paired(rank, world_size).label_tokens(step, "retain") for rank in range(world_size)} == {counted}


def test_label_tokens_by_hand():
    sets = {"forget": examples("forget", 4)}  # labels 1, 2, 3, 1
    batches = paired(sets=sets, global_batch=4, micro_batch=1)
    assert [batches.label_tokens(step, "forget") for step in range(3)] == [7, 7, 7]
    assert paired(sets=sets, global_batch=8, micro_batch=4).label_tokens(0, "forget") == 14


def test_label_tokens_without_the_first_of_every_row():
    sets = {"forget": examples("forget", 4)}  # labels 1, 2, 3, 1
    batches = paired(sets=sets, global_batch=4, micro_batch=1)
    assert [batches.label_tokens(0, "forget", skip_first=n) for n in (0, 1, 2, 3)] == [7, 3, 1, 0]
    with pytest.raises(ValueError, match="skip_first -1 must not be negative"):
        batches.label_tokens(0, "forget", skip_first=-1)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_rows_are_counted_over_all_ranks(world_size):
    batches = [paired(rank, world_size).micro_batches(1, "retain") for rank in range(world_size)]
    assert paired(0, world_size).rows(1, "retain") == sum(len(b.item_ids) for rank in batches for b in rank) == 8


def test_batches_name_their_rows_in_order():
    batches = paired().micro_batches(2, "retain")
    assert [item for batch in batches for item in batch.item_ids] == paired().item_ids(2, "retain")
    assert [batch.to("cpu").item_ids for batch in batches] == [batch.item_ids for batch in batches]


def with_answers(name, ids):
    return [Example(item_id, (3, 4, len(name)), 2) for item_id in ids]


@pytest.mark.parametrize("world_size", [1, 2])
def test_refusals_and_alternates_follow_the_forget_rows(world_size):
    ids = [example.item_id for example in SETS["forget"]]
    sets = SETS | {name: with_answers(name, ids) for name in ("refusal", "alternate")}
    for step in range(4):
        for rank in range(world_size):
            batches = paired(rank, world_size, sets=sets)
            drawn = [b.item_ids for b in batches.micro_batches(step, "forget")]
            assert drawn == [b.item_ids for b in batches.micro_batches(step, "refusal")]
            assert drawn == [b.item_ids for b in batches.micro_batches(step, "alternate")]
            assert drawn == [b.item_ids for b in paired(rank, world_size).micro_batches(step, "forget")]
    alone = paired(sets={"refusal": sets["refusal"]})
    assert alone.item_ids(3, "refusal") == paired().item_ids(3, "forget")


def test_refusals_of_other_rows_than_the_forget_rows_are_refused():
    ids = [example.item_id for example in SETS["forget"]]
    for wrong in (ids[:-1], ids[::-1]):
        with pytest.raises(ValueError, match="'refusal' must hold the rows of 'forget', in the same order"):
            paired(sets=SETS | {"refusal": with_answers("refusal", wrong)})


def test_steps_follow_the_stream_across_passes():
    ids = [item for step in range(5) for item in paired().item_ids(step, "forget")]
    assert len(ids) == 40
    for start in range(0, 40, 5):
        assert sorted(ids[start : start + 5]) == [f"forget/{i:05d}" for i in range(5)]


def test_a_set_is_not_disturbed_by_another():
    alone = paired(sets={"retain": SETS["retain"]})
    assert alone.item_ids(3, "retain") == paired().item_ids(3, "retain")


def test_accumulation_and_steps_per_epoch():
    assert paired(global_batch=8, micro_batch=2, world_size=2).accumulation == 2
    assert paired(global_batch=8).steps_per_epoch("retain") == 2  # 11 rows
    assert paired(global_batch=8).steps_per_epoch("forget") == 1  # 5 rows


@pytest.mark.parametrize("world_size", [3, 5])
def test_ranks_that_come_short_repeat_a_batch_that_does_not_count(world_size):
    ranks = [paired(rank, world_size) for rank in range(world_size)]
    for step in range(3):
        batches = [one.micro_batches(step, "retain") for one in ranks]
        assert {len(mine) for mine in batches} == {2 if world_size == 3 else 1}
        in_order = [batch for mine in zip(*batches, strict=True) for batch in mine if batch.counts]
        assert [item for batch in in_order for item in batch.item_ids] == paired().item_ids(step, "retain")
        assert sum(not batch.counts for mine in batches for batch in mine) == {3: 2, 5: 1}[world_size]


def test_the_arithmetic_of_a_bad_global_batch_is_shown():
    with pytest.raises(UserError, match=r"global_batch 10 is not a multiple of micro_batch 4; set .* to 8 or 12"):
        paired(micro_batch=4, global_batch=10)
    with pytest.raises(UserError, match=r"set global_batch to 8$"):
        paired(micro_batch=8, global_batch=6)
    with pytest.raises(UserError, match="micro_batch is 0"):
        paired(micro_batch=0)
    with pytest.raises(UserError, match="'retain' has no rows"):
        paired(sets={"retain": []})
    with pytest.raises(ValueError, match="rank 2 must be from 0 to 1"):
        paired(rank=2, world_size=2)
