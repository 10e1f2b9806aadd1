"""The learning rate from three values of a loss along the direction d: eta* = G / H.

    L(theta - eta d) ~ L_0 - eta G + eta^2/2 H,   G = (L_back - L_ahead) / (2 s),   H = (L_back - 2 L_0 + L_ahead) / s^2

with L_back = L(theta + s d) and L_ahead = L(theta - s d): the update goes *against* d. Source: GeN (arXiv 2407.02772);
NGDiff (arXiv 2410.22086) applies it to the retain loss every 10 steps. This file decides; it evaluates no model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from unlearn_core.combiners.combiner import check_layout
from unlearn_core.errors import UserError

ACCEPTED, NOT_FINITE, NOISE, SLOPE, CURVATURE = "accepted", "not_finite", "noise", "slope", "curvature"
"""What became of a probe: taken; a loss or the fit not finite; drowned in rounding; G <= 0; H <= 0."""

FP32_EPSILON = 2.0**-23
"""Gap between 1 and the next fp32 number."""


@dataclass(frozen=True)
class Probe:
    """Three values of one loss on one batch, in the same mode, averaged over all ranks before anything is fitted."""

    span: float
    """s > 0: how far the two outer points are from theta, as a multiple of d."""
    loss_back: float
    """At theta + s d: one step backward."""
    loss: float
    """At theta."""
    loss_ahead: float
    """At theta - s d: where a step of rate s would lead."""

    @property
    def second_difference(self) -> float:
        """L_back - 2 L_0 + L_ahead = s^2 H; all of the fit's cancellation is here."""
        return (self.loss_back - self.loss) + (self.loss_ahead - self.loss)


@dataclass(frozen=True)
class Verdict:
    """What `AutoRate.update` made of a probe."""

    outcome: str
    """`ACCEPTED`, or the reason of the refusal."""
    rate: float
    """The learning rate from now on."""
    target: float | None
    """G/H before clipping; None where it was refused."""

    @property
    def accepted(self) -> bool:
        """Whether the probe moved the rate."""
        return self.outcome == ACCEPTED


def fit(probe: Probe) -> tuple[float, float]:
    """Slope G and curvature H along d; exact where the loss is quadratic along it, whatever the span.

    Returns:
        (G, H): the loss falls at first along -d if G > 0; its minimum is at eta* = G/H if also H > 0. Not finite where
        a loss is not.

    Raises:
        ValueError: the span is not a finite number > 0.
    """
    if not 0 < probe.span < math.inf:
        raise ValueError(f"A probe's span must be a finite number > 0, not {probe.span!r}.")
    slope = (probe.loss_back - probe.loss_ahead) / 2 / probe.span
    return slope, probe.second_difference / probe.span / probe.span


def ulp_noise(loss: float, dtype_eps: float = FP32_EPSILON) -> float:
    """Rounding noise of a second difference of losses of this size: 4 units in the last place.

    The second difference adds four values, each rounded to about one ulp.

    Args:
        loss: the middle loss.
        dtype_eps: gap between 1 and the next number of the type that the loss was computed in (fp32 2^-23).

    Returns:
        4 * dtype_eps * the power of two at or below |loss|; 0 for 0, infinite for a loss that is not finite.
    """
    if not math.isfinite(loss):
        return math.inf
    return 4 * dtype_eps * math.ldexp(1.0, math.frexp(loss)[1] - 1) if loss else 0.0


