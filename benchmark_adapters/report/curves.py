"""Curves: accuracy against what a condensation took."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark_adapters.escape import plot_text
from benchmark_adapters.report.summary import Group, grouped
from dd_plugins.api import UsageError, write_atomically
from dd_plugins.engine.score import Estimate

MARKERS = "os^Dv"  # behind ten colours come other shapes
AXES = {"seconds": "condensation (s)", "cpu_seconds": "condensation (processor seconds)", "steps": "matching steps"}
WITH_PRIOR = ("seconds", "cpu_seconds")  # where what was trained ahead counts too


@dataclass(frozen=True)
class Point:
    """A method's place in the picture: what it took, how much of that was spent ahead on a prior, its accuracy."""

    place: float
    ahead: float
    accuracy: Estimate


def save_curve(path: Path, records: Sequence[Mapping[str, Any]], against: str = "seconds") -> None:
    """Writes a picture of accuracy against what the condensation took.

    A point is a method, the mean over its seeds, with its 95 % interval; lengths of one method are joined. A step line
    is the Pareto front: whatever lies below it is beaten by something that took no longer. Yardsticks are dashed.

    A method that takes a prior stands where its condensation and the prior's training end; a dotted line leads there
    from the condensation's time alone, which is what one more set through the same prior takes. Of a prior's training
    the wall time is known.

    Args:
        path: The picture.
        records: Of one data set, IPC, protocol and network.
        against: A number that condensations note: ``seconds``, ``cpu_seconds`` or ``steps``.

    Raises:
        UsageError: If there is no record with that number, or they are of several cells or protocols.
    """
    groups = grouped(records)
    points = _points(groups, against)
    cells = {group.cell for group in groups if group.name in points}
    if len(cells) != 1:
        told = "; ".join(f"{name}, IPC {ipc}, {protocol}, {net}" for name, ipc, protocol, net in sorted(cells))
        raise UsageError(
            f"a curve needs records of one data set, IPC, protocol and network; there are: {told or 'none'}"
        )
    cell = cells.pop()
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, found) in enumerate(points.items()):
        _draw(axes, name, found, f"C{number % 10}", MARKERS[number // 10 % len(MARKERS)])
    every = [point for found in points.values() for point in found]
    best = front([(point.place, point.accuracy.mean) for point in every])
    axes.step(*zip(*((x, 100 * y) for x, y in best), strict=True), where="post", color="black", lw=0.8, label="front")
    for group in groups:
        if not group.learned and group.cell == cell:
            level = 100 * group.accuracy().mean
            axes.axhline(level, linestyle="--", color="grey")
            axes.annotate(
                plot_text(group.name), (0.01, level), xycoords=("axes fraction", "data"), va="bottom", fontsize=8
            )
    name, ipc, protocol, network = cell
    ahead = ", with the training of a prior" if any(point.ahead for point in every) else ""
    axes.set(xscale="log", xlabel=AXES[against] + ahead, ylabel="accuracy (%)")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, 100))
    axes.set_title(plot_text(f"{name}, IPC {ipc}, {protocol}, {network}"), fontsize=9)
    figure.legend(loc="outside right upper", fontsize=8)
    file = io.BytesIO()
    try:
        figure.savefig(file, format=path.suffix.removeprefix(".") or "png", dpi=150)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    write_atomically(path, file.getvalue())


def _points(groups: Sequence[Group], against: str) -> dict[str, list[Point]]:
    """The points of every method that notes what it took, by ascending cost."""
    points: dict[str, list[Point]] = {}
    for group in groups:
        taken = group.mean(against)
        if group.learned and taken is not None:
            ahead = group.prior_seconds() if against in WITH_PRIOR else 0.0
            points.setdefault(group.name, []).append(Point(taken + ahead, ahead, group.accuracy()))
    return {name: sorted(found, key=lambda point: point.place) for name, found in points.items()}


def _draw(axes: Axes, name: str, found: Sequence[Point], colour: str, marker: str) -> None:
    """One method: its points with their intervals, and what each would take if its prior were there."""
    places, means = [point.place for point in found], [100 * point.accuracy.mean for point in found]
    spread = [100 * (point.accuracy.half_width or 0) for point in found]
    axes.errorbar(places, means, yerr=spread, marker=marker, color=colour, capsize=3, label=plot_text(name))
    for point, mean in zip(found, means, strict=True):
        if point.ahead:
            axes.plot((point.place - point.ahead, point.place), (mean, mean), ":", marker="|", color=colour)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, gain) that no other beats: none has more gain at no more cost; by ascending cost."""
    found: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or gain > found[-1][1]:
            found.append((cost, gain))
    return found
