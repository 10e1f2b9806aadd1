"""Record real trajectories for `benchmarks.search`: a Sobol design of NGDiff and mean teacher runs, scored throughout.

    python -m benchmarks.record_trajectories --trials 192        # about half an hour on 2 cores; resumable

Writes benchmarks/recorded_trajectories.parquet (a row a scored step) and benchmarks/recorded_space.yaml.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.search_model import SPACE, STEPS, goal, make_pair, runner
from pipelines.ray_session import start_ray
from tune.archive import Archive
from tune.random_search import RandomSearcher
from tune.search import Budget, Resources, Search
from tune.space import Space, space_yaml

TABLE = Path(__file__).with_name("recorded_trajectories.parquet")
SPACE_FILE = Path(__file__).with_name("recorded_space.yaml")


def main() -> None:
    """Run the design and write the table."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--trials", type=int, default=192)
    arguments.add_argument("--output", type=Path, default=Path("outputs/recorded"))
    options = arguments.parse_args()
    torch.set_num_threads(1)
    target, reference = make_pair(options.output / "models")
    aims, space = goal(target, reference), Space.from_data(SPACE)
    about = {"name": "recorded", "fingerprint": "recorded", "goal": aims.to_data(), "space": SPACE}
    about["searcher"] = {"name": "sobol", "seed": 0, "told": "best"}
    archive = Archive(options.output / "search", about)
    searcher = RandomSearcher(space, archive.history, 0, STEPS, "sobol")
    search = Search(archive, searcher, [], Budget(trials=options.trials), runner(target), keep=0)
    start_ray(num_cpus=2)
    search.run(Resources({"CPU": 1}, 2))
    table = archive.table()
    # On today's scale, whatever it was when a step was recorded.
    scored = table["step"].notna().tolist()
    for row in (number for number, has_step in enumerate(scored) if has_step):
        metrics = {column: table[f"metric/{column}"].iloc[row] for column in aims.columns}
        for objective, value in zip(aims.objectives, aims.values(metrics), strict=True):
            table.loc[row, f"value/{objective.name}"] = value
    kept = [name for name in table.columns if name.startswith(("config/", "value/"))]
    table.loc[:, ["trial", "step", "status", *kept]].to_parquet(TABLE, index=False)
    SPACE_FILE.write_text(space_yaml(SPACE), encoding="utf-8")
    print(f"{len(archive.history)} trials, {len(table)} rows: {TABLE}")


if __name__ == "__main__":
    main()
