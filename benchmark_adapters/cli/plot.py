"""dd-bench plot: accuracy against condensation time, from records."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmark_adapters.cli.output import say

EPILOG = """
**Examples**

`dd-bench plot runs --to curve.png`

`dd-bench plot benchmark_adapters/records --dataset digits --ipc 5 --protocol quick --to curve.png` draws the README's
records, in a checkout of the repository
"""


class Axis(StrEnum):
    """What the picture is drawn against."""

    seconds = "seconds"
    processor = "cpu_seconds"
    steps = "steps"


def plot(
    records: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, folders of runs, or record files.  [default: runs]")
    ] = None,
    to: Annotated[Path, typer.Option(help="The picture; its ending decides the format.")] = Path("curve.png"),
    against: Annotated[
        Axis, typer.Option(case_sensitive=False, help="Condensation's wall time, processor time, or steps.")
    ] = Axis.seconds,
    dataset: Annotated[
        str | None, typer.Option(help="Only the records of this data set: its name, or folder:PATH as given to run.")
    ] = None,
    ipc: Annotated[int | None, typer.Option(help="Only the records of this budget.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Only scores of this protocol, as tables name it.")] = None,
) -> None:
    """Draw accuracy against condensation time, a point for each method, with the Pareto front and yardsticks."""
    from benchmark_adapters.report.curves import save_curve
    from benchmark_adapters.report.discovery import find_records, records_or_runs
    from benchmark_adapters.report.summary import of_dataset, read_records

    found = read_records(find_records(records_or_runs(records))[0])
    chosen = found if dataset is None else of_dataset(found, dataset)
    kept = [record for record in chosen if ipc in (None, record["config"]["ipc"])]
    if protocol is not None:
        kept = [
            {**r, **{part: [e for e in r[part] if e["protocol"] == protocol] for part in ("scores", "yardsticks")}}
            for r in kept
        ]
    save_curve(to, kept, against.value)
    say(f"picture: {to}")
