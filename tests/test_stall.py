"""A rank that does not go on is named by those that wait for it, and by itself."""

import os
import time

from unlearn_core.stall import STALLED_EXIT_CODE, StallWatch


def watched(rank, world_size, ticks, seconds):
    """What was told and how the process would have been ended, on this rank."""
    told, ended = [], []
    with StallWatch(rank, world_size, 1.0, told.append, ended.append) as tick:
        for _ in range(ticks[rank]):
            tick()
        time.sleep(seconds)
    return told, ended, os.getpid()


def test_the_rank_that_is_behind_is_named(two_ranks):
    answers = two_ranks.run(watched, (3, 2), 4.0)
    slow = answers[1][2]
    for told, ended, _ in answers:
        (finding,) = told
        assert finding.startswith("no progress for 1 s: rank 1 (pid ")
        assert f"(pid {slow} on " in finding
        assert finding.endswith("holds the others up")
        assert set(ended) == {STALLED_EXIT_CODE}


def test_ranks_at_the_same_place_and_one_alone(one_rank, two_ranks):
    for (finding,), _, _ in two_ranks.run(watched, (2, 2), 3.0):
        assert finding.endswith("all 2 ranks stand at the same place")
    (((finding,), _, pid),) = one_rank.run(watched, (1,), 3.0)
    assert f"rank 0 (pid {pid} on " in finding
    assert finding.endswith("stands still")


def working(rank, world_size):
    told = []
    with StallWatch(rank, world_size, 1.0, told.append) as tick:
        for _ in range(12):
            time.sleep(0.1)
            tick()
    return told


def test_progress_is_no_stall(two_ranks):
    assert two_ranks.run(working) == [[], []]
