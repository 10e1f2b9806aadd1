"""Search hyper-parameters for several objectives at once, over whole training trajectories.

    baseline -> SLUG's edits, if asked for -> trials until the budget is used up -> lines to the target -> re-runs

    OUTPUT/search.json, trials.jsonl, trials/, archive.parquet    the archive (tune/archive.py)
    OUTPUT/baseline/                                              target and reference, scored as every step is
    OUTPUT/summary.json                                           front, hypervolume, re-runs; written last

The same call on the same output goes on where it was killed; a raised budget adds trials to a finished search.
"""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pipelines.claim import OWNER
from pipelines.model_points import ModelPoint, absolute, identity
from pipelines.model_scoring import ScoringPlan
from pipelines.ray_session import start_ray
from pipelines.runs import recipe_path
from pipelines.search_config import SearchConfig
from pipelines.search_goal import goal_of, score_baseline
from pipelines.search_resources import check_disk, check_one_place, trial_resources
from pipelines.search_summary import summarise
from pipelines.search_watcher import SearchWatcher
from pipelines.suites import longest_row, suite_arguments
from pipelines.trial import TrainedTrial, run_config
from tune.archive import Archive, read_about
from tune.history import History
from tune.search import Budget, Search
from tune.searcher import TrajectorySearcher
from tune.space import Space, space_of_methods
from tune.stopping import StopRule
from unlearn_core.config import RunConfig, build_config, read_values
from unlearn_core.errors import UserError
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.method import compose
from unlearn_core.preflight import check_composition, preflight
from unlearn_core.publish import write_json

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Prepared:
    """A search that was checked and may start.

    Attributes:
        config: its config.
        base: what all trials share, as values of a `RunConfig`.
        run: any trial's run, for what does not vary.
        space: what varies.
        plan: what is measured, without the reference's records.
        points: target, and reference if given.
    """

    config: SearchConfig
    base: dict[str, Any]
    run: RunConfig
    space: Space
    plan: ScoringPlan
    points: tuple[ModelPoint, ...]

    @property
    def target(self) -> ModelPoint:
        """The model before unlearning."""
        return self.points[0]


