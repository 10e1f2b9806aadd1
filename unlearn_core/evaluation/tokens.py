"""Items to token ids: one prompt, the answers that follow it, and the prompt that an answer is generated from."""

from dataclasses import dataclass

from unlearn_core.data.tokenization import Formatter
from unlearn_core.errors import UserError
from unlearn_core.evaluation.items import Item


@dataclass(frozen=True, slots=True)
class ItemTokens:
    """Token ids of one item.

    Attributes:
        prompt: what every answer follows, at least 1 id where there are answers.
        answers: label ids of each of the item's answers, in its order, each at least 1.
        ended: whether the last label of an answer is an end token.
        generation_prompt: what the generated answer follows: prompt and opening.
        compared_with: the text that the generation is compared with.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    ended: bool
    generation_prompt: tuple[int, ...]
    compared_with: str


def tokenise(item: Item, formatter: Formatter) -> ItemTokens:
    """Token ids of an item.

    Args:
        item: any item.
        formatter: of the model's tokenizer.

    Returns:
        The ids. A `text` is cut to `formatter.max_length` tokens.

    Raises:
        UserError: prompt and answer are longer than `formatter.max_length`, an answer is empty, or the formatter's
            style cannot hold the item.
    """
    if item.kind in ("question", "conversation"):
        prompt, answers = _asked(item, formatter)
        ended = True
    else:
        prompt, answers = _raw(item, formatter)
        ended = False
    # In plain style the answer's first word follows a space.
    blank = " " if item.kind == "question" and formatter.style == "plain" else ""
    opening = _ids(blank + item.opening, formatter) if item.opening else ()
    text = item.answer
    if item.reference_tokens is not None:
        ids = (*formatter.start_ids, *_ids(item.answer, formatter))[: item.reference_tokens]
        text = formatter.decode(ids)
    return ItemTokens(prompt, answers, ended, (*prompt, *opening), text)


def _asked(item: Item, formatter: Formatter) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    if item.kind == "conversation":
        examples = [
            formatter.conversation(item.item_id, item.turns, answer) for answer in item.answers or (item.answer,)
        ]
    elif item.answers:
        examples = [formatter.example(item.item_id, item.prompt, answer) for answer in item.answers]
    else:
        return tuple(formatter.prompt_ids(item.prompt)), ()
    prompt = examples[0].input_ids[: examples[0].prompt_length]
    # The answers share the prompt's forward pass, so it must be the same ids for all of them.
    assert all(example.input_ids[: example.prompt_length] == prompt for example in examples), item.item_id
    labels = tuple(example.input_ids[example.prompt_length :] for example in examples)
    return prompt, labels if item.answers else ()


def _raw(item: Item, formatter: Formatter) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    if item.kind == "text":
        piece = formatter.pieces(item.answer, formatter.max_length)[0]
        if len(piece) < 2:
            raise UserError(f"{item.item_id}: a text of one token has no token to predict; leave it out")
        return piece[:1], (piece[1:],)
    prompt = (*formatter.start_ids, *_ids(item.prompt, formatter))
    if not prompt:
        raise UserError(
            f"{item.item_id}: an empty prompt and a tokenizer without a beginning-of-text token; use a text"
        )
    if item.joined:
        before = len(_ids(item.prompt, formatter))
        answers = tuple(_ids(item.prompt + answer, formatter)[before:] for answer in item.answers)
    else:
        answers = tuple(_ids(answer, formatter) for answer in item.answers)
    for answer in answers:
        if not answer:
            raise UserError(f"{item.item_id}: an answer is empty; expected a text to score")
        if len(prompt) + len(answer) > formatter.max_length:
            length = len(prompt) + len(answer)
            raise UserError(
                f"{item.item_id}: {len(prompt)} prompt + {len(answer)} answer = {length} tokens is over max_length "
                f"{formatter.max_length}; set max_length to {length} or more, or leave the row out"
            )
    return prompt, answers


def _ids(text: str, formatter: Formatter) -> tuple[int, ...]:
    return tuple(formatter.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
