"""A search on the real thing: trajectory-based Bayesian optimisation against random search, at equal optimizer steps.

    python -m benchmarks.search_real [--output outputs/search-real] [--picture docs/images/search-real]

NGDiff (with and without AutoLR) and mean teacher on a small model that knows its rows by heart
(benchmarks/search_model.py), training seed 0, three search seeds each, two trials at a time through Ray Tune. Each
search may take `--steps` optimizer steps. Resumable. The figure is the hypervolume reached, by moocore; it is required
to be at least random search's in the mean over the seeds. Start-up of a trial and time for a proposal are
reported.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from benchmarks.search_model import EVERY, SPACE, STEPS, goal, make_pair, runner
from pipelines.ray_session import start_ray
from pipelines.search_frontier import search_frontier
from tune.archive import TRIALS, Archive, read_lines
from tune.attainment import hypervolume_summary
from tune.optimistic_stop import OptimisticStop
from tune.random_search import RandomSearcher
from tune.search import Budget, Resources, Search
from tune.space import Space
from tune.trajectory_search import TrajectoryBayesSearcher

SEEDS = (0, 1, 2)
MINIMUM = 12
"""Steps that every trial gets: a fifth of the run."""


def a_search(name: str, seed: int, steps: int, folder: Path, pair: tuple[Path, Path]) -> Archive:
    """Run one search, or go on with it."""
    target, reference = pair
    aims, space = goal(target, reference), Space.from_data(SPACE)
    about = {
        "name": f"{name}-{seed}",
        "fingerprint": f"{name}-{seed}",
        "goal": aims.to_data(),
        "space": SPACE,
        "searcher": {"name": name, "seed": seed, "told": "best"},
        "total_steps": STEPS,
        "export_every": EVERY,
    }
    archive = Archive(folder / f"{name}-{seed}", about)
    if name == "random":
        searcher, rules = RandomSearcher(space, archive.history, seed, STEPS), []
    else:
        searcher = TrajectoryBayesSearcher(space, archive.history, seed, STEPS)
        rules = [OptimisticStop(searcher.models, MINIMUM)]
    search = Search(archive, searcher, rules, Budget(steps=steps), runner(target), keep=0)
    search.run(Resources({"CPU": 1}, 2))
    return archive


def timings(archives: list[Archive]) -> tuple[list[float], list[float]]:
    """Seconds from a trial's start to its first scored step, and of each proposal."""
    first, proposed = [], []
    for archive in archives:
        for line in read_lines(archive.folder / TRIALS):
            if line["event"] == "start":
                points = archive.history.trials[line["trial"]].points
                first += [points[0].time - line["time"]] if points else []
                proposed.append(line["propose_seconds"])
    return first, proposed


def main() -> int:
    """Run what is missing, then print the figures; 1 when trajectory search falls short of random search."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--output", type=Path, default=Path("outputs/search-real"))
    arguments.add_argument("--steps", type=int, default=1200)
    arguments.add_argument("--picture", type=Path, default=None, help="Copy the pictures to STEM-*.png.")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    console = Console()
    pair = make_pair(options.output / "models")
    start_ray(num_cpus=2)
    archives: dict[str, list[Archive]] = {"random": [], "trajectory": []}
    for seed in SEEDS:
        for name, done in archives.items():
            begin = time.monotonic()
            done.append(a_search(name, seed, options.steps, options.output, pair))
            history = done[-1].history
            pruned = sum(trial.status == "pruned" for trial in history)
            console.print(
                f"{name} seed {seed}: {len(history)} trials ({pruned} stopped early), {history.steps_spent} steps, "
                f"hypervolume {hypervolume_summary([history]).mean:.4f}, {time.monotonic() - begin:.0f} s",
                highlight=False,
                soft_wrap=True,
            )
    folders = [archive.folder for done in archives.values() for archive in done]
    search_frontier(folders, options.output / "frontier")
    if options.picture is not None:
        for name in ("frontier", "hypervolume"):
            drawn = options.output / "frontier" / f"{name}.png"
            shutil.copyfile(drawn, options.picture.with_name(f"{options.picture.name}-{name}.png"))
    return _figures(archives, console)


def _figures(archives: dict[str, list[Archive]], console: Console) -> int:
    means = {}
    for name, done in archives.items():
        found = hypervolume_summary([archive.history for archive in done])
        means[name] = found.mean
        told = ", ".join(f"{volume:.4f}" for volume in found.each)
        interval = f"bootstrap interval {found.low:.4f} to {found.high:.4f}"
        console.print(f"{name}: mean {found.mean:.4f} of {told}; {interval}", highlight=False, soft_wrap=True)
        first, proposed = timings(done)
        console.print(
            f"  from a trial's start to its first scored step {np.median(first):.1f} s (median of {len(first)}); "
            f"a proposal {np.median(proposed):.2f} s (median), {max(proposed):.2f} s at most",
            highlight=False,
        )
    passed = means["trajectory"] >= means["random"]
    console.print(
        f"{'PASS' if passed else 'FAIL'}: hypervolume of trajectory search {means['trajectory']:.4f}, of random search "
        f"{means['random']:.4f}; required: at least equal",
        highlight=False,
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
