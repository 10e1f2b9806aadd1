"""How much hypervolume a trajectory adds to a front, for many trajectories at once. The reference point is the origin.

For two objectives the front is a staircase g(x), the greatest second objective of points whose first is at least x, and
so is the trajectory, h(x). What the trajectory adds is the area between them where it is the higher one:

    HV(P u {f_1..f_T}) - HV(P) = integral over x > 0 of max(h(x) - g(x), 0)

Sorted by the falling first objective, h is constant on [a_i, b_i] = [f1_{i+1}, f1_i] with h_i the running maximum of
the second (Fonseca, Paquete and López-Ibáñez, CEC 2006). g falls, so h_i is above it from one place x* on, and with G
the integral of g each interval adds, exactly,

    h_i (b_i - s_i) - (G(b_i) - G(s_i)),     s_i = x*(h_i) clipped to [a_i, b_i].

That is a sort of T numbers and three look-ups in the front, O(T log(T N)) a trajectory, where the staircase over the
union would sort N + T. For three or more objectives moocore counts, one trajectory at a time.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tune.objectives import hypervolume
from unlearn_core.frontier import non_dominated


def front_mask(values_NM: NDArray[np.float64]) -> NDArray[np.bool_]:
    """As `unlearn_core.frontier.non_dominated` with all objectives maximised, but O(N log N) for two objectives.

    Args:
        values_NM: finite; N may be 0.

    Returns:
        Shape (N,); every copy of a non-dominated point is on the front.
    """
    if values_NM.ndim != 2 or values_NM.shape[1] != 2:
        return non_dominated(values_NM, (True,) * values_NM.shape[-1])
    unique_K2, place_N = np.unique(values_NM, axis=0, return_inverse=True)
    falling_K = unique_K2[::-1, 1]
    best_K = np.maximum.accumulate(falling_K)
    above_K = np.concatenate([[True], falling_K[1:] > best_K[:-1]])[: len(falling_K)]
    return above_K[::-1][place_N.reshape(-1)]


class Front:
    """The non-dominated points of a set, ready to be improved on.

    Args:
        values_NM: any finite points, higher is better; N may be 0. Points without a positive value in every objective
            count for nothing.
    """

    def __init__(self, values_NM: NDArray[np.float64]):
        inside_NM = values_NM[(values_NM > 0).all(axis=1)]
        self.values_NM = np.unique(inside_NM[front_mask(inside_NM)], axis=0)
        self.hypervolume = hypervolume(self.values_NM)
        if values_NM.shape[1] == 2:
            # unique() sorts by the first objective, so the heights fall.
            zero_1 = torch.zeros(1, dtype=torch.float64)
            points_N2 = torch.as_tensor(self.values_NM, dtype=torch.float64)
            self._edges_K = torch.cat([zero_1, points_N2[:, 0]])
            self._heights_K = torch.cat([points_N2[:, 1], zero_1])
            areas_N = self._heights_K[:-1] * self._edges_K.diff()
            self._areas_K = torch.cat([zero_1, areas_N.cumsum(0)])

    def joined(self, values_KM: NDArray[np.float64]) -> "Front":
        """The front of these points and more."""
        return Front(np.vstack([self.values_NM, values_KM]))

    def improvement(self, trajectories_RTM: Tensor) -> Tensor:
        """HV(P u {f_1..f_T}) - HV(P) of each of R trajectories.

        Args:
            trajectories_RTM: T points each, finite, fp64; R stands for any number of leading dimensions. A point that
                is not above 0 in every objective adds nothing, so infeasible ones are put at 0.

        Returns:
            Shape (R,), 0 or more, in the product of the objectives' units.
        """
        if trajectories_RTM.shape[-1] == 2:
            return self._improvement_2(trajectories_RTM)
        flat_RTM = trajectories_RTM.reshape(-1, *trajectories_RTM.shape[-2:]).numpy()
        gains = [hypervolume(np.vstack([self.values_NM, points_TM])) - self.hypervolume for points_TM in flat_RTM]
        return torch.tensor(gains, dtype=torch.float64).clamp_min(0.0).reshape(trajectories_RTM.shape[:-2])

    def _improvement_2(self, trajectories_RT2: Tensor) -> Tensor:
        first_RT, second_RT = trajectories_RT2.clamp_min(0.0).unbind(-1)
        right_RT, order_RT = first_RT.sort(dim=-1, descending=True)
        height_RT = second_RT.gather(-1, order_RT).cummax(dim=-1).values
        left_RT = torch.cat([right_RT[..., 1:], torch.zeros_like(right_RT[..., :1])], dim=-1)
        # The front is at least as high as h up to the last of its points that is.
        as_high_RT = torch.searchsorted(-self._heights_K[:-1], (-height_RT).contiguous(), right=True)
        start_RT = torch.minimum(torch.maximum(self._edges_K[as_high_RT], left_RT), right_RT)
        between_RT = self._area(right_RT) - self._area(start_RT)
        return (height_RT * (right_RT - start_RT) - between_RT).clamp_min(0.0).sum(-1)

    def _area(self, x_RT: Tensor) -> Tensor:
        """G: area under the front's staircase between 0 and x."""
        k_RT = torch.searchsorted(self._edges_K[1:], x_RT.contiguous())
        return self._areas_K[k_RT] + (x_RT - self._edges_K[k_RT]) * self._heights_K[k_RT]
