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

from benchmark_adapters.signals import Interrupted, interruptible
from dd_plugins.engine.callbacks import Callback
from dd_plugins.errors import Stopped, one_line

LINE_SECONDS = 60.0


class Reporter(Callback):
    """Shows on a console how far the jobs are."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._jobs: list[_Shown] = []
        self._warnings: set[str] = set()
        self._signal: Callable[[], int] = lambda: 0

    def on_message(self, text: str) -> None:
        """Prints one line."""
        self.console.print(one_line(text), highlight=False, markup=False, emoji=False, soft_wrap=True)

    def on_warning(self, text: str) -> None:
        """Prints one line, unless it has been printed before: a warning may concern many runs."""
        if text not in self._warnings:
            self._warnings.add(text)
            self.on_message(text)

    def on_job_start(self, name: str, total: int, done: int) -> None:
        """Shows a bar; a job within a job gets one below it."""
        if self._bar is None and self.console.is_terminal:
            self._bar = Progress(*_columns(), console=self.console, refresh_per_second=4)
            self._bar.start()
        self._jobs.append(_Shown(self, one_line(name), total, done, self._bar))

    def on_job_progress(self, name: str, done: int, total: int, note: str) -> None:
        """Moves the bar, or prints a line a minute."""
        for shown in reversed(self._jobs):
            if shown.name == one_line(name):
                shown.update(done, total, note)
                return

    def on_job_end(self, name: str) -> None:
        """Removes the bar."""
        shown = self._jobs.pop()
        if self._jobs:
            shown.close()
        elif self._bar is not None:
            self._bar.stop()
            self._bar = None

    def should_stop(self) -> bool:
        """Whether a signal asked to stop, within `stopping`."""
        return bool(self._signal())

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """A scope within which the first signal stops the computation after its step, the second at once.

        Raises:
            Interrupted: In the place of `Stopped`, with the number of the signal; also at the end of the block, if the
                signal came after the last step.
        """
        with interruptible(self.on_message) as signal_number:
            before, self._signal = self._signal, signal_number
            try:
                yield
            except Stopped as error:
                raise Interrupted(f"{error}; the same command continues", signal_number()) from None
            finally:
                self._signal = before
            if number := signal_number():
                raise Interrupted(number=number)


class _Shown:
    """A job as it is shown."""

    def __init__(self, reporter: Reporter, name: str, total: int, done: int, bar: Progress | None) -> None:
        self.reporter, self.name, self.bar = reporter, name, bar
        self.printed = time.perf_counter()
        # The clock starts after the first step, which may do one-off work and would spoil the time left.
        self.first: tuple[int, float] | None = None
        self.last = done
        self.task = bar.add_task(self.name, total=total, completed=done, note="") if bar else None

    def update(self, done: int, total: int, note: str) -> None:
        """Shows how many steps are done, with a note such as the loss."""
        now = time.perf_counter()
        if self.first is None or done < self.last:  # the first step, also of a job that begins anew
            self.first = (done, now)
        self.last = done
        first, begun = self.first
        step = (now - begun) / (done - first) if done > first else None
        text = " ".join(part for part in (one_line(note), f"{_duration(step)}/step" if step else "") if part)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, total=total, note=text)
        elif now - self.printed >= LINE_SECONDS:
            self.printed = now
            left = f", {_duration((total - done) * step)} left" if step else ""
            self.reporter.on_message(f"{self.name}: {done}/{total} {text}{left}".rstrip())

    def close(self) -> None:
        """Removes its bar."""
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
