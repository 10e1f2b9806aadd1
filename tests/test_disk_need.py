"""What a run will write is known before it starts, and refused where it cannot fit."""

import shutil
from collections import namedtuple

import pytest
from training_runs import small_run

from pipelines.disk_need import bytes_needed, check_disk, parameters_of
from unlearn_core.errors import StorageError
from unlearn_core.loop import model_folder
from unlearn_core.models import load_model
from unlearn_core.publish import write_json

Usage = namedtuple("Usage", "free")


def test_bytes_by_hand(taught, tmp_path):
    parameters = parameters_of(taught)
    assert parameters == load_model(str(taught), "fp32").num_parameters()
    config = small_run(taught, 1, steps=4, export_every=2)
    assert bytes_needed(config, tmp_path, 1000) == (2 * 4 * 1000, 3 * 12 * 1000)
    write_json(model_folder(tmp_path, 2) / "complete.json", {})
    assert bytes_needed(config, tmp_path, 1000)[0] == 4 * 1000
    sgd = small_run(taught, 1, dtype="bf16", steps=4, optimizer__name="sgd", checkpoints__last=1)
    assert bytes_needed(sgd, tmp_path, 1000) == (2 * 1000, 2 * 4 * 1000)


def test_a_run_that_cannot_fit_is_refused(taught, tmp_path, monkeypatch):
    config = small_run(taught, 1, steps=4, export_every=2)
    check_disk(config, tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(4 * parameters_of(taught)))
    with pytest.raises(StorageError, match=r"has room for 0\.00 GiB; the run writes .* Raise export_every"):
        check_disk(config, tmp_path / "out")
