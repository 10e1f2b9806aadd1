"""Tables, frontier and the plain-words page of `benchmarks.tofu_full`, made from rows alone, whichever method wins."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tofu_full_plan import CONTESTS, SEEDS, Piece, Row, choice, score
from unlearn_core.frontier import non_dominated, staircase_hypervolume

Rows = Mapping[str, Row]
SHOWN = {
    "model_utility": "model utility",
    "forget_quality": "forget quality",
    "privleak": "PrivLeak",
    "extraction_strength": "extraction strength",
    "forget_Q_A_Prob": "forget probability",
    "forget_Q_A_ROUGE": "forget ROUGE",
}
"""Columns of the final measurement."""


def missing_pieces(rows: Rows) -> list[str]:
    """What has no row that is through, in words; a run that diverged is through."""
    found = [_told(name, rows) for name in ("reference", "target") if not _through(rows.get(name))]
    for name in CONTESTS:
        grid = [Piece("unlearn", name, k).name for k in range(3)]
        found += [_told(one, rows) for one in grid if not _through(rows.get(one))]
        chosen = choice(name, rows)
        if chosen is None:
            found.append(f"{name}: its chosen rate, three seeds of it and their final measurements")
            continue
        wanted = [Piece("unlearn", name, chosen, seed).name for seed in SEEDS[1:]]
        wanted += [Piece("final", name, chosen, seed).name for seed in SEEDS]
        found += [_told(one, rows) for one in wanted if not _through(rows.get(one))]
    return found


def _through(row: Row | None) -> bool:
    return row is not None and row["status"] != "failed"


def _told(name: str, rows: Rows) -> str:
    row = rows.get(name)
    return f"{name}: {row['reason']}" if row else name


def table(rows: Rows, smoke: bool) -> str:
    """Everything as Markdown."""
    if not rows:
        return "Nothing has been measured yet: run `python -m benchmarks.tofu_full` where a GPU is."
    parts = ["# forget10 on all of TOFU", "", _origin(rows)]
    if smoke:
        parts += ["", "**A smoke run on a cut of TOFU: no result.**"]
    parts += ["", *_premises(rows), "", *_finals(rows), "", *_grid(rows), "", *_frontier(rows), "", *_missing(rows)]
    return "\n".join(parts)


def _origin(rows: Rows) -> str:
    devices = ", ".join(sorted({row["machine"]["device"] for row in rows.values()}))
    dates = sorted({row["date"] for row in rows.values()})
    minutes = sum(row.get("seconds", 0.0) for row in rows.values()) / 60
    machine = next(iter(rows.values()))["machine"]
    packages = ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "transformers", "deepspeed") if name in machine
    )
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return f"{when}, {devices}; {packages}; source {machine['source']}; {minutes:.1f} minutes of work."


def _premises(rows: Rows) -> list[str]:
    """Target and reference, and whether they differ in what is to be forgotten."""
    models = [(name, rows[name]["values"]) for name in ("target", "reference") if _done(rows.get(name))]
    if not models:
        return ["Target and reference have not been taught."]
    head = f"| model | {' | '.join(SHOWN.values())} |"
    lines = [head, "|" + "---|" * (1 + len(SHOWN))]
    lines += [f"| {name} | {' | '.join(_number(values.get(column)) for column in SHOWN)} |" for name, values in models]
    if len(models) == 2:
        known = models[0][1]["forget_Q_A_Prob"]
        gap = known - models[1][1]["forget_Q_A_Prob"]
        verdict = "holds" if known >= 0.8 and gap > 0.3 else "does NOT hold: read what follows with care"
        lines += ["", f"Premise, the target has the forget rows by heart and the reference has not: {verdict}."]
    return lines


def _done(row: Row | None) -> bool:
    return row is not None and row["status"] == "done"


def finals(rows: Rows) -> dict[str, list[tuple[Row, Row]]]:
    """Method -> (run, final measurement) of each seed of its chosen rate that has both, in the order of seeds."""
    found: dict[str, list[tuple[Row, Row]]] = {}
    for name in CONTESTS:
        chosen = choice(name, rows)
        for seed in SEEDS if chosen is not None else ():
            run = rows.get(Piece("unlearn", name, chosen or 0, seed).name)
            final = rows.get(Piece("final", name, chosen or 0, seed).name)
            if _done(run) and _done(final):
                assert run is not None and final is not None
                found.setdefault(name, []).append((run, final))
    return found


def _finals(rows: Rows) -> list[str]:
    head = ["method", "rate", "seeds", "score", "seeds 1, 2", "forgetting", "utility", *SHOWN.values()]
    lines = [f"| {' | '.join((*head, '4-bit Q', 'relearning R'))} |", "|" + "---|" * (len(head) + 2)]
    for name, pairs in finals(rows).items():
        runs, measured = [run for run, _ in pairs], [final for _, final in pairs]
        points = [_selected(run) for run in runs]
        chosen = choice(name, rows) or 0
        cells = [
            CONTESTS[name].title,
            f"{CONTESTS[name].rates[chosen]:g}",
            str(len(pairs)),
            _spread([run["score"] for run in runs]),
            _spread([run["score"] for run in runs if run["piece"]["seed"]]),
            *(_spread([point[key] for point in points]) for key in ("forgetting", "utility")),
            *(_spread([one["values"][key] for one in measured if key in one["values"]]) for key in SHOWN),
            *(_spread([one[key]["robustness"] for one in measured if key in one]) for key in ("nf4", "relearning")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    note = "Mean over seeds (smallest to largest). Q and R: 1 means that nothing comes back."
    return ["## Chosen configurations", "", *lines, "", note]


def _selected(run: Row) -> Mapping[str, Any]:
    return next(point for point in run["points"] if point["epoch"] == run["selected"])


def _grid(rows: Rows) -> list[str]:
    lines = ["## Three rates each, seed 0", "", "| method | rate | score by epoch | selected |", "|---|---|---|---|"]
    for name, contest in CONTESTS.items():
        for k, rate in enumerate(contest.rates):
            row = rows.get(Piece("unlearn", name, k).name)
            if row is None:
                told, selected = "not run", ""
            elif row["status"] != "done":
                told, selected = f"{row['status']}: {row['reason']}", ""
            else:
                told = ", ".join(f"{score(point['forgetting'], point['utility']):.3f}" for point in row["points"])
                selected = str(row["selected"]) + (", chosen" if choice(name, rows) == k else "")
            lines.append(f"| {contest.title} | {rate:g} | {told} | {selected} |")
    return lines


def points_of(rows: Rows, contest: str) -> list[tuple[float, float]]:
    """(utility, forgetting) after every epoch of the method's three runs with seed 0."""
    runs = [rows.get(Piece("unlearn", contest, k).name) for k in range(3)]
    return [(p["utility"], p["forgetting"]) for run in runs if run and _done(run) for p in run["points"]]


