"""The way of a run: prepare, condense, store, reload, count, score, record."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch

from benchmark_adapters.image_grids import save_preview
from benchmark_adapters.runs.identity import compute_run_id
from benchmark_adapters.runs.notes import data_warnings, idle_rate, lent_settings
from benchmark_adapters.runs.parts import Options, load_real
from benchmark_adapters.runs.prune import prune
from benchmark_adapters.runs.records import is_stored, make_record, rename_data
from benchmark_adapters.runs.schema import RunRecord
from benchmark_adapters.runs.scoring import is_scored, merged, score_set, yardsticks
from benchmark_adapters.runs.store import RunFolder, read_record_file, write_json
from benchmark_adapters.runs.system import forget_peak, peak_memory_mib
from dd_plugins.api import DDPluginsError, DivergedError, RealData, StorageBudget, SyntheticSet, write_atomically
from dd_plugins.api.atomic import no_symbolic_link
from dd_plugins.engine.callbacks import Callback
from dd_plugins.engine.config import RunConfig
from dd_plugins.engine.distillation import condense
from dd_plugins.engine.distilled import load_stored
from dd_plugins.engine.memory import estimate_memory
from dd_plugins.engine.parts import Parts, build_container, build_parts
from dd_plugins.errors import allocator_errors, one_line

logger = logging.getLogger(__name__)


def run(config: RunConfig, options: Options, reporter: Callback) -> dict[str, Any]:
    """Makes or continues a run; a finished one is only read, and none of its files is written again.

    Returns:
        The record.

    Raises:
        NotEnoughMemory: If it cannot fit into memory; before anything is allocated or written.
        OutOfMemory: If an allocator gives up; what was saved is kept.
    """
    real = load_real(config, options)
    parts = check_plan(config, real)
    run_id = compute_run_id(config, real.spec.fingerprint)
    folder = RunFolder(options.out / run_id)
    with folder.locked(), _logged_to(folder.path / "log.txt", reporter):
        if (finished := _finished(config, real, options, reporter, folder)) is not None:
            reporter.on_message(f"already finished: {folder.path}")
            for line in data_warnings(config, real, parts.container.counts):
                reporter.on_warning(line)
            return finished
        write_atomically(folder.path / "config.yaml", config.to_yaml().encode())
        reporter.on_message(f"run {run_id} in {folder.path}")
        for line in (*real.notes, *real.skipped):  # shown when the data was loaded
            logger.info("%s: %s", config.dataset, line)
        for line in data_warnings(config, real, parts.container.counts):
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
    config: RunConfig, real: RealData, options: Options, reporter: Callback, folder: RunFolder
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


def _make(config: RunConfig, real: RealData, options: Options, reporter: Callback, folder: RunFolder) -> dict[str, Any]:
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


def _condensed(config: RunConfig, real: RealData, options: Options, reporter: Callback) -> RunFolder:
    """The folder of a run that is condensed, if need be now, and not scored."""
    run_id = compute_run_id(config, real.spec.fingerprint)
    folder = RunFolder(options.out / run_id)
    with folder.locked("the set that is to be pruned"), _logged_to(folder.path / "log.txt", reporter):
        if "condense" not in folder.stages() or not folder.synthetic.exists():
            write_atomically(folder.path / "config.yaml", config.to_yaml().encode())
            reporter.on_message(f"condense run {run_id} in {folder.path}, {config.over_budget:.0%} over its budget")
            folder.forget_scores()
            _condense(config, real, options, reporter, run_id, folder)
        folder.check_stored()
    return folder


def check_plan(config: RunConfig, real: RealData) -> Parts:
    """Finds what is wrong with any part of a run before anything is written or hours are spent.

    Returns:
        The parts of the run; the container is allocated within its budget and not initialised.

    Raises:
        NotEnoughMemory: If it cannot fit into memory; before anything is allocated.
        UsageError: If parts do not work together.
    """
    estimate_memory(config, real).check()
    return build_parts(config, real)


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
    config: RunConfig, real: RealData, options: Options, reporter: Callback, run_id: str, folder: RunFolder
) -> None:
    forget_peak(options.device)
    parts = build_parts(config, real)
    for line in filter(None, (idle_rate(config, parts.container), lent_settings(config))):
        reporter.on_message(line)
    content, history = condense(parts, options.runtime(reporter, folder.checkpointer(run_id)))
    write_atomically(folder.synthetic, content)
    folder.mark(
        "condense",
        sha256=folder.digest(),
        steps=history.steps,
        seconds=round(history.seconds, 2),
        cpu_seconds=round(history.cpu_seconds, 2),
        prepare_seconds=round(history.prepare_seconds, 2),
        threads=history.threads,
        learned=history.learned,
        priors=[asdict(prior) for prior in history.priors],
        peak_memory_mib=round(peak_memory_mib(options.device), 1),
        losses=_thinned(history.losses),
    )
    folder.checkpoint.unlink(missing_ok=True)
    (folder.path / "preview.png").unlink(missing_ok=True)


def _thinned(losses: list[float], points: int = 200) -> list[float]:
    stride = max(1, len(losses) // points)
    return [round(loss, 6) for loss in losses[::stride]]


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


class _Shown(logging.Handler):
    """Warnings are shown to whoever watches the run, besides standing in its log; errors end it and are shown then."""

    def __init__(self, reporter: Callback) -> None:
        super().__init__()
        self.addFilter(lambda record: record.levelno == logging.WARNING)
        self.reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self.reporter.on_warning(record.getMessage())


@contextmanager
def _logged_to(path: Path, reporter: Callback) -> Iterator[None]:
    file = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(_LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("dd_plugins", "benchmark_adapters")]
    shown = any(isinstance(handler, _Shown) for handler in loggers[0].handlers)  # by the run that this one is a part of
    handlers = (file,) if shown else (file, _Shown(reporter))
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
