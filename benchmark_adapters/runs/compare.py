"""Many runs of many methods: what is missing is made, what is there is read, and a failure stops nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmark_adapters.runs.identity import compute_run_id
from benchmark_adapters.runs.notes import data_warnings
from benchmark_adapters.runs.parts import Options, load_real
from benchmark_adapters.runs.pipeline import check_plan, run
from benchmark_adapters.runs.rescore import rescore
from benchmark_adapters.runs.store import read_record_file
from dd_plugins import registry
from dd_plugins.api import DDPluginsError, Parameterization, StorageBudget, UsageError
from dd_plugins.engine.callbacks import Callback
from dd_plugins.engine.config import RunConfig, resolve
from dd_plugins.errors import OUT_OF_MEMORY, is_out_of_memory
from dd_plugins.names import canonical

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contender:
    """One row of a comparison: a name, the flags that make its runs, and what ``--set`` says for it alone."""

    name: str
    flags: Mapping[str, Any]
    assignments: tuple[str, ...] = ()


@dataclass
class Comparison:
    """What a comparison has found.

    Attributes:
        configs: For each contender the configuration of its first run.
        records: For each contender the records of its finished runs.
        failures: For each contender that failed why, in one line.
        across: Hashes of the protocol on the other networks that every set was scored on.
    """

    configs: dict[str, RunConfig] = field(default_factory=dict)
    records: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    across: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planned:
    """What a contender would run.

    Attributes:
        name: The contender's.
        config: Of its first run.
        budget: Elements that it may store.
        run_id: Of its first run.
        done: Whether that run is finished.
        container: Within the budget, not initialised; None if the run cannot be made.
        why: Why it cannot be made, in one line; else empty.
        warnings: About the use of the data set, one line each.
    """

    name: str
    config: RunConfig
    budget: int
    run_id: str
    done: bool = False
    container: Parameterization | None = None
    why: str = ""
    warnings: tuple[str, ...] = ()


def plan(taking_part: Sequence[Contender], shared: Mapping[str, Any], options: Options) -> list[Planned]:
    """What would run with the first seed, what it would store, and what cannot run; nothing is written.

    Raises:
        UsageError: If a configuration is wrong.
    """
    made = []
    for contender, config in _planned(taking_part, shared, 1, None):
        real = load_real(config, options)
        run_id = compute_run_id(config, real.spec.fingerprint)
        planned = Planned(contender.name, config, StorageBudget.ipc(real.spec, config.ipc).elements, run_id)
        try:
            container = check_plan(config, real).container
        except DDPluginsError as error:
            made.append(replace(planned, why=str(error)))
            continue
        done = (read_record_file(options.out / run_id / "record.json") or {}).get("status") == "done"
        warnings = tuple(data_warnings(config, real, container.counts))
        made.append(replace(planned, container=container, done=done, warnings=warnings))
    return made


def contenders(names: Sequence[str], assignments: Sequence[str]) -> list[Contender]:
    """Named methods, with the assignments that hold for all (``a.b=c``) or for one (``METHOD:a.b=c``).

    ``METHOD/LABEL`` is the method once more, so that it can take part with several settings.

    Raises:
        UsageError: If an assignment is for a method that does not take part.
    """
    names = ["".join(split_label(name)) for name in names]
    common, single = split_assignments(names, assignments)
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"{', '.join(sorted(twice))}: takes part twice; METHOD/LABEL tells them apart")
    return [Contender(name, {"method": split_label(name)[0]}, (*common, *single.get(name, ()))) for name in names]


def split_label(name: str) -> tuple[str, str]:
    """``METHOD/LABEL`` as the method's canonical name and ``/LABEL``; a method of a third party has a ``/`` of its own.

    Raises:
        UnknownPluginError: If there is no such method.
    """
    words = name.split("/")
    for count in (2, 1):
        method = "/".join(words[:count])
        if len(words) >= count and registry.is_installed("method", method):
            break
    return registry.find("method", method).spec, name[len(method) :]


def matrix(containers: Sequence[str], objectives: Sequence[str], assignments: Sequence[str]) -> list[Contender]:
    """Every container with every objective, named ``container + objective``."""
    containers = [registry.canonical("parameterization", name) for name in containers]
    objectives = [registry.canonical("objective", name) for name in objectives]
    pairs = [(container, objective) for container in containers for objective in objectives]
    names = [f"{container} + {objective}" for container, objective in pairs]
    return [
        Contender(name, {"parameterization": container, "objective": objective}, tuple(assignments))
        for name, (container, objective) in zip(names, pairs, strict=True)
    ]


def compare(
    taking_part: Sequence[Contender],
    shared: Mapping[str, Any],
    runs: int,
    options: Options,
    reporter: Callback,
    base: Mapping[str, Any] | None = None,
    across: Sequence[str] = (),
) -> Comparison:
    """Makes every run that is not there yet, one seed of all methods after the other.

    Args:
        taking_part: The contenders.
        shared: Flags of all runs: data set, IPC, protocol.
        runs: Condensations of each, with seeds 0, 1, ...
        options: Where and how.
        reporter: Shows the progress.
        base: Dotted keys that hold for all runs, below flags and assignments.
        across: Networks that every set is scored on too.

    Raises:
        UsageError: If a configuration is wrong, before anything is run.
        Interrupted: If a run was interrupted; its state is saved.
    """
    for network in across:  # a name that nothing has must not wait for the end of the first run
        registry.load("network", network)
    found = Comparison()
    protocols = {config.protocol.hash for _, config in _planned(taking_part, shared, 1, base)}
    if len(protocols) > 1:
        raise UsageError("all methods of a comparison need one protocol; --set protocol... must hold for all of them")
    for contender, config in _planned(taking_part, shared, runs, base):
        if len(found.failures) == len(taking_part):
            break
        found.configs.setdefault(contender.name, config)
        found.records.setdefault(contender.name, [])
        if contender.name in found.failures:
            continue
        reporter.on_message(f"{contender.name}, seed {config.seed}")
        try:
            record = run(config, options, reporter)
            if across:
                where = str(options.out / record["id"])
                scored_as = config.protocol.model_dump(mode="json")
                record, scores, _ = rescore(where, across, None, None, [], options, reporter, scored_as)
                found.across = tuple(score["protocol_hash"] for score in scores)
            found.records[contender.name].append(record)
        except DDPluginsError as error:
            found.failures[contender.name] = str(error)
        except Exception as error:
            logger.exception("%s", contender.name)
            cause = OUT_OF_MEMORY if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
            found.failures[contender.name] = " ".join(cause.split())
        if contender.name in found.failures:
            reporter.on_message(f"{contender.name} failed: {found.failures[contender.name]}")
    return found


def split_assignments(
    names: Sequence[str], assignments: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Assignments for all, and those for single methods."""
    common: list[str] = []
    single: dict[str, tuple[str, ...]] = {}
    for text in assignments:
        head, colon, rest = text.partition(":")
        if not colon or "=" in head:
            common.append(text)
        elif (name := canonical(head, names)) not in names:
            raise UsageError(f"--set {text}: {head!r} takes no part; there are {', '.join(names)}")
        else:
            single[name] = (*single.get(name, ()), rest)
    return tuple(common), single


def _planned(
    taking_part: Sequence[Contender], shared: Mapping[str, Any], runs: int, base: Mapping[str, Any] | None
) -> Iterator[tuple[Contender, RunConfig]]:
    for seed in range(runs):
        for contender in taking_part:
            yield contender, resolve({**shared, **contender.flags, "seed": seed}, contender.assignments, base=base)
