"""Which records a command reads: those of the runs that its arguments name, or that lie below them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dd_plugins.api import UsageError

DEPTH = 2  # folders of runs, and folders of those
RUNS = Path("runs")  # where commands keep runs by default


def find_records(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Finds the records that paths stand for.

    Args:
        paths: Run folders, record files, folders of record files, or folders of runs; of the latter every run up to two
            levels below counts, and nothing else that they hold, such as scores of real images.

    Returns:
        Folders and files that have a record, each once; and folders of runs that are not finished.

    Raises:
        UsageError: If there is no record at all.
    """
    found: dict[Path, Path] = {}
    unfinished: dict[Path, Path] = {}
    for path in paths:
        for each in [path] if _holds_record(path) or not path.is_dir() else _records_in(path):
            (found if _holds_record(each) or each.is_file() or not each.exists() else unfinished)[each.resolve()] = each
    if not found:
        where = ", ".join(map(str, paths))
        waiting = f"; not finished: {', '.join(map(str, unfinished.values()))}" if unfinished else ""
        raise UsageError(f"no record of a finished run in {where}{waiting}")
    return [*found.values()], [*unfinished.values()]


def _holds_record(folder: Path) -> bool:
    return (folder / "record.json").is_file()


def _records_in(folder: Path) -> Iterator[Path]:
    """The record files that a folder holds, such as those of this project; without any, the runs below it."""
    files = [] if (folder / "config.yaml").is_file() else sorted(folder.glob("*.json"))
    yield from files or _runs_in(folder, DEPTH)


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    """The folder itself if it is a run, else the runs below it."""
    if (folder / "config.yaml").is_file():
        yield folder
    elif depth:
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield from _runs_in(inner, depth - 1)


def records_or_runs(paths: Sequence[Path] | None) -> list[Path]:
    """The paths that a command was given; without any the folder ``runs``.

    Raises:
        UsageError: If there are none, and no such folder.
    """
    if paths:
        return list(paths)
    if not RUNS.is_dir():
        raise UsageError(
            f"there is no folder {RUNS} here; name run folders, folders of runs or record files (those of the README "
            f"are in the repository: benchmark_adapters/records)"
        )
    return [RUNS]
