"""Does the trajectory search need fewer optimizer steps than random search, and how long does a proposal take?

    python -m benchmarks.search                     # resumable; a rerun takes up what is missing
    python -m benchmarks.search --problems patience --searchers random,tmobo --seeds 3

Searches run in process on the problems of benchmarks/search_problems.py and on recorded trajectories, one trial after
the other. TPE, NSGA-II and qLogNEHVI learn from each trial's last step, the usual practice; TMOBO-style learns from
whole trajectories and may stop them. Every searcher's hypervolume counts all the points that its trials pass.

    steps       optimizer steps until a search has the hypervolume with which random search of the same seed ends its
                budget, over the steps at which random search itself got there (its last improvement, so the stricter of
                two readings; over random's whole budget stands beside it). Geometric mean over problems and seeds,
                TMOBO-style                                                                             at most 0.6
                each problem also apart, without a bound; a search that is not there after twice the budget counts with
                twice the budget, and how many did is told
    overhead    seconds of a proposal after 200 trials of 20 points, one thread, the slowest of several, each searcher
                                                                                                        below 5 s

Exits 1 when a bound is missed. A part that lacks what its bound is about (`--searchers` without random or tmobo) judges
nothing of it and says so.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.search_figures import JOINT, Line, Outcome, draw, outcome, overhead_table, ratio, ratio_table
from benchmarks.search_runs import CONTESTANTS, PROBLEMS, USUAL, find_problem, measure_overhead, run_task, sources
from tune.archive import append_line, read_lines
from unlearn_core.errors import UserError

PARTS = ("steps", "overhead")
MOST_RATIO, MOST_SECONDS = 0.6, 5.0
SEEDS, TRIALS, BOUND = 10, 30, 2.0
FILLED, FILLED_PROBLEM, REPETITIONS = 200, "methods", 5
RESULTS = "results.jsonl"
Report = Callable[[str], None]


def digest(name: str) -> str:
    """Of the code and tables that decide a contestant's result."""
    found = hashlib.sha256()
    for path in sources(name):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:12]


def key_of(line: Line) -> tuple[Any, ...]:
    """What makes two lines the same search."""
    return line["problem"], line["searcher"], line["seed"], line["trials_budget"], line["bound_factor"]


def run_steps(options: argparse.Namespace, report: Report) -> list[Line]:
    """Run the searches that have no line yet; all lines of those asked for."""
    path: Path = options.output / RESULTS
    wanted = [
        (problem, name, seed, options.trials, options.bound_factor)
        for seed in range(options.seeds)
        for problem in options.problems
        for name in options.searchers
    ]
    known = {key_of(line): line for line in read_lines(path)}
    todo = [task for task in wanted if task not in known]
    now = {name: digest(name) for name in options.searchers}
    report(f"{len(wanted)} searches, {len(wanted) - len(todo)} of them done before; {path}")
    begin = time.perf_counter()
    with _workers(options.jobs) as pool:
        futures: dict[Future[Line], tuple[Any, ...]] = {pool.submit(run_task, *task): task for task in todo}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                line = future.result() | {"source": now[str(futures[future][1])]}
                append_line(path, line)
                known[futures[future]] = line
                minutes = (time.perf_counter() - begin) / 60
                report(f"{number}/{len(todo)}, {minutes:.1f} min: {told(line)}")
        except BaseException:
            # What runs now ends, what waits does not begin: a failure or a Ctrl-C is told at once.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    lines = [known[task] for task in wanted]
    others = sum(line["source"] != now[line["searcher"]] for line in lines)
    if others:
        report(f"note: {others} of {len(lines)} lines were made by other versions of the code; use another --output")
    return lines


def told(line: Line) -> str:
    """A line for a reader."""
    found = ratio(line, strict=True)
    reached = "random covers nothing" if found is None else f"{'over ' if line['reached'] is None else ''}{found:.2f}"
    return (
        f"{line['problem']}, {line['searcher']}, seed {line['seed']}: ratio {reached}, "
        f"{line['at_budget'] / line['ideal']:.3f} of the ideal, {line['trials']} trials, {line['stopped']} cut short, "
        f"proposal {line['propose_median']:.2f} s, {line['seconds']:.0f} s"
    )


def run_overhead(options: argparse.Namespace, report: Report) -> list[Line]:
    """Time proposals, one searcher at a time and alone."""
    found = []
    for name in options.searchers:
        with _workers(1) as pool:
            one = pool.submit(measure_overhead, FILLED_PROBLEM, name, FILLED, REPETITIONS).result()
        report(f"overhead, {name}: " + ", ".join(f"{seconds:.3f}" for seconds in one["proposing"]) + " s")
        found.append(one)
    return found


def _workers(jobs: int) -> ProcessPoolExecutor:
    # Fresh processes, so that their linear algebra reads the one thread set in main().
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def outcomes_of(lines: Sequence[Line]) -> list[Outcome]:
    """Each problem's, then all problems' together if there are several."""
    problems = list(dict.fromkeys(line["problem"] for line in lines))
    names = list(dict.fromkeys(line["searcher"] for line in lines))
    groups = [*problems, JOINT] if len(problems) > 1 else problems
    return [one for problem in groups for name in names if (one := outcome(lines, name, problem)) is not None]


