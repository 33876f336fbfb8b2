"""dd-bench list: what is installed, read from metadata alone."""

from __future__ import annotations

from typing import Annotated

import typer

EPILOG = """
**Examples**

`dd-bench list` lists everything

`dd-bench list parameterization`
"""


def list_plugins(
    kind: Annotated[str | None, typer.Argument(help="parameterization, objective, dataset, network, ...")] = None,
) -> None:
    """List every installed plugin with its origin, version, status and one line about it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from dd_plugins import registry
    from dd_plugins.errors import UsageError

    wanted = kind.removesuffix("s") if kind else None
    if wanted is not None and wanted not in registry.KINDS:
        raise UsageError(f"unknown kind {kind!r}; there are {', '.join(registry.KINDS)}")
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("kind", "name", "origin", "version", "status"):
        table.add_column(name, no_wrap=True)
    table.add_column("what it is", no_wrap=True, overflow="ellipsis", ratio=1)
    for each in [wanted] if wanted else registry.KINDS:
        for info in registry.list_plugins(each):
            status, line = info.status()
            style = {"broken": "red", "missing": "dim"}.get(status)
            table.add_row(each, info.spec, info.distribution, info.version, status, escape(line), style=style)
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)
