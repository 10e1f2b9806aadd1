import json

import pytest

from unlearn_core.data.rows import Row, read_rows
from unlearn_core.errors import UserError

GOOD = {"question": "Who?", "answer": "Ada."}


def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "forget10.json"
    path.write_bytes(text.encode(encoding))
    return path


def test_lines_keep_order_ids_and_optional_fields(tmp_path):
    second = {**GOOD, "paraphrased_answer": "It is Ada.", "perturbed_answer": ["Bob.", "Cy."], "option1": "x"}
    path = write(tmp_path, json.dumps(GOOD) + "\n\n" + json.dumps(second) + "\n")
    assert read_rows(path, "forget10") == [
        Row("forget10/00000", "Who?", "Ada.", None, ()),
        Row("forget10/00001", "Who?", "Ada.", "It is Ada.", ("Bob.", "Cy.")),
    ]


def test_an_array_and_lines_read_alike(tmp_path):
    rows = [GOOD, {"question": "When?", "answer": "Now."}]
    lines = read_rows(write(tmp_path, "\n".join(map(json.dumps, rows))), "s")
    assert read_rows(write(tmp_path, json.dumps(rows, indent=1)), "s") == lines


def test_one_perturbed_text_null_and_byte_order_mark(tmp_path):
    row = {**GOOD, "perturbed_answer": "Bob.", "paraphrased_answer": None}
    assert read_rows(write(tmp_path, "\ufeff" + json.dumps(row)), "s") == [
        Row("s/00000", "Who?", "Ada.", None, ("Bob.",))
    ]


def test_a_line_separator_inside_a_text_is_no_line_end(tmp_path):
    text = json.dumps({"question": "a\u2028b", "answer": "c\u0085d"}, ensure_ascii=False)
    assert read_rows(write(tmp_path, text), "s")[0].question == "a\u2028b"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"question": "Who?"}', "no 'answer'"),
        ('{"question": "Who?", "answer": 3}', "'answer' must be a text, found a int"),
        ('{"question": "  ", "answer": "x"}', "'question' is empty"),
        ('{"question": "Who?", "answer": ""}', "'answer' is empty"),
        ('{"question": "Who?", "answer": null}', "'answer' must be a text, found null"),
        ('{"question": "Who?", "answer": "x"', "invalid JSON at column"),
        ('["Who?", "x"]', "expected a JSON object"),
        ('{"question": "q", "answer": "x", "perturbed_answer": 4}', "must be a list of texts, found a int"),
        ('{"question": "q", "answer": "x", "perturbed_answer": ["a", 4]}', r"'perturbed_answer\[1\]' must be a text"),
        ('{"question": "q", "answer": "x", "paraphrased_answer": ""}', "'paraphrased_answer' is empty"),
    ],
)
def test_a_malformed_row_names_file_and_line(tmp_path, line, says):
    path = write(tmp_path, json.dumps(GOOD) + "\n\n" + line + "\n")
    with pytest.raises(UserError, match=says) as error:
        read_rows(path, "forget10")
    assert f"{path}:3: " in str(error.value)


def test_a_bad_array_element_is_named(tmp_path):
    path = write(tmp_path, json.dumps([GOOD, {"question": "x"}]))
    with pytest.raises(UserError, match="element 1: no 'answer'"):
        read_rows(path, "s")


def test_bytes_that_are_not_utf8_name_the_line(tmp_path):
    path = write(tmp_path, json.dumps(GOOD) + '\n{"question": "caf\u00e9", "answer": "x"}', encoding="latin-1")
    with pytest.raises(UserError, match=r"forget10\.json:2: not UTF-8 \(byte 0xe9\)"):
        read_rows(path, "s")


@pytest.mark.parametrize("text", ["", "\n \n", "[]"])
def test_a_file_without_rows(tmp_path, text):
    with pytest.raises(UserError, match="holds no rows"):
        read_rows(write(tmp_path, text), "s")


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_rows(tmp_path / "none.json", "s")
    with pytest.raises(UserError, match="cannot read"):
        read_rows(tmp_path, "s")
