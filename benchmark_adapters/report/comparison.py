"""Methods head to head: one row each, differences paired, published numbers beside ours."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from benchmark_adapters import escape
from benchmark_adapters.report.references import published
from benchmark_adapters.report.statistics import Difference, holm
from benchmark_adapters.report.summary import PRIOR, told_prior
from dd_plugins.engine.config import known_name
from dd_plugins.engine.protocols import Protocol
from dd_plugins.engine.score import Estimate
from dd_plugins.errors import one_line
from dd_plugins.training import Plan

RANDOM = "random real"
HEADER = (
    "method", "container", "objective", "elements", "bytes", "x budget", "images/class", "SGD steps", "runs x trials",
    "accuracy %", "difference", "p (Holm)", "seconds", "preparation", "peak MiB", "published",
)  # fmt: skip
CAPTION = "accuracy and paired differences in %, 95 % t-intervals over runs (over trials if there is one run)"


@dataclass(frozen=True)
class Entry:
    """What stands behind one row: the accuracies of every run, trial by trial.

    Attributes:
        name: The row's name.
        trials: For each seed the accuracies of its trials.
        record: One of its records, or of its yardstick's.
        seconds: Condensation time of each run, and what its pruning took.
        prepare_seconds: Time of the objective's one-off work in each run; shared work, such as experts, falls to the
            first run that needs it.
        peaks: Peak memory of each run, MiB.
        across: For each seed the means of its trials over other networks.
    """

    name: str
    trials: dict[int, tuple[float, ...]]
    record: Mapping[str, Any]
    seconds: tuple[float, ...] = ()
    prepare_seconds: tuple[float, ...] = ()
    peaks: tuple[float, ...] = ()
    across: Mapping[int, tuple[float, ...]] = field(default_factory=dict)


def entries(
    records: Mapping[str, Sequence[Mapping[str, Any]]], protocol: Protocol, across: Sequence[str] = ()
) -> list[Entry]:
    """Rows for every method, and for the random real subsets that were scored beside them.

    Args:
        records: For each method the records of its runs.
        protocol: Scores of other protocols are left out.
        across: Hashes of protocols, whose mean stands in a column of its own.
    """
    made = []
    random: dict[int, tuple[float, ...]] = {}
    random_across: dict[int, tuple[float, ...]] = {}
    shown: Mapping[str, Any] | None = None
    for name, runs in records.items():
        trials = {int(r["config"]["seed"]): _trials(r["scores"], protocol) for r in runs}
        if not runs:
            continue
        made.append(
            Entry(
                name,
                trials,
                runs[0],
                tuple(float(r["condensation"]["seconds"]) + r.get("pruning", {}).get("prune_seconds", 0) for r in runs),
                tuple(float(r["condensation"].get("prepare_seconds", 0)) for r in runs),
                tuple(float(r["condensation"]["peak_memory_mib"]) for r in runs),
                {int(r["config"]["seed"]): _across(r["scores"], across) for r in runs} if across else {},
            )
        )
        for record in runs:
            subsets = [y for y in record["yardsticks"] if y["name"] == RANDOM]
            if across and {*across} <= {y["protocol_hash"] for y in subsets}:
                random_across.setdefault(int(record["config"]["seed"]), _across(subsets, across))
            for yardstick in record["yardsticks"]:
                if yardstick["name"] == RANDOM and yardstick["protocol_hash"] == protocol.hash:
                    # A data set in another space (ZCA) has yardsticks of its own; the first one stays.
                    random.setdefault(int(record["config"]["seed"]), tuple(yardstick["trials"]))
                    shown = shown or {**record, **yardstick, "storage": _storage(yardstick, record)}
    if shown is not None:
        made.insert(0, Entry(RANDOM, random, shown, across=random_across))
    return made


def rows(found: Sequence[Entry], protocol: Protocol, baseline: str = RANDOM) -> list[tuple[str, ...]]:
    """The table's cells.

    Differences are paired by seed (means over trials), or by trial where every method has one run only: trial k of all
    methods begins with the same weights. Holm's correction is over all methods but the baseline.
    """
    base = next((entry for entry in found if entry.name == baseline), None)
    differences = {e.name: _difference(e, base) for e in found if base is not None and e.name != baseline}
    tested = [(name, d.p) for name, d in differences.items() if d is not None and d.p is not None]
    corrected = dict(zip([name for name, _ in tested], holm([p for _, p in tested]), strict=True))
    return [_row(entry, protocol, differences.get(entry.name), corrected.get(entry.name)) for entry in found]


def table(
    found: Sequence[Entry], protocol: Protocol, baseline: str = RANDOM, networks: int = 0
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Header and rows, with columns for other networks (how many there are) and for priors where there are any."""
    header: Sequence[str] = HEADER
    made: Sequence[Sequence[str]] = rows(found, protocol, baseline)
    if networks:
        header, made = with_across(header, made, found, networks)
    return with_priors(header, made, found)


def with_across(
    header: Sequence[str], table: Sequence[Sequence[str]], found: Sequence[Entry], networks: int
) -> tuple[list[str], list[list[str]]]:
    """The table with one column more, behind the accuracy: the mean over other networks, with its interval."""
    cells = [_interval(entry.across) if entry.across else "" for entry in found]
    return _with_column(header, table, "accuracy %", f"mean of {networks} networks %", cells)


