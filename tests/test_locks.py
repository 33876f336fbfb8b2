"""Locks: who holds one, who waits for whom, and what is made only once."""

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark_adapters.runs.store import RunFolder
from dd_plugins.api import MemoryArtifacts, RunLocked, holder, locked, locks
from dd_plugins.datasets import decode, load_dataset, torchvision_sets

HOLDER = """
import pathlib, sys, time
from dd_plugins.api import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """A lock file that another process holds, and the process."""
    lock = tmp_path / "shared" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield lock, process
        process.kill()


def test_who_holds_it_is_told(other):
    lock, process = other
    with pytest.raises(BlockingIOError, match=f"process {process.pid} on {socket.gethostname()} since 2"), locked(lock):
        pass
    told = rf"in use by another process \(process {process.pid} on "
    with pytest.raises(RunLocked, match=told), RunFolder(lock.parent).locked():
        pass


def test_a_wait_is_reported_and_a_stopped_holder_is_named(other, monkeypatch, caplog):
    lock, process = other
    monkeypatch.setattr(locks, "FIRST_NOTICE_SECONDS", 0.3)
    monkeypatch.setattr(locks, "NOTICE_SECONDS", 0.5)
    process.send_signal(signal.SIGSTOP)
    threading.Timer(2, process.kill).start()
    with caplog.at_level(logging.WARNING), locked(lock, "expert trajectories"):
        pass
    told = [record.getMessage() for record in caplog.records]
    says = (
        f"waiting for expert trajectories: {lock} is held by process {process.pid} (stopped) on {socket.gethostname()}"
    )
    assert told[0].startswith(f"{says} since ")
    assert 2 <= len(told) <= 5


def test_a_short_wait_is_not_reported(tmp_path, caplog):
    lock, free = tmp_path / ".lock", threading.Event()

    def hold():
        with locked(lock):
            free.set()
            time.sleep(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    free.wait()
    with locked(lock, "something"):
        pass
    thread.join()
    assert not caplog.records


def test_who_waits_can_be_interrupted(other):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), locked(other[0], "something", stop):
        pass
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt), locked(other[0], "something"):
        pass


def test_the_lock_of_a_killed_process_is_free(other):
    lock, process = other
    process.kill()
    process.wait()
    with locked(lock):
        assert f"process {os.getpid()} " in holder(lock)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": "x"}', b"\xff", b"[" * 4000])
def test_a_damaged_lock_file_is_no_error(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    assert holder(tmp_path / ".lock") == "another process"
    with locked(tmp_path / ".lock"):
        pass


def test_a_lock_file_that_is_removed_at_the_same_moment_is_made_again(tmp_path, monkeypatch):
    lock, calls = tmp_path / ".lock", []
    real_flock = fcntl.flock

    def flock(descriptor, how):
        if not calls:
            lock.unlink()
        if how & fcntl.LOCK_EX:
            calls.append(descriptor)
        real_flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(lock), pytest.raises(BlockingIOError), locked(lock):
        pass
    assert len(calls) == 3


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def flock(descriptor, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="No locks available") as caught, locked(tmp_path / ".lock"):
        pass
    assert caught.value.filename == str(tmp_path / ".lock")


# ---- shared results that are made on demand -------------------------------------------------------------------------


def test_two_that_need_the_same_images_decode_them_once(tmp_path, monkeypatch):
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for k in range(4):
                pixels = np.full((8, 8), 20 * k + 3 * len(split), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / split / label / f"{k}.png")
    decoded, original = [], decode._decode

    def slow(*words):
        decoded.append(words)
        time.sleep(0.5)
        return original(*words)

    monkeypatch.setattr(decode, "_decode", slow)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: load_dataset(f"folder:{tmp_path / 'set'}", cache=tmp_path / "cache"), range(2))
    assert len(decoded) == 1
    assert one.spec == other.spec


def test_two_that_need_the_same_files_download_them_one_after_the_other(tmp_path, monkeypatch):
    inside, most = [], []

    def load(self, root, train):
        inside.append(train)
        most.append(len(inside))
        time.sleep(0.2)
        inside.pop()
        labels = torch.arange(10).repeat(12)
        return SimpleNamespace(data=torch.arange(120 * 784, dtype=torch.uint8).view(120, 28, 28), targets=labels)

    monkeypatch.setattr(torchvision_sets.Mnist, "_load", load)
    plugin = torchvision_sets.Mnist("", {})
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: plugin.read(tmp_path / "data", MemoryArtifacts()), range(3)))
    assert most == [1] * 6


FORKING = """
import os, pathlib, signal, sys
from dd_plugins.api import locked
lock = pathlib.Path(sys.argv[1])
with locked(lock):
    child = os.fork()
    if not child:
        signal.pause()
try:
    with locked(lock):
        print("free", flush=True)
finally:
    os.kill(child, signal.SIGKILL)
"""


def test_a_forked_process_does_not_keep_a_lock_that_was_released(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FORKING, tmp_path / ".lock"], capture_output=True, text=True, check=False
    )
    assert done.stdout == "free\n", done.stderr


def test_what_a_lock_file_says_is_printable(tmp_path):
    lock = tmp_path / ".lock"
    lock.write_text('{"pid": 7, "host": "\\u001b[31mred\\nline", "since": "now", "owner": "x"}')
    assert holder(lock) == r"process 7 on \x1b[31mred line since now"
