"""What only a GPU runs through, as far as a CPU can tell: dot products by blocks, gradients that wait on the host."""

import torch

from unlearn_core.zero.engine import GRAM_BLOCK, block_dot, blocks
from unlearn_core.zero.waiting_room import WaitingRoom, host_copy


def test_dot_products_by_blocks_are_as_good_as_fp32_allows():
    torch.manual_seed(0)
    for count in (1, GRAM_BLOCK - 1, GRAM_BLOCK, 300 * GRAM_BLOCK + 17):
        left, right = torch.randn(count).bfloat16(), torch.randn(count).bfloat16()
        scale = float(left.double().norm() * right.double().norm())
        exact = float(torch.dot(left.double(), right.double()))
        assert abs(float(block_dot(blocks(left), blocks(right))) - exact) <= 1e-6 * scale
        squared = float(block_dot(blocks(left), blocks(left)))
        assert abs(squared - float(left.double().square().sum())) <= 1e-6 * squared


def test_what_fills_the_last_block_up_does_not_count():
    assert float(block_dot(blocks(torch.full((3,), 2.0)), blocks(torch.full((3,), 5.0)))) == 30.0


def test_gradients_wait_in_places_of_their_own_and_the_next_step_takes_them_again():
    room = WaitingRoom()
    first = room.enter([torch.ones(3), torch.zeros(2)])
    second = room.enter([torch.full((3,), 2.0), torch.zeros(2)])
    assert first[0].tolist() == [1, 1, 1] and second[0].tolist() == [2, 2, 2]
    room.leave_in_order()
    again = room.enter([torch.full((3,), 3.0), torch.ones(2)])
    assert again[0].data_ptr() == first[0].data_ptr()
    assert again[0].tolist() == [3, 3, 3] and second[0].tolist() == [2, 2, 2]


def test_a_host_copy_is_a_copy_in_the_dtype_asked_for():
    source = torch.tensor([1.0, 1.00001])
    copy = host_copy(source, torch.bfloat16)
    source.zero_()
    assert copy.dtype == torch.bfloat16 and copy.tolist() == [1.0, 1.0]
