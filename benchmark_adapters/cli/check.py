"""dd-bench check: whether a plugin keeps its contract."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmark_adapters.cli.options import RUN_PANEL

EPILOG = """
**Examples**

`dd-bench check hmn`

`dd-bench check my_module:LowRank --set rank=2` checks a class that is not packaged

`dd-bench check folder:pictures --kind dataset`

The exit code is 3 where a check fails. In a test file, `dd_plugins.testing.parametrize_with_checks` runs the same
checks.
"""
FAILED = 3  # exit code


def check(
    plugin: Annotated[str, typer.Argument(help="A name, distribution/name or module:Class.")],
    kind: Annotated[str | None, typer.Option(help="Its kind, if several plugins have this name.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One of its settings, repeatable.", rich_help_panel=RUN_PANEL),
    ] = None,
) -> None:
    """Check a plugin against its contract: one line a check, with what is wrong and where."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
    from rich.text import Text

    from benchmark_adapters.cli.output import say
    from benchmark_adapters.escape import rich_text
    from dd_plugins.engine.config import settings_of
    from dd_plugins.names import choose
    from dd_plugins.testing import checks_for
    from dd_plugins.testing.checks import CHECKS

    kind = choose("kind", kind, CHECKS) if kind else None
    checks = checks_for(plugin, kind, settings_of(assignments) if assignments else None)
    console = Console()
    table = Table(title=rich_text(f"{plugin} ({checks[0].subject.kind})"))
    for name in ("check", "result", "what it demands, or what is wrong"):
        table.add_column(name, overflow="fold")
    colours = {"passed": "green", "failed": "red", "expected failure": "yellow", "skipped": "dim"}
    found = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for each in progress.track(checks, description="check"):
            result = each.run()
            found.append(result)
            text = result.reason or each.about
            table.add_row(rich_text(each.name), Text(result.status, colours[result.status]), rich_text(text))
    console.print(table)
    failed = sum(result.status == "failed" for result in found)
    skipped = sum(result.status == "skipped" for result in found)
    say(f"{len(found) - failed - skipped} passed, {failed} failed, {skipped} skipped")
    if failed:
        raise typer.Exit(FAILED)
