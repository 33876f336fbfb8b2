"""Curves: accuracy against what a condensation took."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from benchmark_adapters.report.statistics import Estimate
from dd_plugins.api import UsageError, write_atomically

AXES = {"seconds": "condensation (s)", "cpu_seconds": "condensation (processor seconds)", "steps": "matching steps"}


def save_curve(path: Path, records: Sequence[Mapping[str, Any]], against: str = "seconds") -> None:
    """Writes a picture of accuracy against what the condensation took; one line a method, yardsticks dashed.

    Args:
        path: The picture.
        records: Of one data set, IPC and protocol.
        against: A number that condensations note: ``seconds``, ``cpu_seconds`` or ``steps``.

    Raises:
        UsageError: If there is no record with that number, or they are of several cells or protocols.
    """
    points: dict[str, list[tuple[float, Estimate]]] = {}
    levels: dict[str, list[float]] = {}
    cells = set()
    for record in records:
        for score in record["scores"]:
            place = record["condensation"].get(against)
            if place is None:
                continue
            cells.add((record["data"]["name"], record["config"]["ipc"], score["protocol"], score["network"]))
            points.setdefault(record["name"], []).append((float(place), Estimate.of(score["trials"])))
            for yardstick in record["yardsticks"]:
                if yardstick["protocol_hash"] == score["protocol_hash"]:
                    levels.setdefault(yardstick["name"], []).append(fmean(yardstick["trials"]))
    if len(cells) != 1:
        told = "; ".join(f"{name}, IPC {ipc}, {protocol}, {net}" for name, ipc, protocol, net in sorted(cells))
        raise UsageError(
            f"a curve needs records of one data set, IPC, protocol and network; there are: {told or 'none'}"
        )
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, found in points.items():
        found.sort(key=lambda point: point[0])
        spread = [100 * (estimate.half_width or 0) for _, estimate in found]
        places, means = [place for place, _ in found], [100 * estimate.mean for _, estimate in found]
        axes.errorbar(places, means, yerr=spread, marker="o", capsize=3, label=name)
    for name, means in levels.items():
        axes.axhline(100 * fmean(means), linestyle="--", color="grey")
        axes.annotate(name, (0.01, 100 * fmean(means)), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    name, ipc, protocol, network = cells.pop()
    axes.set(xscale="log", xlabel=AXES[against], ylabel="accuracy (%)")
    axes.set_title(f"{name}, IPC {ipc}, {protocol}, {network}", fontsize=9)
    axes.legend()
    file = io.BytesIO()
    try:
        figure.savefig(file, format=path.suffix.removeprefix(".") or "png", dpi=150)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    write_atomically(path, file.getvalue())
