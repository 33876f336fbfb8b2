"""Scores of stored sets, and the yardsticks next to them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmark_adapters.runs.records import rename_data
from benchmark_adapters.runs.store import RunFolder, read_record_file, write_json
from benchmark_adapters.runs.system import versions
from benchmark_adapters.yardsticks import LARGE, RANDOM, random_subset, whole_set
from dd_plugins.api import RealData, SyntheticSet
from dd_plugins.api.benchmark import Cell, ScoreContext
from dd_plugins.engine.callbacks import Callback
from dd_plugins.engine.config import RunConfig
from dd_plugins.engine.evaluation import NAME, evaluate
from dd_plugins.engine.protocols import Protocol


def score_set(
    synthetic: SyntheticSet,
    protocol: Protocol,
    ipc: int,
    record: dict[str, Any],
    folder: RunFolder,
    real: RealData,
    device: torch.device,
    reporter: Callback,
) -> dict[str, Any]:
    """Scores a set under a protocol, trial by trial, and returns the record with the score in it."""
    if is_scored(record, protocol):
        return record
    begun = time.perf_counter()
    title = f"evaluate ({protocol.name}, {protocol.network.name})"
    trials = score_trials(synthetic, protocol, ipc, title, folder, real, device, reporter)
    score = _entry(trials, protocol, seconds=round(time.perf_counter() - begun, 2))
    scores = list(record["scores"])
    add_score(scores, score)
    return {**record, "scores": scores}


def is_scored(record: Mapping[str, Any], protocol: Protocol) -> bool:
    """Whether a record has all trials of a protocol."""
    key = f"{protocol.hash}/{protocol.network.name}"
    return any(_key(score) == key and len(score["trials"]) >= protocol.trials for score in record["scores"])


def yardsticks(
    config: RunConfig, real: RealData, out: Path, device: torch.device, reporter: Callback, full_data: bool | None
) -> list[dict[str, Any]]:
    """A random real subset of the same budget and the whole training set, by default where that is small; cached.

    Like a score, a yardstick that has more trials than are asked for is taken with all of them.
    """
    sets = [(random_subset(real, config.ipc, config.seed, device), {"seed": config.seed})]
    small = len(real.train) + len(real.validation) <= LARGE
    if small if full_data is None else full_data:
        # A step-matched protocol trains it no longer than the synthetic set, and the row says so.
        matched = ", same updates" if config.protocol.train.match_updates else ""
        sets.append((whole_set(real, f"whole training set{matched}", config.protocol.split), {}))
    return [_yardstick(chosen, extra, config, real, out, device, reporter) for chosen, extra in sets]


def add_score(scores: list[dict[str, Any]], score: dict[str, Any]) -> None:
    """Puts a score into a list, in place of an older one of the same protocol, network and name."""
    same = (_key(score), score.get("name"))
    scores[:] = [entry for entry in scores if (_key(entry), entry.get("name")) != same] + [score]


def merged(known: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The known scores with those just found, which replace older ones of the same name."""
    result = list(known)
    for entry in found:
        add_score(result, entry)
    return result


def _yardstick(
    chosen: SyntheticSet,
    extra: dict[str, Any],
    config: RunConfig,
    real: RealData,
    out: Path,
    device: torch.device,
    reporter: Callback,
) -> dict[str, Any]:
    protocol = config.protocol
    identity = [chosen.name, real.spec.fingerprint, config.ipc, protocol.hash, extra]
    if chosen.name == RANDOM and len(chosen.targets) < config.ipc * real.spec.num_classes:  # once, images repeated
        identity.append(len(chosen.targets))
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    folder = RunFolder(out / "yardsticks" / digest)
    # Another run may be scoring the same yardstick: then its score is worth waiting for.
    with folder.locked(f"the reference score of {chosen.name}"):
        known = read_record_file(folder.record)
        if known is not None and known["yardsticks"] and len(known["yardsticks"][0]["trials"]) >= protocol.trials:
            if rename_data(known, config, real.spec):
                write_json(folder.record, known)
            return dict(known["yardsticks"][0])
        return _score_yardstick(chosen, extra, config, real, folder, device, reporter)


def _score_yardstick(
    chosen: SyntheticSet,
    extra: dict[str, Any],
    config: RunConfig,
    real: RealData,
    folder: RunFolder,
    device: torch.device,
    reporter: Callback,
) -> dict[str, Any]:
    protocol = config.protocol
    trials = score_trials(chosen, protocol, config.ipc, f"yardstick: {chosen.name}", folder, real, device, reporter)
    found = {
        **_entry(trials, protocol),
        "name": chosen.name,
        "elements": chosen.ledger.elements,
        "bytes": chosen.ledger.nbytes,
        "images_per_class": torch.bincount(chosen.targets, minlength=real.spec.num_classes).tolist(),
        **extra,
    }
    made = {"dataset": config.dataset, "data": config.data, "ipc": config.ipc}
    made["protocol"] = protocol.model_dump(mode="json")
    record = {
        "id": folder.path.name,
        "name": chosen.name,
        "status": "done",
        "config": made,
        "data": real.spec.to_dict(),
    }
    write_json(folder.record, {**record, "versions": versions(), "scores": [], "yardsticks": [found]})
    return found


def score_trials(
    synthetic: SyntheticSet,
    protocol: Protocol,
    ipc: int,
    title: str,
    folder: RunFolder,
    real: RealData,
    device: torch.device,
    reporter: Callback,
    key: str | None = None,
) -> tuple[float, ...]:
    """Scores a set trial by trial: those that the folder knows are not repeated, the others are kept there.

    Args:
        synthetic: The set.
        protocol: How it is scored.
        ipc: Its budget.
        title: For the progress bar.
        folder: Where trials are kept, under
        key: which name; by default the protocol's and the network's.
        real: The data set.
        device: Where to train.
        reporter: Shows the progress.
    """
    key = key or f"{protocol.hash}/{protocol.network.name}"
    with reporter.job(title, 1) as job:

        def on_update(done: int, total: int) -> None:
            job.total = total
            job.update(done)

        context = ScoreContext(
            real,
            device,
            known=folder.known_trials(key),
            on_trial=lambda trial, score: folder.add_trial(key, trial, score),
            on_update=on_update,
        )
        return evaluate(synthetic, protocol, Cell(real.spec.name, ipc, protocol.network.name), context)


def _entry(trials: tuple[float, ...], protocol: Protocol, **notes: Any) -> dict[str, Any]:
    return {
        "benchmark": NAME,
        "protocol": protocol.name,
        "protocol_hash": protocol.hash,
        "network": protocol.network.name,
        "split": protocol.split,
        "trials": list(trials),
        **notes,
    }


def _key(score: dict[str, Any]) -> str:
    return f"{score['protocol_hash']}/{score['network']}"
