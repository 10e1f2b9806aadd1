"""One writer an output folder; what a dead one leaves behind is taken over."""

import json
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from pipelines.claim import GONE_SECONDS, OWNER, claimed
from unlearn_core.errors import StorageError, UserError


def owner(folder):
    return json.loads((folder / OWNER).read_text())


def left_behind(folder, **changes):
    folder.mkdir(exist_ok=True)
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "what": "a run",
    }
    (folder / OWNER).write_text(json.dumps(mine | changes))


def test_a_second_run_is_refused_and_told_who_holds_it(tmp_path):
    with claimed(tmp_path / "out", "unlearn train a"):
        assert owner(tmp_path / "out")["pid"] == os.getpid()
        message = f"being written by another run: unlearn train a, process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(UserError, match=message), claimed(tmp_path / "out", "unlearn train b"):
            raise AssertionError("two at once")
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "out").exists()  # nothing came of it
    with claimed(tmp_path / "out", "unlearn train a"):
        (tmp_path / "out" / "result").write_text("")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result"]


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"started": 1.0}, {"host": "elsewhere", "renewed": 1.0}])
def test_a_dead_owner_is_replaced(changes, tmp_path):
    left_behind(tmp_path, **changes)
    if "host" in changes:
        os.utime(tmp_path / OWNER, (0, time.time() - GONE_SECONDS - 1))
    with claimed(tmp_path, "mine"):
        assert owner(tmp_path)["what"] == "mine"


def test_a_zombie_is_dead(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = psutil.Process(process.pid).create_time()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    left_behind(tmp_path, pid=process.pid, started=started)
    with claimed(tmp_path, "mine"):
        pass
    process.wait()


def test_an_owner_on_another_machine_lives_while_it_renews(tmp_path):
    left_behind(tmp_path, host="elsewhere")
    with pytest.raises(UserError, match="on elsewhere"), claimed(tmp_path, "mine"):
        raise AssertionError("two at once")
    assert owner(tmp_path)["host"] == "elsewhere"


def test_a_garbled_claim_and_a_place_that_cannot_be(tmp_path):
    (tmp_path / OWNER).write_text("{")
    os.utime(tmp_path / OWNER, (0, 0))
    with claimed(tmp_path, "mine"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Choose an --output"), claimed(tmp_path / "file" / "out", "mine"):
        pass


def test_in_an_object_store_the_claim_goes_there(bucket, monkeypatch, tmp_path):
    from unlearn_core.storage import pull

    uri = bucket.uri("runs/one")
    with claimed(pull(uri), "unlearn train a"):
        assert bucket.keys("runs/one") == [OWNER]
        monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path / "elsewhere"))
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(UserError, match="being written by another run"), claimed(pull(uri), "b"):
            raise AssertionError("two at once")
    assert bucket.keys("runs/one") == []
