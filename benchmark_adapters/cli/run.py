"""dd-bench run: distil, store, reload, score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmark_adapters.cli.options import (
    RUN_PANEL,
    WHERE_PANEL,
    Assignments,
    BenchmarkName,
    Chunk,
    ConfigFile,
    DataRoot,
    Dataset,
    Device,
    FullData,
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
    Threads,
    Trust,
    names_of,
)
from benchmark_adapters.cli.output import say

if TYPE_CHECKING:
    from rich.console import Console

    from benchmark_adapters.runs.parts import Options
    from dd_plugins.engine.config import RunConfig

EPILOG = """
**Examples**

`dd-bench run --param hmn` distils the embedded digits in about a minute

`dd-bench run --param hmn --dataset cifar10 --ipc 10 --seed 1`

`dd-bench run --param pixel --objective dsa --dataset cifar10 --protocol dsa-steps`

`dd-bench run --param hmn --ipc 10 --prune aum` condenses a tenth more and prunes it at both ends

`dd-bench run --param hmn --benchmark native --benchmark dd-ranking --set dd-ranking:benchmark.epochs=100`

`dd-bench run --param hmn --set parameterization.memory_lr=0.03 --set network.width=32 --dry-run`

Values win in this order: built-in defaults < method < --config < flags and --set.
"""


def run(
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
    benchmark: BenchmarkName = None,
    full_data: FullData = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration, the storage and the run id only.")
    ] = False,
    chunk: Chunk = None,
    checkpoint_seconds: Annotated[
        float,
        typer.Option(min=0, help="Seconds between two checkpoints; 0: every step.", rich_help_panel=WHERE_PANEL),
    ] = 30.0,
    threads: Threads = None,
    device: Device = None,
    data_root: DataRoot = None,
    trust: Trust = None,
    out: Out = Path("runs"),
) -> None:
    """Distil a data set into a small synthetic one, store it, reload it and score it."""
    from rich.console import Console

    from benchmark_adapters.cli.progress import Reporter
    from benchmark_adapters.runs.benchmarks import make_benchmark, score_by, split_settings
    from benchmark_adapters.runs.parts import Options
    from benchmark_adapters.runs.pipeline import run as make_run
    from benchmark_adapters.runs.system import choose_device
    from dd_plugins.engine.config import resolve

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
    own, settings = split_settings(assignments or [], names_of(benchmark))
    resolved = resolve(flags, own, config)
    # What is missing is told before hours are spent.
    made = {name: make_benchmark(name, each) for name, each in settings.items()}
    options = Options(out, choose_device(device), data_root, full_data, chunk, checkpoint_seconds, threads)
    console = Console()
    if dry_run:
        _show_plan(resolved, options, console)
        return
    record = make_run(resolved, options, Reporter(console))
    for name, each in made.items():
        where = str(out / record["id"])
        record = score_by(name, each, where, None, options, Reporter(console))
    _show_scores(record, resolved, bool(made), console)
    say(f"images: {out / record['id'] / 'preview.png'}")


def _show_scores(record: dict[str, Any], config: RunConfig, others: bool, console: Console) -> None:
    """The run beside its yardsticks, and beside the scores of other benchmarks."""
    from benchmark_adapters.report.tables import benchmarks_table, score_table

    for score in record["scores"]:
        if score["protocol_hash"] == config.protocol.hash:
            console.print(score_table(record, score, config.ipc))
    if others:
        console.print(benchmarks_table(record))


def _show_plan(config: RunConfig, options: Options, console: Console) -> None:
    from dataclasses import asdict

    from benchmark_adapters.report.tables import ledger_table
    from benchmark_adapters.runs.identity import compute_run_id
    from benchmark_adapters.runs.notes import data_warnings, idle_rate, lent_settings
    from benchmark_adapters.runs.parts import load_real
    from benchmark_adapters.runs.pipeline import check_plan
    from dd_plugins.engine.memory import estimate_memory

    real = load_real(config, options)
    parts = check_plan(config, real)
    container = parts.container
    console.print(config.to_yaml(), highlight=False, markup=False)
    console.print(ledger_table([asdict(entry) for entry in container.storage().entries], container.budget.elements))
    memory = estimate_memory(config, real).describe()
    notes = (memory, container.describe(), idle_rate(config, container), lent_settings(config))
    for line in (*notes, *data_warnings(config, real, container.counts)):
        if line:
            say(line)
    told = f"images per class: {min(container.counts)}"
    if parts.within is not None:
        told += f" condensed over budget, {min(parts.within.counts)} left when pruned"
    say(f"{told}; steps: {config.steps}")
    say(f"run id: {compute_run_id(config, real.spec.fingerprint)}")