def search(
    config: SearchConfig,
    target: ModelPoint,
    reference: ModelPoint | None,
    output: Path,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run a search, or go on with one.

    Args:
        config: what to search.
        target: the model before unlearning.
        reference: the model retrained without the forget data; None where no objective or metric needs it.
        output: the search's folder, reachable under the same path from every node.
        console: where the live table is drawn; None for silence.

    Returns:
        The content of summary.json.

    Raises:
        UserError: a mistake in config, models, space or resources, found before any trial starts.
    """
    output = Path(output).resolve()
    target = replace(target, path=absolute(target))
    reference = None if reference is None else replace(reference, path=absolute(reference))
    ready = prepare(config, target, reference)
    start_ray()
    check_one_place(output)
    resources = trial_resources(ready.run, ready.plan.gpu, config.at_once)
    disk = check_disk(output, target, ready.run, config.keep, resources.at_once)
    if console is not None:
        console.print(disk, highlight=False, soft_wrap=True)
    _refuse_another(output, _fingerprint(ready))
    plan, scores = score_baseline(ready.plan, ready.points, output, console)
    goal = goal_of(config, plan.build(), scores)
    archive = Archive(output, _about(ready, goal.to_data(), scores))
    (output / SUMMARY).unlink(missing_ok=True)
    searcher = make_searcher(config, ready.space, archive.history, ready.run.steps)
    rules = make_rules(config, ready.run, searcher)
    slug = {} if config.slug is None else _slug_options(config, reference)
    runner = TrainedTrial(ready.base, plan, target.path, os.getcwd(), slug)
    with SearchWatcher(archive, config.budget, ready.run.steps, console) as watcher:
        running = Search(
            archive, searcher, rules, Budget(**config.budget.model_dump()), runner, config.keep, ready.run.seed,
            60 * config.result_minutes, watcher,
        )  # fmt: skip
        if config.slug is not None:
            running.give({"method.name": "slug"}, "warm_start")
        running.run(resources)
        if config.densify:
            watcher.phase("lines from the front to the target")
        for point in running.models.existing() if config.densify else ():
            if archive.history.trials[point.trial].origin != "densify":
                settings = {"method.name": "interpolation", "interpolation.weights": list(config.densify)}
                running.give(settings, "densify", point)
        running.run(resources, propose=False)
        if config.reruns:
            watcher.phase("front members with new seeds")
        for point in running.models.members():
            trial = archive.history.trials[point.trial]
            for number in range(config.reruns if trial.origin == "search" else 0):
                running.give(trial.config, "rerun", point, trial.seed + 1 + number)
        running.run(resources, propose=False)
    summary = summarise(archive)
    archive.write_table()
    write_json(output / SUMMARY, summary)
    return summary


def prepare(config: SearchConfig, target: ModelPoint, reference: ModelPoint | None) -> Prepared:
    """Check everything that needs no worker: recipe, space, every kind of trial, rows, options.

    Raises:
        UserError: with value, expectation and remedy.
    """
    base = read_values(recipe_path(config.recipe))
    if "method" not in base:
        raise UserError(f"recipe '{config.recipe}' is no training recipe; it has no `method`. See `unlearn recipes`.")
    known = build_config(
        RunConfig, base, _dotted(config.set) | {"model.path": target.path}, source=f"recipe {config.recipe}"
    )
    base = known.model_dump(mode="json")
    if known.data.sequential:
        raise UserError("a search serves one forget request; leave data.sequential empty and name data.forget")
    if not known.export_every:
        raise UserError(
            "the recipe exports its last step alone, so trials would have no trajectory; set export_every, for example "
            f"--set set.export_every={max(1, known.steps // 15)}"
        )
    space = Space.from_data((space_of_methods(config.methods) if config.methods else {}) | config.space)
    _check_every_kind(base, space)
    plan = _plan(config, known, target)
    plan.build()
    points = (target,) if reference is None else (target, reference)
    return Prepared(config, base, known, space, plan, points)


def _check_every_kind(base: dict[str, Any], space: Space) -> None:
    """Each combination of choices must make a run that could start; ranges are tried at a random place."""
    seen: set[str] = set()
    read: set[tuple[str, tuple[str, ...]]] = set()
    choices = {domain.key for domain in space.varying if domain.kind == "choice"}
    for unit_D in np.random.default_rng(0).random((256, space.dimension)):
        config = space.decode(unit_D)
        kind = json.dumps({key: config.get(key) for key in choices}, sort_keys=True, default=str)
        if kind in seen:
            continue
        seen.add(kind)
        run = run_config(base, config, 0, 0)
        composition = compose(run.method.name, run.method.settings)
        check_composition(run, composition)
        # Rows are read and tokenised once for each method and each choice of row sets, not for each kind.
        rows = (run.method.name, composition.data_sets)
        if rows not in read:
            preflight(run)
            read.add(rows)


def _plan(config: SearchConfig, run: RunConfig, target: ModelPoint) -> ScoringPlan:
    data, scoring = run.data, config.scoring
    arguments = suite_arguments(data)
    settings = EvaluationConfig(
        style=data.format,
        system_prompt=data.system_prompt,
        max_length=data.max_length,
        max_new_tokens=scoring.max_new_tokens,
        dtype=scoring.dtype,
    )
    plan = ScoringPlan(
        suite=arguments,
        config=settings,
        generate=scoring.generate,
        rows=scoring.rows,
        groups=scoring.groups,
        quantised=scoring.quantised,
        target=target.path,
        gpu=run.workers.gpu if scoring.gpu is None else scoring.gpu,
        threads=max(1, int(run.workers.cpus_per_worker)),
    )
    suite = plan.build()
    usual = "plain" if suite.name == "muse" else data.format
    longest = max(longest_row(suite) if suite.name == "muse" else data.max_length, data.max_length)
    return ScoringPlan(**{**vars(plan), "config": settings.model_copy(update={"style": usual, "max_length": longest})})


def make_searcher(config: SearchConfig, space: Space, history: History, total_steps: int) -> TrajectorySearcher:
    """The searcher that the config names; model-based ones bring their packages along only where they are used."""
    name, seed, told = config.searcher.name, config.searcher.seed, config.searcher.told
    if name in ("random", "sobol"):
        from tune.random_search import RandomSearcher

        return RandomSearcher(space, history, seed, total_steps, name)  # type: ignore[arg-type]
    if name in ("tpe", "nsga2"):
        from tune.optuna_search import OptunaSearcher

        return OptunaSearcher(space, history, seed, total_steps, sampler=name, told=told)  # type: ignore[arg-type]
    if name == "qlognehvi":
        from tune.botorch_search import NoisyHypervolumeSearcher

        return NoisyHypervolumeSearcher(space, history, seed, total_steps, told=told)
    from tune.trajectory_search import TrajectoryBayesSearcher

    return TrajectoryBayesSearcher(space, history, seed, total_steps)


def make_rules(config: SearchConfig, run: RunConfig, searcher: TrajectorySearcher) -> list[StopRule]:
    """The stop rules, none before the stated minimum."""
    stopping = config.stopping
    minimum = stopping.minimum or minimum_steps(run)
    rules: list[StopRule] = []
    if stopping.asha:
        from tune.stopping import MultiObjectiveAsha

        rules.append(MultiObjectiveAsha(minimum=minimum, reduction=stopping.reduction))
    optimistic = stopping.optimistic if stopping.optimistic is not None else config.searcher.name == "trajectory"
    if optimistic:
        rules.append(_optimistic(searcher, minimum))
    return rules


def _optimistic(searcher: TrajectorySearcher, minimum: int) -> StopRule:
    from tune.optimistic_stop import OptimisticStop
    from tune.trajectory_model import TrajectoryModels

    # Shared with a searcher that has models of its own, so that neither is fitted twice.
    models = getattr(searcher, "models", None) or TrajectoryModels(searcher.space, searcher.total_steps)
    return OptimisticStop(models, minimum)


def minimum_steps(run: RunConfig) -> int:
    """A fifth of the run, rounded up to an export."""
    return -(-max(1, run.steps // 5) // run.export_every) * run.export_every


def _slug_options(config: SearchConfig, reference: ModelPoint | None) -> dict[str, Any]:
    assert config.slug is not None
    options: dict[str, Any] = {"layers": config.slug.layers, "iterations": config.slug.iterations}
    if config.slug.threshold is not None:
        return options | {"threshold": config.slug.threshold}
    if reference is None:
        raise UserError("slug.threshold is the reference's forget probability unless set; give --reference, or set it")
    return options | {"reference": reference.path}


def _fingerprint(ready: Prepared) -> str:
    """Of everything that changes a trial, its scores, or which trials there are; budget and resources do not."""
    free = {"budget", "at_once", "keep", "result_minutes", "name", "reruns", "densify", "recipe", "set"}
    facts = [
        ready.config.model_dump(mode="json", exclude=free),
        {key: value for key, value in ready.base.items() if key not in ("workers", "name", "checkpoint_every")},
        ready.space.to_data(),
        [identity(point) for point in ready.points],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _refuse_another(output: Path, fingerprint: str) -> None:
    """Before the baseline is scored into the folder of another search."""
    if (output / "search.json").is_file():
        earlier = read_about(output)
        if earlier["fingerprint"] != fingerprint:
            raise UserError(
                f"{output} holds the search '{earlier.get('name')}' with other settings. Choose another --output, or "
                "delete that folder. Only budget, keep, at_once, densify and reruns may change."
            )
    elif output.exists() and any(child.name not in ("baseline", OWNER) for child in output.iterdir()):
        raise UserError(f"{output} is not empty and holds no search; choose another --output.")


def _about(ready: Prepared, goal: dict[str, Any], scores: dict[str, dict[str, float]]) -> dict[str, Any]:
    config = ready.config
    return {
        "name": config.name,
        "fingerprint": _fingerprint(ready),
        "goal": goal,
        "space": ready.space.to_data(),
        "searcher": config.searcher.model_dump(mode="json"),
        "total_steps": ready.run.steps,
        "export_every": ready.run.export_every,
        "benchmark": ready.run.data.benchmark,
        "forget": list(ready.run.data.forget),
        "baseline": scores,
        "config": config.model_dump(mode="json"),
        "base": ready.base,
    }


def _dotted(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested groups of keys as dotted ones, so that overriding one key of a group leaves its others."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _dotted(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat
