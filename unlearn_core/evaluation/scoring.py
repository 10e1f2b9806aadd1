"""Teacher-forced scores of answers: one forward pass gives everything that depends on log-probabilities.

A row is a prompt with K answers. The prompt is encoded once and its keys and values serve all answers, which go
through the model sorted by length, whatever row they belong to. Logits are computed at label positions only, in fp32, a
slice at a time.

Shapes: B sequences, T tokens, L label tokens of a batch, D hidden size, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unlearn_core.data.tokenization import Example
from unlearn_core.evaluation.batching import batches_by_tokens
from unlearn_core.evaluation.key_values import RowCache
from unlearn_core.models import has_plain_head

_LOGIT_BYTES = {"cpu": 4 * 2**20, "gpu": 256 * 2**20}
"""Most memory for one slice of fp32 logits: a batch of 8,192 label tokens has 4 GB of them at 128,000 ids. On a CPU a
slice that stays in its cache takes half the time."""


@dataclass(frozen=True, slots=True)
class ScoringRow:
    """What to score.

    Attributes:
        prompt: ids that every answer follows, at least 1.
        answers: label ids of each answer, each at least 1.
        z_scores: whether the first answer's standardised log-probabilities are wanted.
        kl: whether the target model's divergence on the first answer is wanted.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    z_scores: bool = False
    kl: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """Teacher-forced score of one answer of T label tokens.

    Attributes:
        log_probs: of each label token; nats, at most 0. NaN or infinite only if the model's logits are.
        matches: per label token of a row's first answer, whether the arg-max hits it; empty for the others.
        z_scores: log-probability minus its mean, over its standard deviation, both under the model's own prediction
            (variance at least 1e-6, as min-k++ has it); empty if not wanted.
        kl: mean over label tokens of KL(target || model), nats; None if not wanted.
    """

    log_probs: tuple[float, ...]
    matches: tuple[bool, ...]
    z_scores: tuple[float, ...] = ()
    kl: float | None = None

    @property
    def avg_loss(self) -> float:
        """Mean negative log-likelihood per label token, nats, at least 0."""
        return -sum(self.log_probs) / len(self.log_probs)


