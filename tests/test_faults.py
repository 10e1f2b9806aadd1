"""The light rows of `benchmarks.faults`: what goes wrong is survived, or refused with a clear error."""

import pytest

from benchmarks.faults_light import light_rows, poisoned_rank, run_row
from benchmarks.faults_run import Workspace


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


def in_process(rank, world_size, name, folder):
    return run_row(name, folder)


@pytest.mark.parametrize("name", light_rows())
def test_row(name, one_rank, folder):
    (row,) = one_rank.run(in_process, name, folder)
    assert row.passed, row


def test_nan_on_one_rank_ends_both_together(two_ranks, folder, tmp_path):
    config = Workspace(folder).config(workers=2, steps=6, export_every=6)
    outcomes = two_ranks.run(poisoned_rank, config, tmp_path)
    assert outcomes[0] == outcomes[1]
    assert (outcomes[0].status, outcomes[0].step) == ("diverged", 2)
