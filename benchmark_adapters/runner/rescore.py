"""Scores a stored set again: a run's, whose record takes the new scores, or any file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from benchmark_adapters.runner.config import RunConfig, flatten, resolve
from benchmark_adapters.runner.find import find_run, read_record
from benchmark_adapters.runner.parts import Options
from benchmark_adapters.runner.progress import Reporter
from benchmark_adapters.runner.scoring import merged, score_set, yardsticks
from benchmark_adapters.runner.store import RunFolder, load_stored, read_record_file, write_json
from dd_plugins.api import DataError, Parameterization, RealData, StorageBudget, SyntheticSet, UsageError
from dd_plugins.datasets import load_dataset


def rescore(
    stored: str,
    networks: Sequence[str | None],
    protocol: str | None,
    dataset: str | None,
    trusted: str | None,
    assignments: Sequence[str],
    options: Options,
    reporter: Reporter,
) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Scores a stored set on every network.

    Returns:
        The record, the scores that were asked for, and the IPC of the budget.
    """
    path = Path(stored)
    folder = None if path.is_file() else find_run(stored, options.out)
    container = load_stored(path if folder is None else folder.synthetic, trusted or _trusted(folder))
    ipc = container.budget.elements // (container.data.num_classes * prod(container.data.image_shape))
    made_under: dict[str, Any] | None = None
    if folder is None:
        if not ipc >= 1:
            raise UsageError(
                f"{stored}: its budget of {container.budget.elements} elements is less than one image a class"
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:10]
        folder = RunFolder(options.out / "evaluations" / digest)
        spec = dataset or container.data.name
        record = _bare_record(container, stored)
    else:
        record = read_record(folder)
        folder.check_stored()
        spec = dataset or record["config"]["dataset"]
        ipc, made_under = record["config"]["ipc"], record["config"]["protocol"]
    allowed = StorageBudget.for_ipc(container.data, ipc).scaled(container.oversize())
    if record.get("config", {}).get("over_budget") and "pruning" not in record:  # as asked for
        allowed = container.budget
    container.storage().enforce(allowed, stored)
    container.to(options.device)
    settings = {} if dataset else record.get("config", {}).get("data", {})
    loaded = load_dataset(spec, options.data_root, options.device, config=settings)
    real = _same_data(loaded, container, spec)
    with torch.no_grad():
        synthetic = SyntheticSet(record["name"], real.spec, container.decode(), container.labels, container.storage())
    wanted = []
    with folder.locked():
        record = read_record_file(folder.record) or record  # what others added in the meantime
        for network in networks:
            config = _config(spec, ipc, protocol, network, assignments, made_under)
            config = config.model_copy(update={"seed": record.get("config", {}).get("seed", 0)})
            record = score_set(synthetic, config.protocol, ipc, record, folder, real, options.device, reporter)
            found = yardsticks(config, real, options.out, options.device, reporter, full_data=False)
            record = {**record, "yardsticks": merged(record["yardsticks"], found)}
            write_json(folder.record, record)
            wanted += [s for s in record["scores"] if _matches(s, config)]
    return record, wanted, ipc


def _config(
    spec: str,
    ipc: int,
    protocol: str | None,
    network: str | None,
    assignments: Sequence[str],
    made_under: dict[str, Any] | None,
) -> RunConfig:
    """How to score: as asked, else as the run was scored (on another network with that network's own settings)."""
    flags = {"dataset": spec, "ipc": ipc, "protocol": protocol, "parameterization": "pixel"}
    if protocol is None and made_under is not None:
        if network not in (None, made_under["network"]["name"]):
            made_under = {**made_under, "network": {}}
        flags |= flatten({"protocol": made_under})
    chosen = [] if network is None else [f"protocol.network.name={network}"]
    return resolve(flags, [*chosen, *assignments])


def _matches(score: dict[str, Any], config: RunConfig) -> bool:
    return bool(score["protocol_hash"] == config.protocol.hash)


def _same_data(real: RealData, container: Parameterization, spec: str) -> RealData:
    """Refuses to score a set on other data than it was made from."""
    made, found = container.data, real.spec
    if (made.image_shape, made.num_classes) != (found.image_shape, found.num_classes):
        raise DataError(
            f"the set was made from {made.name} ({made.num_classes} classes of {made.image_shape}), but {spec} has "
            f"{found.num_classes} classes of {found.image_shape}"
        )
    if made.fingerprint != found.fingerprint:
        raise DataError(
            f"the set was made from {made.name} with fingerprint {made.fingerprint}, {spec} has {found.fingerprint}: "
            f"other pixels, labels or splits"
        )
    return real


def _trusted(folder: RunFolder | None) -> str | None:
    if folder is None:
        return None
    name = read_record(folder)["config"]["parameterization"]["name"]
    return str(name)


def _bare_record(container: Parameterization, name: str) -> dict[str, Any]:
    ledger = container.storage()
    return {
        "name": Path(name).name,
        "data": container.data.to_dict(),
        "storage": {"elements": ledger.elements, "bytes": ledger.nbytes, "budget": container.budget.elements},
        "images_per_class": list(container.counts),
        "scores": [],
        "yardsticks": [],
    }
