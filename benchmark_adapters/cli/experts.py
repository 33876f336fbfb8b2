"""dd-bench experts: train the expert trajectories that trajectory matching needs, ahead of the runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark_adapters.cli.options import RUN_PANEL, Assignments, DataRoot, Dataset, Device, Ipc, Method, Out

EPILOG = """
**Examples**

`dd-bench experts --dataset digits --num 20`

`dd-bench experts --dataset cifar10 --network convnet --num 100 --at-once 10`

`dd-bench experts --method haba --dataset cifar10 --set network.width=32 --num 10`

Runs find them under the same `--out`; an interrupted command goes on with the epoch that it was at.
"""


def experts(
    method: Method = None,
    dataset: Dataset = None,
    ipc: Ipc = None,
    network: Annotated[
        str | None, typer.Option(help="Network; by default the method's.", rich_help_panel=RUN_PANEL)
    ] = None,
    num: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="How many; by default the method's.", rich_help_panel=RUN_PANEL),
    ] = None,
    at_once: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="How many are trained together; by default all on a GPU.")
    ] = None,
    assignments: Assignments = None,
    device: Device = None,
    data_root: DataRoot = None,
    out: Out = Path("runs"),
) -> None:
    """Train expert trajectories, which all runs of trajectory matching share."""
    from rich.console import Console

    from benchmark_adapters.runs.experts import train_experts
    from benchmark_adapters.runs.parts import Options
    from benchmark_adapters.runs.progress import Reporter
    from benchmark_adapters.runs.system import choose_device
    from dd_plugins.engine.config import resolve

    flags = {"method": method or "mtt", "dataset": dataset, "ipc": ipc, "network": network}
    resolved = resolve(flags, assignments or [], None)
    options = Options(out, choose_device(device), data_root)
    train_experts(resolved, num, at_once, options, Reporter(Console()))
