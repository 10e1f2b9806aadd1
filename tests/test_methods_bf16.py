"""Every method trains in bf16 with fp32 master weights: its first step is near the fp32 one."""

import pytest
from method_cases import CASES, base
from training_runs import step_lines, train

from benchmarks.exactness_methods import case_config, write_generic_text
from unlearn_core.method import methods


@pytest.mark.parametrize("name", methods())
def test_the_first_steps_are_near_fp32s(name, two_ranks, taught, tmp_path):
    write_generic_text(tmp_path)
    lines = {}
    for dtype in ("fp32", "bf16"):
        config = case_config(CASES[name], base(taught, dtype=dtype), tmp_path, 1e-3)
        two_ranks.run(train, config, tmp_path / dtype)
        lines[dtype] = step_lines(tmp_path / dtype)
    for low, high in zip(lines["bf16"], lines["fp32"], strict=True):
        for key in [key for key in high if key.startswith("loss_")]:
            assert low[key] == pytest.approx(high[key], rel=2e-2, abs=2e-3), key
    assert lines["bf16"][0]["update_norm"] == pytest.approx(lines["fp32"][0]["update_norm"], rel=3e-2)
