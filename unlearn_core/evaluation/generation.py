"""Greedy answers to questions, the same whatever generation settings a checkpoint brings along.

Shapes: B sequences, T tokens (longest prompt of the batch plus new tokens).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

import torch
from transformers import GenerationConfig, PreTrainedModel

from unlearn_core.evaluation.batching import batches_by_tokens


@torch.inference_mode()
def greedy_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    end_ids: Sequence[int],
    max_new_tokens: int,
    token_budget: int,
) -> list[tuple[int, ...]]:
    """Continue each prompt by its most likely token until one that ends an answer.

    Prompts are padded on the left, masked by length, and positions count from each prompt's first token, so an answer
    depends on its batch only through rounding (which can turn a tie between two tokens).

    Args:
        model: a causal language model in evaluation mode; its device is used.
        prompts: token ids, each at least one.
        end_ids: ids that end an answer.
        max_new_tokens: longest answer, tokens.
        token_budget: most tokens of a batch at its end (longest prompt plus `max_new_tokens`, times B).

    Returns:
        Ids of each answer without its end token, in input order; possibly empty.
    """
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(end_ids),
        pad_token_id=end_ids[0],
        use_cache=True,
    )
    answers: dict[int, tuple[int, ...]] = {}
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    for indices in batches_by_tokens(lengths, token_budget):
        longest = max(len(prompts[i]) for i in indices)
        ids_BT = torch.full((len(indices), longest), end_ids[0], dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for b, i in enumerate(indices):
            ids_BT[b, longest - len(prompts[i]) :] = torch.tensor(prompts[i], dtype=torch.long)
            mask_BT[b, longest - len(prompts[i]) :] = 1
        with _only(model, settings):
            output_BT = model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), generation_config=settings
            )
        for i, row in zip(indices, output_BT[:, longest:].tolist(), strict=True):
            answers[i] = tuple(takewhile(lambda token: token not in end_ids, row))
    return [answers[i] for i in range(len(prompts))]


@contextmanager
def _only(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Hide the checkpoint's own generation settings.

    `generate` fills every field that its argument leaves open from `model.generation_config`: a checkpoint with a
    repetition penalty would be measured under it.
    """
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
