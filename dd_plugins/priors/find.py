"""The prior of a data set: read where it is, else trained, held to its gates, and kept for all runs."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dd_plugins.api import (
    DataError,
    Network,
    RealData,
    SyntheticFileError,
    read_tensors,
    write_atomically,
    write_tensors,
)
from dd_plugins.api.progress import StartJob, silent_job
from dd_plugins.api.reading import read_json
from dd_plugins.errors import is_out_of_memory
from dd_plugins.priors.base import ForClasses, check_contract
from dd_plugins.priors.gates import Gates, measure, spread_of_real
from dd_plugins.priors.store import ABOUT, StoredPrior, load_prior, one_at_a_time, save_prior
from dd_plugins.priors.train import TRAINERS, PriorRecipe, Trainer

logger = logging.getLogger(__name__)
FOLDER = "priors"
CHECKPOINT = "training.safetensors"
LEAST_IMAGES = 2  # of a class: the gates compare how far its images lie apart
VERSION = 3  # part of a prior's name; to be raised with any change that moves its weights
GATES_VERSION = 4  # part of the name of gates that were measured; to be raised with any change that moves a figure


def prior_folder(root: Path, real: RealData, recipe: PriorRecipe) -> Path:
    """Where the prior of this recipe on this data set lies."""
    content = {"version": VERSION, "data": real.spec.fingerprint, **recipe.model_dump(mode="json")}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    return root / FOLDER / f"{real.spec.name}-{recipe.kind}-{digest}"


def find_prior(
    root: Path,
    real: RealData,
    recipe: PriorRecipe,
    network: Mapping[str, Any],
    make_network: Callable[[int], Network],
    job: StartJob = silent_job,
    checkpoint_seconds: float = 30.0,
) -> StoredPrior:
    """The prior of a recipe; trained now if it is not there, from its last checkpoint if it was interrupted.

    Args:
        root: Folder that all runs share.
        real: The data set; its training split trains, its validation split measures.
        recipe: How it is trained.
        network: Name and settings of the classifiers that measure its gates.
        make_network: From a seed to a fresh one.
        job: Shows the progress; a KeyboardInterrupt that it raises between two updates ends the training, saved.
        checkpoint_seconds: Time between two checkpoints.

    Raises:
        DataError: If a class has too few images, or images that do not differ, or the prior that is there is damaged.
    """
    path = prior_folder(root, real, recipe)
    if not (path / ABOUT).exists():
        few = min(len(rows) for rows in real.train.class_rows())
        if few < LEAST_IMAGES:
            raise DataError(f"a prior needs {LEAST_IMAGES} training images of every class; one has {few}")
        spread_of_real(real)  # its gates could not be measured; before hours of training
        with one_at_a_time(path / ".lock", f"the prior of {real.spec.name}", job):
            if not (path / ABOUT).exists():
                _make(path, real, recipe, network, make_network, job, checkpoint_seconds)
    try:
        return load_prior(path, real.spec)
    except DataError as error:
        raise DataError(f"{error}; remove {path} to have this prior trained again") from None


def _make(
    path: Path,
    real: RealData,
    recipe: PriorRecipe,
    network: Mapping[str, Any],
    make_network: Callable[[int], Network],
    job: StartJob,
    checkpoint_seconds: float,
) -> None:
    """Trains a prior, measures it, and writes it."""
    trainer = TRAINERS[recipe.kind](recipe, real)
    seconds = _train(trainer, path / CHECKPOINT, job, checkpoint_seconds)
    check_contract(trainer.exported)
    gates = measure(trainer.exported, real, make_network)
    notes = {
        "data": {"name": real.spec.name, "fingerprint": real.spec.fingerprint, "classes": list(real.class_names)},
        "recipe": recipe.model_dump(mode="json"),
        "gates": gates.to_dict(),
        "network": dict(network),
        "seconds": round(seconds, 2),
    }
    save_prior(path, trainer.exported, recipe.kind, trainer.config, notes)
    (path / CHECKPOINT).unlink(missing_ok=True)
    logger.info("prior %s: %s", path.name, gates)


def _train(trainer: Trainer, checkpoint: Path, job: StartJob, checkpoint_seconds: float) -> float:
    """Trains from the last checkpoint on; the seconds of all sessions.

    Raises:
        DataError: If the checkpoint is another training's.
    """
    spent = 0.0
    if checkpoint.exists():
        try:
            tensors, notes = read_tensors(checkpoint)
            trainer.load_state_dict(tensors)
            spent = float(notes["seconds"])
        except (KeyError, ValueError, RuntimeError, SyntheticFileError) as error:
            if is_out_of_memory(error):
                raise
            why = " ".join(str(error).split())[:200]
            raise DataError(f"{checkpoint} does not fit this prior ({why}); remove it to begin again") from None
    begun = saved = time.perf_counter()

    def save() -> None:
        if any(not bool(value.isfinite().all()) for value in trainer.networks.state_dict().values()):
            return  # the last good state stays; the loss will say so
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(checkpoint, trainer.state_dict(), {"seconds": str(spent + time.perf_counter() - begun)})

    def note(done: int) -> None:
        nonlocal saved
        try:
            update(done)
        except KeyboardInterrupt:  # who watches may end it here, between two updates
            save()
            raise
        if time.perf_counter() - saved >= checkpoint_seconds:
            save()
            saved = time.perf_counter()

    with job(f"train the prior ({trainer.recipe.kind})", trainer.recipe.steps) as update:
        trainer.run(note)
    save()  # its gates are still to be measured, which takes a while
    return spent + time.perf_counter() - begun


def admit(
    prior: StoredPrior,
    real: RealData,
    network: Mapping[str, Any],
    make_network: Callable[[int], Network],
    weak: bool = False,
    cache: Path | None = None,
    job: StartJob = silent_job,
) -> None:
    """Refuses a prior that fails its gates; they are measured now where that was never done by this network.

    Args:
        prior: The prior.
        real: The data set, for the measurement.
        network: Name and settings of the classifiers that measure, which is what gates are kept for.
        make_network: From a seed to a fresh one.
        weak: Take it all the same, as asked for.
        cache: Folder that keeps what was measured, for all runs; None to keep nothing.
        job: Shows that something is measured.

    Raises:
        DataError: Names every gate that it fails, with the figure.
    """
    if weak:
        return
    if failed := gates_of(prior, real, network, make_network, cache, job).failed():
        raise DataError(
            f"{prior.path}: this prior is too weak: {'; '.join(failed)}. Train it longer, or allow it "
            f"(parameterization.allow_weak_prior=true)"
        )


def gates_of(
    prior: StoredPrior,
    real: RealData,
    network: Mapping[str, Any],
    make_network: Callable[[int], Network],
    cache: Path | None = None,
    job: StartJob = silent_job,
) -> Gates:
    """The gates of a prior as this network finds them: noted with its training, kept in the folder, or measured now."""
    classes = prior.generator.classes.tolist() if isinstance(prior.generator, ForClasses) else None
    if prior.gates is not None and prior.about.get("network") == network and classes is None:
        return prior.gates
    content = [GATES_VERSION, prior.about["sha256"], real.spec.fingerprint, dict(network), classes]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    file = None if cache is None else cache / FOLDER / f"gates-{digest}.json"
    if (kept := _kept_gates(file)) is not None:
        return kept
    with ExitStack() as held:
        if file is not None:
            held.enter_context(one_at_a_time(file.with_suffix(".lock"), "the measurement of the prior", job))
            if (kept := _kept_gates(file)) is not None:
                return kept
        with job("measure the prior", 1) as update:
            check_contract(prior.generator.to(real.device))
            gates = measure(prior.generator, real, make_network)
            if file is not None:
                write_atomically(file, json.dumps(gates.to_dict()).encode())
            update(1)
    return gates


def _kept_gates(file: Path | None) -> Gates | None:
    """What was measured before; None if nothing was kept, or a damaged copy, which is measured and written again."""
    if file is None or not file.exists():
        return None
    try:
        return Gates.read(read_json(file, DataError))
    except (DataError, ValueError):
        return None