def _frontier(rows: Rows) -> list[str]:
    lines = ["## Frontier, seed 0", "", "| method | points | hypervolume | on the common front |", "|---|---|---|---|"]
    whole = [(name, point) for name in CONTESTS for point in points_of(rows, name)]
    on_front = non_dominated([point for _, point in whole], (True, True)) if whole else []
    for name, contest in CONTESTS.items():
        points = points_of(rows, name)
        volume = staircase_hypervolume(points, (0.0, 0.0), (True, True)) if points else 0.0
        count = sum(bool(on) for (who, _), on in zip(whole, on_front, strict=True) if who == name)
        lines.append(f"| {contest.title} | {len(points)} | {volume:.3f} | {count} |" if points else "| " + contest.title
                     + " | 0 | not measured | |")  # fmt: skip
    return [*lines, "", "Area of utility x forgetting from (0, 0); three rates and every epoch of each."]


def _missing(rows: Rows) -> list[str]:
    metrics: dict[str, str] = {}
    for pairs in finals(rows).values():
        for _, final in pairs:
            metrics |= final["missing"]
    lines = [f"- {told}" for told in missing_pieces(rows)]
    lines += [f"- {name}: {why}" for name, why in sorted(metrics.items())]
    return ["## Missing", "", *(lines or ["Nothing."])]


