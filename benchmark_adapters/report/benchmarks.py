"""The scores of several benchmarks for the same sets, side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from benchmark_adapters.report.summary import MARK
from dd_plugins.engine.score import Estimate

METRICS = ("accuracy", "HLR", "IOR", "IOR_decoded", "LRS", "LRS_decoded", "ARS")
HEADER = ("data set", "IPC", "method", "seed", "benchmark", "protocol", "network", "n", *METRICS)


def rows(records: Iterable[Mapping[str, Any]], marked: Collection[str] = ()) -> list[tuple[str, ...]]:
    """One row for each score of a set by a benchmark, for sets that others than the run's own protocol scored.

    The names of records whose ids are ``marked`` get a mark.

    Numbers are fractions, means with 95 % t-intervals over trials; those of different protocols do not compare.
    """
    found = []
    for record in records:
        for entry in record.get("benchmarks", []):
            numbers = {entry["metric"]: entry["trials"], **entry["metrics"]}
            data, config = record["data"], record["config"]
            name = data["name"] + (f" ({data['origin']})" if data["origin"] else "")
            about = (entry["benchmark"], entry["protocol"], entry["network"], str(len(entry["trials"])))
            cells = [_number(numbers[metric]) if metric in numbers else "" for metric in METRICS]
            method = f"{record['name']}{MARK * (record.get('id') in marked)}"
            found.append((name, str(config["ipc"]), method, str(config["seed"]), *about, *cells))
    return sorted(found)


def _number(trials: list[float]) -> str:
    estimate = Estimate.of(trials)
    spread = "" if estimate.half_width is None else f" +- {estimate.half_width:.3f}"
    return f"{estimate.mean:.3f}{spread}"
