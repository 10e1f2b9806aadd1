"""Place words on a figure so that none covers a point, the frontier or another word."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

Box = tuple[float, float, float, float]
"""(left, bottom, right, top) in typographic points from the figure's corner: the same at every resolution."""

# Right of the point reads best, then above; straight left of it last.
DIRECTIONS = ((1, 0), (1, 1), (0, 1), (1, -1), (-1, 1), (0, -1), (-1, -1), (-1, 0))
LINE_STEP = 2.0
"""Spacing, in typographic points, of the marks that stand for a line; finer than the smallest letter."""


class LabelPlacer:
    """Greedy placement: each label takes the first of eight places around its point that is free.

    Points, the frontier and earlier words are obstacles; a trajectory's line is crossed only where nothing else is
    free. The axes' layout must be final when this is made.
    """

    def __init__(self, ax: "Axes"):
        self._ax = ax
        self._scale = 72 / ax.figure.dpi
        self.boxes: list[Box] = []
        self._marks: list[np.ndarray] = []
        left, bottom, right, top = (float(edge) * self._scale for edge in ax.get_window_extent().extents)
        self._inside: Box = (left, bottom, right, top)

    def keep_free(self, points_N2: np.ndarray, radius: float) -> None:
        """Keep squares of this half-width, in typographic points, free around data points."""
        for x, y in self._positions(points_N2):
            self.boxes.append((x - radius, y - radius, x + radius, y + radius))

    def keep_line_free(self, corners_N2: np.ndarray) -> None:
        """Keep the line through these data points free; its pieces must be horizontal or vertical."""
        places_N2 = self._positions(corners_N2)
        for (x1, y1), (x2, y2) in pairwise(places_N2):
            self.boxes.append((min(x1, x2) - 0.5, min(y1, y2) - 0.5, max(x1, x2) + 0.5, max(y1, y2) + 0.5))

    def keep_text_free(self, text: "Text") -> None:
        """Keep the place of a text free that is on the axes already."""
        text.set_in_layout(False)
        left, bottom, right, top = (float(edge) * self._scale for edge in text.get_window_extent().extents)
        self.boxes.append((left, bottom, right, top))

    def avoid_line(self, points_N2: np.ndarray) -> None:
        """Prefer places off the line through these data points."""
        places_N2 = self._positions(points_N2)
        for start_2, end_2 in pairwise(places_N2):
            count = max(2, int(np.hypot(*(end_2 - start_2)) / LINE_STEP))
            self._marks.append(np.linspace(start_2, end_2, count))

    def place(self, point_2: np.ndarray, text: str, distance: float, must: bool, **style: Any) -> bool:
        """Write `text` beside a data point.

        Args:
            point_2: where, in data coordinates.
            text: one line.
            distance: gap to the point's middle in typographic points.
            must: write it at the least crowded place even where no place is free.
            **style: text properties.

        Returns:
            Whether it was written.
        """
        (place_2,) = self._positions(np.atleast_2d(point_2))
        width, height = self._size(text, style)
        boxes = [_beside(place_2, direction, distance, width, height) for direction in DIRECTIONS]
        costs = [(self._hits(box), self._crossings(box)) for box in boxes]
        cost, box = min(zip(costs, boxes, strict=True), key=lambda pair: pair[0])
        if cost[0] and not must:
            return False
        note = self._ax.annotate(
            text,
            (float(point_2[0]), float(point_2[1])),
            xytext=(box[0] - place_2[0], box[1] - place_2[1]),
            textcoords="offset points",
            ha="left",
            va="bottom",
            annotation_clip=False,
            zorder=9,
            **style,
        )
        note.set_in_layout(False)
        self.boxes.append(box)
        return True

    def corner(self, text: str, colour: str) -> None:
        """A word and an arrow to the upper right, in the corner with the fewest obstacles; lower left wins a tie."""
        left, bottom, right, top = self._inside
        width, height = 46.0, 24.0
        spots = [(left, bottom), (right - width, bottom), (left, top - height), (right - width, top - height)]
        boxes = [(x, y, x + width, y + height) for x, y in spots]
        box = min(boxes, key=lambda box: (sum(_overlap(box, other) for other in self.boxes), self._crossings(box)))

        def fraction(x: float, y: float) -> tuple[float, float]:
            return (box[0] + x - left) / (right - left), (box[1] + y - bottom) / (top - bottom)

        note = self._ax.annotate(
            "",
            xy=fraction(width - 4, height - 3),
            xytext=fraction(width - 17, height - 16),
            xycoords="axes fraction",
            arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0},
        )
        word = self._ax.annotate(
            text, fraction(6, 5), xycoords="axes fraction", fontsize=7, fontstyle="italic", color=colour
        )
        for drawn in (note, word):
            drawn.set_in_layout(False)
        self.boxes.append(box)

    def _positions(self, points_N2: np.ndarray) -> np.ndarray:
        points_N2 = np.asarray(points_N2, dtype=float).reshape(-1, 2)
        return self._ax.transData.transform(points_N2) * self._scale if len(points_N2) else points_N2

    def _size(self, text: str, style: dict[str, Any]) -> tuple[float, float]:
        trial = self._ax.annotate(text, (0, 0), annotation_clip=False, **style)
        extent = trial.get_window_extent()
        trial.remove()
        return extent.width * self._scale, extent.height * self._scale

    def _hits(self, box: Box) -> int:
        left, bottom, right, top = self._inside
        # The paper just above and right of the axes is empty; the axes' own lines and ticks are not.
        outside = box[0] < left + 1 or box[1] < bottom + 1 or box[2] > right + 2 or box[3] > top + 2
        return sum(_overlap(box, other) for other in self.boxes) + 3 * outside

    def _crossings(self, box: Box) -> int:
        return sum(
            int(
                (
                    (marks[:, 0] > box[0]) & (marks[:, 0] < box[2]) & (marks[:, 1] > box[1]) & (marks[:, 1] < box[3])
                ).any()
            )
            for marks in self._marks
        )


def _beside(place_2: np.ndarray, direction: tuple[int, int], distance: float, width: float, height: float) -> Box:
    dx, dy = direction
    # On a diagonal both gaps shrink, so that the text's corner is as far away as its edge would be.
    gap = distance * (0.7 if dx and dy else 1.0)
    left = float(place_2[0]) + dx * gap - (0.0, width / 2, width)[1 - dx]
    bottom = float(place_2[1]) + dy * gap - (0.0, height / 2, height)[1 - dy]
    return (left, bottom, left + width, bottom + height)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
