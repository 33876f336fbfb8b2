"""dd-bench compare: methods head to head, or containers times objectives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark_adapters.cli.options import (
    RUN_PANEL,
    Assignments,
    Chunk,
    DataRoot,
    Dataset,
    Device,
    FullData,
    NetworkName,
    Out,
    ProtocolName,
    Threads,
    names_of,
)
from benchmark_adapters.cli.output import Format, complain, say, show_table

if TYPE_CHECKING:
    from rich.console import Console

    from benchmark_adapters.runs.compare import Comparison, Planned

EPILOG = """
**Examples**

`dd-bench compare --methods dc,dsa,dm,hmn --dataset digits --ipc 5 --runs 3`

`dd-bench compare --methods idc,hmn --dataset cifar10 --time-limit 5 --baseline idc --format markdown`

`dd-bench compare --methods mtt,hmn --set mtt:objective.experts=10 --set network.width=32`

`dd-bench compare --matrix --params pixel,idc,rtp,hmn --objectives dc,dm,idc --dataset digits --ipc 5`

`dd-bench compare --methods dm,glad/0,glad/3,h-pd --set glad/0:parameterization.levels=[0]`
`--set glad/3:parameterization.levels=[3] --across alexnet,vgg11,resnet18,vit`

`METHOD/LABEL` is a method once more, with settings of its own. A `--set` with the name of a method before a colon
holds for that method alone. Runs that are there are reused; a
failing method does not stop the others, and the exit code is 1 then.
"""
BASELINES = "dc,dsa,dm,cafe,mtt,idc,haba,rtp,hmn"
CONTAINERS, OBJECTIVE = "pixel,idc,haba,rtp,hmn", "idc"
RANDOM = "random real"  # the row that every comparison has


def compare(
    methods: Annotated[
        str | None,
        typer.Option(help=f"Methods, joined by commas.  [default: {BASELINES}]", rich_help_panel=RUN_PANEL),
    ] = None,
    matrix: Annotated[
        bool,
        typer.Option("--matrix", help="Containers x objectives instead of methods.", rich_help_panel=RUN_PANEL),
    ] = False,
    params: Annotated[
        str | None,
        typer.Option(
            help=f"Containers of the matrix, joined by commas.  [default: {CONTAINERS}]", rich_help_panel=RUN_PANEL
        ),
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(
            help=f"Objectives of the matrix, joined by commas.  [default: {OBJECTIVE}]", rich_help_panel=RUN_PANEL
        ),
    ] = None,
    network: NetworkName = None,
    dataset: Dataset = None,
    ipc: Annotated[
        int, typer.Option(help="Budget in images per class; all methods can do with 5.", rich_help_panel=RUN_PANEL)
    ] = 5,
    protocol: ProtocolName = None,
    runs: Annotated[
        int, typer.Option(min=1, help="Condensations of each method, with seeds 0, 1, ...", rich_help_panel=RUN_PANEL)
    ] = 1,
    across: Annotated[
        str | None,
        typer.Option(
            help="Networks that every set is scored on too, joined by commas; the table has their mean.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Networks trained on each set.", rich_help_panel=RUN_PANEL)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Matching steps of all.", rich_help_panel=RUN_PANEL)] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(min=0.01, help="Minutes of each condensation, at most.", rich_help_panel=RUN_PANEL),
    ] = None,
    baseline: Annotated[str, typer.Option(help="What differences are taken to.", rich_help_panel=RUN_PANEL)] = RANDOM,
    assignments: Assignments = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run, its sizes, and what cannot run, only.")
    ] = False,
    output: Annotated[
        Format, typer.Option("--format", case_sensitive=False, help="How the table is printed.")
    ] = Format.table,
    full_data: FullData = None,
    chunk: Chunk = None,
    threads: Threads = None,
    device: Device = None,
    data_root: DataRoot = None,
    out: Out = Path("runs"),
) -> None:
    """Compare methods under one protocol, with intervals, paired differences and published numbers."""
    from rich.console import Console

    from benchmark_adapters.cli.progress import Reporter
    from benchmark_adapters.runs import compare as runner
    from benchmark_adapters.runs.parts import Options
    from benchmark_adapters.runs.system import choose_device
    from dd_plugins.api import UsageError
    from dd_plugins.names import canonical

    extra = [*(assignments or [])]
    extra += [f"protocol.trials={trials}"] if trials else []
    extra += [f"minutes={time_limit}"] if time_limit else []
    extra += [f"steps={steps}"] if steps is not None else []
    if (methods and matrix) or ((params or objectives) and not matrix):
        raise UsageError("--params and --objectives are for --matrix, --methods for a comparison without it")
    sides = (names_of(params or CONTAINERS), names_of(objectives or OBJECTIVE)) if matrix else None
    taking_part = runner.matrix(*sides, extra) if sides else runner.contenders(names_of(methods or BASELINES), extra)
    names = [RANDOM, *(contender.name for contender in taking_part)]
    baseline = canonical(baseline, names)
    if baseline not in names:
        raise UsageError(f"--baseline {baseline!r} takes no part; there are {', '.join(names)}")
    console = Console(stderr=output is not Format.table)
    options = Options(out, choose_device(device), data_root, full_data, chunk, threads=threads)
    shared = {"dataset": dataset, "ipc": ipc, "protocol": protocol, "network": network}
    if dry_run:
        _show_plans(runner.plan(taking_part, shared, options), output, console)
        return
    found = runner.compare(taking_part, shared, runs, options, Reporter(console), across=names_of(across))
    _show_found(found, sides, baseline, output, console)


def _show_plans(plans: Sequence[Planned], output: Format, console: Console) -> None:
    from benchmark_adapters.report.tables import plan_table

    show_table(*plan_table(plans), output, console, "what would run, with the first seed")
    for line in dict.fromkeys(line for planned in plans for line in planned.warnings):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if any(planned.why for planned in plans):
        raise typer.Exit(1)


def _show_found(
    found: Comparison, sides: tuple[list[str], list[str]] | None, baseline: str, output: Format, console: Console
) -> None:
    """The table of methods, or that of a matrix's sides; and what failed."""
    from benchmark_adapters.report import comparison as report
    from benchmark_adapters.report.tables import matrix_table
    from benchmark_adapters.runs.records import code_check

    scored = next(iter(found.configs.values())).protocol
    entries = report.entries(found.records, scored, found.across)
    if sides:
        header, rows = matrix_table(entries, *sides, found.failures)
    else:
        header, rows = report.table(entries, scored, baseline, len(found.across))
    show_table(header, rows, output, console, f"protocol {scored.name}", report.CAPTION)
    check = code_check()
    if older := [name for name, records in found.records.items() if any(check(record) for record in records)]:
        told = f"{', '.join(older)}: finished runs that were made by other code than is installed"
        say(f"{told}; dd-bench show RUN lists the differences", err=True)
    for name, why in found.failures.items():
        complain(f"{name} failed: {why}")
    if found.failures:
        raise typer.Exit(1)