@dataclass(frozen=True, slots=True)
class _Alone:
    """One answer behind a prompt of its own."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    z_scores: bool
    kl: bool
    first: bool


@torch.inference_mode()
def score_rows(
    model: PreTrainedModel,
    rows: Sequence[ScoringRow],
    token_budget: int,
    target: PreTrainedModel | None = None,
    hidden_id: int | None = None,
) -> list[list[Score]]:
    """Score the answers of every row, in batches of similar length.

    Log-probabilities are taken in fp32 and summed in double precision, whatever the model's precision. A score depends
    on the batch by rounding only (below 1e-5 in fp32).

    Args:
        model: a causal language model in evaluation mode; its device is used.
        rows: what to score.
        token_budget: most tokens of one forward pass, padding included.
        target: the model that `kl` compares with, on the same device; needed if a row wants it.
        hidden_id: an id that no position attends to, wherever it stands (open-unlearning's masking of padding that
            equals end-of-text); None for none.

    Returns:
        One list for each row, one score for each answer, in input order.
    """
    results: dict[tuple[int, int], Score] = {}
    # A row of one answer is an ordinary sequence. A recurrent model keeps no keys and values to share.
    alone = {
        (r, k): _Alone(row.prompt, answer, row.z_scores and k == 0, row.kl and k == 0, k == 0)
        for r, row in enumerate(rows)
        for k, answer in enumerate(row.answers)
        if len(row.answers) == 1 or getattr(model, "_is_stateful", False) or (row.kl and k == 0)
    }
    places = list(alone)
    sequences = list(alone.values())
    for indices in batches_by_tokens([len(s.prompt) + len(s.answer) - 1 for s in sequences], token_budget):
        batch = [sequences[i] for i in indices]
        for i, score in zip(indices, _score_alone(model, batch, target, hidden_id), strict=True):
            results[places[i]] = score
    shared = {r: [k for k in range(len(row.answers)) if (r, k) not in alone] for r, row in enumerate(rows)}
    waiting = [r for r, answers in shared.items() if answers]
    for indices in batches_by_tokens([len(rows[r].prompt) for r in waiting], token_budget):
        group = [waiting[i] for i in indices]
        results |= _score_shared(model, rows, {r: shared[r] for r in group}, token_budget, hidden_id)
    return [[results[r, k] for k in range(len(row.answers))] for r, row in enumerate(rows)]


def score_examples(model: PreTrainedModel, examples: Sequence[Example], token_budget: int) -> list[Score]:
    """Score tokenised rows, each a prompt and one answer.

    Args:
        model: as for `score_rows`.
        examples: the rows.
        token_budget: as for `score_rows`.

    Returns:
        One score for each, in input order.
    """
    rows = [ScoringRow(e.input_ids[: e.prompt_length], (e.input_ids[e.prompt_length :],)) for e in examples]
    return [score for (score,) in score_rows(model, rows, token_budget)]


def _score_alone(
    model: PreTrainedModel, batch: Sequence[_Alone], target: PreTrainedModel | None, hidden_id: int | None
) -> list[Score]:
    """Score one answer behind its own prompt in each sequence."""
    longest = max(len(sequence.prompt) + len(sequence.answer) - 1 for sequence in batch)
    # Padding is masked by length and its outputs are dropped: any id serves.
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    real_BT = torch.zeros(len(batch), longest, dtype=torch.bool)
    where: list[tuple[int, int]] = []
    for b, sequence in enumerate(batch):
        # The last label of an answer is predicted, never read.
        ids = (*sequence.prompt, *sequence.answer[:-1])
        ids_BT[b, : len(ids)] = torch.tensor(ids)
        real_BT[b, : len(ids)] = True
        where.extend((b, t) for t in range(len(sequence.prompt) - 1, len(ids)))
    if hidden_id is not None:
        real_BT &= ids_BT != hidden_id
    inputs = {
        "input_ids": ids_BT.to(model.device),
        "attention_mask": real_BT.to(model.device),
        "position_ids": torch.arange(longest, device=model.device).expand(len(batch), -1),
    }
    where_L2 = torch.tensor(where, device=model.device)
    wants_kl = [sequence.kl for sequence in batch]
    other = None
    if any(wants_kl):
        if target is None:
            raise ValueError("a row asks for the divergence from the target, and no target model was given")
        other = (_states(target, inputs)[where_L2[:, 0], where_L2[:, 1]], _head(target))
    return _scores(
        model,
        _states(model, inputs)[where_L2[:, 0], where_L2[:, 1]],
        [sequence.answer for sequence in batch],
        [sequence.z_scores for sequence in batch],
        wants_kl,
        [sequence.first for sequence in batch],
        other,
    )


def _score_shared(
    model: PreTrainedModel,
    rows: Sequence[ScoringRow],
    asked: Mapping[int, Sequence[int]],
    token_budget: int,
    hidden_id: int | None,
) -> dict[tuple[int, int], Score]:
    """Encode each row's prompt once, padded on the left, and score the asked answers behind them.

    Args:
        model: the model.
        rows: all rows.
        asked: row to its answers.
        token_budget: most tokens of answers with their prompts in one forward pass.
        hidden_id: as for `score_rows`.

    Returns:
        (row, answer) to score.
    """
    order = list(asked)
    longest = max(len(rows[r].prompt) for r in order)
    ids_BT = torch.zeros(len(order), longest, dtype=torch.long)
    real_BT = torch.zeros(len(order), longest, dtype=torch.bool)
    for b, r in enumerate(order):
        ids_BT[b, longest - len(rows[r].prompt) :] = torch.tensor(rows[r].prompt)
        real_BT[b, longest - len(rows[r].prompt) :] = True
    # Positions count tokens, hidden ones too; padding has none.
    positions_BT = (real_BT.long().cumsum(dim=1) - 1).clamp_min(0)
    if hidden_id is not None:
        real_BT &= ids_BT != hidden_id
    cache = RowCache()
    inputs = {"input_ids": ids_BT, "attention_mask": real_BT, "position_ids": positions_BT}
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    last_BD = _states(model, inputs, cache)[:, -1]
    pairs = [(b, k) for b, r in enumerate(order) for k in asked[r]]
    results: dict[tuple[int, int], Score] = {}
    # The prompt's keys and values are copied for each answer, so they count.
    lengths = [longest + len(rows[order[b]].answers[k]) - 1 for b, k in pairs]
    for indices in batches_by_tokens(lengths, token_budget):
        batch = [pairs[i] for i in indices]
        answers = [rows[order[b]].answers[k] for b, k in batch]
        prompts_N = torch.tensor([b for b, _ in batch], device=model.device)
        states_LD = _answer_states(model, cache, inputs, prompts_N, last_BD[prompts_N], answers, hidden_id)
        wants_z = [rows[order[b]].z_scores and k == 0 for b, k in batch]
        first = [k == 0 for _, k in batch]
        scores = _scores(model, states_LD, answers, wants_z, [False] * len(batch), first, None)
        results |= {(order[b], k): score for (b, k), score in zip(batch, scores, strict=True)}
    return results


def _answer_states(
    model: PreTrainedModel,
    cache: RowCache,
    prompts: Mapping[str, Tensor],
    prompts_N: Tensor,
    last_ND: Tensor,
    answers: Sequence[tuple[int, ...]],
    hidden_id: int | None,
) -> Tensor:
    """States that predict each label of N answers: the prompt's last one, then those of the answer but its last."""
    longest = max(map(len, answers)) - 1
    if longest == 0:
        return last_ND
    ids_NT = torch.zeros(len(answers), longest, dtype=torch.long)
    real_NT = torch.zeros(len(answers), longest, dtype=torch.bool)
    for n, answer in enumerate(answers):
        ids_NT[n, : len(answer) - 1] = torch.tensor(answer[:-1])
        real_NT[n, : len(answer) - 1] = True
    predicts_NT = torch.nn.functional.pad(real_NT, (1, 0), value=True).to(model.device)
    if hidden_id is not None:
        real_NT &= ids_NT != hidden_id
    first_N1 = prompts["position_ids"][prompts_N, -1:] + 1
    inputs = {
        "input_ids": ids_NT.to(model.device),
        "attention_mask": torch.cat([prompts["attention_mask"][prompts_N], real_NT.to(model.device)], dim=1),
        "position_ids": first_N1 + torch.arange(longest, device=model.device),
    }
    states_NTD = _states(model, inputs, cache.chosen(prompts_N))
    return torch.cat([last_ND[:, None], states_NTD], dim=1)[predicts_NT]


