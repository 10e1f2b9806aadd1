"""Questions and answers to token ids with an exact border between prompt and answer, texts to pieces, and batches.

Shapes: B sequences, T tokens (longest of the batch).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from unlearn_core.data.sources import looks_like_path, on_this_node
from unlearn_core.errors import UserError

IGNORE = -100
"""Label of a token that is not trained on and not scored; the value that torch's cross-entropy skips by default."""

# Llama 3 templates print the day the code runs on and Qwen 3 ones an empty thinking block after the prompt only;
# fixed here, else two days give two prompts and a prompt is no prefix of prompt + answer.
_TEMPLATE_SETTINGS = {"date_string": "26 Jul 2024", "enable_thinking": False}

Style = Literal["chat", "plain"]


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised question and answer, or a piece of a text, whose prompt is its first token.

    Attributes:
        item_id: the row's identity, followed by `#k` for piece k of a text.
        input_ids: prompt, answer and end-of-answer token.
        prompt_length: tokens of the prompt, at least 1. The labels are `input_ids[prompt_length:]`, at least 1 token,
            the end-of-answer token included.
    """

    item_id: str
    input_ids: tuple[int, ...]
    prompt_length: int

    def __post_init__(self) -> None:
        # A label at position 0 has no position before it to be predicted from, and would be counted yet never scored.
        if not 0 < self.prompt_length < len(self.input_ids):
            raise ValueError(
                f"{self.item_id}: prompt_length {self.prompt_length} must be from 1 to {len(self.input_ids) - 1}, "
                "so that both prompt and answer have a token"
            )

    @property
    def label_count(self) -> int:
        """Number of label tokens, at least 1."""
        return len(self.input_ids) - self.prompt_length


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded examples; all tensors are torch.long of shape (B, T).

    Attributes:
        input_ids_BT: token ids; padding holds the pad id.
        attention_mask_BT: 1 on tokens, 0 on padding; made from lengths, so a real token equal to the pad id stays 1.
        labels_BT: `input_ids_BT` on answer tokens, `IGNORE` on prompt and padding. Not shifted: the logits at t - 1
            predict the label at t.
        item_ids: identities of the B examples, in order; `collate` fills them.
        counts: False for a batch that only keeps a rank in step with the others; its loss is multiplied by zero.
    """

    input_ids_BT: torch.Tensor
    attention_mask_BT: torch.Tensor
    labels_BT: torch.Tensor
    item_ids: tuple[str, ...] = ()
    counts: bool = True

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        return replace(
            self,
            input_ids_BT=self.input_ids_BT.to(device),
            attention_mask_BT=self.attention_mask_BT.to(device),
            labels_BT=self.labels_BT.to(device),
        )


def collate(examples: Sequence[Example], pad_id: int, padding_side: Literal["left", "right"] = "right") -> Batch:
    """Pad examples to the longest of them.

    Args:
        examples: B of them, at least one.
        pad_id: any valid id; it is neither attended to nor trained on, so it may equal the end-of-text id.
        padding_side: `right` for training and scoring, `left` for generation.

    Returns:
        The batch, on the CPU.
    """
    if not examples:
        raise ValueError("collate needs at least one example")
    longest = max(len(example.input_ids) for example in examples)
    input_ids_BT = torch.full((len(examples), longest), pad_id, dtype=torch.long)
    attention_mask_BT = torch.zeros_like(input_ids_BT)
    labels_BT = torch.full_like(input_ids_BT, IGNORE)
    for b, example in enumerate(examples):
        length = len(example.input_ids)
        start = 0 if padding_side == "right" else longest - length
        ids_T = torch.tensor(example.input_ids, dtype=torch.long)
        input_ids_BT[b, start : start + length] = ids_T
        attention_mask_BT[b, start : start + length] = 1
        labels_BT[b, start + example.prompt_length : start + length] = ids_T[example.prompt_length :]
    return Batch(input_ids_BT, attention_mask_BT, labels_BT, tuple(example.item_id for example in examples))


