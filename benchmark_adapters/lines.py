"""Files of one JSON object a line, to which results are appended as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from dd_plugins.api import DDPluginsError, ResumeMismatch, check_guarded
from dd_plugins.api.atomic import no_symbolic_link
from dd_plugins.api.reading import MAX_JSON_BYTES, parse_json, read_text, validated

Model = TypeVar("Model", bound=BaseModel)


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Appends an object, behind a line break if a crash cut the last line short."""
    check_guarded(path)
    with open(path, "a+b", opener=no_symbolic_link) as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            file.write(b"\n")
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path | None, model: type[Model]) -> list[Model]:
    """All objects of a file; lines that a crash cut short are left out, and a missing file has none.

    Args:
        path: The file, or None.
        model: What each line holds.

    Raises:
        ResumeMismatch: If the file cannot be read, or a line is JSON of another kind.
    """
    if path is None or not path.exists():
        return []
    found = []
    for number, line in enumerate(read_text(path, ResumeMismatch, MAX_JSON_BYTES).splitlines(), start=1):
        where = f"{path}, line {number}"
        with suppress(_CutShort):
            values = parse_json(line, where, _CutShort)
            found.append(validated(model, values, where, ResumeMismatch, "; remove the line to do this again"))
    return found


class _CutShort(DDPluginsError):
    """A line is not valid JSON."""