def draw(rows: Rows, path: Path) -> str:
    """The frontier as a picture; why there is none, else ""."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return "no picture: matplotlib is not installed"
    found = {name: points for name in CONTESTS if (points := points_of(rows, name))}
    if not found:
        return "no picture: no run has points yet"
    figure, axes = pyplot.subplots(figsize=(7, 5))
    markers = "osD^vPX"
    for (name, points), marker in zip(found.items(), markers, strict=False):
        axes.plot(*zip(*points, strict=True), marker, label=CONTESTS[name].title, alpha=0.8)
    whole = [point for points in found.values() for point in points]
    front = sorted(p for p, on in zip(whole, non_dominated(whole, (True, True)), strict=True) if on)
    corners = [(0.0, front[0][1]), *front, (front[-1][0], 0.0)]
    axes.step(*zip(*corners, strict=True), where="pre", color="grey", linewidth=1, label="common front", zorder=0)
    axes.set(xlabel="utility, of the target's", ylabel="forgetting, of the way to the reference")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), title="TOFU forget10: three rates each, every epoch, seed 0")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return ""


def reading(rows: Rows) -> list[str]:
    """What the numbers say, in sentences; a lead counts where the seeds of two methods do not overlap."""
    ranked = sorted(finals(rows).items(), key=lambda item: -statistics.mean(run["score"] for run, _ in item[1]))
    if not ranked:
        return ["No method has been measured to the end."]
    said = []
    spans = {name: [run["score"] for run, _ in pairs] for name, pairs in ranked}
    first = ranked[0][0]
    told = f"{CONTESTS[first].title} has the highest mean score, {statistics.mean(spans[first]):.3f}"
    if len(ranked) > 1:
        level = [name for name, _ in ranked[1:] if max(spans[name]) >= min(spans[first])]
        names = ", ".join(CONTESTS[name].title for name in level)
        told += (
            f". Its seeds overlap with those of: {names}" if level else ", and its worst seed beats all others' best"
        )
    said.append(told + ".")
    order = ", ".join(f"{CONTESTS[name].title} {statistics.mean(spans[name]):.3f}" for name, _ in ranked)
    said.append(f"In order: {order}.")
    volumes = {
        name: staircase_hypervolume(points, (0.0, 0.0), (True, True))
        for name in CONTESTS
        if (points := points_of(rows, name))
    }
    widest = max(volumes, key=lambda name: volumes[name])
    said.append(f"Over all rates and epochs, {CONTESTS[widest].title} covers the largest area, {volumes[widest]:.3f}.")
    for key, what in (("nf4", "rounding to 4 bits"), ("relearning", "relearning on the forget rows")):
        ratios = {name: [f[key]["robustness"] for _, f in pairs if key in f] for name, pairs in ranked}
        means = {name: statistics.mean(values) for name, values in ratios.items() if values}
        if means:
            low, high = min(means, key=lambda n: means[n]), max(means, key=lambda n: means[n])
            said.append(
                f"Under {what}, {CONTESTS[high].title} gives back least ({means[high]:.3f}) and {CONTESTS[low].title} "
                f"most ({means[low]:.3f}; 1 is nothing)."
            )
    return said


def page(rows: Rows) -> str:
    """docs/results.md; "" while no method has been measured to the end."""
    if not finals(rows):
        return ""
    missing = missing_pieces(rows)
    caution = f"**Incomplete: {len(missing)} parts are missing, named below.**" if missing else "Nothing is missing."
    words = [f"- {sentence}" for sentence in reading(rows)]
    picture = "![frontier](../benchmarks/results/tofu_full/frontier.png)"
    head = ["# Results on the full benchmark", "", "Written by `python -m benchmarks.tofu_full` from its rows.", ""]
    body = table(rows, False).replace("# forget10 on all of TOFU\n", "## Numbers\n", 1).replace("\n## ", "\n### ")
    return "\n".join([*head, caution, "", "## In words", "", *words, "", picture, "", body]) + "\n"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "not measured"
    middle = _number(statistics.mean(values))
    return (
        middle
        if _number(min(values)) == _number(max(values))
        else f"{middle} ({_number(min(values))} to {_number(max(values))})"
    )


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"
