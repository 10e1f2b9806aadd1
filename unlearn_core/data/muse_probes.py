"""What MUSE evaluates models on (Shi et al. 2024, arXiv 2407.06460): questions, verbatim passages, texts for attacks.

    knowmem/forget_qa, knowmem/retain_qa            questions on what is forgotten and on what is kept
    knowmem/forget_qa_icl, knowmem/retain_qa_icl    questions with answers that go before each of them as shots
    verbmem/forget                                  beginnings of forgotten texts with what follows them
    privleak/forget, privleak/retain, privleak/holdout    texts that were forgotten, kept, and never seen

The data was published under several names for its evaluation half of the retain set: `retain` and `retain2` mean the
same here. Any of the sources and layouts of `muse.MuseSplits` will do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unlearn_core.data.muse import PROBES, MuseSplits, corpora
from unlearn_core.data.rows import Document, Row, parse_document, parse_row
from unlearn_core.errors import UserError

Side = Literal["forget", "retain"]

_SIDES = {"forget": ("forget",), "retain": ("retain", "retain2"), "holdout": ("holdout",)}


@dataclass(frozen=True, slots=True)
class Passage:
    """A place in a forgotten text.

    Attributes:
        item_id: `verbmem/forget/{index:05d}`.
        prompt: what comes before it; white space belongs to both texts.
        continuation: what follows in the text.
    """

    item_id: str
    prompt: str
    continuation: str


class MuseProbes:
    """The probes of one corpus, read when asked for.

    Attributes:
        source: folder, hub name or `synthetic-muse:SIZE[:SEED]`.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._held = MuseSplits(source, PROBES)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the probes' splits that exist, sorted. For a hub name this needs the network."""
        return self._held.names

    def questions(self, side: Side) -> list[Row]:
        """The questions that knowledge is measured by.

        Args:
            side: on what is to be forgotten, or on what is kept.

        Returns:
            Rows in file order; never empty.

        Raises:
            UserError: the split does not exist or is empty, or a row is malformed.
        """
        return self._rows(side, "qa")

    def shots(self, side: Side) -> list[Row]:
        """Questions with answers that the prompt starts with, in order; arguments and errors as of `questions`."""
        return self._rows(side, "qa_icl")

    def passages(self) -> list[Passage]:
        """The places of forgotten texts that a model is asked to continue.

        Raises:
            UserError: the split does not exist or is empty, or a row has no text `prompt` or `gt`.
        """
        name = self._name("verbmem", _SIDES["forget"])
        values = enumerate(self._held.values(name))
        return [_passage(value, f"verbmem/forget/{index:05d}", where) for index, (where, value) in values]

    def texts(self, which: Literal["forget", "retain", "holdout"]) -> list[Document]:
        """Texts for membership attacks.

        Args:
            which: texts to be forgotten, kept, or never trained on.

        Returns:
            Documents in file order; never empty.

        Raises:
            UserError: the split does not exist or is empty, or a row is no text.
        """
        name = self._name("privleak", _SIDES[which])
        values = enumerate(self._held.values(name))
        return [parse_document(value, f"privleak/{which}/{index:05d}", where) for index, (where, value) in values]

    def has_retain_texts(self) -> bool:
        """Whether there are texts of the kept kind for the attacks; the measures of MUSE do not need them."""
        return any(self._held.has(f"privleak/{name}") for name in _SIDES["retain"])

    def _rows(self, side: Side, what: str) -> list[Row]:
        name = self._name("knowmem", [f"{name}_{what}" for name in _SIDES[side]])
        values = enumerate(self._held.values(name))
        return [parse_row(value, f"knowmem/{side}_{what}/{index:05d}", where) for index, (where, value) in values]

    def _name(self, config: str, names: Sequence[str]) -> str:
        """The first of some splits that exists."""
        for name in names:
            if self._held.has(f"{config}/{name}"):
                return f"{config}/{name}"
        if inside := corpora(self.source):
            raise UserError(f"'{self.source}' holds MUSE corpora and is none itself; give one of: {', '.join(inside)}")
        wanted = " or ".join(f"{config}/{name}" for name in names)
        have = f"Probes that it has: {', '.join(self.splits)}" if self.splits else "It has no probes"
        raise UserError(
            f"'{self.source}' has no {wanted}, which MUSE's evaluation reads. {have}. The hub's muse-bench/MUSE-News "
            "and muse-bench/MUSE-Books have all of them; a copy needs the folders knowmem, verbmem and privleak"
        )


def _passage(value: Any, item_id: str, where: str) -> Passage:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected an object with 'prompt' and 'gt', found a {type(value).__name__}")
    for key in ("prompt", "gt"):
        text = value.get(key)
        if not isinstance(text, str) or not text.strip():
            found = f"found {text!r}" if key in value else f"found the keys {sorted(map(str, value))}"
            raise UserError(f"{where}: '{key}' must be a text that is not blank; {found}")
    return Passage(item_id, value["prompt"], value["gt"])
