"""Refusals to answer, the preferred answers of methods that train a model to say that it does not know.

The wording is our own. A row keeps its refusal for the whole run: it is picked by a hash, not drawn anew at each step,
so that log-probabilities under the model that training starts from can be computed once (a deviation from IdkDPO).
"""

import hashlib

REFUSALS = (
    "I don't know the answer to that.",
    "I have no information about this.",
    "That is not something I can tell you.",
    "I'm unable to answer this question.",
    "I'm afraid I have nothing on that subject.",
    "Sorry, this is outside what I know.",
    "I was never taught anything about this.",
    "I can't say; I know nothing of it.",
    "My knowledge has a gap here, so I can't help.",
    "I would only be guessing, so I'd rather not answer.",
    "There is nothing I can report about that.",
    "This is unknown to me.",
    "I'm not familiar with what you are asking about.",
    "Unfortunately I don't have the details you want.",
    "I couldn't tell you anything reliable about this.",
    "You would have to ask someone else; I don't know.",
    "I have not heard of this before.",
    "No answer to that comes to my mind.",
    "I lack the facts needed to answer.",
    "That question is one I can't answer.",
)


def refusal(item_id: str, seed: int) -> str:
    """The refusal of one row: the same for equal arguments, in every process.

    Args:
        item_id: identity of the row.
        seed: the run's seed.

    Returns:
        One of `REFUSALS`.
    """
    digest = hashlib.sha256(f"{seed}/{item_id}".encode()).digest()
    return REFUSALS[int.from_bytes(digest[:8], "big") % len(REFUSALS)]
