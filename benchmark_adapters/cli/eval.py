"""dd-bench eval: score a stored set again, on any network, under any protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark_adapters.cli.options import Assignments, DataRoot, Device, Out

EPILOG = """
**Examples**

`dd-bench eval 3f2a90c1d4 --network convnet,resnet18,vgg11,alexnet,densenet121`

`dd-bench eval synthetic.safetensors --dataset cifar10 --protocol dsa-steps`
"""


def evaluate(
    stored: Annotated[str, typer.Argument(metavar="RUN|FILE", help="A run, or a synthetic.safetensors.")],
    network: Annotated[str | None, typer.Option(help="One network or several, joined by commas.")] = None,
    protocol: Annotated[str | None, typer.Option(help="How it is scored; by default as the run was.")] = None,
    dataset: Annotated[str | None, typer.Option(help="The real data, for a FILE; by default as the file says.")] = None,
    param: Annotated[str | None, typer.Option(help="A module:Class that the file may import.")] = None,
    assignments: Assignments = None,
    device: Device = None,
    data_root: DataRoot = None,
    out: Out = Path("runs"),
) -> None:
    """Score a stored set again: the set is rebuilt from its file alone."""
    from rich.console import Console

    from benchmark_adapters.report.tables import score_table
    from benchmark_adapters.runner.parts import Options
    from benchmark_adapters.runner.progress import Reporter
    from benchmark_adapters.runner.rescore import rescore
    from benchmark_adapters.runner.system import choose_device

    console = Console()
    options = Options(out, choose_device(device), data_root)
    networks = [name.strip() for name in network.split(",")] if network else [None]
    record, scores, ipc = rescore(
        stored, networks, protocol, dataset, param, assignments or [], options, Reporter(console)
    )
    for score in scores:
        console.print(score_table(record, score, ipc))
