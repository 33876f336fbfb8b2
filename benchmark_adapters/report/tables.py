"""Tables for the terminal, made of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from benchmark_adapters.report.statistics import Estimate


def score_table(record: Mapping[str, Any], scores: Sequence[Mapping[str, Any]], ipc: int) -> Table:
    """One row for the run under each score, next to the yardsticks of the same protocol and network."""
    data = record["data"]
    origin = f" ({data['origin']})" if data["origin"] else ""
    table = Table(title=f"{data['name']}{origin}, IPC {ipc}: test accuracy in %, 95 % t-interval over trials")
    for name in ("method", "protocol", "network"):
        table.add_column(name, overflow="fold")
    for name in ("elements", "bytes", "budget", "images/class", "accuracy"):
        table.add_column(name, justify="right", no_wrap=True)
    for score in scores:
        storage = record["storage"]
        table.add_row(
            record["name"],
            score["protocol"],
            score["network"],
            f"{storage['elements']:,}",
            f"{storage['bytes']:,}",
            f"{storage['budget']:,}",
            _span(record["images_per_class"]),
            Estimate.of(score["trials"]).percent(),
        )
        for yardstick in record["yardsticks"]:
            if (yardstick["protocol_hash"], yardstick["network"]) == (score["protocol_hash"], score["network"]):
                table.add_row(
                    yardstick["name"],
                    yardstick["protocol"],
                    yardstick["network"],
                    f"{yardstick['elements']:,}",
                    f"{yardstick['bytes']:,}",
                    f"{storage['budget']:,}",
                    _span(yardstick["images_per_class"]),
                    Estimate.of(yardstick["trials"]).percent(),
                    style="dim",
                )
    return table


def ledger_table(entries: Sequence[Mapping[str, Any]], budget: int) -> Table:
    """Every stored tensor with its elements, and the sum against the budget."""
    table = Table(title="storage")
    for name in ("tensor", "shape", "dtype"):
        table.add_column(name)
    for name in ("elements", "bytes"):
        table.add_column(name, justify="right")
    for entry in entries:
        shape = " x ".join(map(str, entry["shape"]))
        table.add_row(entry["name"], shape, entry["dtype"], f"{entry['elements']:,}", f"{entry['nbytes']:,}")
    total, nbytes = (sum(entry[key] for entry in entries) for key in ("elements", "nbytes"))
    table.add_section()
    table.add_row("all", "", "", f"{total:,}", f"{nbytes:,}")
    table.add_row("budget", "", "", f"{budget:,}", f"{4 * budget:,}")
    return table


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}-{high}"
