"""Equal first-order progress on every objective, in units of its own slope: d = sum_k g_k / |g_k|."""

from unlearn_core.combine import Array
from unlearn_core.combiners.combiner import Combiner, given, inverse_or_zero, norms


class Bisector(Combiner):
    """Sum of unit gradients; for (retain, forget) it is NGDiff, g_R/|g_R| - g_F/|g_F| (arXiv 2410.22086).

    The norm is one global L2 norm over all trainable parameters, after accumulation and reduction. With two objectives
    and rho the cosine between the descent gradients, <d, g_k> = |g_k| (1 + rho) >= 0 for both: they never conflict, and
    |d|^2 = 2 (1 + rho) <= 4. The lengths of the gradients, so batch sizes and loss scales, do not matter.

    With two objectives these have the same direction and differ only in length, so they are not offered apart:
    Nash-MTL (arXiv 2202.01017; G w = 1/w) and MUNBa (2411.15537), d / sqrt(1 + rho); IMTL-G, d times the harmonic mean
    of the lengths over two; min-norm of the normalised gradients, d/2 (`MinNorm(normalize="l2")`). With three or more
    they differ, and this sum can then conflict with one of its gradients.

    Degenerate: a zero gradient is dropped (`DEGENERATE_NORM` says what counts as zero beside the longest); all zero, no
    step. Opposite gradients cancel: d = 0 up to rounding.
    """

    def weights(self, gram_VV: Array | None, losses_K: Array | None, step: int) -> Array:
        """1/|g_k|, or 0 for a zero gradient."""
        return inverse_or_zero(norms(given(gram_VV)))
