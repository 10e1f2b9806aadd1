import logging

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from unlearn_core.data.tokenization import IGNORE, Example, Formatter, collate, load_tokenizer
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.errors import UserError

TEXTS = ["Who wrote Hamlet? William Shakespeare wrote it.", "Where was Ada born? Ada was born in London."] * 3
QUESTION, ANSWER = "Where was Ada born?", "Ada was born in London."


@pytest.fixture
def tokenizer():
    return train_tokenizer(TEXTS, 400)


def tokens(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(list(ids))


def labels_text(tokenizer, example):
    return tokenizer.decode(list(example.input_ids[example.prompt_length :]), skip_special_tokens=False)


# Padding and masks.


def test_collate_by_hand_right_and_left():
    batch = collate([Example("a", (5, 6, 7), 2), Example("b", (8, 9, 3, 4, 0), 1)], pad_id=0)
    assert batch.input_ids_BT.tolist() == [[5, 6, 7, 0, 0], [8, 9, 3, 4, 0]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.labels_BT.tolist() == [[IGNORE, IGNORE, 7, IGNORE, IGNORE], [IGNORE, 9, 3, 4, 0]]
    left = collate([Example("a", (5, 6, 7), 2), Example("b", (8, 9, 3, 4, 0), 1)], 0, padding_side="left")
    assert left.input_ids_BT.tolist() == [[0, 0, 5, 6, 7], [8, 9, 3, 4, 0]]
    assert left.attention_mask_BT.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert left.labels_BT.tolist() == [[IGNORE, IGNORE, IGNORE, IGNORE, 7], [IGNORE, 9, 3, 4, 0]]
    for tensor in (batch.input_ids_BT, batch.attention_mask_BT, batch.labels_BT):
        assert tensor.dtype == torch.long


def test_collate_keeps_the_ids_and_to_does():
    batch = collate([Example("a", (5, 6, 7), 2), Example("b", (8, 9), 1)], pad_id=0)
    assert batch.item_ids == batch.to("cpu").item_ids == ("a", "b")


def test_collate_needs_an_example():
    with pytest.raises(ValueError, match="at least one example"):
        collate([], 0)


@pytest.mark.parametrize("prompt_length", [0, 3, 4])
def test_an_example_has_a_prompt_and_an_answer(prompt_length):
    with pytest.raises(ValueError, match="must be from 1 to 2"):
        Example("forget10/00000", (1, 2, 3), prompt_length)


def test_a_pad_token_equal_to_end_of_text_keeps_the_end_labelled(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    formatter = Formatter(tokenizer, "plain", 64)
    assert formatter.pad_id == tokenizer.eos_token_id
    short, long = formatter.example("a", "Who?", "Ada."), formatter.example("b", QUESTION, ANSWER)
    batch = collate([short, long], formatter.pad_id)
    n = len(short.input_ids)
    assert n < len(long.input_ids)
    assert batch.labels_BT[0, n - 1] == tokenizer.eos_token_id
    assert batch.attention_mask_BT[0].tolist() == [1] * n + [0] * (len(long.input_ids) - n)
    assert batch.labels_BT[0, n:].tolist() == [IGNORE] * (len(long.input_ids) - n)


# The two styles.


@pytest.mark.parametrize("system_prompt", [None, "Answer briefly."])
@pytest.mark.parametrize("style", ["chat", "plain"])
def test_prompt_is_masked_and_the_end_is_labelled(tokenizer, style, system_prompt):
    formatter = Formatter(tokenizer, style, 128, system_prompt)
    example = formatter.example("x/00000", QUESTION, f"  {ANSWER}\n")
    prompt = formatter.prompt_ids(QUESTION)
    assert list(example.input_ids[: example.prompt_length]) == prompt
    assert example.input_ids[-1] == formatter.end_ids[0]
    assert formatter.decode(example.input_ids[example.prompt_length :]) == ANSWER
    labels = collate([example], formatter.pad_id).labels_BT[0].tolist()
    assert labels == [IGNORE] * len(prompt) + list(example.input_ids[len(prompt) :])
    assert example.label_count == len(example.input_ids) - len(prompt)
    assert ("Answer briefly." in tokenizer.decode(prompt)) == (system_prompt is not None)


def test_chat_text_by_hand(tokenizer):
    formatter = Formatter(tokenizer, "chat", 128)
    example = formatter.example("x", QUESTION, ANSWER)
    assert tokenizer.decode(list(example.input_ids)) == (
        f"<|begin|><|user|>{QUESTION}<|turn_end|><|assistant|>{ANSWER}<|turn_end|>"
    )
    assert labels_text(tokenizer, example) == f"{ANSWER}<|turn_end|>"
    turn_end, end = tokenizer.convert_tokens_to_ids(["<|turn_end|>", "<|end|>"])
    assert formatter.end_ids == (turn_end, end)


def test_plain_text_by_hand(tokenizer):
    formatter = Formatter(tokenizer, "plain", 128, "Be brief.")
    example = formatter.example("x", QUESTION, ANSWER)
    assert tokenizer.decode(list(example.input_ids)) == f"Be brief.\n\nQuestion: {QUESTION}\nAnswer: {ANSWER}<|end|>"
    assert labels_text(tokenizer, example) == f" {ANSWER}<|end|>"
    assert formatter.end_ids == (tokenizer.eos_token_id,)


def test_plain_starts_with_the_beginning_token_only_where_the_tokenizer_adds_it(tokenizer):
    from tokenizers.processors import TemplateProcessing

    assert Formatter(tokenizer, "plain", 64).prompt_ids("Who?")[0] != tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A <|end|>", special_tokens=[("<|begin|>", 1), ("<|end|>", 2)]
    )
    formatter = Formatter(tokenizer, "plain", 64)
    example = formatter.example("x", "Who?", "Ada.")
    assert example.input_ids.count(1) == 1 and example.input_ids[0] == 1
    assert example.input_ids.count(2) == 1 and example.input_ids[-1] == 2


def test_closing_white_space_of_a_template_is_not_trained_on(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("<|turn_end|>", "<|turn_end|>\n")
    example = Formatter(tokenizer, "chat", 128).example("x", QUESTION, ANSWER)
    assert labels_text(tokenizer, example) == f"{ANSWER}<|turn_end|>"


def test_an_end_token_without_a_name_in_the_tokenizer_counts_as_special(tokenizer):
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken("<|im_end|>", special=True)])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|turn_end|>", "<|im_end|>")
    formatter = Formatter(tokenizer, "chat", 128)
    assert formatter.end_ids[0] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert labels_text(tokenizer, formatter.example("x", QUESTION, ANSWER)) == f"{ANSWER}<|im_end|>"


def test_a_template_with_todays_date_gives_a_fixed_prompt(tokenizer):
    dated = "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}"
    tokenizer.chat_template = dated + "{{ date_string }}" + tokenizer.chat_template
    prompt = Formatter(tokenizer, "chat", 128).prompt_ids(QUESTION)
    assert tokenizer.decode(prompt).startswith("26 Jul 2024<|begin|>")


def test_a_template_that_thinks_after_the_prompt_is_told_not_to(tokenizer):
    # Qwen 3's way: the empty thinking block is in every finished turn, in the prompt only with enable_thinking=False.
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}(thought){% endif %}{{ m.content }}"
        "<|turn_end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>"
        "{% if enable_thinking is defined and enable_thinking is false %}(thought){% endif %}{% endif %}"
    )
    example = Formatter(tokenizer, "chat", 128).example("x", QUESTION, ANSWER)
    assert labels_text(tokenizer, example) == f"{ANSWER}<|turn_end|>"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (
            "{% for m in messages %}{{ m.content }}<|turn_end|>{% endfor %}{% if add_generation_prompt %}>{% endif %}",
            "directly after",
        ),
        ("{% for m in messages %}{{ m.content }}. {% endfor %}", "does not set off a special token"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "does not set off a special token"),
    ],
)
def test_templates_that_cannot_be_split_are_refused(tokenizer, template, says):
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=says) as error:
        Formatter(tokenizer, "chat", 64)
    assert "use style 'plain'" in str(error.value)