def with_priors(
    header: Sequence[str], table: Sequence[Sequence[str]], found: Sequence[Entry]
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """The table with one column more where a method has a prior: elements, seconds of its training, sha256.

    A prior is no part of the budget, since the stored set does without it; neither is it free.
    """
    held = [[] if entry.name == RANDOM else entry.record["storage"].get("priors", []) for entry in found]
    if not any(held):
        return header, table
    cells = ["; ".join(map(told_prior, priors)) for priors in held]
    return _with_column(header, table, "x budget", PRIOR, cells)


def _with_column(
    header: Sequence[str], table: Sequence[Sequence[str]], behind: str, title: str, cells: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    place = list(header).index(behind) + 1
    made = [[*row[:place], cell, *row[place:]] for row, cell in zip(table, cells, strict=True)]
    return [*header[:place], title, *header[place:]], made


def markdown(header: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [[*map(escape.markdown, header)], ["---"] * len(header), *([*map(escape.markdown, row)] for row in table)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_csv(header: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    """Comma-separated values for programs: plain numbers, and the half width of an interval in a column of its own."""
    columns: list[list[str]] = []
    for name, *cells in zip(header, *table, strict=True):
        split = [_plain(one_line(cell)) for cell in cells]
        columns.append([one_line(name), *(value for value, _ in split)])
        if any(half for _, half in split):
            columns.append([f"{one_line(name)} +-", *(half for _, half in split)])
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(zip(*columns, strict=True))
    return file.getvalue().rstrip("\n")


def latex(header: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    """A LaTeX tabular."""
    lines = [" & ".join(map(escape.latex, row)) + r" \\" for row in [header, *table]]
    columns = "l" * len(header)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", lines[0], r"\hline", *lines[1:], r"\end{tabular}"])


FORMATS = {"markdown": markdown, "csv": as_csv, "latex": latex}


def _row(entry: Entry, protocol: Protocol, difference: Difference | None, p: float | None) -> tuple[str, ...]:
    record, config = entry.record, entry.record["config"]
    storage, counts = record["storage"], record["images_per_class"]
    own = entry.name != RANDOM
    plan = Plan.of(protocol.train, sum(counts), config["ipc"] * len(counts))
    first = next(iter(entry.trials.values()))
    known = known_name(config.get("dataset", record["data"]["name"]), config.get("data", {}))
    source = published(entry.name, known, config["ipc"])
    return (
        entry.name,
        config["parameterization"]["name"] if own else "pixel",
        config["objective"]["name"] if own else "",
        f"{storage['elements']:,}",
        f"{storage['bytes']:,}",
        f"{storage['elements'] / storage['budget']:.3f}",
        f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}",
        f"{plan.total:,}",
        f"{len(entry.trials)} x {len(first)}",
        _interval(entry.trials),
        "" if difference is None else _percent(difference.estimate, signed=True),
        "" if p is None else f"{p:.3g}",
        f"{fmean(entry.seconds):.0f}" if entry.seconds else "",
        f"{sum(entry.prepare_seconds):.0f}" if any(seconds >= 1 for seconds in entry.prepare_seconds) else "",
        f"{max(entry.peaks):,.0f}" if entry.peaks else "",
        "" if source is None else f"{source.percent:.1f} ({source.source})",
    )


def _difference(entry: Entry, base: Entry) -> Difference | None:
    shared = sorted(set(entry.trials) & set(base.trials))
    if not shared:
        return None
    if len(shared) > 1:
        pairs = [(fmean(entry.trials[seed]), fmean(base.trials[seed])) for seed in shared]
    else:
        pairs = list(zip(entry.trials[shared[0]], base.trials[shared[0]], strict=False))
    return Difference.of(*zip(*pairs, strict=True))


def _trials(scores: Sequence[Mapping[str, Any]], protocol: Protocol) -> tuple[float, ...]:
    (found,) = [score for score in scores if score["protocol_hash"] == protocol.hash]
    return tuple(found["trials"])


def _across(scores: Sequence[Mapping[str, Any]], hashes: Sequence[str]) -> tuple[float, ...]:
    """Trial by trial the mean over networks."""
    by_hash = {score["protocol_hash"]: score["trials"] for score in scores}
    return tuple(fmean(trial) for trial in zip(*(by_hash[key] for key in hashes), strict=True))


def _interval(trials: Mapping[int, Sequence[float]]) -> str:
    """Over condensations, or over trials where there is one condensation only."""
    means = [fmean(values) for values in trials.values()]
    return _percent(Estimate.of(means if len(means) > 1 else next(iter(trials.values()))))


def _storage(yardstick: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, int]:
    budget = record["storage"]["budget"]
    return {"elements": yardstick["elements"], "bytes": yardstick["bytes"], "budget": budget}


def _percent(estimate: Estimate, signed: bool = False) -> str:
    sign = "+" if signed else ""
    spread = "" if estimate.half_width is None else f" +- {100 * estimate.half_width:.1f}"
    return f"{100 * estimate.mean:{sign}.1f}{spread}"


def _plain(cell: str) -> tuple[str, str]:
    """A cell without separators of thousands, and the half width of its interval."""
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})*(\.\d+)?", cell):
        return cell.replace(",", ""), ""
    interval = re.fullmatch(r"([+-]?[\d.]+) \+- ([\d.]+)( \(trials\))?", cell)
    return (interval[1], interval[2]) if interval else (cell, "")
