"""Checkpoints on disk: whole or not at all, kept by rule, a failed write told with its remedy."""

import errno
import hashlib
import json
import os

import pytest
from pydantic import ValidationError

from unlearn_core.checkpoints import MANIFEST, Checkpoints
from unlearn_core.errors import StorageError, UserError, storage_problem
from unlearn_core.layout_config import RetentionConfig


def fill(folder):
    (folder / "rank-00000-of-00001.safetensors").write_bytes(b"shard")
    (folder / "state.json").write_text("{}")


def saved(folder, losses, **retention):
    store = Checkpoints(folder, retention=RetentionConfig(**retention))
    for step, loss in enumerate(losses, start=1):
        store.save({"step": step, "loss_retain": loss, "auto_probes": {}}, fill)
    return store


def steps(folder):
    return [int(path.name[5:]) for path in sorted(folder.iterdir())]


def test_the_manifest_names_every_file_with_size_and_hash(tmp_path):
    saved(tmp_path, [1.0])
    manifest = json.loads((tmp_path / "step-00001" / MANIFEST).read_text())
    assert manifest["step"] == 1
    assert manifest["files"]["rank-00000-of-00001.safetensors"] == {
        "bytes": 5,
        "sha256": hashlib.sha256(b"shard").hexdigest(),
    }
    assert sorted(manifest["files"]) == ["rank-00000-of-00001.safetensors", "state.json"]


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        ({}, [4, 5]),
        ({"last": 1}, [5]),
        ({"last": 1, "best": 2, "best_by": "loss_retain"}, [2, 3, 5]),
        ({"last": 1, "best": 1, "best_by": "loss_retain", "best_is": "highest"}, [1, 5]),
    ],
)
def test_the_last_and_the_best_are_kept(retention, kept, tmp_path):
    store = saved(tmp_path, [5.0, 1.0, 2.0, 4.0, 3.0], **retention)
    assert steps(tmp_path) == kept
    assert store.newest_whole() == (tmp_path / "step-00005", [])
    store.keep_only_best()
    assert steps(tmp_path) == [step for step in kept if retention.get("best") and step != 5]


def test_a_criterion_that_no_step_has_is_said(tmp_path):
    with pytest.raises(UserError, match=r"best_by is 'loss'; this run's steps have loss_retain, step"):
        saved(tmp_path, [1.0], best=1, best_by="loss")
    with pytest.raises(ValidationError, match="belong together"):
        RetentionConfig(best=1)


def test_steps_sort_as_numbers(tmp_path):
    store = Checkpoints(tmp_path)
    for step in (99999, 100000):
        store.save({"step": step}, fill)
    assert store.newest_whole()[0] == tmp_path / "step-100000"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES])
def test_a_failed_write_harms_nothing_and_says_what_to_do(number, tmp_path):
    store = saved(tmp_path, [1.0])

    def fails(folder):
        (folder / "half").write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(StorageError, match=f"cannot write to {tmp_path}: {os.strerror(number)}") as caught:
        store.save({"step": 2}, fails)
    assert str(caught.value).endswith(("goes on.", "every node."))
    assert store.newest_whole() == (tmp_path / "step-00001", [])
    assert steps(tmp_path) == [1]


def test_safetensors_own_error_counts_as_one_of_the_disk(tmp_path):
    error = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert "No space left on device" in storage_problem(error, tmp_path / "not" / "there")
    assert storage_problem(RuntimeError("something else"), tmp_path) == ""
