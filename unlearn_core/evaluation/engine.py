"""Measure items by one model: tokens, likelihoods, generated answers, records. Runs in any process."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TypeVar, cast

from transformers import PreTrainedModel

from unlearn_core.data.tokenization import Formatter
from unlearn_core.errors import UserError
from unlearn_core.evaluation import membership, metrics
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.generation import Request, generate, uniforms
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.rouge import rouge
from unlearn_core.evaluation.scoring import Score, ScoringRow, gradient_norm, is_quantised, score_rows
from unlearn_core.evaluation.tokens import ItemTokens, tokenise

Value = TypeVar("Value")

TOKEN_BUDGETS = {"cpu": 2048, "gpu": 8192}
"""Tokens of a forward pass where the config does not say. On a CPU of 1 MiB second-level cache, likelihoods of a
1M-parameter Llama took 3.8 s with 2,048, 4.5 s with 4,096 and with 1,024, 4.9 s with 8,192."""


def measure(
    model: PreTrainedModel,
    formatter: Formatter,
    items: Sequence[Item],
    config: EvaluationConfig,
    target: PreTrainedModel | None = None,
) -> list[ItemRecord]:
    """Everything that the items ask for.

    Args:
        model: in evaluation mode, on the device to use.
        formatter: made for the model's tokenizer with the config's style and length.
        items: any items.
        config: settings.
        target: the model before unlearning, on the same device, for items with `kl`; without it their divergence is
            not measured.

    Returns:
        One record per item, in input order. Losses are NaN or infinite only if the model's logits are.

    Raises:
        UserError: a row is too long for `config.max_length`, or its answer has no token that counts.
    """
    tokens = [tokenise(item, formatter) for item in items]
    hidden = _hidden_id(formatter) if config.compat else None
    scored = [i for i, item in enumerate(items) if item.score]
    rows = [
        ScoringRow(
            tokens[i].prompt, tokens[i].answers, items[i].token_scores, items[i].kl and target is not None
        )
        for i in scored
    ]  # fmt: skip
    scores = dict(zip(scored, score_rows(model, rows, _token_budget(model, config), target, hidden), strict=True))
    texts, margins = _greedy(model, formatter, items, tokens, config, hidden)
    sampled = _sampled(model, formatter, items, tokens, config, hidden)
    records = []
    for i, item in enumerate(items):
        fields = {} if i not in scores else _likelihoods(item, tokens[i], scores[i], config)
        if config.gradient_norm and item.token_scores and not is_quantised(model):
            used = len(_counted(item, tokens[i].answers[0], tokens[i].ended, config))
            fields["gradient_norm"] = gradient_norm(model, tokens[i].prompt, tokens[i].answers[0], used)
        truth = tokens[i].compared_with
        if i in texts:
            overlap = asdict(rouge(truth, texts[i], item.stemmer))
            fields |= {"generation": texts[i], "smallest_margin": margins[i], **overlap}
        if i in sampled:
            recalls = tuple(rouge(truth, text, item.stemmer).rougeL_recall for text in sampled[i])
            fields |= {"samples": sampled[i], "sample_rougeL_recall": recalls}
        question = item.prompt or "\n".join(text for _, text in item.turns) or None
        records.append(
            ItemRecord(item_id=item.item_id, group=item.group, question=question, answer=truth, **fields)  # pyright: ignore[reportArgumentType]
        )
    return records


def _token_budget(model: PreTrainedModel, config: EvaluationConfig) -> int:
    return config.token_budget or TOKEN_BUDGETS["cpu" if model.device.type == "cpu" else "gpu"]


def _likelihoods(
    item: Item, tokens: ItemTokens, scores: Sequence[Score], config: EvaluationConfig
) -> dict[str, object]:
    """Record fields that follow from log-probabilities."""
    answer, *others = scores
    paraphrase = others.pop(0) if item.paraphrase is not None else None
    hits = _counted(item, answer.matches, tokens.ended, config)
    fields: dict[str, object] = {
        "avg_loss": answer.avg_loss,
        "prob": _probability(answer),
        "tokens": len(answer.log_probs),
        "matches": answer.matches,
        "extraction_strength": metrics.extraction_strength(hits, compat=config.compat),
        "exact_memorization": metrics.exact_memorization(hits),
        "paraphrased_loss": paraphrase.avg_loss if paraphrase else None,
        "paraphrased_prob": _probability(paraphrase) if paraphrase else None,
        "perturbed_losses": tuple(score.avg_loss for score in others),
        "perturbed_probs": tuple(_probability(score) for score in others),
        "kl_to_target": answer.kl,
    }
    if item.token_scores:
        fields |= {
            "token_log_probs": answer.log_probs,
            "token_z_scores": answer.z_scores,
            "loss_score": answer.avg_loss,
        }
        # A diverged model's numbers have no order; its losses say so.
        if math.isfinite(answer.avg_loss) and all(map(math.isfinite, answer.z_scores)):
            log_probs = _counted(item, answer.log_probs, tokens.ended, config)
            z_scores = _counted(item, answer.z_scores, tokens.ended, config)
            fields["zlib_score"] = membership.zlib_score(answer.avg_loss, item.answer)
            fields["min_k_score"] = membership.min_k(log_probs, config.min_k)
            fields["min_k_plus_plus_score"] = membership.min_k(z_scores, config.min_k)
    return fields


def _counted(item: Item, per_token: tuple[Value, ...], ended: bool, config: EvaluationConfig) -> tuple[Value, ...]:
    """The label tokens that memorisation is judged by: without the end token, which every finetuned model predicts.

    open-unlearning drops the last token of every answer, also where it is none (compat).
    """
    counted = per_token[:-1] if ended or config.compat else per_token
    if not counted:
        raise UserError(
            f"{item.item_id}: the answer {item.answer!r} has no token before its last; give a longer one or leave the "
            "row out"
        )
    return counted


def _probability(score: Score) -> float:
    return math.exp(-score.avg_loss) if not math.isnan(score.avg_loss) else math.nan


def _greedy(
    model: PreTrainedModel,
    formatter: Formatter,
    items: Sequence[Item],
    tokens: Sequence[ItemTokens],
    config: EvaluationConfig,
    hidden: int | None,
) -> tuple[dict[int, str], dict[int, float]]:
    asked = [i for i, item in enumerate(items) if item.generate]
    requests = [
        Request(tokens[i].generation_prompt, items[i].max_new_tokens or config.max_new_tokens, items[i].stops)
        for i in asked
    ]
    answers = generate(
        model, requests, formatter.end_ids, config.generation_gib, _token_budget(model, config),
        lambda ids: _text(formatter, ids), hidden_id=hidden,
    )  # fmt: skip
    pairs = list(zip(asked, answers, strict=True))
    texts = {i: _cut(_text(formatter, answer.ids), items[i].stops) for i, answer in pairs}
    return texts, {i: answer.smallest_margin for i, answer in pairs}


def _sampled(
    model: PreTrainedModel,
    formatter: Formatter,
    items: Sequence[Item],
    tokens: Sequence[ItemTokens],
    config: EvaluationConfig,
    hidden: int | None,
) -> dict[int, tuple[str, ...]]:
    asked = [i for i, item in enumerate(items) if item.samples] if config.samples else []
    requests = []
    for i in asked:
        count = items[i].max_new_tokens or config.max_new_tokens
        for k in range(config.samples):
            draws = uniforms(config.seed, items[i].item_id, k, count)
            requests.append(Request(tokens[i].generation_prompt, count, items[i].stops, draws))
    answers = generate(
        model, requests, formatter.end_ids, config.generation_gib, _token_budget(model, config),
        lambda ids: _text(formatter, ids), config.temperature, hidden,
    )  # fmt: skip
    texts = iter(_text(formatter, answer.ids) for answer in answers)
    return {i: tuple(_cut(next(texts), items[i].stops) for _ in range(config.samples)) for i in asked}


def _text(formatter: Formatter, ids: Sequence[int]) -> str:
    # White space stays until the text is cut: an answer that opens with a blank line is empty where that is a stop.
    text = formatter.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return cast(str, text)


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop, outer white space dropped."""
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends, default=len(text))].strip()


def _hidden_id(formatter: Formatter) -> int | None:
    """The id that open-unlearning masks as padding wherever it stands: end-of-text where the two are one."""
    tokenizer = formatter.tokenizer
    eos, pad = cast("int | None", tokenizer.eos_token_id), cast("int | None", tokenizer.pad_token_id)
    return eos if pad is None or pad == eos else None
