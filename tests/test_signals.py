"""Signals: the first is noted, the second ends; handlers are put back; ignored ones stay ignored; a lost terminal."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading

import pytest
from rich.console import Console

from benchmark_adapters import signals
from benchmark_adapters.cli.progress import Reporter
from benchmark_adapters.signals import Interrupted, exit_code, interruptible, raising

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]

WORKER = """
import sys, time
from benchmark_adapters.signals import exit_code, interruptible, raising, Interrupted
try:
    with raising(), interruptible(lambda text: print(text, flush=True)) as asked:
        print("ready", flush=True)
        while not asked():
            time.sleep(0.01)
        print("a line that nobody sees", flush=True)
        with open(sys.argv[1], "w") as file:
            file.write("saved")
        raise Interrupted(number=asked())
except KeyboardInterrupt as error:
    print("nor this", file=sys.stderr, flush=True)
    sys.exit(exit_code(error))
"""


@pytest.fixture(autouse=True)
def _handlers_are_put_back():
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    yield
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


@pytest.mark.parametrize(("number", "code"), CODES)
def test_at_once(number, code):
    with pytest.raises(Interrupted) as caught, raising():
        os.kill(os.getpid(), number)
    assert exit_code(caught.value) == code


@pytest.mark.parametrize(("number", "code"), CODES)
def test_the_first_is_noted_and_the_second_ends(number, code):
    said = []
    with raising(), interruptible(said.append) as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked() == number
        assert len(said) == 1
        assert "ends after this step" in said[0]
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
    assert exit_code(caught.value) == 143
    assert exit_code(Interrupted("", asked())) == code


def test_a_plain_keyboard_interrupt_is_ctrl_c():
    assert exit_code(KeyboardInterrupt()) == 130


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("reentrant call")])
def test_what_cannot_be_said_is_noted_all_the_same(error):
    def say(text):
        raise error

    with interruptible(say) as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked() == signal.SIGINT


def test_a_job_ends_after_its_step_and_keeps_the_number():
    done = []

    def work():
        reporter = Reporter(Console(quiet=True))
        with reporter.stopping(), reporter.stoppable_job("train", 3) as update:
            for step in range(3):
                if step == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                done.append(step)
                update(step)

    with pytest.raises(Interrupted) as caught:
        work()
    assert done == [0, 1]
    assert exit_code(caught.value) == 143


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_was_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with raising(), interruptible(pytest.fail) as asked:
            os.kill(os.getpid(), number)
            assert not asked()
            assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_in_another_thread_nothing_is_noted():
    found = []

    def work():
        with raising(), interruptible(pytest.fail) as asked:
            found.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]


def test_a_lost_terminal_does_not_keep_the_state_from_being_saved(tmp_path):
    ours, theirs = pty.openpty()

    def take_terminal():
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path / "state")],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=take_terminal,
    ) as process:
        os.close(theirs)
        assert b"ready" in os.read(ours, 100)
        os.close(ours)  # the terminal is gone: the kernel sends SIGHUP
        try:
            assert process.wait(timeout=20) == 129
        finally:
            process.kill()
    assert (tmp_path / "state").read_text() == "saved"