def test_a_token_across_the_border_is_refused():
    tokenizer = train_tokenizer(["replyAda replyAda replyAda Someone Who"] * 9, 400)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<|turn_end|>reply{% else %}{{ m.content }}"
        "<|turn_end|>{% endif %}{% endfor %}"
    )
    assert tokens(tokenizer, tokenizer("replyAda")["input_ids"]) == ["replyAda"]
    formatter = Formatter(tokenizer, "chat", 64)
    with pytest.raises(UserError, match=r"forget10/00003: the last prompt token and the first answer token merge"):
        formatter.example("forget10/00003", "Who", "Ada")


def test_too_long_is_an_error_that_names_the_item_and_the_length(tokenizer):
    example = Formatter(tokenizer, "plain", 512).example("x", QUESTION, ANSWER)
    length = len(example.input_ids)
    assert Formatter(tokenizer, "plain", length).example("x", QUESTION, ANSWER) == example
    with pytest.raises(UserError, match=rf"forget10/00007: .* = {length} tokens is over max_length {length - 1}"):
        Formatter(tokenizer, "plain", length - 1).example("forget10/00007", QUESTION, ANSWER)


def test_wrong_formatter_arguments(tokenizer):
    with pytest.raises(UserError, match="unknown style 'instruct'"):
        Formatter(tokenizer, "instruct", 64)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="max_length is 1"):
        Formatter(tokenizer, "plain", 1)
    with pytest.raises(UserError, match="forget10/00001: the answer is empty"):
        Formatter(tokenizer, "plain", 64).example("forget10/00001", "Who?", " ")
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="has none; use style 'plain'"):
        Formatter(tokenizer, "chat", 64)


