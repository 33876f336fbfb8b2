"""Sets on their way out, decoded, and published sets on their way in, as runs that can be scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from benchmark_adapters.runs.parts import Options, load_real
from benchmark_adapters.runs.pipeline import reload
from benchmark_adapters.runs.records import make_record
from benchmark_adapters.runs.rescore import split_data
from benchmark_adapters.runs.sets import Loaded, StoredSet, open_set, with_data
from benchmark_adapters.runs.store import RunFolder, write_json
from dd_plugins import registry
from dd_plugins.api import DataError, DDPluginsError, RealData, StorageBudget, UsageError, write_atomically
from dd_plugins.api.format import Exported, Format
from dd_plugins.datasets import has_colours
from dd_plugins.engine.callbacks import Callback
from dd_plugins.engine.config import resolve

CONTAINER = "pixel"  # of sets that come in


def export_set(
    stored: str,
    form: Format,
    root: Path,
    dataset: str | None,
    assignments: Sequence[str],
    options: Options,
    reporter: Callback,
) -> list[Path]:
    """Writes a stored set, decoded, in a format. The data it was made from is read only where it is needed.

    Args:
        stored: A run, or a file.
        form: The format.
        root: Where to.
        dataset: The data, to check the set against it; by default it is not read.
        assignments: Settings of the data set, ``data.KEY=VALUE``.
        options: Device, data and folder.
        reporter: Shows what the set does not hold.

    Returns:
        What was written.

    Raises:
        DataError: If the format holds pictures, the set is whitened, and neither its data nor its matrix is there.
    """
    _, settings = split_data(assignments, ())
    found = open_set(stored, options)
    if dataset or settings:
        found = with_data(found, dataset, options, settings)
    elif not found.source.class_names:
        found = _named(found, options, reporter)
    if form.holds_pictures:
        _check_colours(found, options)
    synthetic, record, source = found.synthetic, found.record, found.source
    name = record.get("container", record["name"])  # a file of its own has no name but that of its container
    notes: dict[str, Any] = {"name": name, "run": record.get("id", ""), "dataset": source.dataset}
    notes["config"] = record.get("config", {})
    notes["data_settings"] = dict(source.settings)
    notes["scores"] = record["scores"]
    notes["storage"] = {part: record["storage"][part] for part in ("elements", "bytes", "budget")}
    names = source.names(synthetic.data.num_classes)
    exported = Exported(synthetic.images.cpu(), synthetic.targets.cpu(), synthetic.data, names, found.ipc, notes)
    return form.write(exported, root)


def _named(found: StoredSet, options: Options, reporter: Callback) -> StoredSet:
    """A set of an earlier release, whose file has no class names: with those of its data set, if that is there."""
    try:
        return with_data(found, None, options)
    except DDPluginsError as error:
        reporter.on_message(f"the set does not know its class names, and its data set is not there ({error})")
        reporter.on_message("its classes are named 0, 1, ...; --dataset takes the names from a data set")
        return found


def _check_colours(found: StoredSet, options: Options) -> None:
    """Makes sure that pictures of a whitened set can be written: their colours need its whitening matrix.

    Raises:
        DataError: If neither the matrix nor the data set is there.
    """
    if isinstance(found, Loaded) or has_colours(found.synthetic.data):
        return
    try:
        with_data(found, None, options)  # finds the matrix and caches it
    except DDPluginsError as error:
        raise DataError(
            f"the set is whitened, and the colours of its pictures need the data set ({error}); --dataset names it, "
            f"and --to pt exports the numbers without pictures"
        ) from None


def import_set(
    path: Path,
    form: Format,
    name: str | None,
    flags: Mapping[str, Any],
    assignments: Sequence[str],
    options: Options,
) -> dict[str, Any]:
    """Brings a set in as a run of its own: pixels, in the order of their classes.

    Args:
        path: The file or folder.
        form: Its format.
        name: For tables; by default the path's last part.
        flags: ``dataset``; ``ipc``, by default as many as the largest class has images.
        assignments: As for `resolve`, such as ``data.zca=true``.
        options: Data and folder.

    Returns:
        The record, without a score yet; that of an earlier import if it brought in the same images.

    Raises:
        DataError: If the set is damaged, holds code, or does not go with the data set.
        UsageError: If it takes more than the budget of the IPC that was asked for.
    """
    asked = {**flags, "ipc": flags.get("ipc") or 1, "method": CONTAINER, "steps": 0}
    config = resolve(asked, assignments)
    real = load_real(config, options)
    found = form.read(path, real)
    order = torch.argsort(found.targets, stable=True)
    images, targets = found.images[order], found.targets[order]
    counts = torch.bincount(targets, minlength=real.spec.num_classes).tolist()
    config = config.model_copy(update={"ipc": flags.get("ipc") or max(counts)})
    budget = StorageBudget.ipc(real.spec, config.ipc)
    if len(targets) * prod(real.spec.image_shape) > budget.elements:
        raise UsageError(
            f"{path}: {len(targets)} images take {len(targets) * prod(real.spec.image_shape)} elements, but the budget "
            f"of IPC {config.ipc} is {budget.elements}; without --ipc it is taken from the set"
        )
    container = registry.load("parameterization", CONTAINER)(real.spec, budget, counts=counts)
    container.data_source = real.source
    with torch.no_grad():
        container.images.copy_(images)
    folder = RunFolder(options.out / _run_id(images, targets, real, config.ipc))
    with folder.locked():
        write_atomically(folder.path / "config.yaml", config.to_yaml().encode())
        if "condense" not in folder.stages() or not folder.synthetic.exists():
            container.save(folder.synthetic, CONTAINER)
            folder.mark("condense", sha256=folder.digest(), imported=path.name)
        folder.check_stored()
        record = make_record(config, real.spec, folder.path.name, folder)
        known = record["name"] if "imported" in record else f"imported {path.name}"
        record |= {"name": name or known, "imported": record.get("imported", path.name)}
        record["config"] |= {"objective": {"name": "none"}, "method": "none"}
        record["plugins"] = {k: v for k, v in record["plugins"].items() if k not in ("method", "objective")}
        reload(folder, config, real, options)  # the budget on what the file holds, and a preview
        write_json(folder.record, record)
    return record


def _run_id(images: torch.Tensor, targets: torch.Tensor, real: RealData, ipc: int) -> str:
    digest = hashlib.sha256(images.contiguous().numpy().tobytes() + targets.numpy().tobytes()).hexdigest()
    return hashlib.sha256(json.dumps([digest, real.spec.fingerprint, ipc, "imported"]).encode()).hexdigest()[:10]
