"""Many records as one table: condensations and trials counted apart."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmark_adapters.runs.schema import RunRecord, TableRecord
from dd_plugins.api import UsageError
from dd_plugins.api.reading import read_json, validated
from dd_plugins.engine.keys import flatten
from dd_plugins.engine.score import Estimate
from dd_plugins.names import quoted

NETWORK_SETTINGS = re.compile(r"network\.\w+=[^,\]]*,?")  # in a protocol's label
MARK = " †"  # after the name of what was made by other code than is installed
PRIOR = "prior (elements, training, sha256)"
HEADER = (
    "data set", "IPC", "protocol", "network", "method", "elements", PRIOR, "images/class", "condensations", "trials",
    "accuracy %", "steps", "seconds", "processor seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One condensation of a group: what it noted, its trials and its priors; of a yardstick the seed of its subset."""

    condensation: Mapping[str, Any]
    trials: tuple[float, ...]
    seed: int | None = None
    priors: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Group:
    """Condensations that differ by their seed alone, or yardsticks, under one protocol.

    Attributes:
        cell: Data set, IPC, protocol and network.
        name: The method, with the settings that tell it from others.
        elements: Stored elements, and ``images`` per class, as text.
        learned: Whether it was condensed; a yardstick was not.
        members: One a condensation.
    """

    cell: tuple[str, str, str, str]
    name: str
    elements: str
    images: str
    learned: bool
    members: tuple[Member, ...]

    def accuracy(self) -> Estimate:
        """Over condensations, each by the mean of its trials; over trials where there is one condensation only."""
        if len(self.members) == 1:
            return Estimate.of(self.members[0].trials)
        return Estimate.of([fmean(member.trials) for member in self.members])

    def priors(self) -> str:
        """Elements, training time and sha256 of every prior: no part of the budget, and not free either."""
        return "; ".join(dict.fromkeys(told_prior(prior) for member in self.members for prior in member.priors))

    def prior_seconds(self) -> float:
        """What the training of all priors took that one set needs, the mean over condensations; 0 without any."""
        return fmean(sum(float(prior.get("seconds", 0)) for prior in member.priors) for member in self.members)

    def mean(self, key: str) -> float | None:
        """The mean of a number that condensations noted; None if none did."""
        known = [value for member in self.members if (value := member.condensation.get(key)) is not None]
        return fmean(known) if known else None


def read_records(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Records from run folders or JSON files.

    Raises:
        UsageError: If one is missing or no record.
    """
    found = []
    for path in paths:
        file = path / "record.json" if path.is_dir() else path
        record = read_json(file, UsageError, "; this is no record of a run")
        own = isinstance(record, dict) and (
            "storage" in record or any(record.get(part) for part in ("scores", "benchmarks"))
        )
        validated(RunRecord if own else TableRecord, record, f"{file} is no record of a run", UsageError)
        found.append(record)
    return found


def of_dataset(records: Sequence[Mapping[str, Any]], dataset: str) -> list[Mapping[str, Any]]:
    """The records of a data set, given by its name in tables or as it was given to ``--dataset``, ignoring case.

    Raises:
        UsageError: If there are none; lists the names that there are.
    """
    wanted = dataset.rstrip("/").casefold()
    known = [(record, {record["data"]["name"], record["config"]["dataset"].rstrip("/")}) for record in records]
    kept = [record for record, names in known if wanted in {name.casefold() for name in names}]
    if not kept:
        there = ", ".join(sorted({name for _, names in known for name in names})) or "none"
        raise UsageError(f"no record of the data set {quoted(dataset)} (there: {there})")
    return kept


def grouped(records: Iterable[Mapping[str, Any]], marked: Collection[str] = ()) -> list[Group]:
    """One group for each method, cell and protocol; runs that differ by their seed alone are put together.

    Scores on several networks other than the protocol's own stand in one group: their mean, trial by trial.

    Args:
        records: The records.
        marked: Ids of records whose groups get a mark after their name.
    """
    marks: set[tuple[str, ...]] = set()
    groups: dict[tuple[str, str, str, str, str, str, str, str], list[Member]] = {}
    for record in records:
        entries = [
            *((True, entry) for entry in _other_networks_as_one(record["scores"], record)),
            *((False, entry) for entry in _other_networks_as_one(record["yardsticks"], record)),
        ]
        for own, entry in entries:
            holder = record if own else entry
            key = _key(record, entry, holder, _condensed(record) if own else "")
            seen = groups.setdefault(key, [])
            if own and record.get("id") in marked:
                marks.add(key)
            if own:
                priors = tuple(record["storage"].get("priors", ()))
                seen.append(Member(record["condensation"], tuple(entry["trials"]), priors=priors))
            elif all(entry.get("seed") != member.seed for member in seen):  # many runs share one yardstick
                seen.append(Member({}, tuple(entry["trials"]), entry.get("seed")))
    labels = _labels(list(groups))
    made = [
        (
            key[4],
            Group(key[:4], f"{key[4]}{labels[key]}{MARK * (key in marks)}", *key[5:7], bool(key[7]), tuple(members)),
        )
        for key, members in groups.items()
    ]
    made.sort(key=lambda pair: (pair[1].cell[0], int(pair[1].cell[1]), *pair[1].cell[2:], pair[0], _time(pair[1])))
    return [group for _, group in made]


def rows(records: Iterable[Mapping[str, Any]], marked: Collection[str] = ()) -> list[tuple[str, ...]]:
    """One row for each group; arguments as for `grouped`.

    The interval is a 95 % t-interval over condensations, each represented by the mean of its trials; with a single
    condensation it is over the trials, and says so.
    """
    return [_row(group) for group in grouped(records, marked)]


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
) -> tuple[str, str, str, str, str, str, str, str]:
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


def _row(group: Group) -> tuple[str, ...]:
    estimate = group.accuracy()
    spread = "" if estimate.half_width is None else f" +- {100 * estimate.half_width:.1f}"
    over = " (trials)" if len(group.members) == 1 and spread else ""
    trials = "+".join(sorted({str(len(member.trials)) for member in group.members}))
    accuracy = f"{100 * estimate.mean:.1f}{spread}{over}"
    costs = [group.mean(key) for key in ("steps", "seconds", "cpu_seconds")]
    cost = ["" if value is None else f"{value:,.0f}" for value in costs]
    return (
        *group.cell,
        group.name,
        group.elements,
        group.priors(),
        group.images,
        str(len(group.members)),
        trials,
        accuracy,
        *cost,
    )


def told_prior(prior: Mapping[str, Any]) -> str:
    """Elements, seconds of its training, and the first digits of the weights' sha256."""
    return f"{prior['elements']:,}, {prior['seconds']:.0f} s, {prior['sha256'][:8]}"


def _time(group: Group) -> float:
    return group.mean("seconds") or 0.0
