"""Choose a checkpoint by its aggregates: the best of a column among those that meet constraints.

    best = arg max (or min, or nearest to 0) of COLUMN, over the checkpoints with COLUMN <= BOUND (or <, >=, >) for each
           constraint

A bound is a number or the value of the reference or of the target, as in MUSE, where a checkpoint counts when it knows
no more of the forget set than the retrained model (arXiv 2407.06460). Nothing that misses a constraint is ever chosen.
"""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from unlearn_core.errors import UserError
from unlearn_core.frontier import AXES

Direction = Literal["higher", "lower", "zero"]
Verdict = Literal["meets", "fails", "unknown"]

_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_STARS = ("reference", "target")
_SPELLED: dict[str, Direction] = {"max": "higher", "min": "lower", "zero": "zero"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A scored checkpoint.

    Attributes:
        model_id: its id in the evaluation.
        step: optimizer steps.
        metrics: value of each column; None where it is missing, NaN for a diverged model.
        missing: why a column is missing.
        present: whether its folder is still there.
    """

    model_id: str
    step: int
    metrics: Mapping[str, float | None]
    missing: Mapping[str, str] = field(default_factory=dict)
    present: bool = True


@dataclass(frozen=True, slots=True)
class Constraint:
    """A condition that a checkpoint must meet.

    Attributes:
        text: as the user wrote it.
        column: the aggregate.
        sign: one of `<=`, `>=`, `<`, `>`.
        bound: a number, or whose value of the same column is meant.
    """

    text: str
    column: str
    sign: str
    bound: float | Literal["reference", "target"]

    def limit(self, stars: Mapping[str, Checkpoint]) -> float | None:
        """The bound as a number; None if the model that gives it has no finite value."""
        if not isinstance(self.bound, str):
            return self.bound
        value = stars[self.bound].metrics.get(self.column) if self.bound in stars else None
        return value if value is not None and math.isfinite(value) else None

    def verdict(self, checkpoint: Checkpoint, stars: Mapping[str, Checkpoint]) -> Verdict:
        """Whether a checkpoint meets it. A diverged model (NaN) fails; `unknown` if either side has no value."""
        value, limit = checkpoint.metrics.get(self.column), self.limit(stars)
        if value is None or limit is None:
            return "unknown"
        return "meets" if _COMPARE[self.sign](value, limit) else "fails"


@dataclass(frozen=True, slots=True)
class Rule:
    """What makes a checkpoint the best.

    Attributes:
        column: the aggregate to compare by.
        direction: which way it is better; `zero`: the nearer to 0 on either side.
        among: constraints, all of which a checkpoint must meet.
    """

    column: str
    direction: Direction
    among: tuple[Constraint, ...] = ()

    def verdict(self, checkpoint: Checkpoint, stars: Mapping[str, Checkpoint]) -> Verdict:
        """Whether a checkpoint may be the best: `fails` if it misses a constraint or its column is not finite."""
        found = {constraint.verdict(checkpoint, stars) for constraint in self.among}
        value = checkpoint.metrics.get(self.column)
        if "fails" in found or (value is not None and not math.isfinite(value)):
            return "fails"
        return "unknown" if "unknown" in found or value is None else "meets"

    def order(self, checkpoint: Checkpoint) -> tuple[float, int]:
        """Sort key, best first; of equal values, the checkpoint of fewer steps."""
        value = checkpoint.metrics[self.column]
        assert value is not None, checkpoint
        loss = {"higher": -value, "lower": value, "zero": abs(value)}[self.direction]
        return (loss, checkpoint.step)

    @property
    def criterion(self) -> str:
        """The criterion with its direction spelled out, such as `max:model_utility`."""
        return next(word for word, direction in _SPELLED.items() if direction == self.direction) + f":{self.column}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a rule came to.

    Attributes:
        best: the best checkpoint; None if none meets the constraints.
        reason: why there is none, or why it is not one with a better value; else "".
        beaten: ids of checkpoints that can never be the best under this rule, whatever comes: they miss a constraint,
            or another that meets them all is better. Checkpoints without a value are not among them.
    """

    best: Checkpoint | None
    reason: str
    beaten: frozenset[str]


def parse_rule(criterion: str, among: Sequence[str], columns: Sequence[str], stars: Sequence[str] = ()) -> Rule:
    """Read a rule as a user writes it.

    Args:
        criterion: a column whose direction is known (`unlearn_core.frontier.AXES`), or `max:COLUMN`, `min:COLUMN`,
            `zero:COLUMN`.
        among: constraints such as `extraction_strength<=0.1` or `forget_quality>=reference`.
        columns: columns that the evaluation has.
        stars: which of `reference` and `target` the evaluation has.

    Raises:
        UserError: an unknown column, a direction that must be spelled out, a malformed constraint, or one that
            compares with a model that is not given.
    """
    known = re.fullmatch(r"(max|min|zero):(.+)", criterion.strip())
    column = known[2].strip() if known else criterion.strip()
    _check_column(column, columns, criterion)
    if known:
        direction: Direction = _SPELLED[known[1]]
    elif column in AXES:
        direction = AXES[column].direction
    else:
        raise UserError(
            f"'{column}' may be better high or low; write max:{column} or min:{column}, or zero:{column} for "
            "nearest to 0"
        )
    return Rule(column, direction, tuple(_constraint(text, columns, stars) for text in among))


def _constraint(text: str, columns: Sequence[str], stars: Sequence[str]) -> Constraint:
    parts = re.fullmatch(r"\s*([^<>=\s]+)\s*(<=|>=|<|>)\s*([^<>=\s]+)\s*", text)
    if parts is None:
        raise UserError(
            f"constraint '{text}': expected COLUMN, one of <= >= < >, and a number, 'reference' or 'target'; such as "
            "'extraction_strength<=0.1' (in quotes: < and > mean something to the shell)"
        )
    column, sign, bound = parts[1], parts[2], parts[3]
    _check_column(column, columns, text)
    if bound in _STARS:
        if bound not in stars:
            raise UserError(f"constraint '{text}' needs the {bound}'s value; give --{bound}")
        return Constraint(text.strip(), column, sign, "reference" if bound == "reference" else "target")
    try:
        number = float(bound)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"constraint '{text}': '{bound}' is no finite number, nor 'reference' or 'target'")
    return Constraint(text.strip(), column, sign, number)


