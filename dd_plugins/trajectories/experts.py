"""Expert trajectories: the weights of networks trained on real data, epoch by epoch; an artifact that runs share.

Source:
    Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022, arXiv 2203.11932, and its
    released code: plain SGD, DSA-augmented, a snapshot at the start and after every epoch.
Deviations:
    Every expert has its own seed, so that expert k is the same in every process and however many are trained at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from dd_plugins.api import Artifact, ArtifactFiles, DataError, Network, NotEnoughMemory, PluginConfig, RealData
from dd_plugins.api.faults import shortened
from dd_plugins.api.memory import require_memory
from dd_plugins.api.progress import StartJob
from dd_plugins.seeds import seed_for
from dd_plugins.training import Strategy, TrainConfig, accuracy, networks_at_once, train_networks
from dd_plugins.trajectories.unroll import flat_weights

MAX_EXPERTS = 1_000_000  # each has a file
KEY = "weights"  # float, (epochs + 1, P), in every expert's file
MADE_FOR = "made_for"  # in the file's metadata: the key of its artifact, which names data set, network and recipe
DAMAGED = "; it is damaged; remove it to train this expert again"
FLOAT_BYTES = 4
DTYPES = ("F32", "F64")  # of the weights; float64 where gradients are checked
VERSION = 1  # part of the hash; to be raised with any change that moves an expert's weights


class ExpertRecipe(PluginConfig):
    """How experts are trained."""

    network: dict[str, Any] = Field({"name": "convnet"}, description="network plugin and its settings")
    epochs: int = Field(50, ge=1, description="epochs, each of which ends with a snapshot")
    lr: float = Field(0.01, gt=0, description="learning rate of plain SGD")
    batch_size: int = Field(256, ge=1, description="real images an update")
    strategy: str = Field("auto", description="DSA; auto: the field's for the data set; none: off")

    def hash(self, fingerprint: str) -> str:
        """Ten hexadecimal digits of everything that decides the experts' weights."""
        content = {"version": VERSION, "data": fingerprint, **self.model_dump(mode="json")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]

    def epoch(self) -> TrainConfig:
        """One epoch as the training loop knows it."""
        return TrainConfig(
            epochs=1,
            batch_size=self.batch_size,
            lr=self.lr,
            momentum=0,
            weight_decay=0,
            schedule="constant",
            augmentation="dsa" if self.strategy != "none" else "none",
            strategy="auto" if self.strategy == "none" else self.strategy,
        )


class Experts:
    """Expert trajectories that exist, and read access to them.

    Args:
        files: A safetensors file for each expert.
        key: The key of their artifact.
        epochs: Epochs of each of them.
        device: Where weights are returned.
    """

    def __init__(self, files: ArtifactFiles, key: str, epochs: int, device: torch.device) -> None:
        self.files, self.key, self.epochs, self.device = files, key, epochs, device

    def missing(self, count: int, size: int | None = None) -> list[int]:
        """Which of the first ``count`` experts do not exist yet.

        Args:
            count: Experts.
            size: Parameters of the network, checked if given.

        Raises:
            DataError: If one that exists is damaged, or of another network, data set or recipe.
        """
        names = self.files.names("expert-*.safetensors")
        exist = [file_name(number) in names for number in range(count)]
        for number in (number for number, found in enumerate(exist) if found):
            with self._opened(number) as rows:
                if size is not None and rows.get_shape()[1] != size:
                    raise DataError(
                        f"{self.place(number)}: {rows.get_shape()[1]:,} weights of a network that has {size:,}{DAMAGED}"
                    )
        return [number for number, found in enumerate(exist) if not found]

    def pair(self, number: int, epoch: int, later: int) -> tuple[Tensor, Tensor]:
        """An expert's weights after two epochs (0: the start): float, ``(P,)`` each, on the data's device.

        Raises:
            DataError: If the file is damaged, or of another network, data set or recipe.
        """
        with self._opened(number) as rows:
            start, goal = rows[epoch], rows[later]
        if not bool(start.isfinite().all()) or not bool(goal.isfinite().all()):
            raise DataError(f"{self.place(number)}: NaN or infinite weights{DAMAGED}")
        return start.to(self.device), goal.to(self.device)

    def place(self, number: int) -> str:
        """What messages call the file of an expert."""
        return self.files.place(file_name(number))

    @contextmanager
    def _opened(self, number: int) -> Iterator[Any]:
        """The snapshots of an expert, which are read when they are indexed; float, ``(epochs + 1, P)``."""
        with self.files.opened(file_name(number), DataError, DAMAGED) as file:
            made_for = (file.metadata() or {}).get(MADE_FOR, self.key)
            if made_for != self.key:
                raise DataError(
                    f"{self.place(number)} belongs to {shortened(made_for)}; remove it to train this expert again"
                )
            rows = file.get_slice(KEY)
            shape, dtype, wanted = rows.get_shape(), rows.get_dtype(), self.epochs + 1
            if len(shape) != 2 or shape[0] != wanted or dtype not in DTYPES:
                raise DataError(f"{self.place(number)}: {dtype} {shape} is no float32 of {wanted} rows{DAMAGED}")
            yield rows


