"""Parallel work and thread counts: order, results, scopes that restore."""

import threading

import pytest
import torch

from dd_plugins.api import DataSpec, UsageError
from dd_plugins.execution import Execution, parallel_map


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

    assert parallel_map(work, range(6)) == [(item, 1) for item in range(6)]
    assert torch.get_num_threads() == 2


def test_work_that_must_not_be_shared_stays_in_this_thread(two_threads):
    here = threading.get_ident()
    assert parallel_map(lambda _: threading.get_ident(), range(3), parallel=False) == [here] * 3


def test_an_error_in_a_piece_is_raised_and_the_thread_count_comes_back(two_threads):
    def fail(item):
        raise ValueError(f"piece {item}")

    with pytest.raises(ValueError, match="piece 0"):
        parallel_map(fail, range(3))
    assert torch.get_num_threads() == 2


def test_a_scope_sets_the_thread_count_and_restores_it(two_threads):
    with Execution(threads=1).scope():
        assert torch.get_num_threads() == 1
        with Execution(threads=2).scope():  # nested, in the same thread
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 1
    with Execution().scope():
        assert torch.get_num_threads() == 2


def test_a_scope_restores_the_thread_count_after_an_error(two_threads):
    with pytest.raises(ValueError, match="inside"), Execution(threads=1).scope():
        raise ValueError("inside")
    assert torch.get_num_threads() == 2


def test_scopes_of_two_threads_do_not_overlap(two_threads):
    inside, seen = threading.Event(), []

    def other():
        inside.set()
        with Execution(threads=2).scope():
            seen.append(torch.get_num_threads())

    worker = threading.Thread(target=other)
    with Execution(threads=1).scope():
        worker.start()
        inside.wait(10)
        worker.join(0.2)
        assert worker.is_alive()  # waits for this scope to end
        assert torch.get_num_threads() == 1
    worker.join(10)
    assert seen == [2]
    assert torch.get_num_threads() == 2


def test_the_default_depends_on_the_size_of_the_images(two_threads):
    small = DataSpec("small", 10, (1, 8, 8), (0.5,), (0.25,))
    large = DataSpec("large", 10, (3, 32, 32), (0.5,) * 3, (0.25,) * 3)
    assert Execution().for_data(small).threads == 1
    assert Execution().for_data(large).threads == 2
    assert Execution(threads=3).for_data(small).threads == 3


@pytest.mark.parametrize("threads", [0, -1])
def test_fewer_than_one_thread_is_refused(threads):
    with pytest.raises(UsageError, match=f"threads to be at least 1, but got {threads}"):
        Execution(threads=threads)
