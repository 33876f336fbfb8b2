"""Many records as one table: condensations and trials counted apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmark_adapters.report.statistics import Estimate
from dd_plugins.api import UsageError

HEADER = (
    "data set", "IPC", "protocol", "network", "method", "elements", "images/class", "condensations", "trials",
    "accuracy %", "seconds",
)  # fmt: skip


def committed_records() -> list[dict[str, Any]]:
    """The records that come with the package: those behind the README's tables."""
    folder = files("benchmark_adapters") / "records"
    names = sorted(
        entry.name for entry in (folder.iterdir() if folder.is_dir() else ()) if entry.name.endswith(".json")
    )
    return [json.loads((folder / name).read_text(encoding="utf-8")) for name in names]


def read_records(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Records from run folders or JSON files.

    Raises:
        UsageError: If one is missing or no record.
    """
    found = []
    for path in paths:
        file = path / "record.json" if path.is_dir() else path
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            record["scores"], record["data"], record["config"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file} is no record of a run ({type(error).__name__}: {error})") from None
        found.append(record)
    return found


def rows(records: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row for each method, cell and protocol; runs that differ by their seed alone are put together.

    The interval is a 95 % t-interval over condensations, each represented by the mean of its trials; with a single
    condensation it is over the trials, and says so.
    """
    groups: dict[tuple[str, ...], list[tuple[Mapping[str, Any], float, tuple[float, ...]]]] = {}
    for record in records:
        for entry in [*record["scores"], *record["yardsticks"]]:
            own = "name" not in entry
            holder = record if own else entry
            key = _key(record, entry, holder, _condensed(record) if own else "")
            seconds = float(record["condensation"].get("seconds", 0)) if own else 0.0
            seen = groups.setdefault(key, [])
            if own or all(tuple(entry["trials"]) != trials for _, _, trials in seen):
                seen.append((record, seconds, tuple(entry["trials"])))
    ordered = sorted(groups.items(), key=lambda item: (*item[0][:4], int(item[0][1]), item[0][4]))
    return [_row(key, members) for key, members in ordered]


def markdown(table: Sequence[tuple[str, ...]]) -> str:
    """The table in Markdown."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table)])


def _key(
    record: Mapping[str, Any], entry: Mapping[str, Any], holder: Mapping[str, Any], condensed: str
) -> tuple[str, ...]:
    data, counts = record["data"], holder["images_per_class"]
    name = data["name"] + (f" ({data['origin']})" if data["origin"] else "")
    elements = holder["elements"] if "elements" in holder else holder["storage"]["elements"]
    span = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"
    ipc = str(record["config"]["ipc"])
    return name, ipc, entry["protocol"], entry["network"], holder["name"], f"{elements:,}", span, condensed


def _condensed(record: Mapping[str, Any]) -> str:
    """What must be equal for two runs to be repetitions of each other."""
    config = {k: v for k, v in record["config"].items() if k not in ("seed", "protocol", "method")}
    return json.dumps(config, sort_keys=True)


def _row(
    key: tuple[str, ...], members: Sequence[tuple[Mapping[str, Any], float, tuple[float, ...]]]
) -> tuple[str, ...]:
    means = [fmean(trials) for _, _, trials in members]
    single = len(members) == 1
    estimate = Estimate.of(members[0][2] if single else means)
    spread = "" if estimate.half_width is None else f" +- {100 * estimate.half_width:.1f}"
    over = " (trials)" if single and spread else ""
    seconds = fmean(seconds for _, seconds, _ in members)
    trials = "+".join(sorted({str(len(trials)) for _, _, trials in members}))
    accuracy = f"{100 * estimate.mean:.1f}{spread}{over}"
    return (*key[:-1], str(len(members)), trials, accuracy, f"{seconds:.0f}" if seconds else "")