class Formatter:
    """Turns questions and answers into token ids in one of two styles; documents become the same ids in both.

    `chat`: the tokenizer's own template, the question as the user's turn. The labels are the assistant's text and
    everything up to the first special token that the template puts after it (`<|eot_id|>`, `<|im_end|>`, `</s>`).

    `plain`: `Question: ...`, a line break, `Answer:` as the prompt (after the system prompt and an empty line, if
    given), then a space, the answer and the end-of-text token. The beginning-of-text token comes first where the
    tokenizer adds it by itself. Prompt and answer are tokenised apart, so no token straddles their border.

    Outer white space of questions and answers is dropped in both styles, as chat templates do.

    Attributes:
        pad_id: an id to pad with: the tokenizer's, else its end-of-text id, else 0. Masks come from lengths, so it is
            never confused with a token of the text.
        end_ids: ids that end an answer in generation: the end-of-answer token, then end-of-text where it differs.
        start_ids: the beginning-of-text token where the tokenizer adds one by itself, else empty.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        style: Style,
        max_length: int,
        system_prompt: str | None = None,
    ) -> None:
        """Check that tokenizer and style fit.

        Args:
            tokenizer: from `load_tokenizer` or `train_tokenizer`.
            style: `chat` or `plain`.
            max_length: most tokens of prompt, answer and end-of-answer token together.
            system_prompt: text before the question; None for none.

        Raises:
            UserError: unknown style, `chat` without a chat template or with one that does not end the assistant's turn
                by a special token, `plain` without an end-of-text token, max_length below 2.
        """
        if style not in ("chat", "plain"):
            raise UserError(f"unknown style '{style}'; expected 'chat' or 'plain'")
        if max_length < 2:
            raise UserError(f"max_length is {max_length}; expected at least 2 (a prompt token and an answer token)")
        self.tokenizer = tokenizer
        self.style = style
        self.max_length = max_length
        self.system_prompt = system_prompt
        # An end-of-turn token need not have a name in the tokenizer's settings; its `special` flag it always has.
        flagged = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = flagged | set(tokenizer.all_special_ids)
        eos = cast("int | None", tokenizer.eos_token_id)
        pad = cast("int | None", tokenizer.pad_token_id)
        self._shared: dict[int, int] = {}
        # Some tokenizers (GPT-2) name a beginning-of-text token that they never add: their models never saw it.
        first = self._ids("x", add_special_tokens=True)[0]
        self.start_ids = [first] if first == tokenizer.bos_token_id else []
        self.pad_id: int = next((i for i in (pad, eos) if i is not None), 0)
        if style == "plain":
            if eos is None:
                raise UserError("style 'plain' ends an answer by the end-of-text token and this tokenizer has none")
            end = eos
        else:
            if tokenizer.chat_template is None:
                raise UserError(
                    f"style 'chat' needs a chat template and the tokenizer '{tokenizer.name_or_path}' has none; "
                    "use style 'plain', or an instruction-tuned model's tokenizer"
                )
            end = self._chat([("user", "Who?")], "Someone.", "a probe of the chat template")[1][-1]
        self.end_ids: tuple[int, ...] = (end,) if eos is None or eos == end else (end, eos)

    def prompt_ids(self, question: str) -> list[int]:
        """Ids that the answer follows: exactly those that precede it in `example`.

        Args:
            question: non-empty.

        Returns:
            At least one id, never truncated.
        """
        if self.style == "chat":
            return self._ids(self._render(self._messages([("user", question)]), add_generation_prompt=True))
        before = f"{self.system_prompt}\n\n" if self.system_prompt else ""
        return self.start_ids + self._ids(f"{before}Question: {question.strip()}\nAnswer:")

    def example(self, item_id: str, question: str, answer: str) -> Example:
        """Tokenise one question and answer.

        Args:
            item_id: identity of the row, named in errors.
            question: non-empty.
            answer: non-empty.

        Returns:
            The example; its last id is `end_ids[0]`.

        Raises:
            UserError: empty answer, longer than `max_length`, or a chat template for which the prompt is not a prefix
                of prompt and answer.
        """
        if self.style == "chat":
            return self.conversation(item_id, [("user", question)], answer)
        prompt, labels = self.prompt_ids(question), [*self._ids(f" {_stated(answer, item_id)}"), self.end_ids[0]]
        return self._fitting(item_id, prompt, labels)

    def conversation(self, item_id: str, turns: Sequence[tuple[str, str]], answer: str) -> Example:
        """Tokenise a chat of which only the last message, the assistant's answer, is labels.

        Args:
            item_id: identity of the row, named in errors.
            turns: (role, content) of the earlier messages. The system prompt comes before them, unless the first of
                them is a system message itself.
            answer: non-empty.

        Returns:
            The example; its last id is `end_ids[0]`.

        Raises:
            UserError: as `example`; style `plain`; a chat that the template refuses.
        """
        if self.style != "chat":
            raise UserError(
                f"{item_id}: a row of messages needs the tokenizer's chat template, and the format is '{self.style}'; "
                "set data.format to chat, or give the row as question and answer"
            )
        prompt, labels = self._chat(turns, _stated(answer, item_id), item_id)
        return self._fitting(item_id, prompt, labels)

    def document(self, item_id: str, text: str, mode: Literal["chunk", "truncate"]) -> list[Example]:
        """Tokenise a text without a question: all tokens but the first are labels, and none is added at the end.

        Args:
            item_id: identity of the row; chunk k gets `{item_id}#{k}`.
            text: non-empty; kept as it is, white space included.
            mode: `chunk`: every piece of `max_length` tokens, and the shorter last one if it has a label;
                `truncate`: the first `max_length` tokens alone.

        Returns:
            At least one example.

        Raises:
            UserError: a text of fewer than 2 tokens.
        """
        # A last piece of one token has no position before it to be predicted from.
        pieces = [piece for piece in self.pieces(text, self.max_length) if len(piece) > 1]
        if not pieces:
            raise UserError(f"{item_id}: a text of one token cannot be trained on; give at least 2, or leave it out")
        if mode == "truncate":
            return [Example(item_id, pieces[0], 1)]
        return [Example(f"{item_id}#{k}", piece, 1) for k, piece in enumerate(pieces)]

    def pieces(self, text: str, length: int) -> list[tuple[int, ...]]:
        """Token ids of a text in consecutive pieces.

        Args:
            text: any text.
            length: tokens of a piece, at least 2, with the beginning-of-text token that each piece starts with where
                the tokenizer adds one by itself.

        Returns:
            Pieces of `length` tokens; the last one may be shorter.
        """
        ids = self._ids(text)
        room = length - len(self.start_ids)
        # One int object for each token id: a set of 10 million tokens would else hold 10 million of them.
        shared = self._shared
        starts = range(0, len(ids), room)
        return [tuple(shared.setdefault(i, i) for i in (*self.start_ids, *ids[k : k + room])) for k in starts]

    def _fitting(self, item_id: str, prompt: list[int], labels: list[int]) -> Example:
        length = len(prompt) + len(labels)
        if length > self.max_length:
            raise UserError(
                f"{item_id}: {len(prompt)} prompt + {len(labels)} answer = {length} tokens is over max_length "
                f"{self.max_length}; set max_length to {length} or more, or leave the row out"
            )
        return Example(item_id, (*prompt, *labels), len(prompt))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of answer ids: special tokens removed, outer white space dropped.

        Args:
            ids: such as a generated answer, with or without its end.

        Returns:
            The text, possibly empty.
        """
        # Clean-up would rewrite the text ("n't", " ,"), for some tokenizers by default.
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text).strip()

    def _ids(self, text: str, add_special_tokens: bool = False) -> list[int]:
        # verbose: a text longer than the model's context is no mistake here, pieces are cut from it.
        return list(self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])

    def _messages(self, turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        own = turns[0][0] == "system"
        system = [] if own or not self.system_prompt else [{"role": "system", "content": self.system_prompt}]
        return [*system, *({"role": role, "content": content.strip()} for role, content in turns)]

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        # Rendered to text, not to ids: from transformers 5 on, tokenize=True returns a BatchEncoding, not a list.
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **_TEMPLATE_SETTINGS
        )
        return cast(str, text)

    def _chat(self, turns: Sequence[tuple[str, str]], answer: str, item_id: str) -> tuple[list[int], list[int]]:
        """Ids of the prompt, and of the answer through the first special token that the template puts after it."""
        asked = self._messages(turns)
        try:
            prompt = self._render(asked, add_generation_prompt=True)
            full = self._render([*asked, {"role": "assistant", "content": answer}], add_generation_prompt=False)
        except TemplateError as error:
            roles = [message["role"] for message in asked]
            raise UserError(
                f"{item_id}: the chat template refuses messages of the roles {roles}: {error}; "
                "change the row's messages (or data.system_prompt) to what the model's template allows"
            ) from error
        if not full.startswith(prompt + answer):
            raise UserError(
                f"{item_id}: the chat template does not put the answer directly after the prompt: the prompt ends in "
                f"{prompt[-40:]!r}, prompt with answer in {full[-len(answer) - 80 :]!r}; use style 'plain'"
            )
        prompt_ids, full_ids = self._ids(prompt), self._ids(full)
        if full_ids[: len(prompt_ids)] != prompt_ids:
            raise UserError(
                f"{item_id}: the last prompt token and the first answer token merge into one (the prompt ends in "
                f"{prompt[-20:]!r}); use style 'plain', which tokenises them apart"
            )
        closing = full[len(prompt) + len(answer) :]
        closing_ids = self._ids(closing)
        end = next((k for k, token in enumerate(closing_ids) if token in self._special_ids), None)
        border = len(full_ids) - len(closing_ids)
        if end is None or full_ids[border:] != closing_ids:
            raise UserError(
                f"{item_id}: the chat template puts {closing!r} after the answer, which does not set off a special "
                "token that could end it; use style 'plain'"
            )
        return prompt_ids, full_ids[len(prompt_ids) : border + end + 1]


def _stated(answer: str, item_id: str) -> str:
    if not answer.strip():
        raise UserError(f"{item_id}: the answer is empty; expected a text to train on or score")
    return answer.strip()


def load_tokenizer(name_or_folder: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer without running code that came with it.

    Args:
        name_or_folder: a model's folder, its URI or a hub name.

    Returns:
        The tokenizer. It may have no pad token and no chat template: `Formatter` copes with the first and says what to
        do about the second.

    Raises:
        UserError: the folder is missing or holds no tokenizer, or the hub has no such name or cannot be reached.
    """
    name_or_folder = on_this_node(name_or_folder)
    folder = Path(name_or_folder).expanduser()
    local = looks_like_path(name_or_folder)
    if local:
        if not folder.is_dir():
            raise UserError(f"tokenizer folder '{name_or_folder}' does not exist; give a model's folder or a hub name")
        if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            raise UserError(f"'{name_or_folder}' holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json)")
    try:
        return AutoTokenizer.from_pretrained(str(folder) if local else name_or_folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot load a tokenizer from '{name_or_folder}': {error!r}") from error
