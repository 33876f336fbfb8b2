"""Files that are whole or not there, what ended processes leave, and folders that are removed while they are used."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from dd_plugins.api import (
    FolderReplaced,
    UsageError,
    atomic,
    guarded,
    staged,
    sweep,
    temporary_folder,
    write_atomically,
)
from dd_plugins.api.atomic import temporary_path

# A process that ends by SIGKILL while it writes: a file, a folder that is exported, a temporary folder.
WRITER = """
import os, pathlib, signal, sys
from dd_plugins.api import staged, temporary_folder, write_atomically
target, how = pathlib.Path(sys.argv[1]), sys.argv[2]
def end(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
if how == "file":
    write_atomically(target, end)
with staged(target) if how == "staged" else temporary_folder(target) as folder:
    end((folder / "part").open("wb"))
"""


def left_by_a_killed_process(target, how):
    """What a process left next to ``target`` when it was killed."""
    ended = subprocess.run([sys.executable, "-c", WRITER, str(target), how], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    (left,) = target.parent.glob(".*.tmp")
    return left


@pytest.mark.parametrize("how", ["file", "staged", "temporary folder"])
def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path, how):
    left = left_by_a_killed_process(tmp_path / "set", how)
    assert socket.gethostname() in left.name
    write_atomically(tmp_path / "other", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_killed_export_leaves_nothing_after_the_next_one(tmp_path):
    left_by_a_killed_process(tmp_path / "set", "staged")
    with staged(tmp_path / "set") as folder:
        (folder / "part").write_bytes(b"whole")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["set", "set/part"]


def test_a_name_tells_its_owner():
    name = temporary_path(Path("folder") / "record.json").name
    assert f"-{os.getpid()}-" in name
    assert socket.gethostname() in name
    with open(f"/proc/{os.getpid()}/stat") as file:
        assert f"-{file.read().rsplit(')', 1)[1].split()[19]}-" in name  # field 22, in clock ticks since boot
    assert len({temporary_path(Path("a")) for _ in range(100)}) == 100


def test_files_of_living_owners_and_of_others_stay(tmp_path):
    mine = temporary_path(tmp_path / "mine")
    with subprocess.Popen(["sleep", "60"]) as process:
        one, another = (f"-{pid}-{atomic.process_start(pid)}-" for pid in (os.getpid(), process.pid))
        theirs = mine.with_name(mine.name.replace(one, another))
        reused = theirs.with_name(theirs.name.replace(f"-{process.pid}-", f"-{process.pid}-9"))  # started later
        host = atomic.host_name()
        elsewhere = mine.with_name(mine.name.replace(host, "another-host-1"))
        old = mine.with_name(mine.name.replace(host, "another-host-2"))
        of_a_release_before, foreign = tmp_path / ".record.json.123.tmp", tmp_path / ".swap.tmp"
        for path in (mine, theirs, reused, elsewhere, old, of_a_release_before, foreign, tmp_path / "kept.tmp"):
            path.write_bytes(b"")
        assert theirs != mine
        long_ago = time.time() - atomic.KEPT_SECONDS - 60
        os.utime(old, (long_ago, long_ago))
        sweep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {
            path.name for path in (mine, theirs, elsewhere, of_a_release_before, foreign, tmp_path / "kept.tmp")
        }
        process.kill()
    os.utime(of_a_release_before, (long_ago, long_ago))
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        path.name for path in (mine, elsewhere, foreign, tmp_path / "kept.tmp")
    }
    sweep(tmp_path / "missing")


def test_files_of_other_programs_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    others = [tmp_path / name for name in (".notes.123.tmp", ".lock.7.tmp", ".record.json.123.tmp")]
    for path in others:
        path.write_bytes(b"")
        os.utime(path, (0, 0))
    with temporary_folder():
        assert all(path.exists() for path in others)
    sweep(tmp_path)
    assert [path.exists() for path in others] == [True, True, False]


def test_threads_write_the_same_file_at_once(tmp_path):
    started = threading.Barrier(4)

    def write(content):
        started.wait()
        for _ in range(20):
            write_atomically(tmp_path / "shared", content)

    contents = [bytes([number]) * 100_000 for number in range(4)]
    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "shared").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


def test_a_final_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    for name in ("n" * 255, "\u00fc" * 127):
        write_atomically(tmp_path / name, b"whole")
        assert (tmp_path / name).read_bytes() == b"whole"
    with pytest.raises(OSError, match="File name too long") as caught:
        write_atomically(tmp_path / ("n" * 256), b"")
    assert caught.value.filename == str(tmp_path / ("n" * 256))
    assert not list(tmp_path.glob(".*"))


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "record.json").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_atomically(tmp_path / "record.json", b"")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "record.json"), None)
    assert not list(tmp_path.glob(".*"))


def test_a_temporary_folder_is_private_and_removed():
    with temporary_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "part").write_bytes(b"")
    assert not folder.exists()


def test_staging_is_refused_where_something_is_there(tmp_path):
    with pytest.raises(UsageError, match="is there already"), staged(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named_by_its_final_name(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError) as caught, temporary_folder(tmp_path / "file" / "set"):
        pass
    assert caught.value.filename == str(tmp_path / "file" / "set")


# ---- folders that are removed or replaced ---------------------------------------------------------------------------


def removed(folder):
    shutil.rmtree(folder)


def replaced(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".lock").write_bytes(b"")


def without_lock(folder):
    (folder / ".lock").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [(removed, "run was removed"), (replaced, "run was replaced"), (without_lock, r"\.lock was removed")],
)
def test_nothing_is_written_to_a_folder_that_was_removed_or_replaced(tmp_path, change, said):
    folder = tmp_path / "run"
    write_atomically(folder / ".lock", b"")
    keep = (folder / ".lock").open()  # as a lock does, so that its inode is not used again
    with keep, guarded(folder / ".lock"):
        write_atomically(folder / "first", b"1")
        change(folder)
        before = set(tmp_path.rglob("*"))
        with pytest.raises(FolderReplaced, match=said):
            write_atomically(folder / "second", b"2")
        assert set(tmp_path.rglob("*")) == before
        write_atomically(tmp_path / "elsewhere", b"3")
    write_atomically(folder / "second", b"2")


def test_another_current_folder_is_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lock = Path("run/.lock")
    write_atomically(lock, b"")
    (tmp_path / "other").mkdir()
    with guarded(lock):
        monkeypatch.chdir(tmp_path / "other")
        with pytest.raises(FolderReplaced):
            write_atomically(Path("run/record.json"), b"")
    assert not list((tmp_path / "other").iterdir())
