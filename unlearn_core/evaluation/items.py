"""What is measured: a prompt, the answers whose likelihood is asked for, and how an answer is generated."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["question", "conversation", "continuation", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row of a suite. Two items with equal fields are measured alike, whatever suite they belong to.

    Attributes:
        item_id: identity, unique within a suite; records are joined on it.
        group: name of the set of rows that it is aggregated with.
        kind: how prompt and answer become tokens. `question`: the formatter's style (chat template or plain), with an
            end token after the answer. `conversation`: the turns in the chat template, likewise. `continuation`: raw
            texts one after the other, beginning-of-text token first where the tokenizer adds one, no end token. `text`:
            no prompt; every token after the first is a label, no end token, cut to `max_length` tokens of the config.
        prompt: the question or raw text; "" for a `text` and for a `conversation`.
        turns: (role, content) of a `conversation`'s messages before the answer; else empty.
        answer: the true answer, or the text itself.
        paraphrase: the same answer in other words; None for none.
        wrong: K wrong answers.
        paraphrased_question: the prompt in other words, for attacks that ask it so; None for none. Nothing is measured
            of it here.
        opening: words put into the model's mouth between the prompt and its generated answer (an attack); "" for none.
            They are no part of the generation that is compared.
        score: whether likelihoods of the answers are measured.
        token_scores: whether the true answer's per-token log-probabilities are kept (membership attacks need them).
        kl: whether the divergence from the target model is measured on the answer's tokens.
        generate: whether the model answers the prompt greedily.
        samples: whether the model also answers `EvaluationConfig.samples` times by sampling.
        max_new_tokens: longest generated answer; None for the config's.
        stops: texts that end a generated answer; it is cut before the first of them.
        reference_tokens: compare the generation with the text of the answer's first tokens only, that many of them,
            a beginning-of-text token included where the tokenizer adds one; None for the whole answer.
        stemmer: whether ROUGE stems words.
        joined: of a `continuation`: prompt and answer are tokenised as one text, and the answer's tokens are those from
            the prompt's own count on, as open-unlearning has it; else each is tokenised by itself.
    """

    item_id: str
    group: str
    kind: Kind = "question"
    prompt: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    answer: str
    paraphrase: str | None = None
    wrong: tuple[str, ...] = ()
    paraphrased_question: str | None = None
    opening: str = ""
    score: bool = True
    token_scores: bool = False
    kl: bool = False
    generate: bool = True
    samples: bool = False
    max_new_tokens: int | None = None
    stops: tuple[str, ...] = ()
    reference_tokens: int | None = None
    stemmer: bool = True
    joined: bool = False

    @property
    def answers(self) -> tuple[str, ...]:
        """Answers whose likelihood is measured, in order: the answer, the paraphrase if any, the K wrong answers."""
        if not self.score:
            return ()
        paraphrase = () if self.paraphrase is None else (self.paraphrase,)
        return (self.answer, *paraphrase, *self.wrong)
