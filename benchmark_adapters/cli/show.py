"""dd-bench show: a run's record, or a stored set, for people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark_adapters.cli.options import Out
from benchmark_adapters.cli.output import say

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

EPILOG = """
**Examples**

`dd-bench show 3f2a90c1d4`

`dd-bench show runs/3f2a90c1d4 --json`

`dd-bench show synthetic.safetensors` shows what a stored set says about itself
"""


def show(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE",
            help="A run's id (or the beginning of it), its folder, its record.json, or a synthetic.safetensors.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as it is.")] = False,
    out: Out = Path("runs"),
) -> None:
    """Print a run's record, also of a run that was interrupted while it was scored; or what a stored set says."""
    import json
    from dataclasses import asdict

    from rich.console import Console

    from benchmark_adapters.report import details
    from benchmark_adapters.report.summary import read_records
    from benchmark_adapters.runs.find import find_run, read_record
    from benchmark_adapters.runs.records import code_check, how_far
    from dd_plugins.api import read_stored

    console, path = Console(), Path(run)
    if path.is_file() and path.suffix != ".json":
        header, tensors = read_stored(path)
        if as_json:
            typer.echo(json.dumps(asdict(header), indent=2))
            return
        _print(console, details.stored_tables(tensors, header), details.stored_lines(header))
        return
    folder = None if path.is_file() else find_run(run, out)
    record = read_records([path])[0] if folder is None else read_record(folder)
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    lines = [*details.record_lines(record, code_check()(record))]
    if folder is not None:
        lines.append(f"folder: {folder.path}")
        if not folder.record.exists():
            lines.append(how_far(folder))
    _print(console, details.record_tables(record, console.width), lines)


def _print(console: Console, tables: Iterable[RenderableType], lines: Iterable[str]) -> None:
    for table in tables:
        console.print(table)
    for line in lines:
        say(line)
