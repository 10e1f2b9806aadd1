"""Teacher-forced scores of answers: one forward pass gives the loss and the arg-max hits of every label token.

Shapes: B sequences, T tokens, L label tokens of a whole batch, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unlearn_core.data.tokenization import IGNORE, Batch, Example, collate
from unlearn_core.evaluation.batching import batches_by_tokens

_PLAIN_HEADS = {"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma"}
"""Architectures whose logits are `lm_head(last hidden state)` and nothing else, read in their source. Others scale or
cap the logits (gemma2, cohere, granite), so they go through their own forward."""

_LOGIT_BYTES = 256 * 2**20
"""Most memory for one slice of fp32 logits: a batch of 8,192 label tokens has 4 GB of them at 128,000 ids."""


@dataclass(frozen=True, slots=True)
class Score:
    """Teacher-forced score of one answer.

    Attributes:
        avg_loss: mean negative log-likelihood per label token, end token included; nats, at least 0. NaN or infinite
            only if the model's logits are.
        tokens: label tokens, end token included.
        matches: per label token, whether the arg-max hits it.
    """

    avg_loss: float
    tokens: int
    matches: tuple[bool, ...]


@torch.inference_mode()
def score_answers(model: PreTrainedModel, examples: Sequence[Example], token_budget: int) -> list[Score]:
    """Score examples by the model, in batches of similar length.

    Log-probabilities are taken in fp32 and summed in double precision, whatever the model's precision. A score depends
    on the example's batch by rounding only (below 1e-5 in fp32).

    Args:
        model: a causal language model in evaluation mode; its device is used.
        examples: what to score.
        token_budget: most tokens of one forward pass, padding included.

    Returns:
        One score per example, in input order.
    """
    scores: dict[int, Score] = {}
    for indices in batches_by_tokens([len(example.input_ids) for example in examples], token_budget):
        chosen = [examples[i] for i in indices]
        # Padding is masked by length and its outputs are dropped: any id serves.
        loss_L, hits_L = _label_scores(model, collate(chosen, pad_id=0).to(model.device))
        counts = [example.label_count for example in chosen]
        for i, losses, hits in zip(indices, loss_L.split(counts), hits_L.split(counts), strict=True):
            scores[i] = Score(float(losses.mean()), losses.numel(), tuple(hits.tolist()))
    return [scores[i] for i in range(len(examples))]


def _label_scores(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss (double) and hit of each label token, row by row, on the CPU."""
    # The logits at t - 1 predict the label at t. Boolean indexing walks row by row, so labels of a row stay together.
    predicts_BT = batch.labels_BT[:, 1:] != IGNORE
    labels_L = batch.labels_BT[:, 1:][predicts_BT]
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT, "use_cache": False}
    if model.config.model_type in _PLAIN_HEADS:
        states_LX = model.get_decoder()(**inputs).last_hidden_state[:, :-1][predicts_BT]
        head = cast(nn.Module, model.get_output_embeddings())
    else:
        states_LX = model(**inputs).logits[:, :-1][predicts_BT]
        head = nn.Identity()
    slice_size = max(1, _LOGIT_BYTES // (4 * model.config.get_text_config().vocab_size))
    losses, hits = [], []
    for states, labels in zip(states_LX.split(slice_size), labels_L.split(slice_size), strict=True):
        logits_LV = head(states).float()
        chosen_L = logits_LV.gather(1, labels[:, None]).squeeze(1)
        # Rounding may put the sum of exponentials a hair below its own term.
        losses.append((logits_LV.logsumexp(dim=1) - chosen_L).clamp_min(0).double().cpu())
        hits.append((logits_LV.argmax(dim=1) == labels).cpu())
    return torch.cat(losses), torch.cat(hits)
