"""dd-bench table: many records side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark_adapters.cli.output import Format, show_table

EPILOG = """
**Examples**

`dd-bench table` prints the README's results from the records that come with the package

`dd-bench table runs/*/` puts your own runs together; seeds of one configuration become one row

`dd-bench table runs/*/ --benchmarks` puts the scores of several benchmarks for the same sets side by side
"""


def table(
    records: Annotated[list[Path] | None, typer.Argument(help="Run folders or record files.")] = None,
    by_benchmark: Annotated[
        bool, typer.Option("--benchmarks", help="The scores that --benchmark gave, in fractions, side by side.")
    ] = False,
    output: Annotated[Format, typer.Option("--format", help="How the table is printed.")] = Format.markdown,
) -> None:
    """Print records as one table, repetitions put together, condensations and trials counted apart."""
    from rich.console import Console

    from benchmark_adapters.report import benchmarks
    from benchmark_adapters.report.summary import HEADER, committed_records, read_records, rows

    # A shell's runs/*/ also brings folders that are no runs, and runs that have no result yet.
    chosen = [path for path in records or [] if not path.is_dir() or (path / "record.json").is_file()]
    for path in set(records or []) - set(chosen):
        if (path / "config.yaml").is_file():
            typer.echo(f"{path}: not finished, left out", err=True)
    found = read_records(chosen) if records else committed_records()
    if by_benchmark:
        caption = "fractions with 95 % t-intervals over trials; different protocols do not compare"
        show_table(benchmarks.HEADER, benchmarks.rows(found), output, Console(), "benchmarks", caption)
        return
    caption = "95 % t-intervals over condensations, over trials if there is one"
    show_table(HEADER, rows(found), output, Console(), "records", caption)
