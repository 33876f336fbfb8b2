"""dd-bench list: the installed plugins, read from metadata and sources alone; and the settings of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark_adapters.cli.output import say

if TYPE_CHECKING:
    from dd_plugins.registry import PluginInfo

EPILOG = """
**Examples**

`dd-bench list` lists all plugins: classes, methods and protocols

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
    """List all plugins with origin, version and status; or the settings of one."""
    from dd_plugins import registry

    wanted = _kind(kind) if kind else None
    if wanted and name:
        _show_one(wanted, name)
        return
    rows = [_row(info) for each in registry.KINDS if wanted in (None, each) for info in registry.list_plugins(each)]
    _print(("kind", "name", "origin", "version", "status", "what it is"), rows, styles=[STYLES.get(r[4]) for r in rows])
    for place, why in registry.damaged_distributions():
        say(f"{place}: its entry points cannot be read, so its plugins are not listed ({why})")


def _row(info: PluginInfo) -> tuple[str, ...]:
    status, line = info.status()
    if info.kind == "format" and info.constants().get("import_only"):
        line = f"{line} (import only)"
    return info.kind, info.spec, info.distribution, info.version, status, line


def _kind(text: str) -> str:
    """The kind for a word in singular or plural; for a name, the error says what to write."""
    from dd_plugins.errors import UnknownPluginError
    from dd_plugins.names import canonical, choose, matches, suggestion
    from dd_plugins.registry import KINDS, list_plugins

    for form in (text, text.removesuffix("s"), text.removesuffix("S")):
        if canonical(form, KINDS) in KINDS:
            return canonical(form, KINDS)
    specs = {kind: [info.spec for info in list_plugins(kind)] for kind in KINDS}
    if found := [f"dd-bench list {kind} {name}" for kind in KINDS for name in matches(text, specs[kind])]:
        raise UnknownPluginError(f"unknown kind {text!r}{suggestion(found)}")
    return choose("kind", text, KINDS)


def _show_one(kind: str, name: str) -> None:
    """A line about it, and all its settings."""
    from benchmark_adapters.cli.described import described
    from dd_plugins import registry

    info = registry.find(kind, name)
    if kind == "method":
        _show_method(info)
        return
    found = described(kind, info.spec)
    say(_plain(f"{info.spec}: {found.about}"))
    _print(("setting", "default" if kind != "protocol" else "value", "what it is"), found.rows)


def _show_method(info: PluginInfo) -> None:
    """The parts of a method, and its settings block by block; later blocks win where they apply.

    Raises:
        PluginLoadError: If its file is damaged.
    """
    from benchmark_adapters.cli.described import written
    from dd_plugins.errors import PluginLoadError
    from dd_plugins.sources import read_file

    path, (status, line) = info.source(), info.status()
    if path is None or status != "ok":
        raise PluginLoadError(f"method {info.spec!r} ({info.distribution} {info.version}): {line}")
    content = read_file(path)
    say(_plain(f"{info.spec}: {line}"))
    say(f"parts: --param {content['parameterization']} --objective {content['objective']}")
    rows = []
    for block in content.get("settings", ()):
        scaled = {key: f"{value} x IPC" for key, value in block.get("per_ipc", {}).items()}
        values = {**block.get("set", {}), **scaled}
        applies = ", ".join(f"{key} {_alternatives(value)}" for key, value in block.get("for", {}).items()) or "all"
        firsts = [(applies, " ".join(block["source"].split())), *[("", "")] * len(values)]
        rows += [(key, written(value), *first) for (key, value), first in zip(values.items(), firsts, strict=False)]
    _print(("setting", "value", "for", "source"), rows)


def _alternatives(value: object) -> str:
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(text: str) -> str:
    """The text of a docstring without the double backquotes of reStructuredText."""
    return text.replace("``", "")


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
        table.add_row(*(rich_text(_plain(cell)) for cell in row), style=styles[number] if listing else None)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