def judge_steps(lines: Sequence[Line]) -> tuple[str, bool | None]:
    """A sentence, and whether the bound holds; None where nothing can be judged."""
    joint = outcome(lines, "tmobo", JOINT)
    if joint is None or not any(line["searcher"] == "random" for line in lines):
        return "steps: not judged, needs the searchers random and tmobo and something to reach", None
    beyond = [
        one.problem
        for one in outcomes_of(lines)
        if one.searcher == "tmobo" and one.problem != JOINT and one.strict.value > MOST_RATIO
    ]
    censored = f", {joint.censored} never got there" if joint.censored else ""
    apart = f"; over it alone on {', '.join(beyond)}" if beyond else "; within it on each problem alone"
    text = (
        f"steps: TMOBO-style / random {joint.strict}, at most {MOST_RATIO:g}, {joint.seeds} searches{censored}{apart}; "
        f"over random's whole budget {joint.loose}"
    )
    return text, joint.strict.value <= MOST_RATIO


def judge_overhead(found: Sequence[Line]) -> tuple[str, bool | None]:
    """As `judge_steps`."""
    if not found:
        return "overhead: not judged, no searcher", None
    worst = max(found, key=lambda one: max(one["proposing"]))
    seconds = max(worst["proposing"])
    text = f"overhead: slowest proposal {seconds:.2f} s ({worst['searcher']}), {FILLED} trials, below {MOST_SECONDS:g}"
    return text, seconds < MOST_SECONDS


def reduced(options: argparse.Namespace) -> str:
    """What a verdict leaves out, in brackets; nothing for the whole benchmark."""
    left = [part for part in PARTS if part not in options.parts]
    found = [f"without {', '.join(left)}"] if left else []
    if "steps" in options.parts:
        problems = [name for name in PROBLEMS if name not in options.problems]
        found += [f"without {', '.join(problems)}"] if problems else []
        found += [f"{options.seeds} of {SEEDS} seeds"] if options.seeds < SEEDS else []
        found += [f"budget {options.trials} trials, not {TRIALS}"] if options.trials != TRIALS else []
        found += [f"bound {options.bound_factor:g} budgets, not {BOUND:g}"] if options.bound_factor != BOUND else []
    return f" (reduced: {'; '.join(found)})" if found else ""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/search_benchmark"), help="results, kept")
    for name, known, usual in (
        ("parts", PARTS, PARTS),
        ("problems", PROBLEMS, PROBLEMS),
        ("searchers", tuple(CONTESTANTS), USUAL),
    ):
        parser.add_argument(f"--{name}", default=",".join(usual), help=f"some of {', '.join(known)}")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many, from 0")
    parser.add_argument("--jobs", type=int, default=2, help="processes of the part steps")
    parser.add_argument("--trials", type=int, default=TRIALS, help="budget, in whole trajectories")
    parser.add_argument(
        "--bound-factor", type=float, default=BOUND, help="budgets that a search may spend to get there"
    )
    parser.add_argument("--picture", type=Path, help="draw hypervolume against steps spent")
    options = parser.parse_args()
    for name, known in (("parts", PARTS), ("problems", PROBLEMS), ("searchers", tuple(CONTESTANTS))):
        chosen = tuple(dict.fromkeys(getattr(options, name).split(",")))
        if not set(chosen) <= set(known):
            parser.error(f"--{name} {getattr(options, name)}: expected some of {', '.join(known)}")
        setattr(options, name, chosen)
    if min(options.seeds, options.jobs, options.trials) < 1 or options.bound_factor < 1:
        parser.error("--seeds, --jobs, --trials and --bound-factor are at least 1")
    if options.picture and "steps" not in options.parts:
        parser.error("--picture draws the part steps; add it to --parts")
    return options


def main() -> None:
    """Run, print figures, exit 1 when a bound is missed."""
    options = parse()
    os.environ["OMP_NUM_THREADS"] = "1"
    console = Console(width=None if sys.stdout.isatty() else 190)

    def report(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    verdicts: list[tuple[str, bool | None]] = []
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        if "steps" in options.parts:
            for name in options.problems:
                find_problem(name)
            lines = run_steps(options, report)
            verdicts.append(judge_steps(lines))
            console.print(ratio_table(outcomes_of(lines), MOST_RATIO))
            if options.picture:
                draw(lines, options.picture)
                report(f"drawn: {options.picture}")
        if "overhead" in options.parts:
            load = os.getloadavg()[0]
            found = run_overhead(options, report)
            verdicts.append(judge_overhead(found))
            console.print(overhead_table(found, MOST_SECONDS))
            report(f"load average {load:.2f} before the part overhead, {os.getloadavg()[0]:.2f} after")
            text = json.dumps({"filled": FILLED, "load": load, "searchers": found}, indent=1)
            (options.output / "overhead.json").write_text(text, encoding="utf-8")
    except UserError as error:
        sys.exit(f"error: {error}")
    for text, holds in verdicts:
        print({True: "ok", False: "over", None: "none"}[holds], text, sep=": ")
    failed = any(holds is False for _, holds in verdicts)
    judged = any(holds is not None for _, holds in verdicts)
    verdict = "FAIL" if failed else "PASS" if judged else "nothing judged"
    print(f"{verdict}{reduced(options)}; numbers are in {options.output}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
