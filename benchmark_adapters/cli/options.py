"""Options that several subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RUN_PANEL, WHERE_PANEL = "What", "Where"


def complete(kind: str) -> list[str]:
    """Names of the installed plugins of a kind, for shell completion; imports none of them."""
    from dd_plugins import registry

    return [info.spec for info in registry.list_plugins(kind)]


Method = Annotated[
    str | None, typer.Option(help="A named method: parts with their settings.", rich_help_panel=RUN_PANEL)
]
Param = Annotated[
    str | None,
    typer.Option(
        help="Parameterization: name, distribution/name or module:Class.",
        rich_help_panel=RUN_PANEL,
        autocompletion=lambda: complete("parameterization"),
    ),
]
Prune = Annotated[
    str | None,
    typer.Option(
        "--prune",
        help="Condense more than the budget and prune: aum, ccs, el2n, random, ...",
        rich_help_panel=RUN_PANEL,
        autocompletion=lambda: complete("pruning"),
    ),
]
OverBudget = Annotated[
    float | None,
    typer.Option(
        "--over-budget",
        help="Share by which the set is condensed too large; 0.1 with --prune, else 0.",
        rich_help_panel=RUN_PANEL,
    ),
]
ObjectiveName = Annotated[
    str | None,
    typer.Option(
        "--objective",
        help="Matching objective.",
        rich_help_panel=RUN_PANEL,
        autocompletion=lambda: complete("objective"),
    ),
]
NetworkName = Annotated[
    str | None,
    typer.Option(
        "--network",
        help="Network of the condensation; --set protocol.network.name=... chooses the one that is scored.",
        rich_help_panel=RUN_PANEL,
        autocompletion=lambda: complete("network"),
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        help="Data set: a name, folder:PATH or parquet:PATH.  [default: digits]",
        rich_help_panel=RUN_PANEL,
        autocompletion=lambda: complete("dataset"),
    ),
]
Ipc = Annotated[int | None, typer.Option(help="Budget in images per class.  [default: 1]", rich_help_panel=RUN_PANEL)]
ProtocolName = Annotated[
    str | None,
    typer.Option("--protocol", help="How it is scored.  [default: dsa; quick for digits]", rich_help_panel=RUN_PANEL),
]
BenchmarkName = Annotated[
    list[str] | None,
    typer.Option(
        "--benchmark",
        help="Scores the set too; one or several, joined by commas (dd-bench list benchmark).",
        rich_help_panel=RUN_PANEL,
        autocompletion=lambda: complete("benchmark"),
    ),
]


def _is_class(specs: list[str] | None) -> list[str] | None:
    from dd_plugins import registry

    for spec in specs or []:
        if spec not in registry.classes_named_in([spec]):
            raise typer.BadParameter(f"expected module:Class, but got {spec!r}")
    return specs


# Names the code that files may import; what this command's arguments name is trusted by `main` already.
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        metavar="MODULE:CLASS",
        help="Code that a record, configuration or stored set may import, repeatable; only installed plugins else.",
        rich_help_panel=WHERE_PANEL,
        callback=_is_class,
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed.  [default: 0]", rich_help_panel=RUN_PANEL)]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file, such as another run's config.yaml.", rich_help_panel=RUN_PANEL),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Sets one value, repeatable.", rich_help_panel=RUN_PANEL),
]
FullData = Annotated[
    bool | None,
    typer.Option(
        "--full-data/--no-full-data",
        help="Score the whole training set beside it, as a yardstick.  [default: if it has at most 10,000 images]",
        show_default=False,
    ),
]
Chunk = Annotated[
    int | None,
    typer.Option(min=1, max=2**63 - 1, help="Images decoded with a graph at once.", rich_help_panel=WHERE_PANEL),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=4096,
        help="Threads of one operation while images are learned; equal numbers give equal bits.  [default: 1 for small "
        "images, else those of torch]",
        rich_help_panel=WHERE_PANEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu or cuda; by default a GPU if there is one.", rich_help_panel=WHERE_PANEL),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder under which data sets lie or are downloaded to.", rich_help_panel=WHERE_PANEL),
]
Out = Annotated[Path, typer.Option("--out", help="Folder of all runs.", rich_help_panel=WHERE_PANEL)]


def names_of(options: str | list[str] | None) -> list[str]:
    """The names of an option that may be repeated, or hold several that are joined by commas; each of them once."""
    texts = [options] if isinstance(options, str) else options or []
    return list(dict.fromkeys(name.strip() for text in texts for name in text.split(",") if name.strip()))
