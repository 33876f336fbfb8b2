"""Many records as one table: condensations and trials counted apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmark_adapters.report.statistics import Estimate
from benchmark_adapters.runner.config import flatten
from dd_plugins.api import UsageError

NETWORK_SETTINGS = re.compile(r"network\.\w+=[^,\]]*,?")  # in a protocol's label
HEADER = (
    "data set", "IPC", "protocol", "network", "method", "elements", "images/class", "condensations", "trials",
    "accuracy %", "steps", "seconds", "processor seconds",
)  # fmt: skip


@dataclass(frozen=True)
class _Member:
    """One condensation of a row: what it noted, and its trials; of a yardstick the seed of its subset."""

    condensation: Mapping[str, Any]
    trials: tuple[float, ...]
    seed: int | None = None


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
    condensation it is over the trials, and says so. Scores on several networks other than the protocol's own stand in
    one row: their mean, trial by trial.
    """
    groups: dict[tuple[str, ...], list[_Member]] = {}
    for record in records:
        for entry in _other_networks_as_one([*record["scores"], *record["yardsticks"]], record):
            own = "name" not in entry
            holder = record if own else entry
            key = _key(record, entry, holder, _condensed(record) if own else "")
            seen = groups.setdefault(key, [])
            if own:
                seen.append(_Member(record["condensation"], tuple(entry["trials"])))
            elif all(entry.get("seed") != member.seed for member in seen):  # many runs share one yardstick
                seen.append(_Member({}, tuple(entry["trials"]), entry.get("seed")))
    labels = _labels(list(groups))
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], int(item[0][1]), *item[0][2:5], _time(item[1])))
    return [_row((*key[:4], key[4] + labels[key], *key[5:]), members) for key, members in ordered]


def _other_networks_as_one(entries: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries, those on other networks put together where everything else about them is the same."""
    own = record["config"]["protocol"]["network"]["name"]
    found = [entry for entry in entries if entry["network"] == own]
    alike: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for entry in entries:
        if entry["network"] != own:
            protocol = NETWORK_SETTINGS.sub("", entry["protocol"]).replace(",]", "]").removesuffix("[]")
            key = (protocol, entry.get("name"), entry.get("seed"), len(entry["trials"]))
            alike.setdefault(key, []).append(entry)
    for (protocol, *_), same in alike.items():
        networks = sorted(entry["network"] for entry in same)
        if len(same) == 1 or len(set(networks)) < len(same):  # one alone, or one network in several sizes
            found += same
            continue
        trials = [fmean(trial) for trial in zip(*(entry["trials"] for entry in same), strict=True)]
        found.append({**same[0], "protocol": protocol, "network": f"mean of {', '.join(networks)}", "trials": trials})
    return found


def _key(
    record: Mapping[str, Any], entry: Mapping[str, Any], holder: Mapping[str, Any], condensed: str
) -> tuple[str, ...]:
    data, counts = record["data"], holder["images_per_class"]
    name = data["name"] + (f" ({data['origin']})" if data["origin"] else "")
    elements = holder["elements"] if "elements" in holder else holder["storage"]["elements"]
    span = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"
    ipc = str(record["config"]["ipc"])
    return name, ipc, entry["protocol"], entry["network"], holder["name"], f"{elements:,}", span, condensed


def _labels(keys: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """What tells rows apart that would else look the same: the settings in which their configurations differ."""
    alike: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for key in keys:
        alike.setdefault(key[:-1], []).append(key)
    labels = dict.fromkeys(keys, "")
    for same in alike.values():
        configs = {key: flatten(json.loads(key[-1])) for key in same if key[-1]}
        shared = set.intersection(*(set(config) for config in configs.values())) if configs else set()
        differing = [
            name
            for name in sorted(shared - {"steps", "minutes"})  # these have a column, or end a condensation
            if len({json.dumps(config[name]) for config in configs.values()}) > 1
        ]
        for key, config in configs.items():
            told = ", ".join(f"{name.rpartition('.')[2]} {_short(config[name])}" for name in differing)
            labels[key] = f" ({told})" if told else ""
    return labels


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _condensed(record: Mapping[str, Any]) -> str:
    """What must be equal for two runs to be repetitions of each other."""
    config = {k: v for k, v in record["config"].items() if k not in ("seed", "protocol", "method")}
    return json.dumps(config, sort_keys=True)


def _row(key: tuple[str, ...], members: Sequence[_Member]) -> tuple[str, ...]:
    means = [fmean(member.trials) for member in members]
    single = len(members) == 1
    estimate = Estimate.of(members[0].trials if single else means)
    spread = "" if estimate.half_width is None else f" +- {100 * estimate.half_width:.1f}"
    over = " (trials)" if single and spread else ""
    trials = "+".join(sorted({str(len(member.trials)) for member in members}))
    accuracy = f"{100 * estimate.mean:.1f}{spread}{over}"
    cost = [_mean([member.condensation.get(key) for member in members]) for key in ("steps", "seconds", "cpu_seconds")]
    return (*key[:-1], str(len(members)), trials, accuracy, *cost)


def _time(members: Sequence[_Member]) -> float:
    return fmean(float(member.condensation.get("seconds", 0)) for member in members)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):,.0f}" if known else ""
