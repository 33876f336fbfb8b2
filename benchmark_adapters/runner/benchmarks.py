"""Scores of other benchmarks: of any that is registered, by its name, into the record of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmark_adapters.base import Benchmark, Cell, ScoreContext
from benchmark_adapters.runner.config import settings_of
from benchmark_adapters.runner.parts import Options
from benchmark_adapters.runner.progress import Reporter
from benchmark_adapters.runner.rescore import load_set
from benchmark_adapters.runner.store import read_record_file, write_json
from dd_plugins import registry
from dd_plugins.api import MissingExtraError, UsageError

PREFIX = "benchmark."
NATIVE = "native"


def split_settings(assignments: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Assignments for the run, and those for its benchmarks (``benchmark.KEY=VALUE``), nested.

    Raises:
        UsageError: If there are settings for a benchmark and none takes part.
    """
    own = [text for text in assignments if text.startswith(PREFIX)]
    if own and not [name for name in names if name != NATIVE]:
        raise UsageError(f"--set {own[0]}: no other benchmark scores the set; --benchmark NAME names one")
    others = [text for text in assignments if not text.startswith(PREFIX)]
    return others, settings_of([text.removeprefix(PREFIX) for text in own])


def make_benchmark(name: str, settings: Mapping[str, Any]) -> Benchmark:
    """A benchmark that can score, by name.

    Raises:
        UnknownPluginError: If there is none.
        MissingExtraError: If something has to be installed first.
        ConfigError: If a setting is unknown or not allowed.
    """
    cls = registry.load("benchmark", name)
    made: Benchmark = cls(settings)
    if made.missing():
        raise MissingExtraError(name, made.needs)
    return made


def score_by(
    name: str,
    benchmark: Benchmark,
    stored: str,
    dataset: str | None,
    trusted: str | None,
    options: Options,
    reporter: Reporter,
) -> dict[str, Any]:
    """Scores a stored set by a benchmark; the entry goes into the record, beside those of others.

    Args:
        name: The benchmark's.
        benchmark: As `make_benchmark` made it.
        stored: A run, or a file.
        dataset: The data, for a file; by default as the file says.
        trusted: A ``module:Class`` that the file may import.
        options: Device, data and folder.
        reporter: Shows the progress.

    Returns:
        The record.
    """
    loaded = load_set(stored, dataset, trusted, options)
    key, begun = f"{name}/{benchmark.key()}", time.perf_counter()
    with loaded.folder.locked():
        record = read_record_file(loaded.folder.record) or loaded.record
        reporter.say(f"benchmark {name}")
        folder = loaded.folder
        context = ScoreContext(
            loaded.real,
            options.device,
            known=folder.known_trials(key),
            on_trial=lambda trial, score: folder.add_trial(key, trial, score),
            folder=folder.path,
            full_accuracy=_full(record),
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
            "seconds": round(time.perf_counter() - begun, 2),
        }
        others = [e for e in record.get("benchmarks", []) if (e["name"], e["protocol_hash"]) != (name, benchmark.key())]
        record = {**record, "benchmarks": [*others, entry]}
        write_json(folder.record, record)
    return record


def _full(record: Mapping[str, Any]) -> float | None:
    """Accuracy of the whole training set among the yardsticks."""
    found = [y["trials"] for y in record.get("yardsticks", []) if y["name"].startswith("whole training set")]
    return fmean(found[0]) if found else None
