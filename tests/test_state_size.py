"""What NGDiff and the mean teacher hold beside a plain step: one gradient shard, one fp32 shard, and nothing else."""

import pytest
import torch

from benchmarks.step_time import BOUNDS, Size, Trainee, allocated, extra_state, tensor_bytes

SMALL = Size(hidden=32, layers=2, heads=2, mlp=64, vocabulary=256, rows=1, length=8)


def counted(rank, world_size, stage):
    return extra_state(SMALL, stage, "sgd", rank, world_size)


@pytest.mark.parametrize("stage", [2, 3])
def test_extra_state_is_one_shard(stage, two_ranks):
    for figures in two_ranks.run(counted, stage):
        assert figures.keys() < BOUNDS.keys()
        for name, shards in figures.items():
            assert 0.99 <= shards <= BOUNDS[name], name


def named_tensors(rank, world_size):
    """Bytes of the tensors that hold the extra state, by their names, over one shard of the fp32 master."""
    teacher = Trainee("mean_teacher", SMALL, 2, "sgd", rank, world_size)
    teacher.step()
    master = teacher.master_bytes()
    of_teacher = sum(tensor.nbytes for tensor in teacher.update.tensors().values()) / master
    teacher.engine.close()
    two = Trainee("ngdiff", SMALL, 2, "sgd", rank, world_size)
    taken, take = [], two.engine.take
    two.engine.take = lambda: taken.append(take()) or taken[-1]
    two.step()
    of_two = [sum(tensor.nbytes for tensor in shard) / master for shard in taken]
    two.engine.close()
    return of_teacher, of_two


def test_the_named_tensors_are_that_shard(two_ranks):
    for of_teacher, (of_two,) in two_ranks.run(named_tensors):
        assert of_teacher == 1.0
        assert of_two == pytest.approx(1.0, abs=0.01)  # the master may be padded, gradients are not


def test_every_storage_is_counted_once_and_none_is_missed():
    before = tensor_bytes()
    weight = torch.nn.Parameter(torch.zeros(1000))
    weight.sum().backward()  # a gradient that no variable names
    views = [weight.detach(), weight.detach()[:10]]
    assert tensor_bytes() - before == 2 * 4000
    assert allocated(views) == 4000
    del views, weight
    assert tensor_bytes() == before
