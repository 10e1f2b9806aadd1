"""AutoLR inside the loop: what it probes, what it leaves untouched, and that every rank agrees."""

import pytest
import torch
from method_cases import CASES, config_of
from training_runs import assert_bit_equal, exported, small_run, step_lines, train

from benchmarks.plain_reference import PlainRun
from unlearn_core.errors import UserError
from unlearn_core.method import compose
from unlearn_core.preflight import check_composition

LAYOUTS = [(0, False), (2, False), (3, False), (2, True), (3, True)]
SGD = {"optimizer__name": "sgd", "optimizer__momentum": 0.9, "optimizer__learning_rate": 0.1}
AUTO = {"optimizer__schedule": "auto"}


@pytest.mark.parametrize(("stage", "offload"), LAYOUTS)
@pytest.mark.parametrize("optimizer", [{}, SGD], ids=["adamw", "sgd"])
def test_probes_that_are_refused_leave_no_trace(optimizer, stage, offload, two_ranks, taught, tmp_path):
    """Weights and optimizer state after probing are those of a run that never probed, bit for bit."""
    auto = {"every": 1, "noise_tolerance": 1e-300, "span": 0.01}
    options = optimizer | {"zero__offload_optimizer": offload}
    plain = small_run(taught, 2, 2, stage, steps=3, **options)
    probing = small_run(taught, 2, 2, stage, steps=3, **options, **AUTO, optimizer__auto=auto)
    two_ranks.run(train, plain, tmp_path / "plain")
    two_ranks.run(train, probing, tmp_path / "probing")
    assert_bit_equal(exported(tmp_path / "probing", 3), exported(tmp_path / "plain", 3))
    assert step_lines(tmp_path / "probing")[-1]["auto_probes"]["noise"] == 3


def train_in_fp64(rank, world_size, config, output):
    """The loop on a model in fp64."""
    from deepspeed.accelerator import get_accelerator

    from unlearn_core.zero import loading

    load, accelerator = loading.load_for_training, get_accelerator()
    known = accelerator.supported_dtypes
    loading.load_for_training = lambda config: load(config).double()
    accelerator.supported_dtypes = lambda: [*known(), torch.float64]  # DeepSpeed reduces what is on this list
    try:
        return train(rank, world_size, config, output)
    finally:
        loading.load_for_training, accelerator.supported_dtypes = load, known


@pytest.mark.parametrize("case", ["ngdiff, AutoLR", "ngdiff, AutoLR, AdamW"])
def test_the_rate_of_an_fp64_model_is_the_references(case, one_rank, two_ranks, taught, tmp_path):
    rate = 3e-4 if "AdamW" in case else 0.1
    configs = {workers: config_of(CASES[case], taught, tmp_path, rate, workers, 0, steps=4) for workers in (1, 2)}
    plain = PlainRun(configs[1], torch.float64)
    plain.run(4)
    for workers, ranks in ((1, one_rank), (2, two_ranks)):
        ranks.run(train_in_fp64, configs[workers], tmp_path / str(workers))
        lines = step_lines(tmp_path / str(workers))
        assert [line["learning_rate"] for line in lines] == pytest.approx(plain.rates, rel=1e-6)
        assert lines[-1]["auto_probes"]["accepted"] >= 2
    assert plain.rates[-1] != pytest.approx(rate, rel=1e-2)  # it did move


def test_it_is_due_every_so_many_steps_and_counts_what_it_refused(two_ranks, taught, tmp_path):
    auto = {"every": 3, "span": 0.01}
    two_ranks.run(train, small_run(taught, 2, 2, steps=7, **AUTO, optimizer__auto=auto), tmp_path)
    lines = step_lines(tmp_path)
    assert [sum(line["auto_probes"].values()) for line in lines] == [1, 1, 1, 2, 2, 2, 3]
    assert lines[0]["auto_rate"] == lines[1]["auto_rate"] == lines[2]["auto_rate"]


def test_warm_up_scales_the_rate_it_found(two_ranks, taught, tmp_path):
    auto = {"every": 10, "span": 0.01}
    config = small_run(taught, 2, 2, steps=4, **AUTO, optimizer__auto=auto, optimizer__warmup_steps=4)
    two_ranks.run(train, config, tmp_path)
    shares = [line["learning_rate"] / line["auto_rate"] for line in step_lines(tmp_path)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_a_method_without_retain_rows_is_refused(taught):
    config = small_run(taught, 1, method__name="grad_ascent", **AUTO)
    with pytest.raises(UserError, match=r"probes the retain loss, and grad_ascent has none\. Use constant"):
        check_composition(config, compose("grad_ascent", {}))


def test_8_bit_state_is_refused_with_it(taught):
    with pytest.raises(UserError, match="works with adamw and sgd, not with adamw_8bit"):
        small_run(taught, 1, optimizer__name="adamw_8bit", **AUTO)
