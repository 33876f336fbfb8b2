"""The reference classifier of a data set, whose features synthetic and real images are compared in; an artifact."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from dd_plugins.api import (
    Artifact,
    ArtifactFiles,
    ArtifactStore,
    DataError,
    DivergedError,
    Network,
    RealData,
    SyntheticFileError,
)
from dd_plugins.api.memory import tensor_bytes
from dd_plugins.api.progress import StartJob, silent_job
from dd_plugins.errors import is_out_of_memory
from dd_plugins.priors.distance import check_reference_network
from dd_plugins.priors.gates import learned_nothing
from dd_plugins.seeds import seed_for
from dd_plugins.training import TrainConfig, accuracy, train_networks

logger = logging.getLogger(__name__)
UPDATES = 600
VERSION = 1  # part of the key; to be raised with any change that moves the weights
SEEDS = "judge"  # names the stream of seeds; another name moves the weights


class ReferenceClassifier(Artifact[Network]):
    """A classifier that is trained on the training split.

    Args:
        real: The data set.
        network: Name and settings of the classifier.
        make_network: From a seed to a fresh one.

    Raises:
        IncompatibleError: If the network has no maps for the distance, or is not linear in them.
    """

    kind = "reference-classifiers"

    def __init__(self, real: RealData, network: Mapping[str, Any], make_network: Callable[[int], Network]) -> None:
        self.real, self.network, self.make_network = real, network, make_network
        self.recipe = TrainConfig(
            epochs=max(1, UPDATES // -(-len(real.train) // 256)),
            lr=0.02,
            schedule="cosine",
            augmentation="dsa",
            strategy="auto",
        )
        check_reference_network(self._fresh(), real.spec)

    @property
    def key(self) -> str:
        """Data set, and the hash of all that decides the weights."""
        content = {
            "version": VERSION,
            "data": self.real.spec.fingerprint,
            "network": dict(self.network),
            "train": self.recipe.model_dump(mode="json"),
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.real.spec.name}-{digest}"

    @property
    def title(self) -> str:
        """Of which data set."""
        return f"the reference classifier of {self.real.spec.name}"

    def load(self, files: ArtifactFiles) -> Network | None:
        """Reads it."""
        name = f"{self.key}.safetensors"
        if not files.exists(name):
            return None
        network = self._fresh()
        try:
            tensors, notes = files.read_tensors(name, SyntheticFileError)
            network.load_state_dict(tensors)
            reached = float(notes["validation_accuracy"])
        except (SyntheticFileError, RuntimeError, KeyError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            why = " ".join(str(error).split())[:200]
            place = files.place(name)
            raise DataError(f"{place} holds no classifier of this kind ({why}); remove it to train it again") from None
        if learned_nothing(reached, 1 / self.real.spec.num_classes):
            logger.warning("the reference classifier reaches %.3f only: it hardly separates the classes", reached)
        return network

    def build(self, files: ArtifactFiles, job: StartJob) -> Network:
        """Trains it.

        Raises:
            DivergedError: If its weights are NaN or infinite in the end.
        """
        network, train, validation = self._fresh(), self.real.train, self.real.validation
        files.require(tensor_bytes(network))
        with job("train the reference classifier", self.recipe.epochs * -(-len(train) // self.recipe.batch_size)) as up:
            train_networks(
                [network],
                train.images,
                train.labels,
                self.recipe,
                self.real.spec,
                seeds=[seed_for(SEEDS, 1)],
                on_update=lambda done, total: up(done),
            )
        if any(not bool(value.isfinite().all()) for value in network.state_dict().values()):
            raise DivergedError("the reference classifier diverged; another network (network.*) may help")
        reached = accuracy(network, validation.images, validation.labels)
        notes = {"validation_accuracy": f"{reached:.4f}"}
        files.write_tensors(f"{self.key}.safetensors", dict(network.state_dict()), notes)
        found = self.load(files)
        assert found is not None
        return found

    def _fresh(self) -> Network:
        return self.make_network(seed_for(SEEDS, 0))


def load_or_train_reference_classifier(
    real: RealData,
    network: Mapping[str, Any],
    make_network: Callable[[int], Network],
    artifacts: ArtifactStore,
    job: StartJob = silent_job,
) -> Network:
    """The reference classifier of a data set: trained once on its training split, then read.

    Args:
        real: The data set.
        network: Name and settings of the classifier.
        make_network: From a seed to a fresh one.
        artifacts: Keeps it.
        job: Shows the progress of a training.

    Raises:
        IncompatibleError: If the network has no maps for the distance, or is not linear in them.
        DataError: If the file in the folder is damaged.
    """
    return artifacts.get(ReferenceClassifier(real, network, make_network), job)
