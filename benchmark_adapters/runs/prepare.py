"""The artifacts of a run, listed or made ahead of it."""

from __future__ import annotations

from benchmark_adapters.runs.notes import general_settings
from benchmark_adapters.runs.parts import Options
from dd_plugins.api import FolderArtifacts
from dd_plugins.api.artifacts import Provided
from dd_plugins.datasets import data_artifacts, load_dataset
from dd_plugins.engine.artifacts import needed_artifacts
from dd_plugins.engine.callbacks import Callback
from dd_plugins.engine.config import RunConfig


def prepare(config: RunConfig, options: Options, reporter: Callback, dry_run: bool = False) -> list[str]:
    """Makes every artifact that a run needs and that does not exist, and says what it is.

    Decoded images and the whitening matrix are made in any case: the names of all others depend on the data set.

    Args:
        config: The run.
        options: Device, data and folder.
        reporter: Shows what exists, what is made, and the progress.
        dry_run: Only say what exists and what is missing.

    Returns:
        Why a run would refuse what exists now; empty if it would not.
    """
    of_data, problems, count = data_artifacts(), [], 0
    of_data.on_get = lambda provided: reporter.on_message(_line(provided))
    real = load_dataset(config.dataset, options.data_root, options.device, of_data, config.data)
    if warning := general_settings(config, real):
        reporter.on_message(warning)
    store = FolderArtifacts(options.out)
    job = reporter.stoppable_job
    with reporter.stopping():
        for artifact in needed_artifacts(config, real, store, options.device, job):
            count += 1
            files = store.files(artifact)
            if dry_run and not store.has(artifact):
                state = artifact.state(files)
                reporter.on_message(f"missing: {artifact.title}{f', {state}' if state else ''} ({files.place()})")
                continue
            store.on_get = lambda provided: reporter.on_message(_line(provided))
            made = store.get(artifact, job)
            store.on_get = lambda provided: None
            for line in artifact.about(made):
                reporter.on_message(f"  {line}")
            if problem := artifact.problem(made):
                problems.append(problem)
    if not count:
        reporter.on_message(f"{config.method} on {config.dataset} needs no artifacts but its data")
    return problems


def _line(provided: Provided) -> str:
    done = f"made in {provided.seconds:.1f} s" if provided.made else "exists"
    return f"{done}: {provided.title} ({provided.place})"
