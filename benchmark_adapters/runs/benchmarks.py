"""Scores of other benchmarks: of any that is registered, by its name, into the record of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmark_adapters.runs.parts import Options
from benchmark_adapters.runs.rescore import how_to_score, split_data
from benchmark_adapters.runs.schema import SetRecord
from benchmark_adapters.runs.sets import load_set
from benchmark_adapters.runs.store import read_record_file, write_json
from dd_plugins import registry
from dd_plugins.api import MissingExtraError, UsageError
from dd_plugins.api.benchmark import Benchmark, Cell, ScoreContext
from dd_plugins.engine.callbacks import Callback
from dd_plugins.engine.config import settings_of

PREFIX = "benchmark."


def split_settings(assignments: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Assignments for the run, and nested those for each benchmark.

    ``benchmark.KEY=VALUE`` is for all benchmarks that take part, ``NAME:benchmark.KEY=VALUE`` for one.

    Raises:
        UsageError: If there are settings for a benchmark and none takes part.
    """
    own: list[str] = []
    names = list(dict.fromkeys(registry.canonical("benchmark", name) for name in names))
    found: dict[str, list[str]] = {name: [] for name in names}
    for text in assignments:
        head, colon, rest = text.partition(f":{PREFIX}")
        name = registry.canonical("benchmark", head) if colon else head
        if not colon and not text.startswith(PREFIX):
            own.append(text)
        elif not names or (colon and name not in names):
            raise UsageError(f"--set {text}: no such benchmark scores the set; --benchmark NAME names one")
        else:
            for chosen in [name] if colon else names:
                found[chosen].append(rest if colon else text.removeprefix(PREFIX))
    return own, {name: settings_of(texts) for name, texts in found.items()}


def make_benchmark(name: str, settings: Mapping[str, Any]) -> Benchmark:
    """A benchmark that can score, by name.

    Raises:
        UnknownPluginError: If there is none.
        MissingExtraError: If something has to be installed first.
        ConfigError: If a setting is unknown or not allowed.
    """
    made: Benchmark = registry.create("benchmark", name, settings)
    if made.missing():
        raise MissingExtraError(name, made.needs)
    return made


def score_by(
    name: str,
    benchmark: Benchmark,
    stored: str,
    dataset: str | None,
    options: Options,
    reporter: Callback,
    protocol: str | None = None,
    network: str | None = None,
    assignments: Sequence[str] = (),
) -> dict[str, Any]:
    """Scores a stored set by a benchmark; the entry goes into the record, beside those of others.

    Args:
        name: The benchmark's.
        benchmark: As `make_benchmark` made it.
        stored: A run, or a file.
        dataset: The data, for a file; by default as the file says.
        options: Device, data and folder.
        reporter: Shows the progress.
        protocol: For a benchmark that follows one; by default as the run was scored.
        network: Another network for it.
        assignments: Settings of that protocol, and of the data set.

    Returns:
        The record.
    """
    assignments, data = split_data(assignments)
    loaded = load_set(stored, dataset, options, data)
    begun = time.perf_counter()
    with loaded.folder.locked(), reporter.job(f"benchmark {name}", 1) as job:
        record = read_record_file(loaded.folder.record, SetRecord) or loaded.record
        reporter.on_message(f"benchmark {name}")
        folder, made_under = loaded.folder, loaded.made_under
        if protocol or assignments or network or made_under:
            followed = how_to_score(loaded, protocol, network, assignments).protocol
            made_under, wanted = followed.model_dump(mode="json"), followed.hash
        else:
            wanted = ""
        key = f"{name}/{benchmark.key()}/{wanted}"

        def on_update(done: int, total: int) -> None:
            job.total = total
            job.update(done)

        context = ScoreContext(
            loaded.real,
            options.device,
            known=folder.known_trials(key),
            on_trial=lambda trial, score: folder.add_trial(key, trial, score),
            on_update=on_update,
            folder=folder.path,
            protocol=made_under,
            **_whole(record, wanted),
        )
        scores = benchmark.score(loaded.synthetic, Cell(loaded.real.spec.name, loaded.ipc, ""), context)
        entry = {
            "name": name,
            "benchmark": scores.benchmark,
            "protocol": scores.protocol,
            "protocol_hash": scores.protocol_hash,
            "network": scores.network,
            "metric": scores.metric,
            "trials": list(scores.trials),
            "metrics": {metric: list(trials) for metric, trials in scores.metrics.items()},
            "extra": scores.extra,
            "key": benchmark.key(),
            "settings": benchmark.config.model_dump(mode="json", exclude={"python", "root"}),
            "seconds": round(time.perf_counter() - begun, 2),
        }
        same = (name, scores.protocol_hash, benchmark.key())
        others = [e for e in record.get("benchmarks", []) if (e["name"], e["protocol_hash"], e.get("key")) != same]
        record = {**record, "benchmarks": [*others, entry]}
        write_json(folder.record, record)
    return record


def _whole(record: Mapping[str, Any], wanted: str) -> dict[str, Any]:
    """The whole training set among the yardsticks, under the protocol of that hash rather than another; as context."""
    found = [y for y in record.get("yardsticks", []) if y["name"].startswith("whole training set")]
    found.sort(key=lambda y: y["protocol_hash"] != wanted)
    if not found:
        return {}
    best = found[0]
    source = f"{best['name']}, {best['protocol']}, {best['network']}"
    return {"full_accuracy": fmean(best["trials"]), "full_source": source, "full_hash": best["protocol_hash"]}
