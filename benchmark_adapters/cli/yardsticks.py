"""dd-bench yardsticks: score a random real subset, and the whole training set, under a protocol."""

from __future__ import annotations

from pathlib import Path

from benchmark_adapters.cli.options import (
    Assignments,
    DataRoot,
    Dataset,
    Device,
    FullData,
    Ipc,
    Out,
    ProtocolName,
    Seed,
)

EPILOG = """
**Examples**

`dd-bench yardsticks --dataset cifar10 --ipc 10 --protocol dsa`

`dd-bench yardsticks --dataset mnist --full-data`
"""


def yardsticks(
    dataset: Dataset = None,
    ipc: Ipc = None,
    protocol: ProtocolName = None,
    seed: Seed = None,
    assignments: Assignments = None,
    full_data: FullData = None,
    device: Device = None,
    data_root: DataRoot = None,
    out: Out = Path("runs"),
) -> None:
    """Score what distilled sets are held against: a random real subset of the budget, and the whole training set."""
    from rich.console import Console

    from benchmark_adapters.cli.progress import Reporter
    from benchmark_adapters.runs.notes import check_subset, data_warnings
    from benchmark_adapters.runs.parts import Options, load_real
    from benchmark_adapters.runs.scoring import yardsticks as score_yardsticks
    from benchmark_adapters.runs.system import choose_device
    from dd_plugins.engine.config import resolve
    from dd_plugins.engine.score import Estimate

    flags = {"parameterization": "pixel", "dataset": dataset, "ipc": ipc, "protocol": protocol, "seed": seed}
    resolved = resolve(flags, assignments or [], None)
    options = Options(out, choose_device(device), data_root, full_data)
    console = Console()
    reporter = Reporter(console)
    real = load_real(resolved, options)
    check_subset(real, resolved.ipc)
    for line in data_warnings(resolved, real):
        reporter.on_message(line)
    for score in score_yardsticks(resolved, real, out, options.device, reporter, options.full_data):
        accuracy = Estimate.of(score["trials"]).percent()
        reporter.on_message(
            f"{score['name']}, protocol {score['protocol']}, {score['elements']:,} elements: {accuracy} %"
        )
