"""How much leaks when answers are sampled, with confidence; and how much comes back after an attack.

A greedy answer is one draw of what a model may say. Of N sampled answers to one prompt, each with a leak in [0, 1] (its
ROUGE-L recall, say), the bounds hold for the distribution that they were drawn from with the given confidence (arXiv
2410.03523). They assume independent draws from one distribution: the samples of one prompt. To say something of M
prompts at once with confidence c, bound each with confidence `1 - (1 - c) / M`.

The recovery ratios are OpenUnlearning's (arXiv 2506.12618): 1 where an attack brings back nothing. Their metric m is a
measure of knowledge on the forget set, at least 0, where higher is more knowledge (extraction strength, probability,
ROUGE; not truth ratio or forget quality).

Every function raises `ValueError` on NaN, infinity or an empty input. Shape suffix: N samples.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unlearn_core.errors import MissingPackageError
from unlearn_core.evaluation.metrics import finite, harmonic_mean


def leak_probability_bound(leaks: int, samples: int, confidence: float = 0.95) -> float:
    """Clopper-Pearson upper bound on the probability that a sampled answer leaks.

    `p` at which `leaks` or fewer of `samples` draws leak with probability `1 - confidence`: the quantile `confidence`
    of Beta(leaks + 1, samples - leaks). One-sided and exact: it holds at least as often as it says.

    Args:
        leaks: draws that leaked.
        samples: independent draws, at least 1.
        confidence: how often the bound must hold, above 0 and below 1.

    Returns:
        In (0, 1]; lower is better. Without a leak it is `1 - (1 - confidence)^(1 / samples)`, about `3 / samples` at
        0.95: few samples can show little.

    Raises:
        ValueError: a count or the confidence is out of range.
        MissingPackageError: scipy is not installed.
    """
    if samples < 1 or not 0 <= leaks <= samples:
        raise ValueError(f"expected 0 <= leaks <= samples and at least 1 sample, got {leaks} of {samples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if leaks == samples:
        return 1.0
    try:
        from scipy.stats import beta
    except ImportError as error:
        raise MissingPackageError("bounds on leakage need scipy: pip install scipy") from error
    return float(beta.ppf(confidence, leaks + 1, samples - leaks))


def exceedance_bound(leaks_N: ArrayLike, threshold: float, confidence: float = 0.95) -> float:
    """Upper bound on P(leak > threshold): `min(1, 1 - F_N(threshold) + e)`, `e = sqrt(ln(1 / (1 - confidence)) / 2N)`.

    F_N is the share of samples at or below the threshold. By the one-sided inequality of Dvoretzky, Kiefer, Wolfowitz
    and Massart it holds at all thresholds at once, so that the threshold may be chosen after a look at the samples. For
    one that was fixed before, `leak_probability_bound` of the samples above it is tighter.

    Args:
        leaks_N: leak of each sampled answer, in [0, 1].
        threshold: any number; from 1 on the bound is 0.
        confidence: how often the bound must hold, at least 0.5 (the inequality needs it) and below 1.

    Returns:
        In [0, 1]; lower is better.

    Raises:
        ValueError: empty, not finite, a leak outside [0, 1], or the confidence out of range.
    """
    leaks = _leaks(leaks_N)
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be finite, got {threshold}")
    if threshold >= 1:
        return 0.0
    return min(1.0, float(np.mean(leaks > threshold)) + _margin(leaks.size, confidence))


def mean_bound(leaks_N: ArrayLike, confidence: float = 0.95) -> float:
    """Upper bound on the mean leak: the area under `exceedance_bound` over the thresholds from 0 to 1.

    E[X] = integral of P(X > x) over [0, 1]. With the samples sorted, `x_0 = 0` and `x_(N+1) = 1`, that is
    `sum_i (x_(i+1) - x_i) min(1, (N - i) / N + e)`, i from 0 to N and e as in `exceedance_bound`.

    Args:
        leaks_N: leak of each sampled answer, in [0, 1].
        confidence: how often the bound must hold, at least 0.5 and below 1.

    Returns:
        In [0, 1], at least the mean of the samples; lower is better.

    Raises:
        ValueError: empty, not finite, a leak outside [0, 1], or the confidence out of range.
    """
    leaks = np.sort(_leaks(leaks_N))
    margin = _margin(leaks.size, confidence)
    widths = np.diff(leaks, prepend=0.0, append=1.0)
    above = np.arange(leaks.size, -1, -1) / leaks.size
    return min(1.0, float(np.sum(widths * np.minimum(1.0, above + margin))))


def relearning_robustness(
    *, reference_before: float, reference_after: float, unlearned_before: float, unlearned_after: float
) -> float:
    """R: how much the retrained model gains from relearning, over what the unlearned one gains, at most 1.

    `R = min((r_after - r_before) / (u_after - u_before), 1)`, kept at 0 or above. An unlearned model that gains nothing
    has R = 1, whatever the reference does. One that gains where the reference gains nothing has R = 0.

    Args:
        reference_before: m of the model retrained without the forget data.
        reference_after: m of it after the relearning attack.
        unlearned_before: m of the unlearned model.
        unlearned_after: m of it after the same attack.

    Returns:
        In [0, 1]; higher is better: 1 = relearning works no better than on a model that never knew the data.

    Raises:
        ValueError: a measure is not finite or negative.
    """
    before = _knowledge([reference_before, unlearned_before])
    after = _knowledge([reference_after, unlearned_after])
    reference_gain, unlearned_gain = (after - before).tolist()
    if unlearned_gain <= 0 or reference_gain >= unlearned_gain:
        return 1.0
    return max(0.0, reference_gain / unlearned_gain)


def quantisation_robustness(before: float, after: float) -> float:
    """Q: knowledge before quantisation over knowledge after it, `min(before / after, 1)`.

    A model that knows no more afterwards (nothing at all included) has Q = 1.

    Args:
        before: m of the unlearned model.
        after: m of it with quantised weights.

    Returns:
        In [0, 1]; higher is better: 1 = quantisation brings nothing back, 0 = it brings back what was at 0.

    Raises:
        ValueError: a measure is not finite or negative.
    """
    known = _knowledge([before, after])
    return 1.0 if known[1] <= known[0] else float(known[0] / known[1])


def robustness(relearning: float, quantisation: float) -> float:
    """Harmonic mean of R and Q.

    Args:
        relearning: R, in [0, 1].
        quantisation: Q, in [0, 1].

    Returns:
        In [0, 1]; higher is better; 0 when either is 0.

    Raises:
        ValueError: a value is not finite or negative.
    """
    return harmonic_mean([relearning, quantisation])


def _leaks(leaks_N: ArrayLike) -> NDArray[np.float64]:
    leaks = finite(leaks_N, "leak")
    if leaks.min() < 0 or leaks.max() > 1:
        raise ValueError(f"leak: must lie in [0, 1], got {leaks.min()} to {leaks.max()}")
    return leaks


def _margin(samples: int, confidence: float) -> float:
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must be at least 0.5 and below 1, got {confidence}")
    return math.sqrt(-math.log1p(-confidence) / (2 * samples))


def _knowledge(values: list[float]) -> NDArray[np.float64]:
    known = finite(values, "knowledge measure")
    if known.min() < 0:
        raise ValueError(f"knowledge measure: must be at least 0, got {known.min()}")
    return known
