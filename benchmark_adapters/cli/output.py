"""How subcommands print: lines, errors and tables, all of them escaped."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

import typer

from dd_plugins.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console


class Format(StrEnum):
    """How the table is printed."""

    table = "table"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"


LONGEST = 2000  # characters of an error message


def say(text: object, *, err: bool = False) -> None:
    """Prints one line."""
    typer.echo(one_line(text), err=err)


def complain(summary: str, details: Sequence[str] = ()) -> None:
    """Prints an error in one line, with single faults in lines below it; very long ones are cut."""
    for text in (f"dd-bench: {summary}", *(f"  {detail}" for detail in details)):
        say(text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)", err=True)


def show_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    output: Format,
    console: Console,
    title: str,
    caption: str = "",
) -> None:
    """Prints a table: for the terminal as wide as that is, else whole, on standard output."""
    from benchmark_adapters.report.comparison import FORMATS
    from benchmark_adapters.report.tables import fitting_table

    if output is Format.table:
        console.print(fitting_table(header, rows, title, caption, console.width))
    else:
        typer.echo(FORMATS[output.value](header, rows))
