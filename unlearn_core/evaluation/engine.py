"""Score items of the suite by one model: tokens, losses, greedy answers, records. Runs in any process."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from unlearn_core.data.tokenization import Formatter
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.generation import greedy_answers
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.scorer import score_answers
from unlearn_core.evaluation.tofu import Item, record


def score_items(
    model: PreTrainedModel, formatter: Formatter, items: Sequence[Item], config: EvaluationConfig
) -> list[ItemRecord]:
    """Measure every item: loss and hits of each of its answers, and the greedy answer to its question.

    Args:
        model: in evaluation mode, on the device to use.
        formatter: made for the model's tokenizer with the config's style and length.
        items: any items of the suite.
        config: lengths and batch budget.

    Returns:
        One record per item, in input order. Losses are NaN or infinite only if the model's logits are.

    Raises:
        UserError: an answer is too long for `config.max_length`.
    """
    examples = [
        formatter.example(item.row.item_id, item.row.question, answer) for item in items for answer in item.answers
    ]
    scores = iter(score_answers(model, examples, config.token_budget))
    prompts = [formatter.prompt_ids(item.row.question) for item in items]
    answers = greedy_answers(model, prompts, formatter.end_ids, config.max_new_tokens, config.token_budget)
    return [
        record(item, [next(scores) for _ in item.answers], formatter.decode(ids))
        for item, ids in zip(items, answers, strict=True)
    ]
