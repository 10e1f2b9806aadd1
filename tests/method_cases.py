"""Small runs of any method for tests: the exactness benchmark's cases, and what rank processes do with them."""

from pathlib import Path

from benchmarks.exactness import make_config, run_recorded
from benchmarks.exactness_methods import Case, case_config, cases, truth_of, write_generic_text
from unlearn_core.config import RunConfig, build_config

CASES = {case.name: case for case in cases()}


def base(model: Path, workers: int = 2, stage: int = 2, dtype: str = "fp32") -> RunConfig:
    """The run that cases change."""
    return make_config(model, stage, workers, 2, dtype)


def config_of(case: Case, model: Path, folder: Path, rate: float, workers: int = 2, stage: int = 2, **changes):
    """The case's run at a layout, with further changes; `__` stands for a dot."""
    config = case_config(case, base(model, workers, stage), folder, rate)
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return build_config(RunConfig, config.model_dump(mode="json"), overrides)


def reference(case: Case, model: Path, folder: Path):
    """What the plain single-process reference finds for the case."""
    write_generic_text(folder)
    return truth_of(case, base(model, 1, 0), folder)


def train_probed(rank: int, world_size: int, config: RunConfig, output: Path) -> None:
    """A job for the ranks: the loop, leaving gradients and probes beside the run."""
    run_recorded(config, output, rank, world_size)
