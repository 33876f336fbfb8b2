"""The prior of a data set, trained here, and the gates of a prior: artifacts that runs share."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from dd_plugins.api import (
    Artifact,
    ArtifactFiles,
    ArtifactStore,
    DataError,
    Network,
    RealData,
    SyntheticFileError,
)
from dd_plugins.api.memory import tensor_bytes
from dd_plugins.api.progress import StartJob, silent_job
from dd_plugins.errors import Stopped, is_out_of_memory
from dd_plugins.priors.base import ForClasses, check_contract
from dd_plugins.priors.gates import Gates, diversity_of_real, measure
from dd_plugins.priors.store import ABOUT, StoredPrior, load_prior, save_prior
from dd_plugins.priors.train import PriorRecipe, Trainer, trainable_prior

logger = logging.getLogger(__name__)
CHECKPOINT = "training.safetensors"
LEAST_IMAGES = 2  # of a class: the gates compare how far its images lie apart
VERSION = 3  # part of a prior's key; to be raised with any change that moves its weights
GATES_VERSION = 4  # part of the key of gates; to be raised with any change that moves a figure


class TrainedPrior(Artifact[StoredPrior]):
    """The prior of a recipe on a data set.

    Args:
        real: The data set; its training split trains, its validation split measures.
        recipe: How it is trained.
        network: Name and settings of the classifiers that measure its gates.
        make_network: From a seed to a fresh one.
        checkpoint_seconds: Time between two checkpoints.
    """

    kind = "priors"
    own_folder = True

    def __init__(
        self,
        real: RealData,
        recipe: PriorRecipe,
        network: Mapping[str, Any],
        make_network: Callable[[int], Network],
        checkpoint_seconds: float = 30.0,
    ) -> None:
        self.real, self.recipe, self.network = real, recipe, network
        self.make_network, self.checkpoint_seconds = make_network, checkpoint_seconds

    @property
    def key(self) -> str:
        """Data set, kind, and the hash of all that decides the weights."""
        content = {"version": VERSION, "data": self.real.spec.fingerprint, **self.recipe.model_dump(mode="json")}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.real.spec.name}-{self.recipe.kind}-{digest}"

    @property
    def title(self) -> str:
        """Of which data set."""
        return f"the prior of {self.real.spec.name}"

    def load(self, files: ArtifactFiles) -> StoredPrior | None:
        """Reads it, if its training is done."""
        if not files.exists(ABOUT):
            return None
        try:
            return load_prior(files, self.real.spec)
        except DataError as error:
            raise DataError(f"{error}; remove {files.place()} to have this prior trained again") from None

    def check(self) -> None:
        """Refuses data whose gates could not be measured.

        Raises:
            DataError: If a class has too few images, or images that do not differ.
        """
        few = min(len(rows) for rows in self.real.train.class_rows())
        if few < LEAST_IMAGES:
            raise DataError(f"a prior needs {LEAST_IMAGES} training images of every class; one has {few}")
        diversity_of_real(self.real)

    def build(self, files: ArtifactFiles, job: StartJob) -> StoredPrior:
        """Trains it, from its last checkpoint if there is one; measures it, and writes it."""
        trainer = trainable_prior(self.recipe.kind).trainer(self.recipe, self.real)
        files.require(4 * tensor_bytes(trainer.networks) + tensor_bytes(trainer.exported))
        seconds = self._train(trainer, files, job)
        check_contract(trainer.exported)
        gates = measure(trainer.exported, self.real, self.make_network)
        spec = self.real.spec
        notes = {
            "data": {"name": spec.name, "fingerprint": spec.fingerprint, "classes": list(self.real.class_names)},
            "recipe": self.recipe.model_dump(mode="json"),
            "gates": gates.to_dict(),
            "network": dict(self.network),
            "seconds": round(seconds, 2),
        }
        save_prior(files, trainer.exported, self.recipe.kind, trainer.config, notes)
        files.remove(CHECKPOINT)
        logger.info("prior %s: %s", self.key, gates)
        return load_prior(files, spec)

    def about(self, made: StoredPrior) -> list[str]:
        """Its sizes, and how long its training took."""
        found = made.prior()
        return [
            f"{found.elements:,} elements, {made.generator.num_stages} levels, trained in {found.seconds:.0f} s, "
            f"sha256 {found.sha256}"
        ]

    def _train(self, trainer: Trainer, files: ArtifactFiles, job: StartJob) -> float:
        """Trains from the last checkpoint on; the seconds of all sessions.

        Raises:
            DataError: If the checkpoint is another training's.
        """
        spent = _resume(trainer, files)
        begun = saved = time.perf_counter()

        def save() -> None:
            if any(not bool(value.isfinite().all()) for value in trainer.networks.state_dict().values()):
                return  # the last good state stays; the loss will say so
            notes = {"seconds": str(spent + time.perf_counter() - begun)}
            files.write_tensors(CHECKPOINT, trainer.state_dict(), notes)

        def note(done: int) -> None:
            nonlocal saved
            try:
                update(done)
            except (KeyboardInterrupt, Stopped):  # a job may end the training here, between two updates
                save()
                raise
            if time.perf_counter() - saved >= self.checkpoint_seconds:
                save()
                saved = time.perf_counter()

        with job(f"train the prior ({self.recipe.kind})", self.recipe.steps) as update:
            trainer.run(note)
        save()  # its gates are still to be measured, which takes a while
        return spent + time.perf_counter() - begun


def _resume(trainer: Trainer, files: ArtifactFiles) -> float:
    """Restores the last checkpoint; the seconds that were spent before."""
    if not files.exists(CHECKPOINT):
        return 0.0
    try:
        tensors, notes = files.read_tensors(CHECKPOINT, SyntheticFileError)
        trainer.load_state_dict(tensors)
        return float(notes["seconds"])
    except (KeyError, ValueError, RuntimeError, SyntheticFileError) as error:
        if is_out_of_memory(error):
            raise
        why = " ".join(str(error).split())[:200]
        place = files.place(CHECKPOINT)
        raise DataError(f"{place} does not fit this prior ({why}); remove it to begin again") from None


class MeasuredGates(Artifact[Gates]):
    """The gates of a prior as a network measures them: noted with its training, kept by themselves, or measured now.

    Args:
        prior: The prior.
        real: The data set, for the measurement.
        network: Name and settings of the classifiers that measure.
        make_network: From a seed to a fresh one.
        weak: Whether a run uses the prior whatever its gates are.
    """

    kind = "priors"

    def __init__(
        self,
        prior: StoredPrior,
        real: RealData,
        network: Mapping[str, Any],
        make_network: Callable[[int], Network],
        weak: bool = False,
    ) -> None:
        self.prior, self.real, self.network = prior, real, network
        self.make_network, self.weak = make_network, weak
        generator = prior.generator
        self.classes = generator.classes.tolist() if isinstance(generator, ForClasses) else None

    @property
    def key(self) -> str:
        """The hash of all that decides the figures."""
        content = [
            GATES_VERSION, self.prior.about["sha256"], self.real.spec.fingerprint, dict(self.network), self.classes,
        ]  # fmt: skip
        return f"gates-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]}"

    @property
    def title(self) -> str:
        """Of which prior."""
        return "the measurement of the prior"

    def load(self, files: ArtifactFiles) -> Gates | None:
        """The figures of its training, or those that were kept; damaged ones are measured again."""
        if self.prior.gates is not None and self.prior.about.get("network") == self.network and self.classes is None:
            return self.prior.gates
        try:
            return Gates.read(files.read_json(f"{self.key}.json")) if files.exists(f"{self.key}.json") else None
        except (DataError, ValueError):
            return None

    def build(self, files: ArtifactFiles, job: StartJob) -> Gates:
        """Checks the prior's contract and measures it."""
        with job("measure the prior", 1) as update:
            check_contract(self.prior.generator.to(self.real.device))
            gates = measure(self.prior.generator, self.real, self.make_network)
            files.write_json(f"{self.key}.json", gates.to_dict())
            update(1)
        return gates

    def about(self, made: Gates) -> list[str]:
        """The figures."""
        return [made.describe(), *(["all gates passed"] if not made.failed() else [])]

    def problem(self, made: Gates) -> str:
        """The gates that it fails, unless a run is to use it all the same."""
        return "" if self.weak or not made.failed() else weakness(self.prior, made)


def weakness(prior: StoredPrior, gates: Gates) -> str:
    """Why a prior is refused, and what helps."""
    return (
        f"{prior.place}: this prior is too weak: {'; '.join(gates.failed())}. Train it longer, or allow it "
        f"(parameterization.allow_weak_prior=true)"
    )


def admit(
    prior: StoredPrior,
    real: RealData,
    network: Mapping[str, Any],
    make_network: Callable[[int], Network],
    artifacts: ArtifactStore,
    job: StartJob = silent_job,
) -> None:
    """Refuses a prior that fails its gates; they are measured now where this network never did.

    Args:
        prior: The prior.
        real: The data set, for the measurement.
        network: Name and settings of the classifiers that measure.
        make_network: From a seed to a fresh one.
        artifacts: Keeps what is measured.
        job: Shows that something is measured.

    Raises:
        DataError: Names every gate that it fails, with the figure.
    """
    gates = artifacts.get(MeasuredGates(prior, real, network, make_network), job)
    if gates.failed():
        raise DataError(weakness(prior, gates))
