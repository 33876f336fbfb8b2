"""dd-bench export and dd-bench import: sets in the formats of other projects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmark_adapters.cli.options import Assignments, DataRoot, Dataset, Out, Trust
from benchmark_adapters.cli.output import say

EXPORT_EPILOG = """
**Examples**

`dd-bench export 3f2a90c1d4 --to dc-bench --root dc_benchmark` puts it where DC-BENCH looks for `--method dm`

`dd-bench export 3f2a90c1d4 --to parquet --root my-set` for the Hugging Face hub, with a card

`dd-bench export 3f2a90c1d4 --to imagefolder --root pictures`

What is exported are decoded images, so all that a container saves is gone. Nothing that is there is overwritten. The
real data is needed for two things only: the colours of whitened sets, and the class names of sets of earlier releases.
"""
IMPORT_EPILOG = """
**Examples**

`dd-bench import --from mtt logged_files/CIFAR10/run --dataset cifar10 --set data.zca=true`

`dd-bench import --from dc res_DSA_CIFAR10_ConvNet_10ipc.pt --dataset cifar10 --name "DSA, published"`

`dd-bench import --from dc-bench distilled_results/DM/CIFAR10/IPC10 --dataset cifar10`

Files are read without running anything in them. `dd-bench eval RUN` scores the set like any other.
"""


def export_run(
    stored: Annotated[str, typer.Argument(metavar="RUN|FILE", help="A run, or a synthetic.safetensors.")],
    to: Annotated[str, typer.Option("--to", help="Format: dc-bench, pt, imagefolder, parquet, ...")],
    root: Annotated[Path, typer.Option("--root", help="Where to: a new folder; for dc-bench its checkout, or any.")],
    layout: Annotated[
        str | None,
        typer.Option(help="dc-bench alone: whose place it takes, dc, dsa, dm, tm, random or kmeans.  [default: dm]"),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="The real data, to check the set and take its class names.")
    ] = None,
    assignments: Assignments = None,
    data_root: DataRoot = None,
    trust: Trust = None,
    out: Out = Path("runs"),
) -> None:
    """Write the decoded images of a stored set in a format that others read."""
    from rich.console import Console

    from benchmark_adapters.cli.progress import Reporter
    from benchmark_adapters.formats import load_format
    from benchmark_adapters.runs.exchange import export_set
    from benchmark_adapters.runs.parts import Options
    from benchmark_adapters.runs.system import choose_device

    settings, others = _settings(assignments or [])
    form = load_format(to, {"layout": layout, **settings} if layout else settings, to_export=True)
    with _message_of_an_interrupt("interrupted; nothing was written"):
        options, reporter = Options(out, choose_device("cpu"), data_root), Reporter(Console(stderr=True))
        written = export_set(stored, form, root, dataset, others, options, reporter)
    for path in written:
        say(path)


def import_run(
    path: Annotated[Path, typer.Argument(help="The file or folder.")],
    source: Annotated[
        str,
        typer.Option("--from", help="Format: dc, mtt, dc-bench, pt, ... (dd-bench list format)."),
    ],
    dataset: Dataset = None,
    ipc: Annotated[
        int | None, typer.Option(min=1, help="Its budget; by default as many images as a class has.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name in tables.")] = None,
    assignments: Assignments = None,
    data_root: DataRoot = None,
    out: Out = Path("runs"),
) -> None:
    """Bring a published set in, to be scored by the one evaluator beside others."""
    from benchmark_adapters.formats import load_format
    from benchmark_adapters.runs.exchange import import_set
    from benchmark_adapters.runs.parts import Options
    from benchmark_adapters.runs.system import choose_device

    options = Options(out, choose_device("cpu"), data_root)
    settings, others = _settings(assignments or [])
    form, flags = load_format(source, settings), {"dataset": dataset, "ipc": ipc}
    with _message_of_an_interrupt("interrupted; the same command begins again"):
        record = import_set(path, form, name, flags, others, options)
    counts = record["images_per_class"]
    say(f"run {record['id']}: {record['name']}, {sum(counts)} images, IPC {record['config']['ipc']}")
    if record["imported"] != path.name:
        say(f"it has the same images as {record['imported']}, imported before: both are this one run")
    say("its images count as pixels, whatever held them before: scores against the budget are those of this IPC")
    say(f"next: dd-bench eval {record['id']}")


def _settings(assignments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The settings of the format (``format.KEY=VALUE``), and the other assignments."""
    from dd_plugins.engine.config import settings_of

    own = [text for text in assignments if text.strip().startswith("format.")]
    return settings_of(own).get("format", {}), [text for text in assignments if text not in own]


@contextmanager
def _message_of_an_interrupt(text: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        error.args = (text,)
        raise
