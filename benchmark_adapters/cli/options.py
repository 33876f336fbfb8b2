"""Options that several subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RUN_PANEL, WHERE_PANEL = "What", "Where"

Out = Annotated[Path, typer.Option("--out", help="Folder of all runs.", rich_help_panel=WHERE_PANEL)]
Device = Annotated[
    str | None,
    typer.Option(help="cpu or cuda; by default a GPU if there is one.", rich_help_panel=WHERE_PANEL),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder under which data sets lie or are downloaded to.", rich_help_panel=WHERE_PANEL),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Sets one value, repeatable.", rich_help_panel=RUN_PANEL),
]


def complete(kind: str) -> list[str]:
    """Names of the installed plugins of a kind, for shell completion; imports none of them."""
    from dd_plugins import registry

    return [info.spec for info in registry.list_plugins(kind)]
