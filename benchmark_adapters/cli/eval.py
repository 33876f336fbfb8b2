"""dd-bench eval: score a stored set again, on any network, under any protocol."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmark_adapters.cli.options import Assignments, BenchmarkName, DataRoot, Device, FullData, Out, Trust, names_of
from benchmark_adapters.cli.output import say

EPILOG = """
**Examples**

`dd-bench eval 3f2a90c1d4 --network convnet,resnet18,vgg11,alexnet,densenet121`

`dd-bench eval 3f2a90c1d4 --metric crfd` in a second, once the reference classifier is trained

`dd-bench eval 3f2a90c1d4 --benchmark dd-ranking --set benchmark.evaluations=1` by another benchmark's own code

`dd-bench eval 3f2a90c1d4 --benchmark native` by DD-Ranking's definitions, with nothing chosen on test images

`dd-bench eval synthetic.safetensors --protocol dsa-steps` with the data set and the settings that the file names

`dd-bench eval synthetic.safetensors --dataset folder:elsewhere --set data.size=32`
"""


class Metric(StrEnum):
    """What a set is scored by."""

    accuracy = "accuracy"
    crfd = "crfd"


def evaluate(
    stored: Annotated[str, typer.Argument(metavar="RUN|FILE", help="A run, or a synthetic.safetensors.")],
    network: Annotated[str | None, typer.Option(help="One network or several, joined by commas.")] = None,
    protocol: Annotated[str | None, typer.Option(help="How it is scored; by default as the run was.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Networks trained on the set.")] = None,
    dataset: Annotated[str | None, typer.Option(help="The real data, for a FILE; by default as the file says.")] = None,
    metric: Annotated[
        Metric,
        typer.Option(
            case_sensitive=False,
            help="accuracy; or crfd, the class-relevant feature distance, which trains no network.",
        ),
    ] = Metric.accuracy,
    benchmark: BenchmarkName = None,
    full_data: FullData = None,
    assignments: Assignments = None,
    device: Device = None,
    data_root: DataRoot = None,
    trust: Trust = None,
    out: Out = Path("runs"),
) -> None:
    """Score a stored set again: the set is rebuilt from its file alone."""
    from rich.console import Console

    from benchmark_adapters.cli.progress import Reporter
    from benchmark_adapters.report.tables import benchmarks_table, score_table
    from benchmark_adapters.runs.benchmarks import make_benchmark, score_by, split_settings
    from benchmark_adapters.runs.parts import Options
    from benchmark_adapters.runs.rescore import crfd, rescore, split_data
    from benchmark_adapters.runs.system import choose_device
    from dd_plugins.errors import UsageError

    console = Console()
    options = Options(out, choose_device(device), data_root, full_data)
    yardstick = {"full-data": full_data, "no-full-data": full_data is False}
    alone = {"protocol": protocol, "trials": trials, "benchmark": benchmark, **yardstick}
    networks: list[str | None] = [*names_of(network)] or [None]
    if metric is Metric.crfd:
        if idle := [f"--{name}" for name, value in alone.items() if value]:
            raise UsageError(f"--metric crfd trains no network on the set: {', '.join(idle)} would have no effect")
        values = crfd(stored, networks, dataset, assignments or [], options, Reporter(console))
        for name, (value, variant) in zip(networks, values, strict=True):
            by = f" ({name})" if name else ""
            said = f"class-relevant feature distance to the real training images{by}: {value:.6g}"
            say(f"{said} (of class activation maps: {variant:.6g})")
        return
    own, settings = split_settings(assignments or [], names_of(benchmark))
    own = [*own, *([f"protocol.trials={trials}"] if trials else [])]
    if settings:
        if any(yardstick.values()):
            raise UsageError("--full-data and --no-full-data go without --benchmark, which has yardsticks of its own")
        made = {name: make_benchmark(name, each) for name, each in settings.items()}
        deaf = [name for name, each in made.items() if not each.follows_protocol]
        if (split_data(own)[0] or protocol or network) and deaf:
            raise UsageError(
                f"{', '.join(deaf)} takes no protocol, network or number of trials of this command; its settings are "
                f"--set benchmark.KEY=VALUE"
            )
        if len(networks) > 1:
            raise UsageError("--benchmark takes one network at a time")
        for name, each in made.items():
            record = score_by(name, each, stored, dataset, options, Reporter(console), protocol, network, own)
        console.print(benchmarks_table(record))
        return
    record, scores, ipc = rescore(stored, networks, protocol, dataset, own, options, Reporter(console))
    for score in scores:
        console.print(score_table(record, score, ipc))
