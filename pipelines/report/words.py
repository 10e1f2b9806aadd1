"""The summary in plain words. Every sentence is a number of the data put into words, or says what is missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.report.answers import Answers
from pipelines.report.attacks import Attacks
from pipelines.report.models import Point, View
from pipelines.report.points import Gathered
from pipelines.report.views import is_candidate
from unlearn_core.frontier import non_dominated
from unlearn_core.method import methods


@dataclass(frozen=True)
class Front:
    """The front on the axes that the page opens with.

    Attributes:
        x: forgetting, or the first objective.
        y: utility, or the second.
        members: places in the list of points, by rising x.
        volumes: method -> hypervolume; "" for all together.
    """

    x: View
    y: View
    members: tuple[int, ...]
    volumes: Mapping[str, float]


def front_of(gathered: Gathered, x: View, y: View, volumes: Mapping[str, float]) -> Front:
    """Non-dominated candidates on two axes."""
    placed = [
        n
        for n, point in enumerate(gathered.points)
        if is_candidate(point) and x.values[n] is not None and y.values[n] is not None
    ]
    places = [(x.values[n] or 0.0, y.values[n] or 0.0) for n in placed]  # none is None; pyright cannot see that
    mask_N = non_dominated(places, (True, True))
    members = [n for n, on_front in zip(placed, mask_N, strict=True) if on_front]
    return Front(x, y, tuple(sorted(members, key=lambda n: (x.values[n] or 0.0, n))), volumes)


def title_of(method: str) -> str:
    """A method's title as in tables and pictures."""
    known = methods()
    return known[method].title if method in known else method


def summary(
    gathered: Gathered, front: Front | None, told: Answers | None, attacked: Sequence[Attacks], logs: int
) -> list[str]:
    """Sentences, most important first.

    Args:
        gathered: points and runs.
        front: on the axes that the page opens with; None where there is none.
        told: answers, or None.
        attacked: robustness folders.
        logs: runs whose training log is at hand.
    """
    sentences = [_what(gathered)]
    if front is not None:
        sentences += _front(gathered, front)
    sentences += [_attack(one) for one in attacked if one.scores]
    sentences += _missing(gathered, front, told, attacked, logs)
    return sentences + gathered.notes


def _what(gathered: Gathered) -> str:
    points = [point for point in gathered.points if point.role == "checkpoint"]
    tried = {point.run for point in points}
    found = [title_of(name) for name in sorted({gathered.runs[key].method for key in tried})]
    again = {point.run for point in gathered.points if point.role == "rerun"}
    if not points:
        return f"{_count(len(gathered.runs), 'training run')} without an evaluated checkpoint."
    where = ", ".join(value for value in gathered.settings.values() if value)
    text = f"{_count(len(points), 'checkpoint')} of {_count(len(tried), 'run')} of {_listed(found)}, on {where}."
    return text + (f" {_count(len(again), 'run')} repeated front members with another seed." if again else "")


def _front(gathered: Gathered, front: Front) -> list[str]:
    if not front.members:
        return ["No checkpoint has a position on both axes, so there is no frontier."]
    owners = [gathered.runs[gathered.points[n].run].method for n in front.members]
    parts = [f"{owners.count(name)} of {title_of(name)}" for name in dict.fromkeys(sorted(owners))]
    found = [f"{_count(len(front.members), 'checkpoint')} non-dominated: {_listed(parts)}."]
    alone = {name: volume for name, volume in front.volumes.items() if name}
    if len(alone) > 1:
        ranked = sorted(alone.items(), key=lambda pair: -pair[1])
        named = _listed([f"{title_of(name)} {volume:.4f}" for name, volume in ranked])
        found.append(
            f"Hypervolume (area covered, larger is better) of each method alone: {named}; "
            f"of all together {front.volumes['']:.4f}."
        )
    elif front.volumes:
        found.append(f"Hypervolume (area covered, larger is better): {front.volumes['']:.4f}.")
    return found + _stars(gathered, front)


def star_of(gathered: Gathered, front: Front, role: str) -> tuple[float, float] | None:
    """Place of the first target or reference that has one on both axes of the front."""
    for n, point in enumerate(gathered.points):
        x, y = front.x.values[n], front.y.values[n]
        if point.role == role and x is not None and y is not None:
            return x, y
    return None


def _stars(gathered: Gathered, front: Front) -> list[str]:
    """Where the front stands against the retrained model."""
    reference = star_of(gathered, front, "reference")
    if reference is None:
        return []
    rx, ry = reference
    at = [(front.x.values[n], front.y.values[n], n) for n in front.members]
    reached = [(y, n) for x, y, n in at if x is not None and y is not None and x >= rx]
    if not reached:
        return [f"No checkpoint forgets as much as the retrained model ({front.x.label}: {rx:.3f})."]
    y, n = max(reached)
    point = gathered.points[n]
    verb = "no less than" if y >= ry else "below"
    return [
        f"Of the checkpoints that forget at least as much as the retrained model, {gathered.runs[point.run].label} at "
        f"step {point.step} keeps most: {front.y.label} {y:.3f}, {verb} the retrained model's {ry:.3f}."
    ]


def _attack(one: Attacks) -> str:
    known = [score for score in one.scores if score["lowest"] is not None]
    if not known:
        return f"Attacks in {one.folder} gave no ratio."
    worst = min(known, key=lambda score: score["lowest"])
    return (
        f"Of the attacked models {worst['model']} has the lowest ratio: {worst['lowest']:.2f} under "
        f"{worst['lowest_attack']} (1 = no more comes back than a retrained model gains, 0 = all of it was hidden)."
    )


def _missing(
    gathered: Gathered, front: Front | None, told: Answers | None, attacked: Sequence[Attacks], logs: int
) -> list[str]:
    roles = {point.role for point in gathered.points}
    lacks = []
    if front is None:
        lacks.append("no evaluation or search, so no frontier")
    else:
        lacks += [f"no {name}" for role, name in (("target", "target model"), ("reference", "retrained model"))
                  if role not in roles]  # fmt: skip
    if front is not None and not _seeds(gathered.points, gathered):
        lacks.append("no run with a second training seed, so nothing says how much of a difference is chance")
    if told is None:
        lacks.append("no answers to show")
    if not attacked:
        lacks.append("no attacks (`unlearn robustness`), so nothing says how firmly anything was forgotten")
    if not logs:
        lacks.append("no training log")
    return [f"Not in this report: {'; '.join(lacks)}."] if lacks else []


def _seeds(points: Sequence[Point], gathered: Gathered) -> bool:
    """Whether some configuration was trained with two seeds."""
    seeds: dict[str, set[int | None]] = {}
    for key in {point.run for point in points}:
        run = gathered.runs[key]
        if run.family:
            seeds.setdefault(run.family, set()).add(run.seed)
    return any(len(found) > 1 for found in seeds.values())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
