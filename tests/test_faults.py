"""The light rows of `benchmarks.faults`: what goes wrong is survived, or refused with a clear error."""

import pytest

from benchmarks.faults_light import light_rows, run_row


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


def in_process(rank, world_size, name, folder):
    return run_row(name, folder)


@pytest.mark.parametrize("name", light_rows())
def test_row(name, one_rank, folder):
    (row,) = one_rank.run(in_process, name, folder)
    assert row.passed, row
