"""Scores a stored set again: a run's, whose record takes the new scores, or any file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from typing import Any

from benchmark_adapters.runs.notes import few_images
from benchmark_adapters.runs.parts import Options
from benchmark_adapters.runs.records import rename_data
from benchmark_adapters.runs.schema import SetRecord
from benchmark_adapters.runs.scoring import merged, score_set, yardsticks
from benchmark_adapters.runs.sets import Loaded, load_set
from benchmark_adapters.runs.store import read_record_file, write_json
from dd_plugins import registry
from dd_plugins.api import DataError, DataSource, FolderArtifacts, UsageError
from dd_plugins.engine.callbacks import Callback
from dd_plugins.engine.config import RunConfig, resolve, settings_of
from dd_plugins.engine.keys import flatten
from dd_plugins.engine.networks import NetworkFactory
from dd_plugins.priors.distance import ClassRelevantDistance, check_reference_network
from dd_plugins.priors.reference import load_or_train_reference_classifier


def rescore(
    stored: str,
    networks: Sequence[str | None],
    protocol: str | None,
    dataset: str | None,
    assignments: Sequence[str],
    options: Options,
    reporter: Callback,
    scored_as: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Scores a stored set on every network.

    Args:
        stored: A run, or a file.
        networks: None stands for the protocol's own.
        protocol: The protocol's name; by default as the run was scored.
        dataset: The data, for a file; by default as the file says.
        assignments: Settings of the protocol, and of the data set.
        options: Device, data and folder.
        reporter: Shows the progress.
        scored_as: What "as the run was scored" means; by default what its record says, which is the first time.

    Returns:
        The record, the scores that were asked for, and the IPC of the budget.
    """
    assignments, settings = split_data(assignments)
    loaded = load_set(stored, dataset, options, settings)
    synthetic, real, record, folder = loaded.synthetic, loaded.real, loaded.record, loaded.folder
    source, ipc, made_under = loaded.source, loaded.ipc, scored_as or loaded.made_under
    if warning := few_images(real, ipc):
        reporter.on_warning(warning)
    wanted = []
    with folder.locked():
        record = read_record_file(folder.record, SetRecord) or record  # what others added in the meantime
        for network in networks:
            config = _config(source, ipc, protocol, network, assignments, made_under)
            config = config.model_copy(update={"seed": record.get("config", {}).get("seed", 0)})
            rename_data(record, config, real.spec)
            record = score_set(synthetic, config.protocol, ipc, record, folder, real, options.device, reporter)
            found = yardsticks(config, real, options.out, options.device, reporter, options.full_data)
            record = {**record, "yardsticks": merged(record["yardsticks"], found)}
            write_json(folder.record, record)
            wanted += [s for s in record["scores"] if _matches(s, config)]
    return record, wanted, ipc


def split_data(assignments: Sequence[str], sections: Sequence[str] = ("protocol",)) -> tuple[list[str], dict[str, Any]]:
    """Assignments for scoring, and apart from them the settings of the data set (``data.KEY=VALUE``).

    Raises:
        UsageError: If one is for neither, and so would have no effect.
    """
    heads = {text: re.split(r"[.=]", text.strip(), maxsplit=1)[0] for text in assignments}
    if idle := [text for text, head in heads.items() if head not in (*sections, "data")]:
        known = " and ".join(f"{section}.KEY" for section in (*sections, "data"))
        raise UsageError(f"--set {' '.join(idle)} has no effect on a stored set; {known} can be set")
    found = settings_of([text for text, head in heads.items() if head == "data"]).get("data", {})
    if not isinstance(found, dict):
        raise UsageError("--set data=...: expected --set data.KEY=VALUE")
    return [text for text, head in heads.items() if head != "data"], found


def how_to_score(loaded: Loaded, protocol: str | None, network: str | None, assignments: Sequence[str]) -> RunConfig:
    """A configuration whose protocol is that asked for, else the one that the set's run was scored under."""
    return _config(loaded.source, loaded.ipc, protocol, network, assignments, loaded.made_under)


def _config(
    source: DataSource,
    ipc: int,
    protocol: str | None,
    network: str | None,
    assignments: Sequence[str],
    made_under: dict[str, Any] | None,
) -> RunConfig:
    """How to score: as asked, else as the run was scored (on another network with that network's own settings)."""
    network = network and registry.canonical("network", network)
    data = {f"data.{key}": value for key, value in source.settings.items()}
    flags = {"dataset": source.dataset, **data, "ipc": ipc, "protocol": protocol, "parameterization": "pixel"}
    if protocol is None and made_under is not None:
        if network not in (None, made_under["network"]["name"]):
            made_under = {**made_under, "network": {}}
        flags |= flatten({"protocol": made_under})
    chosen = [] if network is None else [f"protocol.network.name={network}"]
    return resolve(flags, [*chosen, *assignments])


def _matches(score: dict[str, Any], config: RunConfig) -> bool:
    return bool(score["protocol_hash"] == config.protocol.hash)


def crfd(
    stored: str,
    networks: Sequence[str | None],
    dataset: str | None,
    assignments: Sequence[str],
    options: Options,
    reporter: Callback,
) -> list[tuple[float, float]]:
    """The class-relevant feature distance of a stored set to the real training images; goes into a run's record.

    The reference classifier is trained on the real images once; None stands for the run's own network.

    Returns:
        For each network the distance, and its variant on class activation maps.

    Raises:
        IncompatibleError: If one of them has no maps; before any is trained.
        DataError: If a distance is NaN or infinite; nothing is written then.
    """
    assignments, settings = split_data(assignments, ("network",))
    loaded = load_set(stored, dataset, options, settings)
    made_on = loaded.record.get("config", {}).get("network")
    flags = {"dataset": loaded.source.dataset, "ipc": loaded.ipc, "parameterization": "pixel"}
    chosen_networks = []
    for network in networks:
        named = flatten({"network": {"name": network} if network else made_on or {"name": "convnet"}})
        config = resolve({**flags, **named}, assignments)
        factory = NetworkFactory.of(config.network, loaded.real)
        check_reference_network(factory(0), loaded.real.spec)
        chosen_networks.append((config.network, factory))
    values = []
    for chosen, factory in chosen_networks:
        reporter.on_message(f"reference classifier: {chosen.name} {chosen.settings}")
        about = chosen.model_dump(mode="json")
        classifier = load_or_train_reference_classifier(
            loaded.real, about, factory, FolderArtifacts(options.out), reporter.stoppable_job
        )
        distance, stored_set = ClassRelevantDistance(classifier, loaded.real), loaded.synthetic
        value = distance(stored_set.images, stored_set.targets)
        variant = distance.of_activations(stored_set.images, stored_set.targets)
        if not (isfinite(value) and isfinite(variant)):
            raise DataError(
                f"{stored}: its distance to the real images is NaN or infinite; its pixel values are too large"
            )
        with loaded.folder.locked():
            record = read_record_file(loaded.folder.record, SetRecord) or loaded.record
            others = [m for m in record.get("metrics", []) if (m["metric"], m["network"]) != ("crfd", about)]
            noted = {"metric": "crfd", "network": about, "value": value, "of_activations": variant}
            write_json(loaded.folder.record, {**record, "metrics": [*others, noted]})
        values.append((value, variant))
    return values
