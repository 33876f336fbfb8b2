"""One record, or one stored set, as text and tables for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from torch import Tensor

from benchmark_adapters.report.summary import HEADER, rows
from benchmark_adapters.report.tables import benchmarks_table, fitting_table, ledger_table, score_table
from dd_plugins.api import StorageLedger, StoredHeader
from dd_plugins.api.faults import shortened

MAX_NAMES = 20  # class names that are listed


def record_tables(record: Mapping[str, Any], width: int) -> Iterator[RenderableType]:
    """The scores of a record, those of other benchmarks, and what is stored.

    Args:
        record: Of a run, or of real images that were scored as a reference.
        width: Of the terminal, in characters.
    """
    if "storage" not in record:
        yield fitting_table(HEADER, rows([record]), "record", "", width)
        return
    for score in record["scores"]:
        yield score_table(record, score, record["config"]["ipc"])
    if record.get("benchmarks"):
        yield benchmarks_table(record)
    yield ledger_table(record["storage"]["ledger"], record["storage"]["budget"])


def record_lines(record: Mapping[str, Any], differences: Sequence[str]) -> Iterator[str]:
    """How the set of a record was made.

    Args:
        record: The record.
        differences: Between the code that made it and the code that is installed.
    """
    config, data = record["config"], record["data"]
    made, pruned = record.get("condensation", {}), record.get("pruning")
    about = f" (method {config['method']}), seed {config['seed']}" if "method" in config else ""
    yield f"run {record.get('id', '')}: {record['name']}{about}"
    if made.get("steps") is not None:
        yield f"condensed in {made['steps']} steps, {made['seconds']} s, peak {made['peak_memory_mib']} MiB"
    if pruned:
        before, after = pruned["images"]
        yield f"pruned by {pruned['strategy']}: {after} of {before} images kept, {pruned['prune_seconds']} s"
    yield f"data: {data['name']} {data['origin']} {data['fingerprint']}"
    if differences:
        yield "made by other code than is installed:"
        yield from (f"  {difference}" for difference in differences)


def stored_tables(tensors: Mapping[str, Tensor], header: StoredHeader) -> Iterator[RenderableType]:
    """What the file of a stored set holds."""
    ledger = StorageLedger.of(sorted(tensors.items()))
    yield ledger_table([asdict(entry) for entry in ledger.entries], header.budget.elements)


def stored_lines(header: StoredHeader) -> Iterator[str]:
    """What the file of a stored set says about itself."""
    data, source, counts = header.data, header.source, header.counts
    held = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    shape = " x ".join(map(str, data.image_shape))
    yield f"stored set: {shortened(header.plugin)}, {sum(counts):,} images, {held} per class"
    yield f"data: {shortened(data.name)} {shortened(data.origin)} {shortened(data.fingerprint)}, images of {shape}"
    if source.dataset:
        settings = (f"--set data.{key}={json.dumps(value)}" for key, value in source.settings.items())
        yield f"made from: --dataset {shortened(' '.join([source.dataset, *settings]), 400)}"
    names = [shortened(name) for name in source.class_names[:MAX_NAMES]]
    more = f", and {data.num_classes - MAX_NAMES:,} more" if data.num_classes > MAX_NAMES else ""
    listed = f": {', '.join(names)}{more}" if names else ", whose names are not in the file"
    yield f"classes: {data.num_classes}{listed}"
