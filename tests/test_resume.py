"""Processes that are killed or interrupted, and the same command again: the result is the same to the last bit.

Real processes on one thread, ended by real signals at chosen moments: in the middle of a step, or with a file written
but not yet renamed. What must be the same is made in this process, on one thread too.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tiny_runs import WORDS, command, start

from benchmark_adapters.runs.store import RunFolder
from dd_plugins.api import read_tensors

# The command, which sends itself a signal when it has come to a function for the n-th time.
LAUNCHER = """
import os, signal, sys

# A process in the background of a shell inherits that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

def signalling(function, count, number):
    calls = 0
    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)
    return wrapped

where, count, number = os.environ["SIGNAL_AT"].split()
if where == "fsync":
    os.fsync = signalling(os.fsync, int(count), int(number))
else:
    import dd_plugins.engine.condensation as condense
    import benchmark_adapters.runs.scoring as scoring
    owner, name = {"step": (condense, "checked_match"), "trained": (scoring, "evaluate")}[where]
    setattr(owner, name, signalling(getattr(owner, name), int(count), int(number)))

from benchmark_adapters.cli.main import run
sys.argv[0] = "dd-bench"
run()
"""


def _signalled(out, where, count, number, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SIGNAL_AT": f"{where} {count} {int(number)}"}
    command = [sys.executable, "-c", LAUNCHER, *WORDS, "--out", str(out), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def _finish(out, *words):
    assert command(*WORDS, "--out", out, *words) == 0


def _folder(out):
    (config,) = out.glob("*/config.yaml")
    return RunFolder(config.parent)


def _step(folder):
    return json.loads(read_tensors(folder.checkpoint)[1]["dd_plugins.checkpoint"])["step"]


def _result(out):
    """The stored set and every trial, of the run and of the yardsticks."""
    folder = _folder(out)
    record = json.loads(folder.record.read_text())
    scores = [(score.get("name"), score["trials"]) for score in [*record["scores"], *record["yardsticks"]]]
    return folder.synthetic.read_bytes(), scores


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    _finish(out)
    return _result(out)


def test_killed_again_and_again(tmp_path, undisturbed):
    """One run, killed before a rename each time: of a checkpoint, of the set, of the marker, within a score.

    Each process first writes config.yaml; with a checkpoint behind every step, a fresh one also writes step 0.
    """
    for kill_at, step in ((4, 1), (7, 6), (3, 6), (6, None)):
        ended = _signalled(tmp_path, "fsync", kill_at, signal.SIGKILL, "--checkpoint-seconds", "0")
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        folder = _folder(tmp_path)
        assert not folder.record.exists()
        assert (_step(folder) if folder.checkpoint.exists() else None) == step
    assert folder.synthetic.exists()
    made = folder.synthetic.stat().st_mtime_ns
    _finish(tmp_path, "--checkpoint-seconds", "0")
    assert folder.synthetic.stat().st_mtime_ns == made  # scored, not condensed again
    assert _result(tmp_path) == undisturbed
    assert not folder.checkpoint.exists()
    assert not list(folder.path.glob(".*.tmp"))  # nothing half written is left


def test_killed_within_a_step_between_checkpoints(tmp_path, undisturbed, capsys):
    ended = _signalled(tmp_path, "step", 5, signal.SIGKILL)
    assert ended.returncode == -signal.SIGKILL
    assert _step(_folder(tmp_path)) == 0
    _finish(tmp_path)
    assert "continuing at step 0 of 6" in capsys.readouterr().out
    assert _result(tmp_path) == undisturbed


def test_killed_from_outside_at_any_moment(tmp_path, undisturbed):
    process = start(*WORDS, "--out", tmp_path, "--checkpoint-seconds", "0")
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("*/condense.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    _finish(tmp_path)
    assert _result(tmp_path) == undisturbed


def test_interrupted_while_condensing(tmp_path, undisturbed):
    ended = _signalled(tmp_path, "step", 3, signal.SIGINT)
    assert ended.returncode == 130
    assert ended.stderr == "dd-bench: interrupted at step 3 of 6; the same command continues\n"
    assert "interrupted: ends after this step" in ended.stdout
    assert _step(_folder(tmp_path)) == 3
    # The next interrupt comes while the set is scored.
    ended = _signalled(tmp_path, "trained", 1, signal.SIGINT)
    assert "continuing at step 3 of 6" in ended.stdout
    assert ended.returncode == 130
    assert ended.stderr == "dd-bench: interrupted; the same command continues\n"
    _finish(tmp_path)
    assert _result(tmp_path) == undisturbed


def test_ended_by_a_scheduler_or_a_lost_terminal(tmp_path, undisturbed):
    """SIGTERM while condensing and SIGHUP while scoring: like Ctrl-C, with other exit codes."""
    ended = _signalled(tmp_path, "step", 3, signal.SIGTERM)
    assert ended.returncode == 143
    assert ended.stderr == "dd-bench: interrupted at step 3 of 6; the same command continues\n"
    assert "SIGTERM received: ends after this step" in ended.stdout
    assert _step(_folder(tmp_path)) == 3
    ended = _signalled(tmp_path, "trained", 1, signal.SIGHUP)
    assert "continuing at step 3 of 6" in ended.stdout
    assert ended.returncode == 129
    assert ended.stderr == "dd-bench: interrupted; the same command continues\n"
    _finish(tmp_path)
    assert _result(tmp_path) == undisturbed
