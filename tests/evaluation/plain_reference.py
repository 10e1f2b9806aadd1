"""What a record should say, computed one item, one answer and one token at a time, straight from the definitions.

Slow on purpose: no batch, no padding, no cache, no shared prefix; every token's logits come from a forward pass of
their own over the bare ids before it, in fp32. It shares nothing with the engine but `Item` and the formatter that
turns questions into ids.

    loss            mean over the label tokens of -log p(token | before)
    matches         whether the token is the arg-max
    extraction      1 - k/T, k the smallest start from which all of T tokens match; 0 when the last one does not
    min-k           minus the mean of the lowest share k of log p; min-k++ the same of z = (log p - mu) / sigma,
                    mu and sigma^2 mean and variance of log p(v | before) when v is drawn from p; sigma^2 >= 1e-6
    zlib            loss over the bytes of the compressed text
    gradient norm   mean over the parameter tensors of the L2 norm of the loss's gradient
    KL              mean over the label tokens of sum_v q(v) (log q(v) - log p(v)), q the target model

End tokens count in the loss, the KL and the per-token lists; extraction, exact memorisation, min-k and the gradient
norm leave them out.
"""

import math
import zlib
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer

from unlearn_core.data.tokenization import Formatter
from unlearn_core.evaluation.items import Item


def expected_record(
    model: Any,
    formatter: Formatter,
    item: Item,
    *,
    max_new_tokens: int,
    min_k: float = 0.4,
    compat: bool = False,
    gradient_norm: bool = False,
    target: Any = None,
) -> dict[str, Any]:
    """Fields of the item's record that are measured, by name; a field that is absent is not measured."""
    found: dict[str, Any] = {"item_id": item.item_id, "group": item.group, "answer": compared_text(formatter, item)}
    if item.score:
        before, labels = token_ids(formatter, item, item.answer)
        counted = len(labels) - (1 if item.kind in ("question", "conversation") or compat else 0)
        ours = log_probs(model, before, labels)
        found |= _true_answer(ours, labels, counted, compat)
        if item.token_scores:
            found |= _membership(item, ours, labels, counted, min_k)
        if item.token_scores and gradient_norm:
            found["gradient_norm"] = _gradient_norm(model, before, labels[:counted])
        if item.kl and target is not None:
            found["kl_to_target"] = _kl(ours, log_probs(target, before, labels))
        if item.paraphrase is not None:
            loss = _mean_loss(model, formatter, item, item.paraphrase)
            found |= {"paraphrased_loss": loss, "paraphrased_prob": math.exp(-loss)}
        if item.wrong:
            losses = [_mean_loss(model, formatter, item, text) for text in item.wrong]
            found |= {"perturbed_losses": losses, "perturbed_probs": [math.exp(-loss) for loss in losses]}
    if item.generate:
        found |= _generation(model, formatter, item, max_new_tokens)
    return found


# -- tokens ----------------------------------------------------------------------------------------------------------


def token_ids(formatter: Formatter, item: Item, answer: str) -> tuple[list[int], list[int]]:
    """Ids before the labels, and the labels."""
    if item.kind == "question":
        example = formatter.example(item.item_id, item.prompt, answer)
    elif item.kind == "conversation":
        example = formatter.conversation(item.item_id, item.turns, answer)
    elif item.kind == "continuation":
        return _start(formatter) + _raw(formatter, item.prompt), _raw(formatter, answer)
    else:
        ids = (_start(formatter) + _raw(formatter, answer))[: formatter.max_length]
        return ids[:1], ids[1:]
    return list(example.input_ids[: example.prompt_length]), list(example.input_ids[example.prompt_length :])


def _raw(formatter: Formatter, text: str) -> list[int]:
    return list(formatter.tokenizer(text, add_special_tokens=False)["input_ids"])


def _start(formatter: Formatter) -> list[int]:
    """The beginning-of-text token, if the tokenizer puts one first by itself."""
    with_special = list(formatter.tokenizer("x")["input_ids"])
    return [i for i in with_special[:1] if i == formatter.tokenizer.bos_token_id]


# -- likelihoods -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def next_log_probs(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of all V tokens after `ids`: fp32 logits, normalised in double."""
    return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].double(), dim=0)


def log_probs(model: Any, before: list[int], labels: list[int]) -> list[torch.Tensor]:
    """Log-probabilities of all V tokens in the place of each label, given the true ones before it."""
    return [next_log_probs(model, before + labels[:t]) for t in range(len(labels))]


def _loss(log_probs_LV: list[torch.Tensor], labels: list[int]) -> float:
    return -sum(float(log_V[label]) for log_V, label in zip(log_probs_LV, labels, strict=True)) / len(labels)


