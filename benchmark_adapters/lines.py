"""Files of one JSON object a line, to which results are appended as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dd_plugins.api import check_guarded


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Appends an object, behind a line break if a crash cut the last line short."""
    check_guarded(path)
    with path.open("a+b") as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            file.write(b"\n")
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path | None) -> list[dict[str, Any]]:
    """All objects of a file; lines that a crash cut short are left out, and a missing file has none."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else ():
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                found.append(entry)
    return found
