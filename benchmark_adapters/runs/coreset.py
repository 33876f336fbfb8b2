"""Pruning apart from condensation: a coreset of real training images, or a part of any stored set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

from benchmark_adapters.runs.find import find_run, read_record
from benchmark_adapters.runs.identity import plugin_identity
from benchmark_adapters.runs.notes import data_warnings
from benchmark_adapters.runs.parts import Options, load_real, same_data
from benchmark_adapters.runs.pipeline import reload
from benchmark_adapters.runs.prune import notes_of
from benchmark_adapters.runs.records import make_record
from benchmark_adapters.runs.scoring import merged, score_set, yardsticks
from benchmark_adapters.runs.store import RunFolder, write_json
from dd_plugins import registry
from dd_plugins.api import Parameterization, RealData, StorageBudget, UsageError, write_atomically
from dd_plugins.engine.callbacks import Callback
from dd_plugins.engine.config import RunConfig, resolve
from dd_plugins.engine.distilled import load_stored
from dd_plugins.engine.networks import NetworkFactory
from dd_plugins.engine.pruning import Pruner, build_pruning, check_pruning, check_selection, unit_labels

REAL = "real"  # the container of real images


@dataclass(frozen=True)
class Source:
    """What is pruned.

    Attributes:
        container: The set; pruned in place.
        config: How it was made, and how it is pruned and scored.
        name: For tables.
        digest: Of its content.
        rows: For real images the row of each in the data set's training images; else None.
    """

    container: Parameterization
    config: RunConfig
    name: str
    digest: str
    rows: Tensor | None = None


def prune_stored(
    stored: str | None,
    flags: Mapping[str, Any],
    assignments: Sequence[str],
    keep: float,
    options: Options,
    reporter: Callback,
) -> tuple[dict[str, Any], RunConfig]:
    """Keeps a share of a set, class by class, and scores what is left.

    Args:
        stored: A run; None for the real training images.
        flags: As for `resolve`: the data set, ``pruning`` and others.
        assignments: As for `resolve`.
        keep: The share, above 0 and at most 1.
        options: Where and how.
        reporter: Shows the progress.

    Returns:
        The record, in a folder of its own, and the configuration.

    Raises:
        UsageError: If ``keep`` is no share, or a class would be left with no image.
    """
    if not 0 < keep <= 1:
        raise UsageError(f"--keep {keep}: expected a share of the set, above 0 and at most 1")
    source, real = _source(stored, flags, assignments, keep, options)
    pruning = build_pruning(source.config, real)
    check_pruning(source.config.parameterization.name, source.container)
    for chosen in (source.config.network, source.config.protocol.network):  # before any of them is trained
        NetworkFactory.of(chosen, real).on_cpu()
    units = unit_labels(source.container)[0]
    check_selection(pruning.strategy, units, _units_kept(units, keep), real.class_names)
    run_id = _run_id(source, real, keep)
    folder = RunFolder(options.out / run_id)
    with folder.locked():
        write_atomically(folder.path / "config.yaml", source.config.to_yaml().encode())
        reporter.on_message(f"run {run_id} in {folder.path}")
        for line in data_warnings(source.config, real):
            reporter.on_warning(line)
        if not {"prune", "condense"} <= set(folder.stages()) or not folder.synthetic.exists():
            folder.forget_scores()
            pruner = Pruner(pruning, real, source.digest, options.runtime(reporter), folder)
            _prune(source, pruner, keep, folder, options)
        folder.check_stored()
        record = make_record(source.config, real.spec, run_id, folder)
        record["name"] = f"{source.name}, {record['pruning']['strategy']}, {100 * keep:g}% kept"
        if stored is None:  # nothing was learned
            record["config"] |= {"objective": {"name": "none"}, "method": "none"}
            record["plugins"] = {k: v for k, v in record["plugins"].items() if k not in ("method", "objective")}
        synthetic = reload(folder, source.config, real, options)
        protocol, device = source.config.protocol, options.device
        record = score_set(synthetic, protocol, source.config.ipc, record, folder, real, device, reporter)
        found_yardsticks = yardsticks(source.config, real, options.out, device, reporter, options.full_data)
        record["yardsticks"] = merged(record["yardsticks"], found_yardsticks)
        record["status"] = "done"
        write_json(folder.record, record)
    return record, source.config


def _source(
    stored: str | None, flags: Mapping[str, Any], assignments: Sequence[str], keep: float, options: Options
) -> tuple[Source, RealData]:
    """What is pruned, and the data set that it goes with."""
    if stored is None:
        config = resolve({**flags, "parameterization": REAL, "over_budget": 0.0}, assignments)
        real = load_real(config, options)
        return _real_images(config, real, keep), real
    found = find_run(stored, options.out)
    found.check_stored()
    made = read_record(found)
    config = resolve({**flags, "over_budget": 0.0}, assignments, found.path / "config.yaml")
    real = load_real(config, options)
    container = load_stored(found.synthetic)
    same_data(real, container.data, config.dataset)
    container.data_source = real.source
    return Source(container, config, made["name"], found.digest()), real


def _prune(source: Source, pruner: Pruner, keep: float, folder: RunFolder, options: Options) -> None:
    container, config = source.container.to(options.device), source.config
    container.chunk_size = options.chunk_size
    wanted = _units_kept(unit_labels(container)[0], keep)
    note = notes_of(config, pruner.prune(container, wanted))
    if source.rows is not None:
        note["rows"] = source.rows[torch.tensor(note["kept"])].tolist()
    container.budget = StorageBudget.ipc(container.data, config.ipc)
    container.storage().enforce(
        container.budget.scaled(container.budget_ratio()), f"{source.name}, {keep:g} of it kept,"
    )
    container.cpu().save(folder.synthetic, registry.find("parameterization", config.parameterization.name).spec)
    folder.mark("prune", keep=keep, **note)
    folder.mark("condense", sha256=folder.digest())


def _units_kept(units: Tensor, keep: float) -> int:
    return int(Fraction(str(keep)) * len(units))


def _real_images(config: RunConfig, real: RealData, keep: float) -> Source:
    """All training images in the order of their classes; the IPC is that of what will be left, rounded up."""
    by_class = real.train.class_rows()
    left = ceil(Fraction(str(keep)) * len(real.train) / real.spec.num_classes)
    config = config.model_copy(update={"ipc": max(1, left)})
    budget = StorageBudget(len(real.train) * prod(real.spec.image_shape))
    counts = [len(rows) for rows in by_class]
    settings = config.parameterization.settings
    container = registry.create("parameterization", REAL, real.spec, budget, settings, counts=counts)
    container.data_source = real.source
    rows = torch.cat(by_class)
    container.to(rows.device).take(real.train, rows)
    return Source(container, config, "real images", f"real {real.spec.fingerprint}", real.train.index[rows].cpu())


def _run_id(source: Source, real: RealData, keep: float) -> str:
    config = source.config
    parts = config.model_dump(mode="json")
    identity = {
        "source": source.digest,
        "fingerprint": real.spec.fingerprint,
        "keep": keep,
        "chosen_by": config.chosen_by,
        "plugins": [plugin_identity(kind, getattr(config, kind).name) for kind in ("pruning", "network")],
        **{key: parts[key] for key in ("seed", "pruning", "pruning_trials", "network")},
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
