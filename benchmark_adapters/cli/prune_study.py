"""dd-bench prune-study: a pruning beside its controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark_adapters.cli.options import Assignments, DataRoot, Device, Out, Trust
from benchmark_adapters.cli.output import Format, complain, say, show_table

EPILOG = """
**Examples**

`dd-bench prune-study 3f2a90c1d4`

`dd-bench prune-study 3f2a90c1d4 --rates 0.1 --runs 3 --format markdown`

The run tells what is condensed, and how it is scored; its own pruning and seed do not matter. What is there is reused.
"""
RATES = "0.1,0.3,0.5"


def prune_study(
    run: Annotated[str, typer.Argument(help="A run, or its folder.")],
    rates: Annotated[str, typer.Option(help="Shares over the budget, joined by commas; controls are at 0.1.")] = RATES,
    grid: Annotated[str, typer.Option(help="Shares beta that are tried, joined by commas.")] = "0,0.25,0.5,0.75,1",
    runs: Annotated[int, typer.Option(min=1, help="Condensations of each, with seeds 0, 1, ...")] = 1,
    assignments: Assignments = None,
    output: Annotated[
        Format, typer.Option("--format", case_sensitive=False, help="How the table is printed.")
    ] = Format.table,
    device: Device = None,
    data_root: DataRoot = None,
    trust: Trust = None,
    out: Out = Path("runs"),
) -> None:
    """Prune by other scores, at other ends, of other sizes, and not at all: one table, and one picture."""
    from rich.console import Console

    from benchmark_adapters.cli.progress import Reporter
    from benchmark_adapters.report import comparison as report
    from benchmark_adapters.report.study import save_figure
    from benchmark_adapters.runs import study
    from benchmark_adapters.runs.compare import compare
    from benchmark_adapters.runs.find import find_run
    from benchmark_adapters.runs.parts import Options
    from benchmark_adapters.runs.system import choose_device
    from dd_plugins.engine.config import resolve

    taking_part = study.contenders(_shares("--rates", rates), _shares("--grid", grid), assignments or [])
    base = resolve({}, [], find_run(run, out).path / "config.yaml")
    console = Console(stderr=output is not Format.table)
    options = Options(out, choose_device(device), data_root)
    found = compare(taking_part, {}, runs, options, Reporter(console), study.common(base))
    scored = next(iter(found.configs.values())).protocol
    header, rows = report.table(report.entries(found.records, scored), scored, study.PLAIN)
    show_table(header, rows, output, console, f"protocol {scored.name}", report.CAPTION)
    if found.records[study.PRUNED]:
        figure = save_figure(found.records[study.PRUNED][0], out)
        say(f"figure: {figure}", err=output is not Format.table)
    for name, why in found.failures.items():
        complain(f"{name} failed: {why}")
    if found.failures:
        raise typer.Exit(1)


def _shares(option: str, text: str) -> list[float]:
    from dd_plugins.api import UsageError

    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{option} {text}: expected numbers joined by commas") from None
    if not found or not all(0 <= share <= 1 for share in found):
        raise UsageError(f"{option} {text}: expected numbers from 0 to 1")
    return found
