"""Scores of stored sets, and the yardsticks next to them."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmark_adapters.base import Cell, ScoreContext
from benchmark_adapters.evaluator import Protocol, evaluate
from benchmark_adapters.runner.config import RunConfig
from benchmark_adapters.runner.progress import Reporter
from benchmark_adapters.runner.store import RunFolder, read_json, write_json
from dd_plugins import registry
from dd_plugins.api import RealData, Split, StorageBudget, StorageLedger, SyntheticSet
from dd_plugins.seeds import make_generator, seed_for

LARGE = 10_000  # training images from which on the whole set is scored on demand only


def score_set(
    synthetic: SyntheticSet,
    protocol: Protocol,
    ipc: int,
    record: dict[str, Any],
    folder: RunFolder,
    real: RealData,
    device: torch.device,
    reporter: Reporter,
) -> dict[str, Any]:
    """Scores a set under a protocol, trial by trial, and returns the record with the score in it."""
    key = f"{protocol.hash}/{protocol.network.name}"
    if any(_key(score) == key and len(score["trials"]) >= protocol.trials for score in record["scores"]):
        return record
    begun = time.perf_counter()
    with reporter.job(f"evaluate ({protocol.name}, {protocol.network.name})", 1) as job:

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
        trials = evaluate(synthetic, protocol, Cell(real.spec.name, ipc, protocol.network.name), context)
    score = _entry(protocol, trials, seconds=round(time.perf_counter() - begun, 2))
    scores = list(record["scores"])
    add_score(scores, score)
    return {**record, "scores": scores}


def yardsticks(
    config: RunConfig, real: RealData, out: Path, device: torch.device, reporter: Reporter, full_data: bool
) -> list[dict[str, Any]]:
    """A random real subset of the same budget and, on small sets or on demand, the whole training set; cached."""
    subset = registry.load("parameterization", "pixel")(real.spec, StorageBudget.for_ipc(real.spec, config.ipc))
    subset.to(device).reset(make_generator(seed_for("random subset", config.seed)), real)
    random_real = SyntheticSet("random real", real.spec, subset.decode(), subset.labels, subset.storage())
    sets = [(random_real, {"seed": config.seed})]
    if full_data or len(real.train) + len(real.validation) <= LARGE:
        sets.append((_whole(real), {}))
    return [_yardstick(chosen, extra, config, real, out, device, reporter) for chosen, extra in sets]


def add_score(scores: list[dict[str, Any]], score: dict[str, Any]) -> None:
    """Puts a score into a list, in place of an older one of the same protocol, network and name."""
    same = (_key(score), score.get("name"))
    scores[:] = [entry for entry in scores if (_key(entry), entry.get("name")) != same] + [score]


def _yardstick(
    chosen: SyntheticSet,
    extra: dict[str, Any],
    config: RunConfig,
    real: RealData,
    out: Path,
    device: torch.device,
    reporter: Reporter,
) -> dict[str, Any]:
    protocol = config.protocol
    identity = [chosen.name, real.spec.fingerprint, config.ipc, protocol.hash, protocol.trials, extra]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    path = out / "yardsticks" / f"{digest}.json"
    known = read_json(path)
    if isinstance(known, dict):
        return known
    with reporter.job(f"yardstick: {chosen.name}", 1) as job:

        def on_update(done: int, total: int) -> None:
            job.total = total
            job.update(done)

        cell = Cell(real.spec.name, config.ipc, protocol.network.name)
        trials = evaluate(chosen, protocol, cell, ScoreContext(real, device, on_update=on_update))
    found = {
        **_entry(protocol, trials),
        "name": chosen.name,
        "elements": chosen.ledger.elements,
        "bytes": chosen.ledger.nbytes,
        "images_per_class": torch.bincount(chosen.targets, minlength=real.spec.num_classes).tolist(),
        **extra,
    }
    write_json(path, found)
    return found


def _whole(real: RealData) -> SyntheticSet:
    """The whole training set, the validation images included."""
    joined = Split(
        real.spec,
        real.train.pixels,
        torch.cat([real.train.labels, real.validation.labels]),
        torch.cat([real.train.index, real.validation.index]),
    )
    images = joined.images()
    ledger = StorageLedger.of([("images", images)])
    return SyntheticSet("whole training set", real.spec, images, joined.labels, ledger)


def _entry(protocol: Protocol, trials: tuple[float, ...], **notes: Any) -> dict[str, Any]:
    return {
        "benchmark": "native",
        "protocol": protocol.name,
        "protocol_hash": protocol.hash,
        "network": protocol.network.name,
        "trials": list(trials),
        **notes,
    }


def _key(score: dict[str, Any]) -> str:
    return f"{score['protocol_hash']}/{score['network']}"
