"""Opens stored sets, of a run or in a file of their own: with the data they were made from, or without it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from benchmark_adapters.runs.find import find_run, read_record
from benchmark_adapters.runs.parts import Options, same_data
from benchmark_adapters.runs.store import RunFolder
from dd_plugins.api import (
    DataError,
    DataSource,
    Parameterization,
    RealData,
    StorageBudget,
    SyntheticSet,
    UsageError,
    read_stored,
)
from dd_plugins.datasets import COMMON_SETTINGS, load_dataset, split_spec
from dd_plugins.engine.distilled import load_stored


@dataclass(frozen=True)
class StoredSet:
    """A stored set, decoded; all of it comes from its file and the record of its run.

    Attributes:
        synthetic: The set.
        record: Its record, or a bare one for a file of its own.
        folder: Where scores go.
        source: The data set that it was made from.
        ipc: Of the budget.
        made_under: The protocol that its run was scored under; None for a file.
    """

    synthetic: SyntheticSet
    record: dict[str, Any]
    folder: RunFolder
    source: DataSource
    ipc: int
    made_under: dict[str, Any] | None


@dataclass(frozen=True)
class Loaded(StoredSet):
    """A stored set with the data it was made from.

    Attributes:
        real: The data.
    """

    real: RealData


def open_set(stored: str, options: Options) -> StoredSet:
    """Rebuilds a stored set from its file alone; reads no data set.

    Args:
        stored: A run, or a file.
        options: Device and folder.

    Raises:
        UsageError: If there is no such set, or it was not stored yet.
        SyntheticFileError: If its file is damaged, or another one than the run stored.
        StorageBudgetExceeded: If it holds more than its budget.
    """
    if Path(stored).is_file() and Path(stored).suffix != ".json":
        return _open_file(Path(stored), options)
    folder = find_run(stored, options.out)
    record = read_record(folder)
    folder.check_stored()
    config = record["config"]
    container = load_stored(folder.synthetic)
    allowed = StorageBudget.ipc(container.data, config["ipc"]).scaled(container.budget_ratio())
    if config.get("over_budget") and "pruning" not in record:  # as asked for
        allowed = container.budget
    container.storage().enforce(allowed, stored)
    source = DataSource(config["dataset"], config.get("data", {}), container.data_source.class_names)
    synthetic = _decoded(container, record["name"], options)
    return StoredSet(synthetic, record, folder, source, config["ipc"], config["protocol"])


def _open_file(path: Path, options: Options) -> StoredSet:
    header, _ = read_stored(path)
    container = load_stored(path)
    ledger, elements = container.storage(), container.budget.elements
    ipc = elements // (container.data.num_classes * prod(container.data.image_shape))
    if ipc < 1:
        raise UsageError(f"{path}: its budget of {elements} elements is less than one image a class")
    ledger.enforce(StorageBudget.ipc(container.data, ipc).scaled(container.budget_ratio()), str(path))
    source = container.data_source
    record = {
        "name": path.name,
        "container": header.plugin,
        "data": container.data.to_dict(),
        "storage": {"elements": ledger.elements, "bytes": ledger.nbytes, "budget": elements},
        "images_per_class": list(container.counts),
        "scores": [],
        "yardsticks": [],
    }
    folder = RunFolder(options.out / "evaluations" / hashlib.sha256(path.read_bytes()).hexdigest()[:10])
    source = replace(source, dataset=source.dataset or container.data.name)
    return StoredSet(_decoded(container, path.name, options), record, folder, source, ipc, None)


def _decoded(container: Parameterization, name: str, options: Options) -> SyntheticSet:
    ledger = container.storage()
    container.to(options.device).chunk_size = options.chunk_size
    with torch.no_grad():
        return SyntheticSet(name, container.data, container.decode(), container.labels, ledger)


def load_set(stored: str, dataset: str | None, options: Options, settings: Mapping[str, Any] | None = None) -> Loaded:
    """Rebuilds a stored set from its file alone, and loads the data it was made from.

    Args:
        stored: A run, or a file.
        dataset: The data; by default as the set says.
        options: Device, data and folder.
        settings: Settings of the data set that win over those that the set knows.

    Raises:
        DataError: If the data is not there, or not that from which the set was made.
    """
    return with_data(open_set(stored, options), dataset, options, settings)


def with_data(
    found: StoredSet, dataset: str | None, options: Options, settings: Mapping[str, Any] | None = None
) -> Loaded:
    """Adds the data that a set was made from; arguments as for `load_set`."""
    source = chosen_source(found.source, dataset, settings or {})
    try:
        data = load_dataset(source.dataset, options.data_root, options.device, config=source.settings)
    except DataError as error:
        if dataset is not None:
            raise
        raise DataError(f"{error}; --dataset names the data the set was made from, where it is now") from None
    real = same_data(data, found.synthetic.data, source.dataset)
    return Loaded(
        replace(found.synthetic, data=real.spec),
        found.record,
        found.folder,
        replace(source, class_names=real.class_names),
        found.ipc,
        found.made_under,
        real,
    )


def chosen_source(known: DataSource, dataset: str | None, settings: Mapping[str, Any]) -> DataSource:
    """The data set to load: what the user names wins over what the set knows.

    The set's settings hold for a data set of the same kind in another place too; of those for another kind, only the
    settings that all kinds have.
    """
    same_kind = dataset is None or split_spec(dataset)[0] == split_spec(known.dataset)[0]
    kept = {key: value for key, value in known.settings.items() if same_kind or key in COMMON_SETTINGS}
    return DataSource(dataset or known.dataset, {**kept, **settings}, known.class_names)
