import json
from itertools import islice

import pyarrow
import pyarrow.parquet
import pytest

from unlearn_core.data import files
from unlearn_core.data.files import read_values, read_whole
from unlearn_core.data.sources import is_data_file
from unlearn_core.errors import UserError


def test_texts_are_parted_at_blank_lines_and_keep_their_own_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf\n\nfirst\nstill first\n\n \t\n  second\r\n\r\nthird\n")
    assert list(read_values(path)) == [
        (f"{path}:3", "first\nstill first"),
        (f"{path}:7", "  second"),
        (f"{path}:9", "third"),
    ]


def test_parquet_rows_across_row_groups(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"t{i}" for i in range(600)], "n": list(range(600))})
    pyarrow.parquet.write_table(table, path, row_group_size=250)
    values = list(read_values(path))
    assert len(values) == 600
    assert values[431] == (f"{path}, row 431", {"text": "t431", "n": 431})


def test_lines_are_read_only_as_far_as_asked(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n"b"\nnot json\n')
    assert list(islice(read_values(path), 2)) == [(f"{path}:1", {"text": "a"}), (f"{path}:2", "b")]
    with pytest.raises(UserError, match=r"a\.jsonl:3: invalid JSON at column 1"):
        list(read_values(path))


def test_an_array_of_texts(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf  " + json.dumps(["a", "b"]).encode())
    assert list(read_values(path)) == [(f"{path}, element 0", "a"), (f"{path}, element 1", "b")]


@pytest.mark.parametrize(("name", "line"), [("a.txt", 5), ("a.jsonl", 3), ("a.json", 3)])
def test_bytes_that_are_not_utf8_name_the_line(tmp_path, name, line):
    path = tmp_path / name
    start = {"a.txt": b"one\n\ntwo\nlines\n", "a.jsonl": b'"one"\n\n', "a.json": b'["one",\n\n'}[name]
    path.write_bytes(start + b'"caf\xe9"')
    with pytest.raises(UserError, match=rf"{name}:{line}: not UTF-8 \(byte 0xe9\)"):
        list(read_values(path))


def test_a_file_that_is_no_parquet_and_a_missing_one(tmp_path):
    (tmp_path / "a.parquet").write_text("text")
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet as a parquet file"):
        list(read_values(tmp_path / "a.parquet"))
    for name in ("b.parquet", "b.jsonl", "b.txt"):
        with pytest.raises(UserError, match=rf"cannot read .*{name}"):
            list(read_values(tmp_path / name))
    with pytest.raises(UserError, match="cannot read"):
        read_whole(tmp_path / "b.txt")


def test_the_suffix_alone_tells_a_file_from_a_split():
    assert all(map(is_data_file, ("a.json", "x/y.JSONL", "../a.b.txt", "raw/forget.json")))
    assert not any(map(is_data_file, ("forget10", "raw/forget", "a.json/b", "a.csv", "json")))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"text": ' + "[" * 100_000, r"hostile\.jsonl:2: nested too deeply"),
        ('{"text": ' + "1" * 5000 + "}", r"hostile\.jsonl:2: Exceeds the limit"),
        ('{"text": "a \\uD800 b"}', r"hostile\.jsonl:2: \\ud800 alone is no character"),
        ('{"text": "' + "a" * 200 + '"}', r"hostile\.jsonl:2: a line of more than 0 MiB"),
    ],
)
def test_hostile_lines_are_refused_by_name(text, says, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_LINE", 10**6 if len(text) > 300 or "ud800" in text.lower() else 100)
    path = tmp_path / "hostile.jsonl"
    path.write_text('{"text": "fine \\ud83d\\ude00"}\n' + text)
    with pytest.raises(UserError, match=says):
        list(read_values(path))


def test_a_hostile_array_is_refused(tmp_path):
    path = tmp_path / "hostile.json"
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        list(read_values(path))
