"""A tokenizer trained on the texts at hand, for the small models of demo, tests and benchmarks."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast

from unlearn_core.errors import UserError

# The ids of the trained tokenizer's own tokens, in this order from 0.
PAD, BEGIN, END_OF_TEXT, END_OF_TURN, USER, ASSISTANT, SYSTEM = (
    "<|pad|>",
    "<|begin|>",
    "<|end|>",
    "<|turn_end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
)
_SPECIAL = (PAD, BEGIN, END_OF_TEXT, END_OF_TURN, USER, ASSISTANT, SYSTEM)
_CHAT_TEMPLATE = (
    f"{BEGIN}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim }}"
    f"{END_OF_TURN}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a chat template. Equal texts in equal order give equal tokenizers.

    Args:
        texts: what to learn merges from, such as questions and answers.
        vocab_size: most ids, at least 7 special tokens + 256 bytes = 263. Fewer when the texts run out of merges:
            use `len(tokenizer)` for the model.

    Returns:
        A tokenizer with distinct pad, beginning-of-text, end-of-text and end-of-turn tokens that encodes any UTF-8
        text and decodes it to itself.

    Raises:
        UserError: vocab_size below 263.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(_SPECIAL) + len(alphabet)
    if vocab_size < least:
        raise UserError(f"vocab_size {vocab_size} is too small; {least} hold the special tokens and every byte")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END_OF_TEXT,
        additional_special_tokens=[END_OF_TURN, USER, ASSISTANT, SYSTEM],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer
