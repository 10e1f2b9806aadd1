"""Six steps are three, a restart and three more, bit for bit, for every method that carries something along."""

import pytest
from method_cases import CASES, config_of
from test_checkpoint import CUT, STEPS, count_steps, cut_run
from training_runs import assert_bit_equal, exported, step_lines, train

from benchmarks.exactness_methods import write_generic_text

SGD = {"optimizer__name": "sgd", "optimizer__momentum": 0.9, "optimizer__weight_decay": 0.0}
RUNS = {
    "mean_teacher": ("mean_teacher", 2, 4.0, {}),
    "mean_teacher, stage 3": ("mean_teacher", 3, 4.0, {}),
    "mean_teacher, stage 0": ("mean_teacher", 0, 4.0, {}),
    "mean_teacher, host": ("mean_teacher", 2, 4.0, {"zero__offload_optimizer": True}),
    "kl_min": ("kl_min", 2, 0.05, {}),
    "undial": ("undial", 2, 0.5, {}),
    "moco": ("moco", 2, 0.1, {}),
    "moco, host": ("moco", 3, 0.1, {"zero__offload_optimizer": True}),
    "gru": ("gru", 2, 0.1, {}),
    "famo": ("famo", 2, 1.0, {}),
    "pdu": ("pdu", 2, 1e-3, {}),
    "npo": ("npo", 2, 1e-3, {}),
    "idk_dpo": ("idk_dpo", 2, 1e-3, {}),
    "pgu": ("pgu", 2, 0.05, {}),
    "rmu": ("rmu", 2, 1.0, {}),
    "AutoLR": ("ngdiff, AutoLR", 2, 0.1, {}),
    "AutoLR, AdamW, stage 3": ("ngdiff, AutoLR, AdamW", 3, 3e-4, {}),
    "8-bit AdamW": ("ngdiff", 2, 3e-4, {"optimizer__name": "adamw_8bit", "optimizer__momentum": 0.0}),
    "LoRA": ("ngdiff", 2, 1e-2, {"model__lora": {"rank": 4, "alpha": 8.0}}),
    "sequential": (
        "mean_teacher",
        2,
        4.0,
        {"data__forget": [], "data__sequential": ["forget10", "holdout10"], "data__retain": [], "steps": STEPS // 2},
    ),
    "sequential, cut inside": (
        "npo",
        2,
        1e-3,
        {"data__forget": [], "data__sequential": ["forget10", "holdout10"], "steps": 4},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_cut_and_resumed_equals_whole_bit_for_bit(name, two_ranks, taught, tmp_path):
    case, stage, rate, changes = RUNS[name]
    write_generic_text(tmp_path)
    changes = {"steps": STEPS, "checkpoint_every": CUT} | changes
    config = config_of(CASES[case], taught, tmp_path, rate, stage=stage, **changes)
    last = config.total_steps
    two_ranks.run(train, config, tmp_path / "whole")
    two_ranks.run(cut_run, config, tmp_path / "cut")
    assert two_ranks.run(count_steps, config, tmp_path / "cut") == [last - CUT] * 2
    assert_bit_equal(exported(tmp_path / "cut", last), exported(tmp_path / "whole", last))
    timeless = [[{**line, "seconds": 0} for line in step_lines(tmp_path / folder)] for folder in ("cut", "whole")]
    assert timeless[0] == timeless[1]
