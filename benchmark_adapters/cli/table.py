"""dd-bench table: many records side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """
**Examples**

`dd-bench table` prints the README's results from the records that come with the package

`dd-bench table runs/*/` puts your own runs together; seeds of one configuration become one row
"""


def table(
    records: Annotated[list[Path] | None, typer.Argument(help="Run folders or record files.")] = None,
) -> None:
    """Print records as one Markdown table, repetitions put together, condensations and trials counted apart."""
    from benchmark_adapters.report.summary import committed_records, markdown, read_records, rows

    found = read_records(records) if records else committed_records()
    typer.echo(markdown(rows(found)))