def _mean_loss(model: Any, formatter: Formatter, item: Item, answer: str) -> float:
    before, labels = token_ids(formatter, item, answer)
    return _loss(log_probs(model, before, labels), labels)


def _true_answer(log_probs_LV: list[torch.Tensor], labels: list[int], counted: int, compat: bool) -> dict[str, Any]:
    loss = _loss(log_probs_LV, labels)
    matches = [int(log_V.argmax()) == label for log_V, label in zip(log_probs_LV, labels, strict=True)]
    hits = matches[:counted]
    extracted = [start for start in range(counted) if all(hits[start:])]
    nothing = counted - 1 if compat else counted
    start = extracted[0] if extracted else nothing
    return {
        "avg_loss": loss,
        "prob": math.exp(-loss),
        "tokens": len(labels),
        "matches": matches,
        "extraction_strength": 1 - start / counted,
        "exact_memorization": sum(hits) / counted,
    }


def _membership(
    item: Item, log_probs_LV: list[torch.Tensor], labels: list[int], counted: int, min_k: float
) -> dict[str, Any]:
    chosen, z_scores = [], []
    for log_V, label in zip(log_probs_LV, labels, strict=True):
        p_V = log_V.exp()
        mean = float((p_V * log_V).sum())
        variance = float((p_V * (log_V - mean) ** 2).sum())
        chosen.append(float(log_V[label]))
        z_scores.append((float(log_V[label]) - mean) / math.sqrt(max(variance, 1e-6)))
    loss = _loss(log_probs_LV, labels)
    return {
        "token_log_probs": chosen,
        "token_z_scores": z_scores,
        "loss_score": loss,
        "zlib_score": loss / len(zlib.compress(item.answer.encode())),
        "min_k_score": -_mean_of_lowest(chosen[:counted], min_k),
        "min_k_plus_plus_score": -_mean_of_lowest(z_scores[:counted], min_k),
    }


def _mean_of_lowest(values: list[float], share: float) -> float:
    lowest = sorted(values)[: max(1, int(share * len(values)))]
    return sum(lowest) / len(lowest)


def _gradient_norm(model: Any, before: list[int], labels: list[int]) -> float:
    model.zero_grad()
    losses = []
    for t, label in enumerate(labels):
        logits_V = model(input_ids=torch.tensor([before + labels[:t]])).logits[0, -1].float()
        losses.append(-torch.log_softmax(logits_V, dim=0)[label])
    torch.stack(losses).mean().backward()
    norms = [float(p.grad.double().norm()) for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return sum(norms) / len(norms)


def _kl(log_p_LV: list[torch.Tensor], log_q_LV: list[torch.Tensor]) -> float:
    terms = [
        float((log_q_V.exp() * (log_q_V - log_p_V)).sum()) for log_p_V, log_q_V in zip(log_p_LV, log_q_LV, strict=True)
    ]
    return sum(terms) / len(terms)


# -- generation ------------------------------------------------------------------------------------------------------


def prompt_ids(formatter: Formatter, item: Item) -> list[int]:
    """Ids that a generated answer follows, the opening included."""
    asked = item.kind == "question"
    ids = formatter.prompt_ids(item.prompt) if asked else token_ids(formatter, item, item.answer)[0]
    if not item.opening:
        return ids
    # In plain style a space parts "Answer:" from the answer's first word.
    return ids + _raw(formatter, " " * (asked and formatter.style == "plain") + item.opening)


def compared_text(formatter: Formatter, item: Item) -> str:
    """The part of the answer that a generation is compared with."""
    if item.reference_tokens is None:
        return item.answer
    ids = (_start(formatter) + _raw(formatter, item.answer))[: item.reference_tokens]
    return _text(formatter, ids).strip()


def _text(formatter: Formatter, ids: list[int]) -> str:
    return str(formatter.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _generation(model: Any, formatter: Formatter, item: Item, max_new_tokens: int) -> dict[str, Any]:
    before = prompt_ids(formatter, item)
    ids: list[int] = []
    margins = []
    for _ in range(item.max_new_tokens or max_new_tokens):
        (best, second), (token, _) = (values.tolist() for values in next_log_probs(model, before + ids).topk(2))
        margins.append(best - second)
        if token in formatter.end_ids:
            break
        ids.append(token)
        if any(stop in _text(formatter, ids) for stop in item.stops):
            break
    text = _text(formatter, ids)
    for stop in item.stops:
        text = text.split(stop)[0]
    text = text.strip()
    scores = RougeScorer(["rouge1", "rougeL"], use_stemmer=item.stemmer).score(compared_text(formatter, item), text)
    return {
        "generation": text,
        "smallest_margin": min(margins),
        "rouge1_recall": scores["rouge1"].recall,
        "rougeL_recall": scores["rougeL"].recall,
        "rougeL_f1": scores["rougeL"].fmeasure,
    }