class AutoRate:
    """The learning rate of a run, moved by probes.

    An accepted probe gives target = G/H, clipped to [rate/clip, rate * clip]; then
    rate <- smoothing * rate + (1 - smoothing) * target, held in [minimum, maximum]. With the defaults one probe moves
    the rate by -5 % to +10 %. A refused probe leaves it. Steps count from 0. Every rank must be given the same numbers.

    Args:
        rate: at the start, > 0.
        every: steps from one probe to the next, >= 1; step 0 has one.
        span: distance of the probe's outer points, > 0. None: the current rate, as in the paper. A fixed wider span
            keeps small rates out of the rounding noise.
        smoothing: in [0, 1): weight of the old rate.
        clip: >= 1: how far, as a factor, a target may be from the rate.
        first_unsmoothed: the first accepted probe sets the rate to G/H itself, neither clipped by `clip` nor smoothed.
            For a first guess that may be far off.
        noise_tolerance: > 0: a probe is refused if its noise is more than this times its second difference.
        halve_after: halve the rate after this many refusals in a row, then count anew; 0: never. Refusals for noise do
            not count and do not interrupt: they say nothing about the rate, and a smaller one would be noisier still.
        minimum: of the rate, >= 0.
        maximum: of the rate, >= minimum.

    Attributes:
        rate: the learning rate now.
        counts: outcome -> how many probes had it, and "halved".

    Raises:
        UserError: a setting is out of range.
    """

    def __init__(
        self,
        rate: float,
        every: int = 10,
        span: float | None = None,
        smoothing: float = 0.9,
        clip: float = 2.0,
        first_unsmoothed: bool = False,
        noise_tolerance: float = 0.1,
        halve_after: int = 0,
        minimum: float = 0.0,
        maximum: float = math.inf,
    ):
        for holds, name, value, expected in (
            (0 <= minimum < math.inf, "minimum", minimum, "a finite number >= 0"),
            (maximum >= minimum and maximum > 0, "maximum", maximum, "a number > 0, at least minimum"),
            (0 < rate < math.inf and minimum <= rate <= maximum, "rate", rate, "a number > 0 from minimum to maximum"),
            (every >= 1, "every", every, "a whole number >= 1"),
            (span is None or 0 < span < math.inf, "span", span, "a finite number > 0, or none for the current rate"),
            (0 <= smoothing < 1, "smoothing", smoothing, "a number in [0, 1)"),
            (1 <= clip < math.inf, "clip", clip, "a finite number >= 1"),
            (0 < noise_tolerance < math.inf, "noise_tolerance", noise_tolerance, "a finite number > 0"),
            (halve_after >= 0, "halve_after", halve_after, "a whole number >= 0 (0: never)"),
        ):
            if not holds:
                raise UserError(f"{name} of the automatic learning rate is {value!r}; expected {expected}. Change it.")
        self.rate = float(rate)
        self.every = every
        self.span = span
        self.smoothing = smoothing
        self.clip = clip
        self.first_unsmoothed = first_unsmoothed
        self.noise_tolerance = noise_tolerance
        self.halve_after = halve_after
        self.minimum = minimum
        self.maximum = maximum
        self.counts: dict[str, int] = dict.fromkeys((ACCEPTED, NOT_FINITE, NOISE, SLOPE, CURVATURE, "halved"), 0)
        self._refused_in_a_row = 0

    def due(self, step: int) -> bool:
        """Whether this step (from 0) is to be probed before it is made."""
        return step % self.every == 0

    def span_at(self) -> float:
        """Span of a probe made now."""
        return self.rate if self.span is None else self.span

    def update(self, probe: Probe, noise: float) -> Verdict:
        """Take or refuse a probe, and move the rate.

        Args:
            probe: the three losses.
            noise: absolute rounding noise of their second difference, >= 0; see `ulp_noise`.

        Returns:
            The outcome and the new rate.

        Raises:
            ValueError: the probe's span is not a finite number > 0.
        """
        slope, curvature = fit(probe)
        outcome = self._judge(probe, slope, curvature, noise)
        self.counts[outcome] += 1
        if outcome != ACCEPTED:
            self._refuse(outcome)
            return Verdict(outcome, self.rate, None)
        target = slope / curvature
        if self.first_unsmoothed and self.counts[ACCEPTED] == 1:
            rate = target
        else:
            clipped = min(max(target, self.rate / self.clip), self.rate * self.clip)
            rate = self.smoothing * self.rate + (1 - self.smoothing) * clipped
        self.rate = self._hold(rate)
        self._refused_in_a_row = 0
        return Verdict(outcome, self.rate, target)

    def state(self) -> dict[str, float]:
        """All that later rates depend on, and the counts; JSON keeps it bit for bit."""
        counts = {f"count_{name}": float(count) for name, count in self.counts.items()}
        return {"rate": self.rate, "refused_in_a_row": float(self._refused_in_a_row), **counts}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Continue from a saved `state()`, exactly; `UserError` if it is no such state."""
        check_layout(type(self).__name__, self.state(), state)
        self.rate = float(state["rate"])
        self._refused_in_a_row = int(state["refused_in_a_row"])
        self.counts = {name: int(state[f"count_{name}"]) for name in self.counts}

    def _judge(self, probe: Probe, slope: float, curvature: float, noise: float) -> str:
        if not all(map(math.isfinite, (probe.loss_back, probe.loss, probe.loss_ahead, slope, curvature))):
            return NOT_FINITE
        # Written so that a noise of NaN refuses too.
        if not noise <= self.noise_tolerance * abs(probe.second_difference):
            return NOISE
        if slope <= 0:
            return SLOPE
        if curvature <= 0:
            return CURVATURE
        target = slope / curvature
        return ACCEPTED if 0 < target < math.inf else NOT_FINITE

    def _refuse(self, outcome: str) -> None:
        if outcome == NOISE:
            return
        self._refused_in_a_row += 1
        if self._refused_in_a_row == self.halve_after:
            self.rate = self._hold(self.rate / 2)
            self.counts["halved"] += 1
            self._refused_in_a_row = 0

    def _hold(self, rate: float) -> float:
        return min(max(rate, self.minimum), self.maximum)
