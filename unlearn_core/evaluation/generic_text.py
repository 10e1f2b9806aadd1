"""Generic text, such as web pages: whether a model still writes ordinary text, and how far it moved on it.

    perplexity = exp(sum of the label tokens' negative log-likelihoods / their number)
    divergence = sum over label tokens of KL(target || model) / their number

Both weight every token alike, so that they do not depend on how the text is parted into documents.
"""

import math
from collections.abc import Sequence

from pydantic import ValidationError

from unlearn_core.data.config import GenericConfig
from unlearn_core.data.generic import generic_documents
from unlearn_core.errors import UserError
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.metrics import finite
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.suite import Aggregates, Records, Suite, present

GROUP = "generic"
PERPLEXITY, DIVERGENCE = "generic_perplexity", "generic_kl_to_target"


def suite(source: str, *, subset: str | None = None, documents: int = 200, text_key: str = "text") -> Suite:
    """A suite of one item for each document: its first `EvaluationConfig.max_length` tokens.

    Args:
        source: a file, a folder of files, or a hub name; see `generic_documents`.
        subset: configuration of a hub data set that has several.
        documents: how many are read at most: the first ones. Texts of fewer than two words are left out, and count.
        text_key: key of the text in a row.

    Returns:
        The suite, with the columns `PERPLEXITY` (at least 1, lower is better) and `DIVERGENCE` (nats, at least 0; 0 for
        the target itself, and missing where no model has the role target).

    Raises:
        UserError: no such source, a malformed row, a hub that cannot be reached, or no text of two words.
    """
    try:
        config = GenericConfig(source=source, subset=subset, documents=documents, text_key=text_key)
    except ValidationError as error:
        raise UserError(f"generic text of {documents} documents: {error.errors()[0]['msg']}") from error
    # One token has no token before it to be predicted from; two words are at least two tokens.
    items = tuple(
        Item(item_id=document.item_id, group=GROUP, kind="text", answer=document.text, kl=True, generate=False)
        for document in generic_documents(config)
        if len(document.text.split(maxsplit=1)) == 2
    )
    if not items:
        raise UserError(f"'{source}' holds no text of at least two words among its first {documents} documents")
    return Suite(
        name="generic_text",
        source=source,
        forget="",
        items=items,
        columns=(PERPLEXITY, DIVERGENCE),
        aggregate=aggregate,
        headline=(PERPLEXITY,),
    )


def aggregate(records: Records, reference: Records | None = None, compat: bool = False) -> Aggregates:
    """Perplexity and divergence of the group `generic`.

    Args:
        records: group to records.
        reference: not used.
        compat: not used.

    Returns:
        Values and reasons for those that are missing.

    Raises:
        ValueError: a loss or divergence is not finite, or a perplexity is beyond the largest double.
    """
    rows = records.get(GROUP, ())
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    if not rows:
        return Aggregates({}, dict.fromkeys((PERPLEXITY, DIVERGENCE), f"there are no {GROUP} records"))
    try:
        loss = _token_mean(rows, "avg_loss")
        values[PERPLEXITY] = math.exp(loss)
    except UserError as error:
        missing[PERPLEXITY] = str(error)
    except OverflowError as error:
        raise ValueError(f"{PERPLEXITY}: the mean loss is {loss} nats a token; its exponential is no number") from error
    if all(row.kl_to_target is None for row in rows):
        missing[DIVERGENCE] = "needs a model with the role target, the one before unlearning; none was given"
    else:
        try:
            values[DIVERGENCE] = _token_mean(rows, "kl_to_target")
        except UserError as error:
            missing[DIVERGENCE] = str(error)
    return Aggregates(values, missing)


def _token_mean(rows: Sequence[ItemRecord], field: str) -> float:
    tokens = present(rows, "tokens")
    means = finite(present(rows, field), field)
    return math.fsum(n * mean for n, mean in zip(tokens, means.tolist(), strict=True)) / sum(tokens)
