"""Progress: what is told, and when."""

from io import StringIO

import pytest
from rich.console import Console

from benchmark_adapters.cli import progress
from benchmark_adapters.cli.progress import Reporter


class Clock:
    """A clock that a test moves on."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines(update, clock, steps):
    """What a job tells on a file, given the seconds behind each of its steps."""
    out = StringIO()
    with Reporter(Console(file=out, width=200)).job("condense", 100) as job:
        for done, seconds in enumerate(steps, start=1):
            clock.now += seconds
            update(job, done)
    return out.getvalue().splitlines()


def test_feature_a_line_a_minute_with_loss_step_time_and_time_left(clock):
    told = lines(lambda job, done: job.update(done, "loss 2"), clock, [1.0] * 90)
    assert told == ["condense: 60/100 loss 2 1.0 s/step, 40.0 s left"]


def test_feature_one_off_work_in_the_first_step_does_not_spoil_the_time_left(clock):
    told = lines(lambda job, done: job.update(done), clock, [300.0] + [2.0] * 31)
    assert told == ["condense: 1/100", "condense: 31/100 2.0 s/step, 2 min left"]


def test_feature_a_resumed_job_counts_its_own_steps_alone(clock):
    out = StringIO()
    with Reporter(Console(file=out, width=200)).job("condense", 100, done=50) as job:
        for done in (51, 52, 53):
            clock.now += 30
            job.update(done)
    assert out.getvalue().splitlines() == ["condense: 52/100 30.0 s/step, 24 min left"]


def test_feature_a_job_that_begins_anew_counts_anew(clock):
    told = lines(lambda job, done: job.update(done % 40 + 1), clock, [1.0] * 40 + [10.0] * 25)
    assert told[0] == "condense: 3/100 10.0 s/step, 16 min left"
    assert all("10.0 s/step" in line for line in told)


def test_feature_a_job_within_a_job_has_a_bar_of_its_own_while_it_lasts():
    out = StringIO()
    reporter = Reporter(Console(file=out, width=200, force_terminal=True))
    with reporter.job("condense", 2) as job:
        with reporter.stoppable_job("train the pool of networks", 3) as update:
            update(3)
            names = [task.description for task in reporter._bar.tasks]
        assert names == ["condense", "train the pool of networks"]
        assert [task.description for task in reporter._bar.tasks] == ["condense"]
        job.update(1, "loss 1")
    with reporter.job("evaluate", 1) as job:  # the bar of the first job is gone
        assert [task.description for task in reporter._bar.tasks] == ["evaluate"]
