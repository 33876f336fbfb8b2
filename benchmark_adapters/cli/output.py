"""How subcommands print their tables."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console


class Format(StrEnum):
    """How the table is printed."""

    table = "table"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"


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