class ExpertTrajectories(Artifact[Experts]):
    """The first experts of one recipe on one data set; those of several runs that need more or fewer are the same.

    Args:
        real: The data set; experts see its training split alone.
        recipe: How they are trained.
        make_network: From a seed to a freshly initialised network on the data's device.
        count: How many are needed.
        size: Parameters of the network.
        strategy: Of the training loop.
    """

    kind = "experts"
    own_folder = True

    def __init__(
        self,
        real: RealData,
        recipe: ExpertRecipe,
        make_network: Callable[[int], Network],
        count: int,
        size: int,
        strategy: Strategy = "auto",
    ) -> None:
        self.real, self.recipe, self.make_network = real, recipe, make_network
        self.count, self.size, self.strategy = count, size, strategy

    @property
    def key(self) -> str:
        """Data set, network, and the hash of all that decides the weights."""
        return f"{self.real.spec.name}-{self.recipe.network['name']}-{self.recipe.hash(self.real.spec.fingerprint)}"

    @property
    def title(self) -> str:
        """Of which data set."""
        return f"expert trajectories of {self.real.spec.name}"

    def experts(self, files: ArtifactFiles) -> Experts:
        """Those that exist."""
        return Experts(files, self.key, self.recipe.epochs, self.real.device)

    def load(self, files: ArtifactFiles) -> Experts | None:
        """All of them, each verified; None if one is missing."""
        found = self.experts(files)
        return None if found.missing(self.count, self.size) else found

    def state(self, files: ArtifactFiles) -> str:
        """How many exist."""
        return f"{self.count - len(self.experts(files).missing(self.count))} of {self.count} experts"

    def build(self, files: ArtifactFiles, job: StartJob) -> Experts:
        """Trains the experts that are missing; an interrupted call continues after its last epoch."""
        experts = self.experts(files)
        missing = experts.missing(self.count, self.size)
        at_once = self._at_once(len(missing))
        files.require((len(missing) + at_once) * (self.recipe.epochs + 1) * FLOAT_BYTES * self.size)
        files.write_json(
            "experts.json", {"data": self.real.spec.to_dict(), "recipe": self.recipe.model_dump(mode="json")}
        )
        done = 0
        with job("train experts", len(missing) * self.recipe.epochs) as update:
            for group in (missing[k : k + at_once] for k in range(0, len(missing), at_once)):
                for _ in self._train_together(files, group):
                    done += len(group)
                    update(done)
        for name in files.names("partial-*.safetensors"):  # of other groups, which are done
            files.remove(name)
        return experts

    def _at_once(self, missing: int) -> int:
        """How many are trained together: all on a GPU, as many as threads where batches are small, if they fit.

        Raises:
            NotEnoughMemory: If one alone does not fit.
        """
        at_once = min(missing, networks_at_once(self.real.spec, self.real.train.labels, self.recipe.epoch()))
        while at_once > 1:
            try:
                self._check_memory(at_once)
            except NotEnoughMemory:
                at_once = -(-at_once // 2)
            else:
                return at_once
        self._check_memory(1)
        return 1

    def _check_memory(self, count: int) -> None:
        """Refuses more networks, or more snapshots of them, than can be held until a group is done."""
        one, epochs = FLOAT_BYTES * self.size, self.recipe.epochs
        hint = "fewer objective.training_epochs and a smaller network need less"
        require_memory({"an expert": 2 * count * one}, self.real.device, hint)
        require_memory({f"weights after each of {epochs:,} epochs": count * (epochs + 1) * one}, hint=hint)

    def _train_together(self, files: ArtifactFiles, group: Sequence[int]) -> Iterator[int]:
        """Trains a group epoch by epoch; yields after each."""
        partial = f"partial-{group[0]:04d}-{len(group)}.safetensors"
        networks = [self.make_network(seed_for("expert", number)).train() for number in group]
        snapshots = [[flat_weights(network).cpu()] for network in networks]
        if (before := _restored(files, partial, group, snapshots[0][0].numel())) is not None:
            snapshots = before
            for network, weights in zip(networks, snapshots, strict=True):
                _put(network, weights[-1])
        train = self.real.train
        for epoch in range(len(snapshots[0]) - 1, self.recipe.epochs):
            train_networks(
                networks,
                train.images,
                train.labels,
                self.recipe.epoch(),
                self.real.spec,
                seeds=[seed_for("expert", number, epoch) for number in group],
                strategy=self.strategy,
            )
            for network, weights in zip(networks, snapshots, strict=True):
                weights.append(flat_weights(network).cpu())
            stacked = {str(number): torch.stack(weights) for number, weights in zip(group, snapshots, strict=True)}
            files.write_tensors(partial, stacked, {})
            yield epoch
        validation = self.real.validation
        for number, network, weights in zip(group, networks, snapshots, strict=True):
            reached = accuracy(network, validation.images, validation.labels)
            notes = {MADE_FOR: self.key, "validation_accuracy": f"{reached:.4f}"}
            files.write_tensors(file_name(number), {KEY: torch.stack(weights)}, notes)
        files.remove(partial)


def file_name(number: int) -> str:
    """The name of the file of one expert."""
    return f"expert-{number:04d}.safetensors"


def _restored(files: ArtifactFiles, partial: str, group: Sequence[int], size: int) -> list[list[Tensor]] | None:
    """The snapshots that an interrupted training left; None where it left none of just these experts."""
    if not files.exists(partial):
        return None
    hint = "; remove it to begin these experts again"
    tensors, _ = files.read_tensors(partial, DataError, hint)
    names = [str(number) for number in group]
    if set(names) != set(tensors):
        return None
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if shapes != {(len(tensors[names[0]]), size)} or not all(bool(t.isfinite().all()) for t in tensors.values()):
        raise DataError(f"{files.place(partial)}: not the finite weights of networks of {size:,} parameters{hint}")
    return [list(tensors[name]) for name in names]


@torch.no_grad()
def _put(network: nn.Module, weights: Tensor) -> None:
    """Gives a network the weights of one vector."""
    parameters = list(network.parameters())
    for parameter, part in zip(parameters, torch.split(weights, [p.numel() for p in parameters]), strict=True):
        parameter.copy_(part.view(parameter.shape))
