"""Scores a stored set again: a run's, whose record takes the new scores, or any file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from benchmark_adapters.runner.config import RunConfig, flatten, resolve
from benchmark_adapters.runner.find import find_run, read_record
from benchmark_adapters.runner.parts import Options, network_factory, same_data
from benchmark_adapters.runner.progress import Reporter
from benchmark_adapters.runner.scoring import merged, score_set, yardsticks
from benchmark_adapters.runner.store import RunFolder, load_stored, read_record_file, write_json
from dd_plugins import registry
from dd_plugins.api import Parameterization, RealData, StorageBudget, SyntheticSet, UsageError
from dd_plugins.datasets import load_dataset
from dd_plugins.priors.distance import ClassRelevantDistance, check_judge, find_judge


@dataclass(frozen=True)
class Loaded:
    """A stored set, decoded, with the data it was made from.

    Attributes:
        synthetic: The set.
        real: The data.
        record: Its record, or a bare one for a file of its own.
        folder: Where scores go.
        spec: The data set as the user would name it.
        ipc: Of the budget.
        made_under: The protocol that its run was scored under.
    """

    synthetic: SyntheticSet
    real: RealData
    record: dict[str, Any]
    folder: RunFolder
    spec: str
    ipc: int
    made_under: dict[str, Any] | None


def rescore(
    stored: str,
    networks: Sequence[str | None],
    protocol: str | None,
    dataset: str | None,
    assignments: Sequence[str],
    options: Options,
    reporter: Reporter,
    scored_as: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Scores a stored set on every network.

    Args:
        stored: A run, or a file.
        networks: None stands for the protocol's own.
        protocol: The protocol's name; by default as the run was scored.
        dataset: The data, for a file; by default as the file says.
        assignments: Settings of the protocol.
        options: Device, data and folder.
        reporter: Shows the progress.
        scored_as: What "as the run was scored" means; by default what its record says, which is the first time.

    Returns:
        The record, the scores that were asked for, and the IPC of the budget.
    """
    loaded = load_set(stored, dataset, options)
    synthetic, real, record, folder = loaded.synthetic, loaded.real, loaded.record, loaded.folder
    spec, ipc, made_under = loaded.spec, loaded.ipc, scored_as or loaded.made_under
    wanted = []
    with folder.locked():
        record = read_record_file(folder.record) or record  # what others added in the meantime
        for network in networks:
            config = _config(spec, ipc, protocol, network, assignments, made_under)
            config = config.model_copy(update={"seed": record.get("config", {}).get("seed", 0)})
            record = score_set(synthetic, config.protocol, ipc, record, folder, real, options.device, reporter)
            found = yardsticks(config, real, options.out, options.device, reporter, options.full_data)
            record = {**record, "yardsticks": merged(record["yardsticks"], found)}
            write_json(folder.record, record)
            wanted += [s for s in record["scores"] if _matches(s, config)]
    return record, wanted, ipc


def load_set(stored: str, dataset: str | None, options: Options) -> Loaded:
    """Rebuilds a stored set from its file alone, and finds the data it was made from.

    Args:
        stored: A run, or a file.
        dataset: The data, for a file; by default as the file says.
        options: Device, data and folder.
    """
    path = Path(stored)
    folder = None if path.is_file() else find_run(stored, options.out)
    container = load_stored(path if folder is None else folder.synthetic)
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
    data = load_dataset(spec, options.data_root, options.device, config=settings)
    real = same_data(data, container, spec)
    with torch.no_grad():
        synthetic = SyntheticSet(record["name"], real.spec, container.decode(), container.labels, container.storage())
    return Loaded(synthetic, real, record, folder, spec, ipc, made_under)


def how_to_score(loaded: Loaded, protocol: str | None, network: str | None, assignments: Sequence[str]) -> RunConfig:
    """A configuration whose protocol is that asked for, else the one that the set's run was scored under."""
    return _config(loaded.spec, loaded.ipc, protocol, network, assignments, loaded.made_under)


def _config(
    spec: str,
    ipc: int,
    protocol: str | None,
    network: str | None,
    assignments: Sequence[str],
    made_under: dict[str, Any] | None,
) -> RunConfig:
    """How to score: as asked, else as the run was scored (on another network with that network's own settings)."""
    network = network and registry.canonical("network", network)
    flags = {"dataset": spec, "ipc": ipc, "protocol": protocol, "parameterization": "pixel"}
    if protocol is None and made_under is not None:
        if network not in (None, made_under["network"]["name"]):
            made_under = {**made_under, "network": {}}
        flags |= flatten({"protocol": made_under})
    chosen = [] if network is None else [f"protocol.network.name={network}"]
    return resolve(flags, [*chosen, *assignments])


def _matches(score: dict[str, Any], config: RunConfig) -> bool:
    return bool(score["protocol_hash"] == config.protocol.hash)


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


def crfd(
    stored: str,
    networks: Sequence[str | None],
    dataset: str | None,
    assignments: Sequence[str],
    options: Options,
    reporter: Reporter,
) -> list[tuple[float, float]]:
    """The class-relevant feature distance of a stored set to the real training images; goes into a run's record.

    The classifier that judges is trained on the real images once; None stands for the run's own network.

    Returns:
        For each network the distance, and its variant on class activation maps.

    Raises:
        IncompatibleError: If one of them has no maps; before any is trained.
    """
    loaded = load_set(stored, dataset, options)
    made_on = loaded.record.get("config", {}).get("network")
    flags = {"dataset": loaded.spec, "ipc": loaded.ipc, "parameterization": "pixel"}
    judges = []
    for network in networks:
        named = flatten({"network": {"name": network} if network else made_on or {"name": "convnet"}})
        config = resolve({**flags, **named}, assignments)
        factory = network_factory(config, loaded.real, options.device)
        check_judge(factory(0), loaded.real.spec)
        judges.append((config.network, factory))
    values = []
    for chosen, factory in judges:
        reporter.say(f"judge: {chosen.name} {chosen.settings}")
        about = chosen.model_dump(mode="json")
        judge = find_judge(loaded.real, about, factory, options.out, reporter.watch)
        distance, stored_set = ClassRelevantDistance(judge, loaded.real), loaded.synthetic
        value = distance(stored_set.images, stored_set.targets)
        variant = distance.of_activations(stored_set.images, stored_set.targets)
        with loaded.folder.locked():
            record = read_record_file(loaded.folder.record) or loaded.record
            others = [m for m in record.get("metrics", []) if (m["metric"], m["network"]) != ("crfd", about)]
            noted = {"metric": "crfd", "network": about, "value": value, "of_activations": variant}
            write_json(loaded.folder.record, {**record, "metrics": [*others, noted]})
        values.append((value, variant))
    return values
