"""Mirrors of object-store folders: what goes up and down, in which order, and what an interruption leaves."""

import hashlib
import json
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from unlearn_core import storage, storage_objects
from unlearn_core.errors import UserError
from unlearn_core.publish import is_complete, publish_folder, write_json
from unlearn_core.storage import fetch, is_uri, mirror_folder, pull, push, remove, sha256_of, shared, uri_of
from unlearn_core.storage_places import check_uri, parent_uris
from unlearn_core.storage_sync import Syncing

ROOT = Path(__file__).resolve().parents[1]
BIG = 20 << 20


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Call it to become another node: one without mirrors."""
    count = iter(range(100))
    return lambda: monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path / f"node{next(count)}"))


def fill(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json").replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def big(path, byte=b"a", size=BIG):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(byte * size)


@pytest.mark.parametrize("text", ["s3://b/x", "gs://b", "file:///x", "ftp://x"])
def test_uris_are_told_from_paths(text):
    assert is_uri(text)
    assert not any(map(is_uri, ("outputs/x", "/a//b", "./s3:/x", "meta-llama/Llama", "a b://c", "", Path("s3://b/x"))))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ftp://host/x", "unknown scheme 'ftp'"),
        ("s3:///x", "names no bucket"),
        ("s3://", "names no bucket"),
        ("file://x/y", "no absolute folder"),
        ("file:///", "no absolute folder"),
        ("s3://b/x/../y", "part '.' or '..'"),
    ],
)
def test_mistakes_in_uris(text, says):
    with pytest.raises(UserError, match=says):
        check_uri(text)


@pytest.mark.parametrize(
    "text",
    ["s3://KEYID:hush@b/x", "s3://b/x?access_key=hush", "s3://b/x?region=r&secret_key=hush", "s3://b/x?token=hush"],
)
def test_credentials_in_uris_are_refused_and_not_repeated(text):
    with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY") as error:
        check_uri(text)
    assert "hush" not in str(error.value) and "KEYID" not in str(error.value)


def test_mirrors_follow_from_the_uri(bucket, tmp_path):
    place = mirror_folder("s3://b/runs/x/")
    assert place == mirror_folder("s3://b//runs/x") and place.name == "x" and not place.exists()
    assert place != mirror_folder("s3://b/runs/x?endpoint_override=h") and place != mirror_folder("s3://c/runs/x")
    assert stat.S_IMODE((tmp_path / "mirror").stat().st_mode) == 0o700
    assert uri_of(place / "models" / "a b") == "s3://b/runs/x/models/a b"
    assert uri_of(mirror_folder("s3://b/y?region=r") / "z") == "s3://b/y/z?region=r"
    assert uri_of(place) == "s3://b/runs/x" and uri_of(place.parent) is None and uri_of(tmp_path) is None
    above = list(parent_uris("s3://b/x/y?q=1"))
    assert above == [("s3://b/x?q=1", "y"), ("s3://b?q=1", "x/y")]


@pytest.mark.parametrize("kind", ["s3", "file"])
def test_there_and_back_on_another_node(bucket, tmp_path, elsewhere, kind):
    uri = bucket.uri("runs/x") if kind == "s3" else (tmp_path / "store" / "x").as_uri()
    here = pull(uri)
    fill(here, run_json="{}", a_txt="one", models__step__complete_json="{}", models__step__w_txt="two")
    big(here / "models" / "step" / "w.safetensors")
    fill(here, **{".hidden": "h", "half.part": "p", ".aside.part__complete_json": "{}", "empty_txt": ""})
    assert push(here) == 6
    assert push(here) == 0
    if kind == "s3":
        assert bucket.keys("runs/x") == [
            *("a.txt", "empty.txt", "models/step/.sums/w.safetensors.json", "models/step/complete.json"),
            *("models/step/w.safetensors", "models/step/w.txt", "run.json"),
        ]
    elsewhere()
    there = pull(uri, small_only=True)
    assert there != here and not (there / "models/step/w.safetensors").exists()
    assert fetch(uri) == there
    for path in (p for p in here.rglob("*") if p.is_file() and not p.name.endswith(".part")):
        relative = path.relative_to(here)
        if not any(part.startswith(".") for part in relative.parts):
            assert (there / relative).read_bytes() == path.read_bytes()
    assert not list(there.rglob("*.part")) and not list(there.rglob(".*"))
    assert sha256_of(there / "a.txt") == sha256_of(here / "a.txt") == hashlib.sha256(b"one").hexdigest()
    assert push(there) == 0


def test_only_changes_travel(bucket, elsewhere):
    uri = bucket.uri("x")
    here = pull(uri)
    fill(here, a_txt="one", b_txt="one")
    assert push(here) == 2
    fill(here, a_txt="longer")
    assert push(here) == 1
    elsewhere()
    there = pull(uri)
    before = (there / "b.txt").stat().st_ino
    bucket.write("x/a.txt", b"from elsewhere")
    bucket.write("x/c.txt", b"new")
    pull(uri)
    assert (there / "a.txt").read_text() == "from elsewhere" and (there / "c.txt").read_text() == "new"
    assert (there / "b.txt").stat().st_ino == before
    fill(there, a_txt="changed here")
    bucket.write("x/a.txt", b"changed there too")
    pull(uri)
    assert (there / "a.txt").read_text() == "changed here"
    assert sha256_of(there / "a.txt") == hashlib.sha256(b"changed here").hexdigest()
    assert push(there) == 1 and bucket.read("x/a.txt") == b"changed here"


def test_deletions_travel(bucket):
    uri = bucket.uri("x")
    here = pull(uri)
    fill(here, a_txt="one", b_txt="one", c_txt="one")
    push(here)
    (here / "a.txt").unlink()
    assert push(here) == 1 and bucket.keys("x") == ["b.txt", "c.txt"]
    bucket.delete("x/b.txt")
    pull(uri)
    assert [path.name for path in here.iterdir()] == ["c.txt"]


def test_what_is_missing_here_after_a_pull_is_not_deleted_there(bucket):
    uri = bucket.uri("x")
    here = pull(uri)
    fill(here, a_txt="one")
    big(here / "w.bin")
    push(here)
    (here / "w.bin").unlink()  # someone who needs the disk
    pull(uri, small_only=True)
    assert push(here) == 0 and "w.bin" in bucket.keys("x")
    big(here / "v.bin")
    push(here)
    for path in here.iterdir():
        path.unlink()
    here.rmdir()
    assert push(here) == 0 and {"v.bin", "w.bin"} <= set(bucket.keys("x"))


def order_of_changes(bucket):
    """(method, key) of everything that was written or deleted."""
    if bucket.server is None:
        pytest.skip("needs the log of the tests' own server")
    done = []
    for method, path in bucket.server.requests:
        key = path.partition("?")[0].removeprefix(f"/{bucket.name}/")
        if (method in ("PUT", "DELETE") and "." in key) and "partNumber=" not in path:
            done.append((method, key))
        if method == "POST" and "uploadId=" in path:
            done.append(("PUT", key))
    return done


def test_markers_are_written_last_and_removed_first(bucket):
    here = pull(bucket.uri("x"))
    publish_folder(here / "model", lambda folder: fill(folder, w_txt="one", v_txt="one"), {"step": 1})
    fill(here, run_json="{}")
    push(here)
    order = order_of_changes(bucket)
    assert [key for _, key in order[-2:]] == ["x/model/complete.json", "x/run.json"]
    start = len(order)
    publish_folder(here / "model", lambda folder: fill(folder, w_txt="two", v_txt="two!"), {"step": 2})
    push(here)
    order = order_of_changes(bucket)[start:]
    assert order[0] == ("DELETE", "x/model/complete.json") and order[-1] == ("PUT", "x/model/complete.json")
    start += len(order)
    remove(here / "model")
    order = order_of_changes(bucket)[start:]
    assert order[0] == ("DELETE", "x/model/complete.json") and bucket.keys("x") == ["run.json"]
    assert is_complete(here / "model")  # what is here stays
    assert remove(bucket.uri("x")) == 1 and bucket.keys() == []


def test_a_marker_does_not_come_before_its_files(bucket, elsewhere):
    here = pull(bucket.uri("x"))
    publish_folder(here / "model", lambda folder: big(folder / "w.bin"), {"step": 1})
    push(here)
    torn = bucket.read("x/model/w.bin")[:-1]
    bucket.write("x/model/w.bin", torn)
    elsewhere()
    there = pull(bucket.uri("x"))
    assert not (there / "model" / "complete.json").exists() and not (there / "model" / "w.bin").exists()
    with pytest.raises(UserError, match=r"not whole: w\.bin was cut off"):
        fetch(bucket.uri("x/model"))
    bucket.write("x/model/w.bin", torn + b"b")  # the right size, other bytes
    with pytest.raises(UserError, match=r"not whole: w\.bin was cut off"):
        fetch(bucket.uri("x/model"))


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("kind", ["s3", "file"])
def test_an_error_in_the_middle_of_an_upload(bucket, tmp_path, monkeypatch, elsewhere, kind, old):
    uri = bucket.uri("x") if kind == "s3" else (tmp_path / "store" / "x").as_uri()
    here = pull(uri)
    if old:
        publish_folder(here / "model", lambda folder: big(folder / "w.bin", b"o"), {"step": 1})
        push(here)
    publish_folder(here / "model", lambda folder: big(folder / "w.bin", b"n"), {"step": 2})
    whole = storage_objects._checked

    def broken(*arguments):
        yield next(whole(*arguments))
        raise OSError("disk error")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="disk error"):
        patch.setattr(storage_objects, "_checked", broken)
        push(here)
    elsewhere()
    there = pull(uri)
    assert not is_complete(there / "model")
    assert not (there / "model" / "w.bin").exists() or (there / "model" / "w.bin").read_bytes() == b"o" * BIG
    assert push(here) == 2
    there = fetch(uri)
    assert is_complete(there / "model") and (there / "model" / "w.bin").read_bytes() == b"n" * BIG


KILLED = """
import sys, time
from unlearn_core import storage, storage_objects
whole = storage_objects._checked
def slow(*arguments):
    for piece in whole(*arguments):
        yield piece
        print("piece", flush=True)
        time.sleep(0.5)
