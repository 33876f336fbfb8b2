"""Tables for the terminal, made of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from benchmark_adapters.escape import rich_text
from dd_plugins.engine.score import Estimate

if TYPE_CHECKING:
    from benchmark_adapters.report.comparison import Entry
    from benchmark_adapters.runs.compare import Planned
    from benchmark_adapters.runs.profile import Phase


def score_table(record: Mapping[str, Any], score: Mapping[str, Any], ipc: int) -> Table:
    """The run under one score, next to the yardsticks of the same protocol and network."""
    data, storage = record["data"], record["storage"]
    origin = f" ({data['origin']})" if data["origin"] else ""
    split = score.get("split", "test")
    table = Table(
        title=_title(f"{data['name']}{origin}, IPC {ipc}, protocol {score['protocol']}, network {score['network']}"),
        caption=_caption(f"accuracy on the {split} set in %, mean and 95 % t-interval over n trained networks"),
    )
    # On a narrow terminal long numbers are folded before a method loses its name.
    table.add_column("method", min_width=11)
    for name in ("elements", "bytes", "budget"):
        table.add_column(name, justify="right", overflow="fold")
    for name in ("images/\nclass", "accuracy"):
        table.add_column(name, justify="right", no_wrap=True)
    stored = {"name": record["name"], "images_per_class": record["images_per_class"], **score, **storage}
    same = [y for y in record["yardsticks"] if _group(y) == _group(score)]
    for row in [stored, *same]:
        table.add_row(
            rich_text(row["name"]),
            f"{row['elements']:,}",
            f"{row['bytes']:,}",
            f"{storage['budget']:,}",
            _span(row["images_per_class"]),
            Estimate.of(row["trials"]).percent(),
            style=None if row is stored else "dim",
        )
    return table


def _title(text: str) -> Text:
    return rich_text(text, "table.title")


def _caption(*lines: str) -> Text | None:
    """The lines that are not empty; None without any."""
    shown = [rich_text(line, "table.caption") for line in lines if line]
    return Text("\n").join(shown) if shown else None


def _group(score: Mapping[str, Any]) -> tuple[str, str]:
    return score["protocol_hash"], score["network"]


def ledger_table(entries: Sequence[Mapping[str, Any]], budget: int) -> Table:
    """Every stored tensor with its elements, and the sum against the budget."""
    table = Table(title="storage")
    for name in ("tensor", "shape", "dtype"):
        table.add_column(name)
    for name in ("elements", "bytes"):
        table.add_column(name, justify="right")
    for entry in entries:
        shape = " x ".join(map(str, entry["shape"]))
        table.add_row(
            rich_text(entry["name"]), shape, rich_text(entry["dtype"]), f"{entry['elements']:,}", f"{entry['nbytes']:,}"
        )
    total, nbytes = (sum(entry[key] for entry in entries) for key in ("elements", "nbytes"))
    table.add_section()
    table.add_row("all", "", "", f"{total:,}", f"{nbytes:,}")
    table.add_row("budget", "", "", f"{budget:,}", f"{4 * budget:,}")
    return table


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}-{high}"


def profile_table(phase: Phase, versions: Mapping[str, str]) -> Table:
    """The parts of a phase beside the operators that take most time of their own."""
    times = f"{1000 * phase.seconds:.0f} ms per {phase.unit} ({1000 * phase.cpu_seconds:.0f} ms of processor time"
    table = Table(
        title=_title(f"{phase.name}: {times}, {versions['threads']} threads)"),
        caption=_caption(*phase.notes.splitlines()),
    )
    for name in (f"part of the {phase.unit}", "operator"):
        table.add_column(name)
        table.add_column("share", justify="right")
    for part, operator in zip_longest(phase.parts.items(), phase.operators.items(), fillvalue=("", None)):
        cells = [(name, "" if share is None else f"{100 * share:.0f} %") for name, share in (part, operator)]
        table.add_row(*map(rich_text, (*cells[0], *cells[1])))
    return table


BENCHMARKS_HEADER = ("benchmark", "protocol", "network", "metric", "score")


def benchmarks_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The scores of all benchmarks, one metric a row: means with 95 % t-intervals over trials, fractions."""
    rows: list[tuple[str, ...]] = []
    others = record.get("benchmarks", [])
    told = {(entry["benchmark"], entry["protocol_hash"]) for entry in others}
    own = [s for s in record["scores"] if (s["benchmark"], s["protocol_hash"]) not in told]
    for entry in [*({**score, "metric": "accuracy"} for score in own), *others]:
        metrics = {entry["metric"]: entry["trials"], **entry.get("metrics", {})}
        for number, (metric, trials) in enumerate(metrics.items()):
            about = (entry["benchmark"], entry["protocol"], entry["network"]) if not number else ("", "", "")
            estimate = Estimate.of(trials)
            spread = "" if estimate.half_width is None else f" +- {estimate.half_width:.4f}"
            rows.append((*about, metric, f"{estimate.mean:.4f}{spread} (n={len(trials)})"))
    return rows


