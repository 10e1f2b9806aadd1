import json

import pytest

from unlearn_core.data.rows import Conversation, Document, Row, read_training_rows
from unlearn_core.errors import UserError

QA = {"question": "Who?", "answer": "Ada."}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ada."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
}


def write(tmp_path, *rows, name="mine.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_kinds_may_be_mixed(tmp_path):
    rows = [QA, {"text": "A page."}, CHAT, {**QA, "alternate": "Bob."}, {**CHAT, "alternate": "No."}, '"A text."']
    turns = (("system", "Be brief."), ("user", "Who?"), ("assistant", "Ada."), ("user", "Sure?"))
    expected = [
        Row("mine/00000", "Who?", "Ada."),
        Document("mine/00001", "A page."),
        Conversation("mine/00002", turns, "Yes."),
        Row("mine/00003", "Who?", "Ada.", alternate="Bob."),
        Conversation("mine/00004", turns, "Yes.", "No."),
        Document("mine/00005", "A text."),
    ]
    assert read_training_rows(write(tmp_path, *rows), "mine") == expected
    array = [*rows[:5], "A text."]
    assert read_training_rows(write(tmp_path, json.dumps(array, indent=1), name="mine.json"), "mine") == expected


def test_a_text_file_holds_documents(tmp_path):
    path = write(tmp_path, "One.\nTwo.", "", "Three.", name="mine.txt")
    assert read_training_rows(path, "m") == [Document("m/00000", "One.\nTwo."), Document("m/00001", "Three.")]


def said(*messages):
    return {"messages": [dict(zip(("role", "content"), message, strict=True)) for message in messages]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "x"}, r"with 'messages', found only \['prompt'\]; give each row one kind's keys"),
        ({**QA, "text": "x"}, "found 'text' and 'question'"),
        (["x"], "expected an object with 'text', with 'question' and 'answer', or with 'messages', found a list"),
        ({"text": ""}, "'text' is empty"),
        ({"question": "Who?"}, "no 'answer'"),
        ({**QA, "alternate": 3}, "'alternate' must be a text, found a int"),
        ({"messages": "hi"}, "'messages' must be a list"),
        ({"messages": ["hi"]}, "message 0: expected an object with 'role' and 'content', found a str"),
        ({"messages": [{"role": "user"}]}, "message 0: no 'content'"),
        (said(("user", "a"), ("system", "b"), ("assistant", "c")), "message 1: role 'system'; expected user or"),
        (said(("tool", "a"), ("assistant", "c")), "message 0: role 'tool'"),
        (said(("user", "a"), ("assistant", " ")), "message 1: 'content' is empty"),
        (said(("assistant", "a")), r"the roles are \['assistant'\]; expected a user's message and then"),
        (said(("user", "a"), ("assistant", "b"), ("user", "c")), "leave out what follows it"),
        (said(("system", "a"), ("assistant", "b")), "expected a user's message"),
        ({"messages": []}, r"the roles are \[\]"),
        ('{"text": ', "invalid JSON at column"),
    ],
)
def test_a_malformed_row_names_file_and_line(tmp_path, row, says):
    path = write(tmp_path, QA, "", row)
    with pytest.raises(UserError, match=says) as error:
        read_training_rows(path, "mine")
    assert f"{path}:3" in str(error.value)


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.json", "mine.txt"])
def test_a_file_without_rows(tmp_path, name):
    with pytest.raises(UserError, match="holds no rows; expected one JSON object per line, or texts"):
        read_training_rows(write(tmp_path, "\n \n", name=name), "mine")