def _check_column(column: str, columns: Sequence[str], text: str) -> None:
    if column in columns:
        return
    near = get_close_matches(column, columns, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise UserError(f"'{text}': the evaluation has no column '{column}'.{hint} It has: {', '.join(columns)}")


def choose(rule: Rule, checkpoints: Sequence[Checkpoint], stars: Mapping[str, Checkpoint]) -> Choice:
    """Apply a rule.

    Args:
        rule: the rule.
        checkpoints: those to choose from; one whose folder is gone is not chosen, and the reason says so if it would
            have been.
        stars: `reference` and `target`, for constraints that compare with them.

    Returns:
        The choice. It does not depend on the order of `checkpoints`.
    """
    verdicts = {checkpoint.model_id: rule.verdict(checkpoint, stars) for checkpoint in checkpoints}
    meeting = sorted((point for point in checkpoints if verdicts[point.model_id] == "meets"), key=rule.order)
    present = [point for point in meeting if point.present]
    best = present[0] if present else None
    failed = {name for name, verdict in verdicts.items() if verdict == "fails"}
    beaten = failed | {point.model_id for point in meeting if point is not best}
    if best is not None:
        first = meeting[0]
        gone = f"{first.model_id} has {first.metrics[rule.column]:.6g}, but its folder is gone"
        return Choice(best, "" if first is best else gone, frozenset(beaten))
    if not checkpoints:
        return Choice(None, "no checkpoint is scored yet", frozenset())
    if meeting:
        names = ", ".join(point.model_id for point in meeting)
        return Choice(None, f"the folders of all that meet the constraints are gone ({names})", frozenset(beaten))
    return Choice(None, _why_none(rule, checkpoints, stars), frozenset(beaten))


def _why_none(rule: Rule, checkpoints: Sequence[Checkpoint], stars: Mapping[str, Checkpoint]) -> str:
    """A sentence for each constraint that someone misses, with the value that came nearest."""
    parts = []
    for constraint in rule.among:
        limit = constraint.limit(stars)
        if limit is None:
            bound = str(constraint.bound)
            why = stars[bound].missing.get(constraint.column, "not finite") if bound in stars else "not scored yet"
            parts.append(f"{constraint.text}: the {bound} has no value ({why})")
            continue
        met = sum(constraint.verdict(point, stars) == "meets" for point in checkpoints)
        if met < len(checkpoints):
            shown = f" (the {constraint.bound} has {limit:.6g})" if isinstance(constraint.bound, str) else ""
            parts.append(f"{constraint.text}{shown} is met by {met} of {len(checkpoints)}")
            parts[-1] += _nearest(constraint, limit, checkpoints) if not met else ""
    for column in dict.fromkeys((rule.column, *(constraint.column for constraint in rule.among))):
        for value, words in ((None, "no value"), (math.nan, "no finite value")):
            without = [point for point in checkpoints if _is(point.metrics.get(column), value)]
            if without:
                why = without[0].missing.get(column)
                parts.append(
                    f"{len(without)} of {len(checkpoints)} have {words} of {column}" + ((why and f": {why}") or "")
                )
    return "no checkpoint meets the constraints: " * bool(rule.among) + "; ".join(parts)


def _nearest(constraint: Constraint, limit: float, checkpoints: Sequence[Checkpoint]) -> str:
    distances = [
        (abs(value - limit), point.step, point.model_id, value)
        for point in checkpoints
        if (value := point.metrics.get(constraint.column)) is not None and math.isfinite(value)
    ]
    if not distances:
        return ""
    _, _, model_id, value = min(distances)
    return f", nearest {value:.6g} ({model_id})"


def _is(value: float | None, kind: float | None) -> bool:
    return value is None if kind is None else value is not None and not math.isfinite(value)
