"""A run goes on with another number of workers and at another ZeRO stage as if nothing had happened."""

import pytest
from method_cases import CASES, config_of
from test_checkpoint import STEPS, Cut, CutContext
from training_runs import exported, relative, step_lines, train

from benchmarks.exactness import distance
from benchmarks.exactness_methods import write_generic_text
from unlearn_core.errors import UserError
from unlearn_core.loop import run

ADAMW = {"optimizer__name": "adamw", "optimizer__momentum": 0.0, "optimizer__epsilon": 1e-6}
RUNS = {
    "NGDiff, AdamW": ("ngdiff", 3e-4, ADAMW),
    "mean teacher": ("mean_teacher", 0.3, {}),  # at 4.0 two undisturbed layouts differ by 2e-5 after six steps
    "mean teacher, AdamW": ("mean_teacher", 3e-4, ADAMW),
    "MoCo's tracking buffers": ("moco", 0.1, {}),
    "GRU's tracking buffer": ("gru", 0.1, {}),
    "NPO's references": ("npo", 1e-3, {}),
    "PGU's projection": ("pgu", 0.05, {}),
    "AutoLR, AdamW": ("ngdiff, AutoLR, AdamW", 3e-4, {"optimizer__epsilon": 1e-6}),
    "LoRA": ("ngdiff", 1e-2, {"model__lora": {"rank": 4, "alpha": 8.0}}),
}
LAYOUTS = {
    "2 ranks at stage 2, 1 at 3, 2 at 2": ((2, 2), (1, 3), (2, 2)),
    "1 rank at stage 3, 2 at 3, 1 at 2": ((1, 3), (2, 3), (1, 2)),
    "2 ranks at stage 0, 2 at 3, 1 at 1": ((2, 0), (2, 3), (1, 1)),
}


class CutAt(CutContext):
    """Interrupts after one given checkpoint."""

    at = 0

    def checkpoint(self, metrics, write):
        super(CutContext, self).checkpoint(metrics, write)
        if metrics["step"] == self.at:
            raise Cut


def run_until(rank, world_size, config, output, step):
    context = CutAt(output, rank, world_size)
    context.at = step
    try:
        run(config, context)
    except Cut:
        return
    raise AssertionError("the run was not cut")


def moved_run(ranks, name, layouts, taught, output, **more):
    """Two steps on each of three layouts."""
    case, rate, options = RUNS[name]
    changes = {"steps": STEPS, "checkpoint_every": 2, **options, **more}
    for (workers, stage), last in zip(layouts, (2, 4, None), strict=True):
        config = config_of(CASES[case], taught, output, rate, workers, stage, **changes)
        folder = output / "moved"
        if last is None:
            ranks[workers].run(train, config, folder)
        else:
            ranks[workers].run(run_until, config, folder, last)
    return folder


FIRST = next(iter(LAYOUTS))
EVERYWHERE = ("NGDiff, AdamW", "mean teacher", "MoCo's tracking buffers", "AutoLR, AdamW")


@pytest.mark.parametrize(
    ("name", "layouts"), [(name, at) for name in RUNS for at in LAYOUTS if at == FIRST or name in EVERYWHERE]
)
def test_the_loss_goes_on(name, layouts, one_rank, two_ranks, taught, start, tmp_path):
    goes_on(name, layouts, one_rank, two_ranks, taught, start, tmp_path)


@pytest.mark.parametrize("name", ["mean teacher", "MoCo's tracking buffers"])
def test_the_loss_goes_on_in_small_groups_of_parameters(name, one_rank, two_ranks, taught, start, tmp_path):
    goes_on(
        name, "1 rank at stage 3, 2 at 3, 1 at 2", one_rank, two_ranks, taught, start, tmp_path, zero__sub_group=3000
    )


def goes_on(name, layouts, one_rank, two_ranks, taught, start, tmp_path, **moving):
    """Whether the run on moving layouts (and with `moving` settings there) has the losses of the one that stays."""
    write_generic_text(tmp_path)
    case, rate, options = RUNS[name]
    (workers, stage), *_ = LAYOUTS[layouts]
    ranks = {1: one_rank, 2: two_ranks}
    config = config_of(CASES[case], taught, tmp_path, rate, workers, stage, steps=STEPS, checkpoint_every=2, **options)
    ranks[workers].run(train, config, tmp_path / "whole")
    moved = moved_run(ranks, name, LAYOUTS[layouts], taught, tmp_path, **moving)
    assert [line["step"] for line in step_lines(moved)] == list(range(1, STEPS + 1))
    for found, expected in zip(step_lines(moved), step_lines(tmp_path / "whole"), strict=True):
        for key in expected:
            if key.startswith("loss_"):
                assert found[key] == pytest.approx(expected[key], rel=1e-6, abs=1e-7), (key, found["step"])
    weights, expected = exported(moved, STEPS), exported(tmp_path / "whole", STEPS)
    assert relative(weights, expected) <= 1e-6
    assert distance(weights, expected) <= 1e-4 * distance(expected, start)


@pytest.mark.parametrize("case", ["ngdiff", "npo", "idk_dpo", "mean_teacher", "rmu"])
@pytest.mark.parametrize("stage", [2, 3])
def test_a_batch_that_does_not_divide_by_the_workers_gives_the_same_step(
    case, stage, one_rank, two_ranks, taught, start, tmp_path
):
    write_generic_text(tmp_path)
    weights = {}
    for ranks in (one_rank, two_ranks):
        changes = {"workers__minimum": 1, "batch__rows": 6, "batch__micro": 2, "steps": 3}
        config = config_of(CASES[case], taught, tmp_path, 0.1, ranks.world_size, stage, **changes)
        ranks.run(train, config, tmp_path / str(ranks.world_size))
        weights[ranks.world_size] = exported(tmp_path / str(ranks.world_size), 3)
    for one, two in zip(*(step_lines(tmp_path / str(size)) for size in (1, 2)), strict=True):
        for key in one.keys() - {"seconds"}:
            assert two[key] == pytest.approx(one[key], rel=1e-5, abs=1e-7), key
    assert distance(weights[1], weights[2]) <= 1e-5 * distance(weights[1], start)


def load_error(rank, world_size, config, output):
    try:
        train(rank, world_size, config, output)
    except UserError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def test_8_bit_state_stays_where_it_was_made(one_rank, two_ranks, taught, tmp_path):
    changes = {"steps": STEPS, "checkpoint_every": 2, "optimizer__name": "adamw_8bit", "optimizer__momentum": 0.0}
    write_generic_text(tmp_path)
    config = config_of(CASES["ngdiff"], taught, tmp_path, 3e-4, 2, 2, **changes)
    two_ranks.run(run_until, config, tmp_path / "run", 2)
    config = config_of(CASES["ngdiff"], taught, tmp_path, 3e-4, 1, 2, **changes)
    (message,) = one_rank.run(load_error, config, tmp_path / "run")
    assert "stored in blocks (8-bit optimizer state), which only the same number of workers" in message