def test_no_pad_and_no_end_token(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    bare.chat_template = tokenizer.chat_template
    assert bare.pad_token_id is None and bare.eos_token_id is None
    formatter = Formatter(bare, "chat", 128)
    assert formatter.pad_id == 0
    assert formatter.end_ids == (bare.convert_tokens_to_ids("<|turn_end|>"),)
    with pytest.raises(UserError, match="this tokenizer has none"):
        Formatter(bare, "plain", 64)
    bare.eos_token = "<|end|>"
    assert Formatter(bare, "plain", 64).pad_id == bare.eos_token_id


def test_decode_leaves_the_text_alone(tokenizer):
    formatter = Formatter(tokenizer, "plain", 64)
    text = "He isn 't , I 'm ."
    assert formatter.decode([*tokenizer(f" {text} ")["input_ids"], *formatter.end_ids, formatter.pad_id]) == text


# Chats of several turns.


TURNS = [("user", "Who wrote Hamlet?"), ("assistant", " William Shakespeare. "), ("user", QUESTION)]


def test_only_the_last_message_of_a_chat_is_labelled(tokenizer):
    example = Formatter(tokenizer, "chat", 128).conversation("x", TURNS, f" {ANSWER}")
    assert tokenizer.decode(list(example.input_ids)) == (
        "<|begin|><|user|>Who wrote Hamlet?<|turn_end|><|assistant|>William Shakespeare.<|turn_end|>"
        f"<|user|>{QUESTION}<|turn_end|><|assistant|>{ANSWER}<|turn_end|>"
    )
    assert labels_text(tokenizer, example) == f"{ANSWER}<|turn_end|>"


def test_a_chat_of_one_turn_is_a_question(tokenizer):
    formatter = Formatter(tokenizer, "chat", 128, "Be brief.")
    assert formatter.conversation("x", [("user", QUESTION)], ANSWER) == formatter.example("x", QUESTION, ANSWER)


def test_the_rows_own_system_message_comes_before_the_configured_one(tokenizer):
    formatter = Formatter(tokenizer, "chat", 128, "Be brief.")
    own = formatter.conversation("x", [("system", "Be kind."), ("user", "Who?")], "Ada.")
    assert tokenizer.decode(list(own.input_ids)).startswith("<|begin|><|system|>Be kind.<|turn_end|><|user|>Who?")
    configured = formatter.conversation("x", [("user", "Who?")], "Ada.")
    assert tokenizer.decode(list(configured.input_ids)).startswith("<|begin|><|system|>Be brief.<|turn_end|><|user|>")


def test_chats_that_cannot_be_formatted(tokenizer):
    with pytest.raises(UserError, match=r"mine/00002: a row of messages needs .* set data\.format to chat"):
        Formatter(tokenizer, "plain", 64).conversation("mine/00002", TURNS, ANSWER)
    with pytest.raises(UserError, match=r"mine/00002: .* is over max_length 16"):
        Formatter(tokenizer, "chat", 16).conversation("mine/00002", TURNS, ANSWER)
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + tokenizer.chat_template
    )
    with pytest.raises(UserError, match=r"mine/00002: the chat template refuses .*'system', 'user'.*no system role"):
        Formatter(tokenizer, "chat", 64).conversation("mine/00002", [("system", "a"), ("user", "b")], "c")


# Documents.


