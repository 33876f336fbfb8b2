"""Callbacks: how whoever calls the engine follows a computation, and stops it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import final

from dd_plugins.errors import Stopped


class Callback:
    """Base of callbacks: override what is needed. What a callback does has no influence on the result.

    Jobs are named pieces of work with a number of steps: ``warm start``, ``condense``, ``evaluate (...)``. They may be
    nested.

    Example:
        >>> class Losses(Callback):
        ...     def on_job_progress(self, name, done, total, note):
        ...         if done % 100 == 0:
        ...             print(f"{name}: {done}/{total} {note}")
    """

    def on_message(self, text: str) -> None:
        """Called with a line about what happens."""

    def on_warning(self, text: str) -> None:
        """Called with a line that a user should read; may be called again with the same text."""
        self.on_message(text)

    def on_job_start(self, name: str, total: int, done: int) -> None:
        """Called before a job of ``total`` steps, ``done`` of which were made before."""

    def on_job_progress(self, name: str, done: int, total: int, note: str) -> None:
        """Called after steps of a job, with a note such as the loss."""

    def on_job_end(self, name: str) -> None:
        """Called after a job, also if it failed."""

    def should_stop(self) -> bool:
        """Called after each step: whether to keep the state and stop; False by default."""
        return False

    def stopping(self) -> AbstractContextManager[None]:
        """A scope around work that `should_stop` can stop: signals can be handled in it; does nothing by default."""
        return nullcontext()

    # ---- for those who report --------------------------------------------------------------------------------------

    @final
    @contextmanager
    def job(self, name: str, total: int, done: int = 0) -> Iterator[Job]:
        """A scope within which a job reports its progress."""
        self.on_job_start(name, total, done)
        try:
            yield Job(self, name, total)
        finally:
            self.on_job_end(name)

    @final
    @contextmanager
    def stoppable_job(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A job for plugins, which know no callback: yields a function that takes the steps done.

        Raises:
            Stopped: From that function, if `should_stop` returns True.
        """
        with self.job(name, total) as job:

            def update(done: int) -> None:
                job.update(done)
                if self.should_stop():
                    raise Stopped(f"stopped during {name}, at {done} of {total}")

            yield update


class Job:
    """One job: what reports its progress.

    Attributes:
        total: Its number of steps; may be corrected while it runs.
    """

    def __init__(self, callback: Callback, name: str, total: int) -> None:
        self.callback, self.name, self.total = callback, name, total

    def update(self, done: int, note: str = "") -> None:
        """Reports the steps done."""
        self.callback.on_job_progress(self.name, done, self.total, note)

    def update_total(self, done: int, total: int) -> None:
        """Reports the steps done, and how many there are."""
        self.total = total
        self.update(done)


class CallbackList(Callback):
    """Calls several callbacks, one after the other."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = tuple(callbacks)

    def on_message(self, text: str) -> None:
        """Calls all of them."""
        for each in self.callbacks:
            each.on_message(text)

    def on_warning(self, text: str) -> None:
        """Calls all of them."""
        for each in self.callbacks:
            each.on_warning(text)

    def on_job_start(self, name: str, total: int, done: int) -> None:
        """Calls all of them."""
        for each in self.callbacks:
            each.on_job_start(name, total, done)

    def on_job_progress(self, name: str, done: int, total: int, note: str) -> None:
        """Calls all of them."""
        for each in self.callbacks:
            each.on_job_progress(name, done, total, note)

    def on_job_end(self, name: str) -> None:
        """Calls all of them."""
        for each in self.callbacks:
            each.on_job_end(name)

    def should_stop(self) -> bool:
        """Whether one of them returns True."""
        return any(each.should_stop() for each in self.callbacks)

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Enters the scopes of all of them."""
        with ExitStack() as scopes:
            for each in self.callbacks:
                scopes.enter_context(each.stopping())
            yield
