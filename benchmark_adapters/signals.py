"""Signals that ask a command to end: Ctrl-C (SIGINT), SIGTERM as schedulers send it, and SIGHUP of a lost terminal.

Each becomes an `Interrupted`, at once or, within `interruptible`, after the step that is being taken. A signal that was
ignored when the process started, as SIGHUP is under ``nohup``, stays ignored.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
Handler = Callable[[int, FrameType | None], None]


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end; what was done so far is saved.

    Attributes:
        signal: Its number.
    """

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = number


def exit_code(error: KeyboardInterrupt) -> int:
    """The exit code of the command: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (error.signal if isinstance(error, Interrupted) else signal.SIGINT)


@contextmanager
def raising() -> Iterator[None]:
    """Within it a signal raises `Interrupted` at once."""

    def end(number: int, frame: FrameType | None) -> None:
        _leave_lost_terminal()
        raise Interrupted(number=number)

    with _handled_by(end):
        yield


@contextmanager
def interruptible(say: Callable[[str], None]) -> Iterator[Callable[[], int]]:
    """Within it the first signal is only noted, and the second raises `Interrupted`.

    Outside the main thread, where Python delivers no signals, nothing is noted.

    Args:
        say: Shows the user a line once the first one is noted: a step can take long.

    Yields:
        A function that returns the number of the first signal, 0 before there is one.
    """
    noted = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        _leave_lost_terminal()
        if noted:
            raise Interrupted(number=number)
        noted = number
        with suppress(OSError, RuntimeError):  # the handler may run within another write to the same stream
            name = "interrupted" if number == signal.SIGINT else f"{signal.Signals(number).name} received"
            say(f"{name}: ends after this step (Ctrl-C: at once, back to the last checkpoint)")

    with _handled_by(note):
        yield lambda: noted


@contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    before = {}
    if threading.current_thread() is threading.main_thread():
        # None: a handler that was not set by Python cannot be put back
        mine = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        before = {number: signal.signal(number, handler) for number in mine}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _leave_lost_terminal() -> None:
    """Sends the output that went to a terminal that is gone to nowhere, where writing to it would fail."""
    with suppress(OSError):
        for descriptor in (1, 2):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