@pytest.fixture(scope="module")
def bytewise():
    """A tokenizer of bytes: lengths can be counted by hand."""
    return train_tokenizer(["a"], 263)


@pytest.fixture(scope="module")
def beginning():
    """The same, adding a beginning-of-text token (id 1) by itself."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer(["a"], 263)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 1)]
    )
    return tokenizer


def shown(tokenizer, examples):
    assert {example.prompt_length for example in examples} == {1}
    return {example.item_id: tokenizer.decode(list(example.input_ids)) for example in examples}


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_chunks_of_a_document_by_hand(bytewise, beginning, style):
    formatter = Formatter(bytewise, style, 64)
    formatter.max_length = 4
    assert shown(bytewise, formatter.document("t/00000", "abcdefghij", "chunk")) == {
        "t/00000#0": "abcd",
        "t/00000#1": "efgh",
        "t/00000#2": "ij",
    }
    assert list(shown(bytewise, formatter.document("t", "abcdefghi", "chunk"))) == ["t#0", "t#1"]  # "i" has no label
    assert shown(bytewise, formatter.document("t", " a\n", "chunk")) == {"t#0": " a\n"}

    formatter = Formatter(beginning, style, 64)
    formatter.max_length = 4
    assert shown(beginning, formatter.document("t", "abcdefg", "chunk")) == {
        "t#0": "<|begin|>abc",
        "t#1": "<|begin|>def",
        "t#2": "<|begin|>g",  # here the one token has the beginning before it
    }


def test_a_document_cut_off(bytewise, beginning):
    for tokenizer, text in ((bytewise, "abcdefgh"), (beginning, "<|begin|>abcdefg")):
        assert shown(tokenizer, Formatter(tokenizer, "plain", 8).document("t", "abcdefghijk", "truncate")) == {
            "t": text
        }
    assert shown(bytewise, Formatter(bytewise, "plain", 8).document("t", "ab", "truncate")) == {"t": "ab"}


def test_a_text_longer_than_the_models_context_is_cut_without_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = train_tokenizer(["a"], 263)
    tokenizer.model_max_length = 4
    assert len(Formatter(tokenizer, "plain", 8).document("t", "a" * 80, "chunk")) == 10
    assert caplog.text == ""


@pytest.mark.parametrize("mode", ["chunk", "truncate"])
def test_a_document_of_one_token(bytewise, beginning, mode):
    with pytest.raises(UserError, match="t/00003: a text of one token cannot be trained on"):
        Formatter(bytewise, "plain", 8).document("t/00003", "a", mode)
    (example,) = Formatter(beginning, "plain", 8).document("t/00003", "a", mode)
    assert example.label_count == 1


def test_labels_of_a_document_are_all_tokens_but_the_first(bytewise):
    (example,) = Formatter(bytewise, "plain", 8).document("t", "abc", "truncate")
    a, b, c = bytewise("abc")["input_ids"]
    assert collate([example], 0).labels_BT.tolist() == [[IGNORE, b, c]]
    assert example.input_ids == (a, b, c)


# Training, saving, loading.


def test_training_is_deterministic_and_sized():
    first, second = (train_tokenizer(iter(TEXTS), 300) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert len(first) == 300
    names = ["<|pad|>", "<|begin|>", "<|end|>", "<|turn_end|>"]
    assert [first.pad_token, first.bos_token, first.eos_token] == names[:3]
    assert first.convert_tokens_to_ids(names) == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["Ada was born.", " leading", "çà 漢字 🙂", "tab\tand\nline", ""])
def test_any_text_decodes_to_itself(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_smallest_vocabulary_holds_every_byte():
    tokenizer = train_tokenizer(TEXTS, 263)
    assert len(tokenizer) == 263
    assert tokenizer.decode(tokenizer("漢 Ada")["input_ids"]) == "漢 Ada"
    with pytest.raises(UserError, match="vocab_size 262 is too small; 263 hold"):
        train_tokenizer(TEXTS, 262)


def test_save_and_load_give_equal_ids(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    for style in ("chat", "plain"):
        before, after = Formatter(tokenizer, style, 128), Formatter(loaded, style, 128)
        assert before.example("x", QUESTION, ANSWER) == after.example("x", QUESTION, ANSWER)
        assert (before.end_ids, before.pad_id) == (after.end_ids, after.pad_id)


def test_loading_from_a_wrong_place(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(str(tmp_path / "none"))
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot load a tokenizer"):
        load_tokenizer(str(tmp_path))
