"""dd-bench prune: a coreset of the real training images, or a part of a stored set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark_adapters.cli.options import (
    RUN_PANEL,
    Assignments,
    DataRoot,
    Dataset,
    Device,
    Out,
    ProtocolName,
    Seed,
    Trust,
    complete,
)
from benchmark_adapters.cli.output import say

EPILOG = """
**Examples**

`dd-bench prune --dataset cifar10 --keep 0.3 --strategy ccs`

`dd-bench prune 3f2a90c1d4 --keep 0.9 --strategy aum --set pruning.beta=0.5`

`dd-bench prune --dataset digits --keep 0.2 --set pruning.score=forgetting --set pruning.selector=keep-hard`
"""


def prune(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run, or its folder; without one the real images.")
    ] = None,
    keep: Annotated[float, typer.Option(help="Share that is kept, above 0 and at most 1.")] = 0.5,
    strategy: Annotated[
        str,
        typer.Option(help="Pruning strategy.", rich_help_panel=RUN_PANEL, autocompletion=lambda: complete("pruning")),
    ] = "aum",
    dataset: Dataset = None,
    protocol: ProtocolName = None,
    seed: Seed = None,
    assignments: Assignments = None,
    device: Device = None,
    data_root: DataRoot = None,
    trust: Trust = None,
    out: Out = Path("runs"),
) -> None:
    """Select a coreset of a data set, or prune a stored set; what is left is stored and scored like any run."""
    from rich.console import Console

    from benchmark_adapters.cli.progress import Reporter
    from benchmark_adapters.report.tables import score_table
    from benchmark_adapters.runs.coreset import prune_stored
    from benchmark_adapters.runs.parts import Options
    from benchmark_adapters.runs.system import choose_device

    console = Console()
    flags = {"pruning": strategy, "dataset": dataset, "protocol": protocol, "seed": seed}
    options = Options(out, choose_device(device), data_root)
    record, config = prune_stored(run, flags, assignments or [], keep, options, Reporter(console))
    for score in record["scores"]:
        if score["protocol_hash"] == config.protocol.hash:
            console.print(score_table(record, score, config.ipc))
    for line in (f"images: {out / record['id'] / 'preview.png'}", f"kept rows: {out / record['id'] / 'record.json'}"):
        say(line)