def benchmarks_table(record: Mapping[str, Any]) -> Table:
    """The scores of all benchmarks, each under its own name."""
    table = Table(
        title=_title(f"{record['name']}, benchmark by benchmark"),
        caption="mean and 95 % t-interval over trials; numbers of different benchmarks or protocols do not compare",
    )
    *about, score = BENCHMARKS_HEADER
    for name in about:
        table.add_column(name, overflow="fold", no_wrap=name == "metric")
    table.add_column(score, justify="right", no_wrap=True)
    for row in benchmarks_rows(record):
        table.add_row(*map(rich_text, row))
    return table


# Columns that a narrow terminal keeps, the first ones first; all others follow as far as there is room.
KEPT = (
    "method", "container", "data set", "IPC", "cannot run", "accuracy %", "difference", "p (Holm)", "images/class",
    "x budget", "seconds",
)  # fmt: skip
EDGE, GAP = 1, 3  # characters of a table's left edge, and around each column


def fitting_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str, caption: str, width: int) -> Table:
    """A table for a terminal of ``width`` characters; columns without any entry, or without room, are left out."""
    used = [k for k in range(len(header)) if any(row[k] for row in rows)]
    room = width - EDGE
    shown: list[int] = []
    for k in sorted(used, key=lambda k: KEPT.index(header[k]) if header[k] in KEPT else len(KEPT)):
        needed = GAP + max(len(word) for word in [*header[k].split(), *(row[k] for row in rows)])
        if needed <= room or not shown:
            shown.append(k)
            room -= needed
    missing = [header[k] for k in used if k not in shown]
    told = f"no room for: {', '.join(missing)} (a wider terminal, or --format markdown)" if missing else ""
    table = Table(title=_title(title), caption=_caption(caption, told))
    for k in sorted(shown):
        table.add_column(rich_text(header[k]), justify="left" if k < 3 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(rich_text(row[k]) for k in sorted(shown)))
    return table


def plan_table(plans: Sequence[Planned]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """What a comparison would run: header and cells."""
    header = ("method", "container", "objective", "steps", "elements", "x budget", "images/class", "run", "cannot run")
    rows = []
    for planned in plans:
        config, container = planned.config, planned.container
        sizes = ["", "", ""]
        if container is not None:
            elements = container.storage().elements
            sizes = [f"{elements:,}", f"{elements / planned.budget:.3f}", _span(container.counts)]
        run = f"{planned.run_id}{' (done)' if planned.done else ''}"
        parts = [planned.name, config.parameterization.name, config.objective.name, f"{config.steps:,}"]
        rows.append([*parts, *sizes, run, planned.why])
    return header, rows


def matrix_table(
    entries: Sequence[Entry], containers: Sequence[str], objectives: Sequence[str], failures: Mapping[str, str]
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Containers as rows, objectives as columns: header and cells."""
    means = {entry.name: [fmean(trials) for trials in entry.trials.values()] for entry in entries}
    first = {entry.name: next(iter(entry.trials.values())) for entry in entries}

    def cell(name: str) -> str:
        if name in failures or name not in means:
            return "failed" if name in failures else ""
        return Estimate.of(means[name] if len(means[name]) > 1 else first[name]).percent()

    rows = [[container, *(cell(f"{container} + {objective}") for objective in objectives)] for container in containers]
    return ["container", *objectives], rows
