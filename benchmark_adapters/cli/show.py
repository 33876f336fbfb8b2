"""dd-bench show: a run's record for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark_adapters.cli.options import Out

EPILOG = """
**Examples**

`dd-bench show 3f2a90c1d4`

`dd-bench show runs/3f2a90c1d4 --json`
"""


def show(
    run: Annotated[str, typer.Argument(help="A run's id (or the beginning of it), or its folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as it is.")] = False,
    out: Out = Path("runs"),
) -> None:
    """Print a run's record: its scores, what is stored, and how it was made."""
    import json

    from rich.console import Console

    from benchmark_adapters.report.tables import benchmarks_table, ledger_table, score_table
    from benchmark_adapters.runner.find import find_run, read_record

    folder = find_run(run, out)
    record = read_record(folder)
    console = Console()
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    config, made, pruned = record["config"], record["condensation"], record.get("pruning")
    for score in record["scores"]:
        console.print(score_table(record, score, config["ipc"]))
    if record.get("benchmarks"):
        console.print(benchmarks_table(record))
    console.print(ledger_table(record["storage"]["ledger"], record["storage"]["budget"]))
    lines = [f"run {record['id']}: {record['name']} (method {config['method']}), seed {config['seed']}"]
    if "steps" in made:
        lines.append(f"condensed in {made['steps']} steps, {made['seconds']} s, peak {made['peak_memory_mib']} MiB")
    if pruned:
        before, after = pruned["images"]
        lines.append(f"pruned by {pruned['strategy']}: {after} of {before} images kept, {pruned['prune_seconds']} s")
    lines += [
        f"data: {record['data']['name']} {record['data']['origin']} {record['data']['fingerprint']}",
        f"folder: {folder.path}",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
