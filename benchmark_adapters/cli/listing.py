"""dd-bench list: what is installed, read from metadata and sources alone; and the settings of one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from benchmark_adapters.cli.output import say

EPILOG = """
**Examples**

`dd-bench list` lists everything: plugins, methods, protocols and formats

`dd-bench list parameterization`

`dd-bench list parameterization hmn` shows its settings, for `--set parameterization.KEY=VALUE`

`dd-bench list method hmn` shows its parts, and its settings with their sources
"""
WIDTH = 200  # characters of a line that goes into a file or a pipe
STYLES = {"broken": "red", "missing": "dim"}


def list_plugins(
    kind: Annotated[str | None, typer.Argument(help="parameterization, objective, method, protocol, ...")] = None,
    name: Annotated[str | None, typer.Argument(help="One of them: its settings are shown.")] = None,
) -> None:
    """List all plugins, methods, protocols and formats with origin, version and status; or the settings of one."""
    from benchmark_adapters import catalogue
    from dd_plugins import registry

    kinds = (*registry.KINDS, *catalogue.KINDS)
    wanted = _kind(kind, kinds) if kind else None
    if wanted and name:
        _show_one(wanted, name)
        return
    rows = [row for each in kinds if wanted in (None, each) for row in _rows(each)]
    _print(("kind", "name", "origin", "version", "status", "what it is"), rows, styles=[STYLES.get(r[4]) for r in rows])
    for place, why in registry.damaged_distributions():
        say(f"{place}: its entry points cannot be read, so its plugins are not listed ({why})")


def _kind(text: str, kinds: Sequence[str]) -> str:
    """The kind that is meant, in the singular; where a name stands in its place, the error says what to write."""
    from dd_plugins.errors import UnknownPluginError
    from dd_plugins.names import canonical, choose, matches, suggestion

    for form in (text, text.removesuffix("s"), text.removesuffix("S")):
        if canonical(form, kinds) in kinds:
            return canonical(form, kinds)
    if found := [f"dd-bench list {kind} {name}" for kind in kinds for name in matches(text, _names(kind))]:
        raise UnknownPluginError(f"unknown kind {text!r}{suggestion(found)}")
    return choose("kind", text, kinds)


def _names(kind: str) -> list[str]:
    from benchmark_adapters import catalogue
    from dd_plugins import registry

    if kind in catalogue.KINDS:
        return catalogue.names(kind)
    return [info.spec for info in registry.list_plugins(kind)]


def _rows(kind: str) -> Iterator[tuple[str, ...]]:
    """The rows of one kind."""
    from benchmark_adapters import catalogue
    from dd_plugins import __version__, registry

    if kind in catalogue.KINDS:
        for name in catalogue.names(kind):
            yield kind, name, registry.OWN, __version__, "ok", catalogue.about(kind, name)
        return
    for info in registry.list_plugins(kind):
        status, line = info.status()
        yield kind, info.spec, info.distribution, info.version, status, line


def _show_one(kind: str, name: str) -> None:
    """A line about it, and all its settings."""
    from benchmark_adapters import catalogue
    from benchmark_adapters.cli.described import described
    from dd_plugins import registry
    from dd_plugins.names import choose

    plugin = kind not in catalogue.KINDS
    name = registry.find(kind, name).spec if plugin else choose(kind, name, catalogue.names(kind))
    if kind == "format":
        say(f"{name}: {catalogue.about(kind, name)}")
    elif kind == "method":
        _show_method(name)
    else:
        found = described(kind, name)
        say(f"{name}: {found.about}")
        _print(("setting", "default" if kind != "protocol" else "value", "what it is"), found.rows)


def _show_method(name: str) -> None:
    """The parts of a method, and its settings block by block; later blocks win where they apply."""
    from benchmark_adapters.cli.described import written
    from dd_plugins.engine import catalogue

    content = catalogue.raw("method", name)
    say(f"{name}: {content['summary']}")
    say(f"parts: --param {content['parameterization']} --objective {content['objective']}")
    rows = [
        (key, written(value), *((block.applies, block.source) if number == 0 else ("", "")))
        for block in catalogue.blocks(name)
        for number, (key, value) in enumerate(block.values)
    ]
    _print(("setting", "value", "for", "source"), rows)


def _print(header: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str | None] = ()) -> None:
    """A table without lines; the last column is cut in a list of plugins, and folded in a list of settings."""
    from rich.console import Console
    from rich.table import Table

    from benchmark_adapters.escape import rich_text

    if not rows:
        say("It has no settings.")
        return
    listing = bool(styles)
    table = Table(box=None, pad_edge=False, expand=listing)
    for name in header[:-1]:
        table.add_column(name, no_wrap=listing or name == "setting", overflow="fold")
    table.add_column(
        header[-1], no_wrap=listing, overflow="ellipsis" if listing else "fold", ratio=1 if listing else None
    )
    for number, row in enumerate(rows):
        table.add_row(*map(rich_text, row), style=styles[number] if listing else None)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