storage_objects._checked = slow
storage.push(sys.argv[1])
print("done", flush=True)
"""


@pytest.mark.parametrize("kind", ["s3", "file"])
def test_a_process_killed_in_the_middle_of_an_upload(bucket, tmp_path, elsewhere, kind):
    uri = bucket.uri("x") if kind == "s3" else (tmp_path / "store" / "x").as_uri()
    here = pull(uri)
    publish_folder(here / "model", lambda folder: big(folder / "w.bin"), {"step": 1})
    process = subprocess.Popen([sys.executable, "-c", KILLED, here], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "piece\n" and process.stdout.readline() == "piece\n"
    process.send_signal(signal.SIGKILL)
    assert "done" not in process.communicate()[0] and process.returncode == -signal.SIGKILL
    elsewhere()
    there = pull(uri)
    assert not (there / "model").exists()
    with pytest.raises(UserError, match="does not exist or is empty"):
        fetch(uri)
    assert push(here) == 2
    assert (fetch(uri) / "model" / "w.bin").read_bytes() == b"a" * BIG


def test_a_file_that_changes_under_the_upload_is_left_for_the_next(bucket, monkeypatch):
    here = pull(bucket.uri("x"))
    fill(here, evaluation_json="{}", a_txt="one")
    whole = storage.upload

    def changing(store, local, relative):
        write_json(here / "evaluation.json", {"newer": True})  # the command goes on meanwhile
        return whole(store, local, relative)

    monkeypatch.setattr(storage, "upload", changing)
    assert push(here) == 1 and bucket.keys("x") == ["a.txt"]
    monkeypatch.setattr(storage, "upload", whole)
    assert push(here) == 1 and json.loads(bucket.read("x/evaluation.json")) == {"newer": True}


def test_a_single_file_is_a_place_too(bucket, elsewhere):
    here = pull(bucket.uri("logs/TOFU_EVAL.json"))
    here.write_text("{}")
    assert push(here) == 1 and bucket.keys("logs") == ["TOFU_EVAL.json"]
    elsewhere()
    assert fetch(bucket.uri("logs/TOFU_EVAL.json")).read_text() == "{}"


def test_a_mirror_above_is_used(bucket, elsewhere):
    here = pull(bucket.uri("run"))
    fill(here, models__a__w_txt="one")
    assert shared(here / "models" / "a") == bucket.uri("run/models/a")
    assert shared(here.parent) == str(here.parent)
    assert fetch(bucket.uri("run/models/a")) == here / "models" / "a"
    elsewhere()
    assert fetch(bucket.uri("run/models/a")) == mirror_folder(bucket.uri("run/models/a"))


def test_several_processes_fetch_at_once(bucket, elsewhere):
    here = pull(bucket.uri("x"))
    big(here / "w.bin")
    push(here)
    elsewhere()
    if bucket.server is not None:
        bucket.server.requests.clear()
    code = "import sys; from unlearn_core.storage import fetch; print(fetch(sys.argv[1]))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, bucket.uri("x")], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(3)
    ]
    places = {process.communicate()[0].strip() for process in processes}
    assert len(places) == 1 and (Path(places.pop()) / "w.bin").stat().st_size == BIG
    if bucket.server is not None:
        read = [path for method, path in bucket.server.requests if method == "GET" and path.endswith("w.bin.json")]
        assert len(read) == 1  # downloaded once


@pytest.mark.parametrize("query", ["endpoint_override={host}&scheme=http&region=us-east-1", "endpoint_override={url}"])
def test_the_endpoint_may_be_in_the_uri(bucket, monkeypatch, query):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    here = pull(bucket.uri("x") + "?" + query.format(host=bucket.url.removeprefix("http://"), url=bucket.url))
    fill(here, a_txt="one")
    assert push(here) == 1 and bucket.read("x/a.txt") == b"one"


def test_stores_that_cannot_be_used_are_told(bucket, monkeypatch):
    with pytest.raises(UserError, match=r"the bucket 'no-such-bucket' does not exist; make it first"):
        pull("s3://no-such-bucket/x")
    if bucket.server is not None:
        bucket.server.refuse = True
        with pytest.raises(UserError, match="AWS_ACCESS_KEY_ID") as error:
            pull(bucket.uri("x"))
        assert "not-a-real-secret" not in str(error.value)


def test_syncing_pushes_meanwhile_and_at_the_end(bucket):
    here = pull(bucket.uri("x"))
    with pytest.raises(RuntimeError, match="of the command"), Syncing(here, every=0.05):
        fill(here, a_txt="one")
        until(lambda: bucket.keys("x") == ["a.txt"])
        fill(here, b_txt="two")
        raise RuntimeError("of the command")
    assert bucket.keys("x") == ["a.txt", "b.txt"]
    with Syncing(here.parent / "not a mirror", every=0.01):
        pass


def test_syncing_tries_again(bucket, caplog):
    if bucket.server is None:
        pytest.skip("needs a server that can refuse")
    here = pull(bucket.uri("x"))
    bucket.server.refuse = True
    with Syncing(here, every=0.05, wait=0.05):
        fill(here, a_txt="one")
        until(lambda: "not brought to the store yet" in caplog.text)
        threading.Timer(0.1, lambda: setattr(bucket.server, "refuse", False)).start()
    assert bucket.keys("x") == ["a.txt"]
    with pytest.raises(UserError, match=f"Everything is in {here}"), Syncing(here, attempts=2, wait=0.01):
        fill(here, a_txt="other")
        bucket.server.refuse = True
    assert (here / "a.txt").read_text() == "other"


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_a_command_deletes_is_not_brought_back(bucket):
    here = pull(bucket.uri("x"))
    fill(here, a_txt="one", b_txt="one")
    push(here)
    with Syncing(here, every=60):
        (here / "a.txt").unlink()
        pull(bucket.uri("x"))  # by another command of this node
        assert not (here / "a.txt").exists()
    assert bucket.keys("x") == ["b.txt"]
    (here / "b.txt").unlink()
    pull(bucket.uri("x"))
    assert (here / "b.txt").exists()


def test_following_brings_what_others_write(bucket):
    here = pull(bucket.uri("x"))
    with Syncing(here, following=True, every=0.05):
        bucket.write("x/run.json", b"{}")
        until((here / "run.json").exists)
