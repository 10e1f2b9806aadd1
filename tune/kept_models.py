"""Which weights a search keeps: those of the present front, at most so many; all others go once they are scored."""

import shutil
from pathlib import Path

import numpy as np

from tune.archive import Archive
from tune.history import Point, values_of
from tune.objectives import hypervolume
from unlearn_core.loop import model_folder
from unlearn_core.publish import MARKER


class KeptModels:
    """Drops the weights of scored steps.

    Args:
        archive: the search's.
        most: K; of a larger front the K points that together lose least hypervolume stay.
    """

    def __init__(self, archive: Archive, most: int):
        self.archive, self.most = archive, most

    def folder(self, point: Point) -> Path:
        """Where the model of a point is or was."""
        return model_folder(self.archive.trial_folder(point.trial), point.step)

    def members(self) -> list[Point]:
        """Points whose weights are kept: greedily the one that adds most hypervolume to those chosen before it."""
        rest: list[Point] = self.archive.history.front()
        if len(rest) <= self.most:
            return rest
        chosen: list[Point] = []
        while rest and len(chosen) < self.most:
            gains = [hypervolume(values_of([*chosen, point])) for point in rest]
            chosen.append(rest.pop(int(np.argmax(gains))))
        return chosen

    def sweep(self) -> None:
        """Drop what need not be kept: models of scored steps off the front, all but the front of ended trials.

        What a running trial starts from stays.
        """
        kept = {self.folder(point) for point in self.members()}
        kept |= {
            model_folder(self.archive.trial_folder(trial.parent), trial.parent_step)
            for trial in self.archive.history.running
            if trial.parent is not None and trial.parent_step is not None
        }
        for trial in self.archive.history:
            models = self.archive.trial_folder(trial.number) / "models"
            if not models.is_dir():
                continue
            scored = {self.folder(point) for point in trial.points}
            for folder in models.iterdir():
                over = trial.status != "running"
                if folder not in kept and (folder in scored or over):
                    drop(folder)

    def existing(self) -> list[Point]:
        """Members whose weights are on disk."""
        return [point for point in self.members() if (self.folder(point) / MARKER).is_file()]


def drop(folder: Path) -> None:
    """Remove a model, its marker first, so that half of one never passes for whole."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
