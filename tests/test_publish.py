import json
import os
from pathlib import Path

import pytest

from unlearn_core import publish
from unlearn_core.publish import MARKER, is_complete, publish_folder, write_json, write_text


class Killed(BaseException):
    """Like a KeyboardInterrupt: no handler of ours may swallow it."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill_with(text):
    return lambda folder: (folder / "data").write_text(text) and None


def test_a_published_folder_is_whole(tmp_path):
    final = publish_folder(tmp_path / "a" / "model", fill_with("new"), {"step": 3})
    assert (final / "data").read_text() == "new"
    assert json.loads((final / MARKER).read_text()) == {"step": 3}
    assert is_complete(final)
    assert names(final.parent) == ["model"]


def test_an_interrupted_fill_leaves_nothing(tmp_path):
    def fill(folder):
        (folder / "data").write_text("half")
        raise Killed

    with pytest.raises(Killed):
        publish_folder(tmp_path / "model", fill, {})
    assert names(tmp_path) == []
    assert not is_complete(tmp_path / "model")


def test_nothing_is_at_the_final_place_before_the_marker(tmp_path):
    seen = []

    def fill(folder):
        seen.append(((tmp_path / "model").exists(), is_complete(folder)))

    publish_folder(tmp_path / "model", fill, {})
    assert seen == [(False, False)]


def test_an_interrupted_replacement_leaves_the_old_folder(tmp_path):
    publish_folder(tmp_path / "model", fill_with("old"), {"step": 1})

    def fill(folder):
        assert (tmp_path / "model" / "data").read_text() == "old"
        raise Killed

    with pytest.raises(Killed):
        publish_folder(tmp_path / "model", fill, {"step": 2})
    assert (tmp_path / "model" / "data").read_text() == "old"
    assert json.loads((tmp_path / "model" / MARKER).read_text()) == {"step": 1}
    assert names(tmp_path) == ["model"]


def test_a_replacement_replaces_all(tmp_path):
    publish_folder(tmp_path / "model", lambda folder: (folder / "left").touch(), {})
    publish_folder(tmp_path / "model", fill_with("new"), {})
    assert names(tmp_path / "model") == [MARKER, "data"]
    assert names(tmp_path) == ["model"]


def test_a_folder_without_marker_is_not_complete(tmp_path):
    (tmp_path / "model").mkdir()
    assert not is_complete(tmp_path / "model")


def test_write_text_replaces_in_one_rename(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    contents = []
    replace = os.replace

    def watched(source, target):
        contents.append((path.read_text(), Path(source).read_text(encoding="utf-8")))
        replace(source, target)

    monkeypatch.setattr(publish.os, "replace", watched)
    write_text(path, "ünew")
    assert contents == [("old", "ünew")]  # the new text was whole before the old one went
    assert path.read_text(encoding="utf-8") == "ünew"
    assert names(path.parent) == ["file.txt"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def killed(_):
        raise Killed

    monkeypatch.setattr(publish.os, "fsync", killed)
    with pytest.raises(Killed):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_write_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []
    write_json(tmp_path / "a.json", {"loss": 0.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 0.5}
