"""Progress: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dd_plugins.errors import one_line

LINE_SECONDS = 60.0


class Reporter:
    """Shows how far a job is; what it shows has no influence on the job."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(one_line(text), highlight=False, markup=False, emoji=False, soft_wrap=True)

    def say_once(self, text: str) -> None:
        """One line, unless it has been shown before: a warning that concerns many runs."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    @contextmanager
    def job(self, name: str, total: int, done: int = 0) -> Iterator[Job]:
        """A job of ``total`` steps, ``done`` of which are done already; a job within a job gets a bar below it."""
        if self._bar is not None:
            job = Job(self, name, total, done, self._bar)
            try:
                yield job
            finally:
                job.close()
        elif self.console.is_terminal:
            with Progress(*_columns(), console=self.console, refresh_per_second=4) as self._bar:
                try:
                    yield Job(self, name, total, done, self._bar)
                finally:
                    self._bar = None
        else:
            yield Job(self, name, total, done, None)

    @contextmanager
    def watch(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A job for those who know no reporter: yields a function that takes the steps done."""
        with self.job(name, total) as job:
            yield job.update


class Job:
    """One job of a `Reporter`."""

    def __init__(self, reporter: Reporter, name: str, total: int, done: int, bar: Progress | None) -> None:
        self.reporter, self.name, self.total, self.bar = reporter, one_line(name), total, bar
        self.told = time.perf_counter()
        # The clock starts behind the first step, which may do one-off work and would spoil the time left.
        self.first: tuple[int, float] | None = None
        self.last = done
        self.task = bar.add_task(self.name, total=total, completed=done, note="") if bar else None

    def update(self, done: int, note: str = "") -> None:
        """Says how many steps are done, with a note such as the loss."""
        now = time.perf_counter()
        if self.first is None or done < self.last:  # the first step, also of a job that begins anew
            self.first = (done, now)
        self.last = done
        first, begun = self.first
        step = (now - begun) / (done - first) if done > first else None
        text = " ".join(part for part in (one_line(note), f"{_duration(step)}/step" if step else "") if part)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, total=self.total, note=text)
        elif now - self.told >= LINE_SECONDS:
            self.told = now
            left = f", {_duration((self.total - done) * step)} left" if step else ""
            self.reporter.say(f"{self.name}: {done}/{self.total} {text}{left}".rstrip())

    def close(self) -> None:
        """Takes its bar away, which stands within that of another job."""
        if self.bar is not None and self.task is not None:
            self.bar.remove_task(self.task)


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
