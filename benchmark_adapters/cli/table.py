"""dd-bench table: many records side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark_adapters.cli.output import Format, say, show_table

EPILOG = """
**Examples**

`dd-bench table` prints all finished runs below the folder runs

`dd-bench table benchmark_adapters/records` prints the README's results, in a checkout of the repository

`dd-bench table runs` puts your own runs together; seeds of one configuration become one row

`dd-bench table runs --benchmarks` puts the scores of several benchmarks for the same sets side by side
"""


def table(
    records: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, folders of runs, or record files.  [default: runs]")
    ] = None,
    by_benchmark: Annotated[
        bool, typer.Option("--benchmarks", help="The scores that --benchmark gave, in fractions, side by side.")
    ] = False,
    output: Annotated[
        Format, typer.Option("--format", case_sensitive=False, help="How the table is printed.")
    ] = Format.markdown,
) -> None:
    """Print records as one table, repetitions put together, condensations and trials counted apart."""
    from rich.console import Console

    from benchmark_adapters.report import benchmarks
    from benchmark_adapters.report.discovery import find_records, records_or_runs
    from benchmark_adapters.report.summary import HEADER, MARK, read_records, rows
    from benchmark_adapters.runs.records import code_check
    from dd_plugins.errors import UsageError

    chosen, unfinished = find_records(records_or_runs(records))
    for path in unfinished:
        say(f"{path}: not finished, left out", err=True)
    found = read_records(chosen)
    check = code_check()
    older = {str(record.get("id")) for record in found if check(record)}
    if by_benchmark:
        if not any(record.get("benchmarks") for record in found):
            raise UsageError("none of these sets was scored by a benchmark (dd-bench eval RUN --benchmark NAME)")
        caption = "fractions with 95 % t-intervals over trials; different protocols do not compare"
        show_table(benchmarks.HEADER, benchmarks.rows(found, older), output, Console(), "benchmarks", caption)
    else:
        caption = "95 % t-intervals over condensations, over trials if there is one"
        show_table(HEADER, rows(found, older), output, Console(), "records", caption)
    if older:
        count = f"{len(older)} of {len(found)} records made by other code than is installed"
        say(f"{MARK.strip()}: {count}; dd-bench show RECORD lists the differences", err=True)
