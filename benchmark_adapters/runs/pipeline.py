"""The way of a run: prepare, condense, store, reload, count, score, record."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch

from benchmark_adapters.report.pictures import save_preview
from benchmark_adapters.runs.identity import compute_run_id
from benchmark_adapters.runs.notes import data_warnings, idle_rate, lent_settings
from benchmark_adapters.runs.parts import Options, load_real
from benchmark_adapters.runs.progress import Reporter
from benchmark_adapters.runs.prune import check_pruning, prune
from benchmark_adapters.runs.records import is_stored, make_record, rename_data
from benchmark_adapters.runs.schema import RunRecord
from benchmark_adapters.runs.scoring import is_scored, merged, score_set, yardsticks
from benchmark_adapters.runs.store import RunFolder, read_record_file, write_json
from benchmark_adapters.runs.system import forget_peak, interruptible_jobs, peak_memory_mib
from benchmark_adapters.signals import Interrupted, interruptible
from dd_plugins import registry
from dd_plugins.api import (
    Context,
    DDPluginsError,
    DivergedError,
    FolderArtifacts,
    Grouped,
    NeedsPrior,
    Parameterization,
    PluginContractError,
    RealData,
    Staged,
    StorageBudget,
    SyntheticSet,
    write_atomically,
)
from dd_plugins.api.atomic import no_symbolic_link
from dd_plugins.api.progress import StartJob
from dd_plugins.engine.condensation import Condensation
from dd_plugins.engine.config import RunConfig
from dd_plugins.engine.distilled import load_stored
from dd_plugins.engine.memory import estimate_memory
from dd_plugins.engine.parts import build_container, build_objective, network_factory
from dd_plugins.errors import allocator_errors, is_out_of_memory, one_line
from dd_plugins.execution import Execution
from dd_plugins.networks import build_network
from dd_plugins.seeds import make_generator, seed_for
from dd_plugins.training import build_augmentation

logger = logging.getLogger(__name__)


def run(config: RunConfig, options: Options, reporter: Reporter) -> dict[str, Any]:
    """Makes or continues a run; a finished one is only read, and none of its files is written again.

    Returns:
        The record.

    Raises:
        NotEnoughMemory: If it cannot fit into memory; before anything is allocated or written.
        OutOfMemory: If an allocator gives up; what was saved is kept.
    """
    real = load_real(config, options)
    container = check_plan(config, real)
    run_id = compute_run_id(config, real.spec.fingerprint)
    folder = RunFolder(options.out / run_id)
    with folder.locked(), _logged_to(folder.path / "log.txt", reporter):
        if (finished := _finished(config, real, options, reporter, folder)) is not None:
            reporter.say(f"already finished: {folder.path}")
            return finished
        write_atomically(folder.path / "config.yaml", config.to_yaml().encode())
        reporter.say(f"run {run_id} in {folder.path}")
        for line in (*real.notes, *real.skipped):  # shown when the data was loaded
            logger.info("%s: %s", config.dataset, line)
        for line in data_warnings(config, real, container.counts):
            logger.warning(line)
        try:
            with allocator_errors():
                record = _make(config, real, options, reporter, folder)
            folder.failure.unlink(missing_ok=True)
        except DDPluginsError as error:
            logger.error("%s: %s", type(error).__name__, error)
            status = "diverged" if isinstance(error, DivergedError) else "error"
            write_json(folder.failure, {"status": status, "error": type(error).__name__, "message": str(error)})
            raise
    return record


def _finished(
    config: RunConfig, real: RealData, options: Options, reporter: Reporter, folder: RunFolder
) -> dict[str, Any] | None:
    """The record of a run that has nothing left to do with this configuration; None if there is something."""
    file = folder.path / "config.yaml"
    known = None if folder.failure.exists() else read_record_file(folder.record, RunRecord)
    if known is None or not is_stored(folder) or not (folder.path / "preview.png").exists():
        return None
    if not file.exists() or file.read_bytes() != config.to_yaml().encode() or rename_data(known, config, real.spec):
        return None
    folder.check_stored()
    if known["status"] != "done" or not is_scored(known, config.protocol):
        return None
    reload(folder, config, real, options)  # the budget holds for what the file holds now
    found = yardsticks(config, real, options.out, options.device, reporter, options.full_data)
    return known if all(entry in known["yardsticks"] for entry in found) else None


def _make(config: RunConfig, real: RealData, options: Options, reporter: Reporter, folder: RunFolder) -> dict[str, Any]:
    """Condenses, prunes and scores, whatever of it is not done."""
    run_id = folder.path.name
    done = {"condense"} | ({"prune"} if config.pruning else set())
    if not done <= set(folder.stages()) or not folder.synthetic.exists():
        folder.forget_scores()
        if config.pruning is None:
            _condense(config, real, options, reporter, run_id, folder)
        else:
            larger = _condensed(config.unpruned, real, options, reporter)
            prune(config, real, larger, folder, options, reporter)
    folder.check_stored()
    record = make_record(config, real.spec, run_id, folder)
    synthetic = reload(folder, config, real, options)
    record = score_set(synthetic, config.protocol, config.ipc, record, folder, real, options.device, reporter)
    write_json(folder.record, record)
    found = yardsticks(config, real, options.out, options.device, reporter, options.full_data)
    record["yardsticks"] = merged(record["yardsticks"], found)
    record["status"] = "done"
    write_json(folder.record, record)
    return record


def _condensed(config: RunConfig, real: RealData, options: Options, reporter: Reporter) -> RunFolder:
    """The folder of a run that is condensed, if need be now, and not scored."""
    run_id = compute_run_id(config, real.spec.fingerprint)
    folder = RunFolder(options.out / run_id)
    with folder.locked("the set that is to be pruned"), _logged_to(folder.path / "log.txt", reporter):
        if "condense" not in folder.stages() or not folder.synthetic.exists():
            write_atomically(folder.path / "config.yaml", config.to_yaml().encode())
            reporter.say(f"condense run {run_id} in {folder.path}, {config.over_budget:.0%} over its budget")
            folder.forget_scores()
            _condense(config, real, options, reporter, run_id, folder)
        folder.check_stored()
    return folder


def check_plan(config: RunConfig, real: RealData) -> Parameterization:
    """Finds what is wrong with any part of a run before anything is written or hours are spent.

    Returns:
        The container, allocated within its budget and not yet initialised.
    """
    estimate_memory(config, real).check()
    container = build_container(config, real)
    container.storage().enforce(container.budget.scaled(container.budget_ratio()), config.parameterization.name)
    if config.pruning is not None:
        check_pruning(config, container, build_container(config, real, within=True))
    container.parameter_groups()  # a container with nothing to learn says so
    spec, condensed_on = real.spec, config.network
    matched_on = build_network(condensed_on.name, spec.image_shape, spec.num_classes, condensed_on.settings, seed=0)
    if isinstance(container, NeedsPrior):
        container.check(matched_on)
    groups = container.groups() if isinstance(container, Grouped) else None
    build_objective(config, real.spec).check(container.labels, groups, matched_on)
    build_augmentation(config.protocol.train, real.spec)
    network = config.protocol.network
    build_network(network.name, spec.image_shape, spec.num_classes, network.settings, seed=0)
    return container


def reload(folder: RunFolder, config: RunConfig, real: RealData, options: Options) -> SyntheticSet:
    """Rebuilds the set from its file alone, enforces the budget on what the file holds, and decodes it once."""
    stored = load_stored(folder.synthetic)
    ledger = stored.storage()
    allowed = StorageBudget.ipc(real.spec, config.ipc).scaled(stored.budget_ratio())
    if config.over_budget and config.pruning is None:  # as asked for; every table shows the ratio
        allowed = build_container(config, real).budget
    ledger.enforce(allowed, config.parameterization.name)
    stored.to(options.device).chunk_size = options.chunk_size
    with torch.no_grad():
        images = stored.decode()
    synthetic = SyntheticSet(config.parameterization.name, real.spec, images, stored.labels, ledger)
    if not (folder.path / "preview.png").exists():
        save_preview(folder.path / "preview.png", synthetic, real.class_names, real)
    return synthetic


def _condense(
    config: RunConfig, real: RealData, options: Options, reporter: Reporter, run_id: str, folder: RunFolder
) -> None:
    forget_peak(options.device)
    condensation = start_condensation(config, real, options, reporter, folder, run_id)
    container, objective = condensation.parameterization, condensation.objective
    told = (container.describe(), idle_rate(config, container), lent_settings(config), condensation.left_out())
    for line in told:
        if line:
            reporter.say(line)
    if container.budget_ratio() > 1:
        reporter.say(
            f"{config.parameterization.name}: takes {container.budget_ratio():.3f} times its budget, as asked for"
        )
    if condensation.resumed:
        reporter.say(f"continuing at step {condensation.step} of {config.steps}")

    def note(loss: float) -> str:
        timed = "" if condensation.limit is None else f", {condensation.seconds / condensation.limit:.0%} of the time"
        return f"loss {loss:.4g}{timed}"

    with interruptible(reporter.say) as asked, reporter.job("condense", config.steps, condensation.step) as job:
        blame = f"{config.parameterization.name} with {config.objective.name}"
        with _blaming("run of", blame, "condense"), Execution().for_data(real.spec).scope():
            finished = condensation.run(
                lambda step, loss: job.update(step, note(loss)), lambda: bool(asked()), options.checkpoint_seconds
            )
        if not finished:
            at = f"interrupted at step {condensation.step} of {config.steps}; the same command continues"
            raise Interrupted(at, asked())
    if isinstance(container, Staged):
        container.finish()
    container.save(folder.synthetic, registry.find("parameterization", config.parameterization.name).spec)
    _check_reloaded(container, config, folder)
    folder.mark(
        "condense",
        sha256=folder.digest(),
        steps=condensation.step,
        seconds=round(condensation.seconds, 2),
        cpu_seconds=round(condensation.cpu_seconds, 2),
        prepare_seconds=round(condensation.prepare_seconds, 2),
        learned={**objective.learned(), **(container.summary() if isinstance(container, Staged) else {})},
        priors=[asdict(prior) for prior in (container.priors() if isinstance(container, NeedsPrior) else ())],
        peak_memory_mib=round(peak_memory_mib(options.device), 1),
        losses=_thinned(condensation.losses),
    )
    folder.checkpoint.unlink(missing_ok=True)
    (folder.path / "preview.png").unlink(missing_ok=True)


def _check_reloaded(container: Parameterization, config: RunConfig, folder: RunFolder) -> None:
    """The file alone must give what was condensed; one that does not is no result, and is not kept.

    Raises:
        PluginContractError: If it gives other images or labels.
    """
    name = config.parameterization.name
    try:
        loaded = load_stored(folder.synthetic).to(container.labels.device)
        loaded.chunk_size = container.chunk_size
        with torch.no_grad():
            images, expected = loaded.decode(), container.decode()
        same = torch.equal(loaded.labels, container.labels) and images.shape == expected.shape
        same = same and torch.allclose(images.float(), expected.float(), rtol=1e-3, atol=1e-4, equal_nan=True)
    except DDPluginsError:
        raise
    except Exception as error:  # what it reads is not there any more
        if is_out_of_memory(error):
            raise
        logger.exception("%s does not decode from its file", name)
        same, why = False, f" ({type(error).__name__}: {' '.join(str(error).split())})"
    else:
        why = ""
    if not same:
        folder.synthetic.unlink()
        raise PluginContractError(
            f"{name}: what was stored gives other images than what was condensed{why}; "
            f"whatever _decode reads must be an nn.Parameter or a buffer (dd-bench check {name})"
        )


def start_condensation(
    config: RunConfig, real: RealData, options: Options, reporter: Reporter, folder: RunFolder, run_id: str
) -> Condensation:
    """A condensation that is ready for its first step, or for the one behind its last checkpoint."""
    container = build_container(config, real).to(options.device)
    container.chunk_size, container.job = options.chunk_size, reporter.watch
    preparing = time.perf_counter()
    if isinstance(container, NeedsPrior):
        with interruptible_jobs(reporter) as job:
            container.prepare(real, _context(config, real, container, options, job, "parameterization"))
    objective = build_objective(config, real.spec)
    context = _context(config, real, container, options, reporter.watch, "objective")
    objective.prepare(real, container.labels, context)
    begun, cpu_begun = time.perf_counter(), time.process_time()
    if not folder.checkpoint.exists():  # before the optimizer is built: a reset may replace its tensors
        blamed = _blaming("parameterization", config.parameterization.name, "reset")
        with blamed, Execution().for_data(real.spec).scope():
            container.reset(make_generator(seed_for("reset", config.seed)), real)
    limit = None if config.minutes is None else 60 * config.minutes
    condensation = Condensation(
        container, objective, config.optimizer, config.steps, folder.checkpointer(run_id), limit
    )
    condensation.prepare_seconds = begun - preparing
    if not condensation.resume():
        condensation.seconds = time.perf_counter() - begun
        condensation.cpu_seconds = time.process_time() - cpu_begun
        condensation.save()
    return condensation


def _context(
    config: RunConfig, real: RealData, container: Parameterization, options: Options, job: StartJob, purpose: str
) -> Context:
    """What a plugin is given to work with; each purpose draws from a generator of its own."""
    return Context(
        network_factory(config, real, options.device),
        make_generator(seed_for(purpose, config.seed)),
        config.steps,
        options.device,
        artifacts=FolderArtifacts(options.out),
        groups=container.groups() if isinstance(container, Grouped) else None,
        network=config.network.model_dump(mode="json"),
        job=job,
    )


def _thinned(losses: list[float], points: int = 200) -> list[float]:
    stride = max(1, len(losses) // points)
    return [round(loss, 6) for loss in losses[::stride]]


@contextmanager
def _blaming(kind: str, name: str, where: str) -> Iterator[None]:
    """Notes on an unexpected error whose plugin was at work."""
    try:
        yield
    except DDPluginsError:
        raise
    except Exception as error:
        error.add_note(f"in {kind} {name}, during {where}")
        raise


class _LogFile(logging.FileHandler):
    """A log that cannot be written ends the run like any other file; logging alone would print a stack trace."""

    def _open(self) -> TextIOWrapper:
        return TextIOWrapper(open(self.baseFilename, "ab", opener=no_symbolic_link), encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:
        raise


class _LineFormatter(logging.Formatter):
    """A message is one line, whatever names it holds; a stack trace follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = one_line(record.message)
        return super().formatMessage(record)


class _Said(logging.Handler):
    """Warnings are shown to whoever watches the run, besides standing in its log; errors end it and are shown then."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self.addFilter(lambda record: record.levelno == logging.WARNING)
        self.reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self.reporter.say_once(record.getMessage())


@contextmanager
def _logged_to(path: Path, reporter: Reporter) -> Iterator[None]:
    file = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(_LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("dd_plugins", "benchmark_adapters")]
    shown = any(isinstance(handler, _Said) for handler in loggers[0].handlers)  # by the run that this one is a part of
    handlers = (file,) if shown else (file, _Said(reporter))
    for target in loggers:
        for handler in handlers:
            target.addHandler(handler)
        target.setLevel(logging.INFO)
    try:
        yield
    finally:
        for target in loggers:
            for handler in handlers:
                target.removeHandler(handler)
        file.close()
