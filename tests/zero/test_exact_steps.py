"""A ZeRO step is the step of the equations, whatever the stage, the number of ranks and the cut into micro-batches."""

import pytest
import torch
from training_runs import exported, relative, small_run, step_lines, train, train_recorded
from transformers.models.llama import modeling_llama

from benchmarks.exactness import BOUNDS, STEPS, distance, norm
from unlearn_core.data.batches import PairedBatches
from unlearn_core.data.tokenization import Formatter, load_tokenizer
from unlearn_core.data.training import training_sets
from unlearn_core.models import load_model

STAGES = (0, 1, 2, 3)


@pytest.fixture
def ranks_of(one_rank, two_ranks):
    return {1: one_rank, 2: two_ranks}


def assert_exact(gradients, output, truth, start):
    expected_gradients, final = truth
    errors = [relative(found, expected) for found, expected in zip(gradients, expected_gradients, strict=True)]
    assert max(errors) <= BOUNDS["gradient"]
    weights = exported(output, STEPS)
    assert relative(weights, final) <= BOUNDS["parameters"]
    assert distance(weights, final) / distance(start, final) <= BOUNDS["displacement"]


@pytest.mark.parametrize(("workers", "accumulation"), [(1, 4), (2, 1), (2, 4)])
@pytest.mark.parametrize("stage", STAGES)
def test_gradient_and_parameters_equal_the_reference(
    stage, workers, accumulation, ranks_of, taught, truth, start, tmp_path
):
    config = small_run(taught, workers, accumulation, stage)
    gradients = ranks_of[workers].run(train_recorded, config, tmp_path)[0]
    assert_exact(gradients, tmp_path, truth, start)


def count_layer_passes(rank, world_size, config, output):
    passes = []
    forward = modeling_llama.LlamaMLP.forward
    modeling_llama.LlamaMLP.forward = lambda self, x: (passes.append(1), forward(self, x))[1]
    try:
        gradients = train_recorded(rank, world_size, config, output)
    finally:
        modeling_llama.LlamaMLP.forward = forward
    return gradients, len(passes)


@pytest.mark.parametrize("stage", [2, 3])
def test_activation_checkpointing_recomputes_and_changes_nothing(stage, two_ranks, taught, truth, start, tmp_path):
    config = small_run(taught, 2, 2, stage, zero__activation_checkpointing=True)
    gradients, passes = two_ranks.run(count_layer_passes, config, tmp_path)[0]
    assert passes == STEPS * 2 * 2 * 2 * 2  # objectives x micro-batches x layers x (forward and recomputation)
    assert_exact(gradients, tmp_path, truth, start)


@pytest.mark.parametrize("stage", STAGES)
def test_clipping_scales_the_combined_gradient_to_the_limit(stage, two_ranks, taught, truth, start, tmp_path):
    options = {"optimizer__name": "sgd", "optimizer__weight_decay": 0.0, "optimizer__learning_rate": 0.1}
    config = small_run(taught, 2, 1, stage, steps=1, optimizer__gradient_clipping=0.3, **options)
    (gradient,) = two_ranks.run(train_recorded, config, tmp_path)[0]
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in start.items()}
    before = norm(truth[0][0])
    assert before > 0.6  # it does clip
    for name, parameter in parameters.items():  # without torch's 1e-6 in the divisor, as large as this bound
        parameter.grad = truth[0][0][name] * (0.3 / before)
    assert relative(gradient, {name: parameter.grad for name, parameter in parameters.items()}) <= 1e-6
    assert step_lines(tmp_path)[0]["update_norm"] == pytest.approx(0.3, rel=1e-9)
    torch.optim.SGD(parameters.values(), lr=0.1).step()
    moved = distance(exported(tmp_path, 1), start)
    assert moved == pytest.approx(0.03, rel=1e-5)
    assert distance(exported(tmp_path, 1), {name: p.detach() for name, p in parameters.items()}) / moved <= 1e-5


def test_losses_are_means_over_all_label_tokens_whatever_the_ranks(ranks_of, taught, tmp_path):
    lines = {}
    for workers in (1, 2):
        output = tmp_path / str(workers)
        ranks_of[workers].run(train, small_run(taught, workers, 2, steps=3), output)
        lines[workers] = step_lines(output)
    for one, two in zip(lines[1], lines[2], strict=True):
        for key in one.keys() - {"seconds"}:
            assert two[key] == pytest.approx(one[key], rel=1e-5, abs=1e-7), key
    config = small_run(taught, 1)
    tokenizer = load_tokenizer(str(taught))
    sets = training_sets(config.data, ("retain", "forget"), tokenizer)
    batches = PairedBatches(sets, 8, 8, 0, 1, config.seed, Formatter(tokenizer, "plain", 512).pad_id)
    model = load_model(str(taught), "fp32")
    for name in ("retain", "forget"):
        (batch,) = batches.micro_batches(0, name)
        with torch.no_grad():
            loss = model(batch.input_ids_BT, attention_mask=batch.attention_mask_BT, labels=batch.labels_BT).loss
        assert lines[2][0][f"loss_{name}"] == pytest.approx(float(loss), rel=1e-6)


def test_bf16_is_near_fp32_and_equal_at_every_stage(two_ranks, taught, truth, start, tmp_path):
    """Stage 0 in bf16 would start one optimizer step ahead (a DeepSpeed bug that `ReplicatedBf16` undoes)."""
    final = truth[1]
    moved = distance(start, final)
    weights = {}
    for stage in STAGES:
        output = tmp_path / str(stage)
        two_ranks.run(train, small_run(taught, 2, 1, stage, dtype="bf16"), output)
        assert next(iter(exported(output, STEPS).values())).dtype == torch.bfloat16
        weights[stage] = {name: tensor.float() for name, tensor in exported(output, STEPS).items()}
        assert distance(weights[stage], final) / norm(final) < 5e-3
    for stage in (0, 1, 3):
        assert distance(weights[stage], weights[2]) / moved < 1e-3
