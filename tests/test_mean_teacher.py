"""The mean teacher's state and forward pass on shards, against whole tensors and the author's order of one step."""

import pytest
import torch
from method_cases import CASES, config_of
from training_runs import exported, step_lines, train

import unlearn_core.loop as loop
from benchmarks.exactness import distance
from benchmarks.exactness_methods import write_generic_text
from unlearn_core.mean_teacher import Teacher
from unlearn_core.method import TeacherRule
from unlearn_core.update import Update

RATE, STEPS = 4.0, 3
LAYOUTS = [(0, False), (1, False), (2, False), (3, False), (2, True), (3, True)]


class OneShard:
    """The student's weights as a single shard, with the gradient beside them."""

    def __init__(self, weights, gradient):
        self.weights, self.gradient = weights, gradient

    def master(self):
        return [self.weights]

    def pieces(self):
        return [[self.gradient]]


def test_one_step_by_hand():
    # w = [1, 2], v = [0, 4], g already clipped by c = 0.5. mu = 2: g += 2 * 0.5 * (w - v) = [1, -2].
    student, gradient = torch.tensor([0.0, 4.0]), torch.tensor([0.25, 0.5])
    shards = OneShard(student, gradient)
    teacher = Teacher(shards, TeacherRule(rate=0.1, damping=2.0), bf16=False)
    student.copy_(torch.tensor([1.0, 2.0]))
    teacher.damp(0.5)
    assert gradient.tolist() == [1.25, -1.5]
    # The optimizer moves w to [3, 0]; v += 0.1 * 0.5 * (w - v) = 0.05 * [3, -4].
    student.copy_(torch.tensor([3.0, 0.0]))
    teacher.follow(0.5)
    assert teacher.weights[0].tolist() == pytest.approx([0.15, 3.8])
    assert teacher.gap() == pytest.approx(2.85**2 + 3.8**2)
    teacher.reset()
    assert teacher.weights[0].tolist() == [3.0, 0.0]
    assert teacher.gap() == 0.0


def test_a_master_longer_than_its_gradient_is_padding():
    shards = OneShard(torch.tensor([1.0, 1.0, 7.0]), torch.zeros(2))
    teacher = Teacher(shards, TeacherRule(damping=1.0), bf16=False)
    shards.weights += 1
    teacher.damp(1.0)
    assert shards.gradient.tolist() == [1.0, 1.0]


def test_a_frozen_teacher_is_kept_in_the_models_own_dtype():
    shards = OneShard(torch.tensor([1.0, 2.0]), torch.zeros(2))
    assert Teacher(shards, TeacherRule(), bf16=True).weights[0].dtype == torch.bfloat16
    assert Teacher(shards, TeacherRule(rate=0.1), bf16=True).weights[0].dtype == torch.float32
    assert Teacher(shards, TeacherRule(), bf16=False).weights[0].dtype == torch.float32


def author_order(config):
    """The author's order of one step on whole tensors, with the same losses: student and teacher after `STEPS`."""
    from benchmarks.plain_reference import PlainRun

    plain = PlainRun(config)
    settings, optimizer = config.method.settings, config.optimizer
    delta, mu = settings["teacher_rate"], 5.0
    momentum = {name: torch.zeros_like(p) for name, p in plain.named.items()}
    for step in range(STEPS):
        penalty, forget = plain._loss(0, step), plain._loss(1, step)
        total = settings["forget_weight"] * forget + penalty
        grads = dict(zip(plain.named, torch.autograd.grad(total, list(plain.named.values())), strict=True))
        norm = torch.sqrt(sum(g.double().square().sum() for g in grads.values()))
        c = min(1.0, optimizer.gradient_clipping / float(norm))
        for name, p in plain.named.items():
            w = p.detach()
            g = c * grads[name] + mu * c * (w - plain.teacher[name])
            momentum[name] = optimizer.momentum * momentum[name] + g
            p.data = w - optimizer.learning_rate * momentum[name]
            v = plain.teacher[name]
            plain.teacher[name] = v + delta * c * (p.detach() - v)
    return {name: p.detach() for name, p in plain.named.items()}, plain.teacher


def teacher_after(rank, world_size, config, output):
    """The loop; the teacher's weights at the end, gathered whole through a swap."""
    import deepspeed

    found = {}
    step = Update.step

    def watching(self, rows, number, request_step):
        metrics = step(self, rows, number, request_step)
        if number == STEPS - 1:
            with self.engine.swapped(self.teacher.weights):
                for name, parameter in self.engine.module.named_parameters():
                    with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                        found[name] = parameter.detach().clone()
        return metrics

    Update.step = watching
    try:
        loop.run(config, loop_context(output, rank, world_size))
    finally:
        Update.step = step
    return found if rank == 0 else {}


def loop_context(output, rank, world_size):
    from unlearn_core.local import LocalContext

    return LocalContext(output, rank, world_size)


@pytest.mark.parametrize(("stage", "offload"), LAYOUTS)
def test_student_and_teacher_follow_the_authors_order(stage, offload, two_ranks, taught, start, tmp_path):
    write_generic_text(tmp_path)
    clipping = {"optimizer__gradient_clipping": 0.01}  # |g| is 0.02 at first
    layout = {"stage": stage, "zero__offload_optimizer": offload}
    config = config_of(CASES["mean_teacher"], taught, tmp_path, RATE, **layout, **clipping)
    student, teacher = author_order(config_of(CASES["mean_teacher"], taught, tmp_path, RATE, 1, 0, **clipping))
    found = two_ranks.run(teacher_after, config, tmp_path / "run")[0]
    weights = exported(tmp_path / "run", STEPS)
    began = {name: start[name] for name in student}
    moved, followed = distance(student, began), distance(teacher, began)
    assert 0 < followed < moved
    assert distance({name: weights[name] for name in student}, student) <= 1e-5 * moved
    # v moves little and lies in fp32: that alone puts either of the two 1.5e-4 of the way from a run in fp64.
    assert distance({name: found[name] for name in teacher}, teacher) <= 5e-5 * followed
    frozen = set(start) - set(student)
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= frozen
    assert all(torch.equal(weights[name], start[name]) for name in frozen)
    lines = step_lines(tmp_path / "run")
    assert all(line["teacher_gap"] > 0 for line in lines)
    assert lines[0]["update_norm"] == pytest.approx(0.01, rel=1e-6)


def test_the_teacher_gets_no_gradient_and_generic_rows_are_a_stream_of_their_own(two_ranks, taught, tmp_path):
    write_generic_text(tmp_path)
    config = config_of(CASES["mean_teacher"], taught, tmp_path, RATE, data__retain=[])  # needs no retain rows
    two_ranks.run(train, config, tmp_path / "run")
    first = step_lines(tmp_path / "run")[0]
    assert first["loss_generic"] == pytest.approx(0.0, abs=1e-6)  # student and teacher are equal
    assert first["loss_forget"] > 0
