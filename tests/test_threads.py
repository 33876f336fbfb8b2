"""Side-by-side work: order, results, and what happens to torch's thread count."""

import threading

import pytest
import torch

from dd_plugins.threads import one_thread, side_by_side


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items_and_two_at_a_time(two_threads):
    both = threading.Barrier(2, timeout=10)  # breaks unless two pieces are under way at once

    def work(item):
        both.wait()
        return item, torch.get_num_threads()

    assert side_by_side(work, range(6)) == [(item, 1) for item in range(6)]
    assert torch.get_num_threads() == 2


def test_work_that_must_not_be_shared_stays_in_this_thread(two_threads):
    here = threading.get_ident()
    assert side_by_side(lambda _: threading.get_ident(), range(3), wanted=False) == [here] * 3


def test_an_error_in_a_piece_is_raised_and_the_thread_count_comes_back(two_threads):
    def fail(item):
        raise ValueError(f"piece {item}")

    with pytest.raises(ValueError, match="piece 0"):
        side_by_side(fail, range(3))
    assert torch.get_num_threads() == 2


def test_one_thread_is_for_the_block_alone(two_threads):
    with one_thread():
        assert torch.get_num_threads() == 1
    with one_thread(wanted=False):
        assert torch.get_num_threads() == 2
