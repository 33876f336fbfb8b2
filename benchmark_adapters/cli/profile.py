"""dd-bench profile: how long a run will take here, and where the time goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from benchmark_adapters.cli.options import (
    Assignments,
    Chunk,
    ConfigFile,
    DataRoot,
    Dataset,
    Device,
    Ipc,
    Method,
    NetworkName,
    ObjectiveName,
    Out,
    Param,
    ProtocolName,
    Trust,
)

EPILOG = """
**Examples**

`dd-bench profile --param hmn --dataset cifar10 --set network.width=32`

`dd-bench profile --param pixel --objective dsa --dataset cifar10 --ipc 10 --repeat 5`
"""


def profile(
    method: Method = None,
    param: Param = None,
    objective: ObjectiveName = None,
    network: NetworkName = None,
    dataset: Dataset = None,
    ipc: Ipc = None,
    protocol: ProtocolName = None,
    assignments: Assignments = None,
    config: ConfigFile = None,
    repeat: Annotated[int, typer.Option(min=1, help="Matching steps and SGD updates to measure.")] = 10,
    chunk: Chunk = None,
    device: Device = None,
    data_root: DataRoot = None,
    trust: Trust = None,
    out: Out = Path("runs"),
) -> None:
    """Measure a few steps of a run, say how long all of it will take, and where the time goes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # before torch: its profiler tells on stderr that it begins

    from rich.console import Console

    from benchmark_adapters.cli.progress import Reporter
    from benchmark_adapters.report.tables import profile_table
    from benchmark_adapters.runs.parts import Options
    from benchmark_adapters.runs.profile import profile_run
    from benchmark_adapters.runs.system import choose_device, versions
    from dd_plugins.engine.config import resolve

    flags = {
        "method": method,
        "parameterization": param,
        "objective": objective,
        "network": network,
        "dataset": dataset,
        "ipc": ipc,
        "protocol": protocol,
    }
    resolved = resolve(flags, assignments or [], config)
    options = Options(out, choose_device(device), data_root, chunk_size=chunk)
    console = Console()
    for phase in profile_run(resolved, options, Reporter(console), repeat):
        console.print(profile_table(phase, versions()))
