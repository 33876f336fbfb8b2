"""Finds runs on disk by id, by the beginning of an id, or by folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmark_adapters.runs.records import how_far, unscored_record
from benchmark_adapters.runs.schema import RunRecord
from benchmark_adapters.runs.store import RunFolder, read_record_file
from dd_plugins.api import UsageError


def find_run(name: str, out: Path) -> RunFolder:
    """The folder of a run.

    Raises:
        UsageError: If there is none, or more than one begins like this.
    """
    if Path(name).is_file() and Path(name).suffix == ".json":
        raise UsageError(f"{name}: a record holds no images; dd-bench run --config {name} makes its set again")
    if Path(name).suffix in (".json", ".safetensors") and not Path(name).exists():
        raise UsageError(f"{name}: no such file")
    for path in (Path(name), out / name):
        if (path / "config.yaml").is_file():
            return RunFolder(path)
    there = sorted(path.parent for path in out.glob("*/config.yaml"))
    found = [path for path in there if name and path.name.startswith(name)]
    if len(found) == 1:
        return RunFolder(found[0])
    known = ", ".join(path.name for path in there) or "none"
    problem = "more than one run begins like" if found else "no run"
    raise UsageError(f"{problem} {name!r} in {out} (there: {known})")


def read_record(folder: RunFolder) -> dict[str, Any]:
    """The record of a run; without scores if the run stored its set and was interrupted before its first score.

    Raises:
        UsageError: If the set is not stored yet; says how far the run is.
    """
    record = read_record_file(folder.record, RunRecord) or unscored_record(folder)
    if record is None:
        raise UsageError(f"{folder.path} has no record yet: {how_far(folder)}")
    return record
