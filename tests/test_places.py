"""Folders, paths and streams that a command cannot use: one line and an exit code, before time is spent."""

import errno
import io
import os
import sys
from pathlib import Path

import pytest
from tiny_runs import WORDS, command, start

from dd_plugins.api import DataError, UsageError, write_tensors
from dd_plugins.datasets import load_dataset


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.startswith("dd-bench: ")
    assert error.count("\n") == 1
    return error


def test_a_current_folder_that_was_removed(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert command("list", "network") == 2
    assert "the current folder was removed" in one_line(capsys)
    monkeypatch.chdir(tmp_path)


def test_a_path_that_is_not_utf_8_is_refused_before_steps_are_taken(tmp_path):
    out = tmp_path / os.fsdecode(b"\xff")
    process = start(*WORDS, "--out", out)  # in this process, pytest would keep the message, which is not UTF-8
    _, error = process.communicate(timeout=100)
    assert process.returncode == 2, error
    assert r"\udcff" in error
    assert "not a path in UTF-8" in error
    assert error.count("\n") == 1
    assert not list(out.rglob("*.safetensors"))


def test_tensors_are_not_written_where_they_could_not_be_read(tmp_path):
    with pytest.raises(UsageError, match="UTF-8"):
        write_tensors(tmp_path / os.fsdecode(b"\xe9.safetensors"), {}, {})


def test_output_in_an_encoding_that_lacks_a_character(monkeypatch):
    written = io.BytesIO()
    with monkeypatch.context() as patch:
        stream = io.TextIOWrapper(written, encoding="ascii")
        patch.setattr(sys, "stdout", stream)
        assert command("--version") == 0
        stream.write("\u00fc " + os.fsdecode(b"\xff") + "\n")
        stream.flush()
    assert written.getvalue().endswith(b"\n\\xfc \\udcff\n")


def test_a_reader_that_leaves():
    process = start("list", "network")
    process.stdout.close()
    with process.stderr as error:
        assert error.read() == ""
    process.wait(timeout=60)


def test_long_names(tmp_path, capsys):
    for words in (["eval", "n" * 300], ["show", "n" * 300], [*WORDS, "--out", tmp_path / ("n" * 300)]):
        assert command(*words) in (1, 2)
        assert "File name too long" in one_line(capsys)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_to_names_the_option_that_chooses_another(tmp_path, monkeypatch, capsys, code):
    def mkdir(path, *_, **__):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert command(*WORDS, "--out", tmp_path / "runs") == 1
    line = one_line(capsys)
    assert line.startswith(f"dd-bench: {tmp_path / 'runs'}")
    assert line.endswith(f": {os.strerror(code)}; choose a folder that can be written to with --out\n")


def test_a_home_folder_that_is_unknown(monkeypatch):
    monkeypatch.delenv("DD_PLUGINS_CACHE", raising=False)

    def expanduser(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", expanduser)
    with pytest.raises(DataError, match="not a path on this machine"):
        load_dataset("digits")
