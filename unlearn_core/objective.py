"""What an objective is: one loss on one set of rows; and how its sum over a micro-batch is worked out.

Every loss in `unlearn_core/objectives/` is a pure function of tensors. This file gives each kind of loss its tensors:

    token     f(logits_NV, targets_N)                         summed over label tokens
    teacher   f(logits_NV, teacher_NV, targets_N)             summed over label tokens, against a second set of weights
    row       f(log_prob_B, count_B, reference_B)             summed over rows
    pair      f(preferred_B, rejected_B, and both references)  summed over pairs of answers to one question
    hidden    f(hidden_ND, target)                            summed over label tokens, at the output of one layer

The loop divides the sum over all micro-batches and ranks by one number: the global batch's label tokens (token,
teacher, hidden) or its rows (row, pair). So no loss depends on how rows fall on workers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from unlearn_core.data.packing import PassInputs
from unlearn_core.data.tokenization import IGNORE, Batch

Rows = Literal["forget", "retain", "generic"]
Kind = Literal["token", "teacher", "row", "pair", "hidden"]
References = Mapping[tuple[str, str], float]
"""(set, item id) -> summed log-probability of the row's labels under the model that unlearning starts from, in nats."""


@dataclass(frozen=True)
class Objective:
    """One loss on one set of rows."""

    rows: Rows
    loss: Callable[..., torch.Tensor]
    """The pure function, its settings bound."""
    kind: Kind = "token"
    maximise: bool = False
    """Whether the update climbs this loss (cross-entropy on forget rows) instead of descending it."""
    references: bool = False
    """Row losses: whether they need the start model's log-probabilities. Pair losses always do."""
    preferred: Literal["refusal", "alternate"] = "refusal"
    """Pair losses: the set that holds the preferred answers to the forget questions."""
    skip_first: int = 0
    """Label tokens at the start of each row that do not count."""
    layer: int = 0
    """Hidden losses: number of the block whose output is used, from 0."""
    control: int | None = None
    """Hidden losses: seed of the fixed random direction to steer to; None steers to the teacher's hidden state."""
    least_at_teacher: bool = False
    """Teacher losses: whether they are least where student and teacher agree."""
    label: str = ""
    """Name in logs; the row set's name where no other objective has it."""

    @property
    def name(self) -> str:
        """Name in logs."""
        return self.label or self.rows

    @property
    def sign(self) -> float:
        """-1 for a loss to climb, else 1."""
        return -1.0 if self.maximise else 1.0

    @property
    def sets(self) -> tuple[str, ...]:
        """Row sets whose batches it reads."""
        return (self.rows, self.preferred) if self.kind == "pair" else (self.rows,)

    @property
    def reference_sets(self) -> tuple[str, ...]:
        """Row sets whose start-model log-probabilities it needs, each computed once."""
        return self.sets if self.kind == "pair" or self.references else ()

    @property
    def needs_teacher(self) -> bool:
        """Whether each step needs a forward pass of the teacher's (or frozen start model's) weights."""
        return self.kind == "teacher" or (self.kind == "hidden" and self.control is None)

    @property
    def read_layer(self) -> int | None:
        """The block whose hidden states it reads; None for the output layer."""
        return self.layer if self.kind == "hidden" else None

    @property
    def vanishes_at_teacher(self) -> bool:
        """Whether its gradient is exactly zero where student and teacher are equal: the divergences are least there.

        In floating point it is rounding noise instead, which a combiner that looks at directions must not see.
        """
        return self.kind == "teacher" and self.least_at_teacher

    @property
    def per_row(self) -> bool:
        """Whether its sum is divided by rows, not label tokens."""
        return self.kind in ("row", "pair")

    def input(self, batches: Mapping[str, Batch]) -> Batch:
        """The batch of one forward pass. A pair's answers go through together: rejected rows first, then preferred."""
        if self.kind != "pair":
            return batches[self.rows]
        return concatenate(batches[self.rows], batches[self.preferred])

    def sum(
        self,
        readout: Any,
        inputs: PassInputs,
        references: References,
        teacher: Any,
        control_D: torch.Tensor | None,
    ) -> torch.Tensor:
        """The loss, summed over the micro-batch's label tokens or rows.

        Args:
            readout: of a forward pass on `inputs`, see `unlearn_core/head.py`.
            inputs: of the batch from `input`, without its `skip_first` labels.
            references: log-probabilities of the start model; only those of `reference_sets` are read.
            teacher: what the readout of the teacher's pass on the same inputs kept, where `needs_teacher`.
            control_D: direction to steer hidden states to, where `control` is set.

        Returns:
            Scalar fp32.
        """
        if self.kind == "hidden":
            return self.loss(readout.hidden_ND, control_D if self.control is not None else teacher)
        if self.kind == "token":
            return readout.token_sum(self.loss)
        if self.kind == "teacher":
            return readout.beside_sum(self.loss, teacher)
        if self.kind == "row":
            return readout.row_sum(
                lambda log_prob_B, count_B: self._of_rows(log_prob_B, count_B, inputs.item_ids, references)
            )
        return readout.row_sum(lambda log_prob_B, _: self._of_pairs(log_prob_B, inputs.item_ids, references))

    def _of_rows(
        self, log_prob_B: torch.Tensor, count_B: torch.Tensor, item_ids: tuple[str, ...], references: References
    ) -> torch.Tensor:
        reference_B = _look_up(references, self.rows, item_ids, log_prob_B) if self.references else None
        return self.loss(log_prob_B, count_B, reference_B)

    def _of_pairs(self, log_prob_B: torch.Tensor, item_ids: tuple[str, ...], references: References) -> torch.Tensor:
        pairs = len(item_ids) // 2
        return self.loss(
            log_prob_B[pairs:],
            log_prob_B[:pairs],
            _look_up(references, self.preferred, item_ids[:pairs], log_prob_B),
            _look_up(references, self.rows, item_ids[:pairs], log_prob_B),
        )


def concatenate(first: Batch, second: Batch) -> Batch:
    """Two batches as one, right-padded to the longer; padding is masked and unlabelled, so its token id is free."""
    length = max(first.labels_BT.shape[1], second.labels_BT.shape[1])

    def padded(tensor_BT: torch.Tensor, value: int) -> torch.Tensor:
        return torch.nn.functional.pad(tensor_BT, (0, length - tensor_BT.shape[1]), value=value)

    return replace(
        first,
        input_ids_BT=torch.cat([padded(first.input_ids_BT, 0), padded(second.input_ids_BT, 0)]),
        attention_mask_BT=torch.cat([padded(first.attention_mask_BT, 0), padded(second.attention_mask_BT, 0)]),
        labels_BT=torch.cat([padded(first.labels_BT, IGNORE), padded(second.labels_BT, IGNORE)]),
        item_ids=(*first.item_ids, *second.item_ids),
    )


def _look_up(references: References, name: str, item_ids: tuple[str, ...], like_B: torch.Tensor) -> torch.Tensor:
    numbers_B = torch.tensor([references[name, item_id] for item_id in item_ids], dtype=like_B.dtype)
    return numbers_B.to(like_B.device, non_blocking=True)
