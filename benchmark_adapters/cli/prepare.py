"""dd-bench prepare: makes what a run needs besides its data, ahead of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark_adapters.cli.options import (
    RUN_PANEL,
    Assignments,
    ConfigFile,
    DataRoot,
    Dataset,
    Device,
    Ipc,
    Method,
    NetworkName,
    ObjectiveName,
    Out,
    OverBudget,
    Param,
    ProtocolName,
    Prune,
    Seed,
    Trust,
)

EPILOG = """
**Examples**

`dd-bench prepare --method mtt --dataset cifar10 --dry-run` lists what exists and what is missing

`dd-bench prepare --method mtt --dataset cifar10 --set objective.experts=100` trains expert trajectories

`dd-bench prepare --method h-pd --dataset digits --set parameterization.recipe.kind=vae` trains a generator

The flags are those of `dd-bench run`, which finds the artifacts under the same `--out`. An interrupted command
continues where it was.

A generator (the prior of `h-pd` and `glad`) has gates, measured on the validation split: a classifier of real images
finds its samples in their class at least 0.8 times as often as real images; samples of a class lie 0.7 to 1.3 times as
far apart as real images; and a classifier that is trained on samples reaches at least 0.75 times the accuracy of one
that is trained on real images. A prior that fails one is kept, and the exit code is 1, unless
`--set parameterization.allow_weak_prior=true`.
"""


def prepare(
    method: Method = None,
    param: Param = None,
    objective: ObjectiveName = None,
    network: NetworkName = None,
    prune: Prune = None,
    over_budget: OverBudget = None,
    dataset: Dataset = None,
    ipc: Ipc = None,
    protocol: ProtocolName = None,
    seed: Seed = None,
    steps: Annotated[int | None, typer.Option(help="Matching steps.", rich_help_panel=RUN_PANEL)] = None,
    assignments: Assignments = None,
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what exists and what is missing.")] = False,
    device: Device = None,
    data_root: DataRoot = None,
    trust: Trust = None,
    out: Out = Path("runs"),
) -> None:
    """Make the artifacts of a run ahead of it: expert trajectories, priors, reference classifiers, decoded data."""
    from rich.console import Console

    from benchmark_adapters.cli.progress import Reporter
    from benchmark_adapters.runs.parts import Options
    from benchmark_adapters.runs.prepare import prepare as make
    from benchmark_adapters.runs.system import choose_device
    from dd_plugins.engine.config import resolve
    from dd_plugins.errors import DDPluginsError

    flags = {
        "method": method,
        "parameterization": param,
        "objective": objective,
        "network": network,
        "pruning": prune,
        "over_budget": over_budget,
        "dataset": dataset,
        "ipc": ipc,
        "protocol": protocol,
        "seed": seed,
        "steps": steps,
    }
    resolved = resolve(flags, assignments or [], config)
    problems = make(resolved, Options(out, choose_device(device), data_root), Reporter(Console()), dry_run)
    if problems:
        raise DDPluginsError(problems[0], problems[1:])