def _states(model: PreTrainedModel, inputs: Mapping[str, Tensor], cache: RowCache | None = None) -> Tensor:
    """What `_head` makes logits of, at every position."""
    arguments = {**inputs, "past_key_values": cache, "use_cache": cache is not None}
    if has_plain_head(model):
        return model.get_decoder()(**arguments).last_hidden_state
    return model(**arguments).logits


def _head(model: PreTrainedModel) -> nn.Module:
    plain = has_plain_head(model)
    return cast(nn.Module, model.get_output_embeddings()) if plain else nn.Identity()


def _scores(
    model: PreTrainedModel,
    states_LD: Tensor,
    answers: Sequence[tuple[int, ...]],
    wants_z: Sequence[bool],
    wants_kl: Sequence[bool],
    first: Sequence[bool],
    other: tuple[Tensor, nn.Module] | None,
) -> list[Score]:
    """Scores of answers from the states that predict their labels, answer by answer; `other` is the target's."""
    counts = [len(answer) for answer in answers]
    labels_L = torch.tensor([label for answer in answers for label in answer], device=states_LD.device)
    z_L, kl_L, first_L = (_spread(wants, counts).to(states_LD.device) for wants in (wants_z, wants_kl, first))
    head = _head(model)
    log_probs, hits, z_scores, divergences = [], [], [], []
    slice_bytes = _LOGIT_BYTES["cpu" if states_LD.device.type == "cpu" else "gpu"]
    slice_size = max(1, slice_bytes // (4 * model.config.get_text_config().vocab_size))
    for start in range(0, len(labels_L), slice_size):
        part = slice(start, start + slice_size)
        logits_LV = head(states_LD[part]).float()
        loss_L = nn.functional.cross_entropy(logits_LV, labels_L[part], reduction="none")
        # Rounding may put a certain token's loss a hair below 0.
        log_probs.append(-loss_L.clamp_min(0).double().cpu())
        hits.append(_hits(logits_LV, labels_L[part], first_L[part]).cpu())
        z_scores.append(_standardised(logits_LV, labels_L[part], z_L[part]).cpu())
        divergences.append(_divergence(logits_LV, other, part, kl_L[part]).cpu())
    columns = (torch.cat(parts).split(counts) for parts in (log_probs, hits, z_scores, divergences))
    return [
        Score(
            log_probs=tuple(log_prob.tolist()),
            matches=tuple(hit.tolist()) if is_first else (),
            z_scores=tuple(z.tolist()) if with_z else (),
            kl=float(divergence.mean()) if with_kl else None,
        )
        for log_prob, hit, z, divergence, with_z, with_kl, is_first in zip(
            *columns, wants_z, wants_kl, first, strict=True
        )
    ]


def _hits(logits_LV: Tensor, labels_L: Tensor, wanted_L: Tensor) -> Tensor:
    """Whether the arg-max is the label, where wanted."""
    result_L = torch.zeros(len(labels_L), dtype=torch.bool, device=logits_LV.device)
    if bool(wanted_L.all()):
        return logits_LV.argmax(dim=1) == labels_L
    if bool(wanted_L.any()):
        result_L[wanted_L] = logits_LV[wanted_L].argmax(dim=1) == labels_L[wanted_L]
    return result_L


def _standardised(logits_LV: Tensor, labels_L: Tensor, wanted_L: Tensor) -> Tensor:
    """(log p(label) - mean) / deviation of log p under p where wanted, else 0; double."""
    result_L = torch.zeros(len(labels_L), dtype=torch.double, device=logits_LV.device)
    if bool(wanted_L.any()):
        # Logits stand for log-probabilities here: the normaliser drops out of differences from the mean, and its
        # rounding with it, which a division by a flat prediction's small deviation would show. An id of probability 0
        # may have a logit of -inf and adds nothing.
        logits = logits_LV[wanted_L]
        largest = logits.amax(dim=1, keepdim=True)
        logits = (logits - largest).clamp_min(-1e4)
        p = logits.softmax(dim=1)
        mean = (p * logits).sum(dim=1, keepdim=True)
        # Around the mean, not E[x^2] - E[x]^2: that loses a confident prediction's tiny variance to cancellation.
        variance = (p * (logits - mean).square_()).sum(dim=1).double()
        chosen = logits.gather(1, labels_L[wanted_L, None]) - mean
        result_L[wanted_L] = chosen.squeeze(1).double() / variance.clamp_min(1e-6).sqrt()
    return result_L


def _divergence(
    logits_LV: Tensor,
    other: tuple[Tensor, nn.Module] | None,
    part: slice,
    wanted_L: Tensor,
) -> Tensor:
    """KL(target || model) per label where wanted, else 0; double."""
    result_L = torch.zeros(len(wanted_L), dtype=torch.double, device=logits_LV.device)
    if other is not None and bool(wanted_L.any()):
        target_LD, target_head = other
        log_p = logits_LV[wanted_L].log_softmax(dim=1)
        log_q = target_head(target_LD[part][wanted_L]).float().log_softmax(dim=1)
        divergence = (log_q.exp() * (log_q - log_p)).sum(dim=1, dtype=torch.double)
        result_L[wanted_L] = divergence.clamp_min(0)
    return result_L


def _spread(flags: Sequence[bool], counts: Sequence[int]) -> Tensor:
    """One flag an answer to one flag a label."""
    return torch.tensor(flags).repeat_interleave(torch.tensor(counts))


def is_quantised(model: PreTrainedModel) -> bool:
    """Whether the weights are held as integers, which have no gradient."""
    return any(not parameter.is_floating_point() for parameter in model.parameters())


def gradient_norm(model: PreTrainedModel, prompt: Sequence[int], labels: Sequence[int], used: int) -> float:
    """Mean over the parameter tensors of the L2 norm of one answer's gradient (arXiv 2310.16789's compared attacks).

    Args:
        model: its parameters' gradients must be None; they are None again afterwards.
        prompt: ids before the answer.
        labels: the answer's ids.
        used: how many of the labels, from the first, the mean loss is taken over.

    Returns:
        The norm, at least 0. Membership score: members have smaller gradients.

    Raises:
        ValueError: a model without gradients, such as one with quantised weights.
    """
    if is_quantised(model):
        raise ValueError("the gradient norm needs weights that have gradients, and these are quantised")
    ids_1T = torch.tensor([[*prompt, *labels[:used]]], device=model.device)
    with torch.inference_mode(False), torch.enable_grad():
        logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        loss = nn.functional.cross_entropy(logits_TV, ids_1T[0, len(prompt) :])
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
    return float(torch.stack(norms).mean())
