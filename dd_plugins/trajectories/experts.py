"""Expert trajectories: the weights of networks trained on real data, epoch by epoch, stored once for all runs.

Source:
    Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022, arXiv 2203.11932, and its
    released code: plain SGD, DSA-augmented, a snapshot at the start and behind every epoch.
Deviations:
    Every expert has its own seed, so that expert k is the same whoever trains it and however many are trained at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from dd_plugins.api import (
    DataError,
    Network,
    PluginConfig,
    RealData,
    locked,
    read_tensors,
    write_atomically,
    write_tensors,
)
from dd_plugins.api.faults import shortened
from dd_plugins.api.files import opened
from dd_plugins.api.memory import require_memory, tensor_bytes
from dd_plugins.seeds import seed_for
from dd_plugins.training import Strategy, TrainConfig, accuracy, networks_at_once, train_networks
from dd_plugins.trajectories.unroll import flat_weights

MAX_EXPERTS = 1_000_000  # each has a file
KEY = "weights"  # float, (epochs + 1, P), in every expert's file
MADE_FOR = "made_for"  # in the file's metadata: the folder it belongs into, which names data set, network and recipe
DAMAGED = "; it is damaged; remove it to train this expert again"
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


class ExpertStore:
    """The experts of one recipe on one data set: a folder with a safetensors file for each.

    Args:
        root: Folder that the stores of all recipes share.
        real: The data set; experts see its training split alone.
        recipe: How they are trained.
        make_network: From a seed to a freshly initialised network on the data's device.
    """

    def __init__(
        self, root: Path, real: RealData, recipe: ExpertRecipe, make_network: Callable[[int], Network]
    ) -> None:
        self.real, self.recipe, self.make_network = real, recipe, make_network
        self.path = root / f"{real.spec.name}-{recipe.network['name']}-{recipe.hash(real.spec.fingerprint)}"

    def missing(self, count: int, size: int | None = None) -> list[int]:
        """Which of the first ``count`` experts are not there yet.

        Args:
            count: Experts.
            size: Parameters of the network, checked if given.

        Raises:
            DataError: If one that is there is damaged, or of another network, data set or recipe.
        """
        names = {path.name for path in self.path.glob("expert-*.safetensors")}
        there = [self.file(number).name in names for number in range(count)]
        for number in (number for number, found in enumerate(there) if found):
            with self._opened(number) as rows:
                if size is not None and rows.get_shape()[1] != size:
                    raise DataError(
                        f"{self.file(number)}: {rows.get_shape()[1]:,} weights of a network that has {size:,}{DAMAGED}"
                    )
        return [number for number, found in enumerate(there) if not found]

    def file(self, number: int) -> Path:
        """The file of one expert."""
        return self.path / f"expert-{number:04d}.safetensors"

    def train(
        self,
        count: int,
        at_once: int | None = None,
        on_epoch: Callable[[int], None] = lambda done: None,
        strategy: Strategy = "auto",
    ) -> None:
        """Trains whichever of the first ``count`` experts are missing; an interrupted call goes on where it was.

        One process at a time trains experts of a recipe; others wait, and take what is there by then.

        Args:
            count: How many experts there shall be.
            at_once: How many are trained together; None: all on a GPU, as many as threads where batches are small.
            on_epoch: Called with the epochs done in this call, over all missing experts.
            strategy: Of the training loop.
        """
        at_once = at_once or networks_at_once(self.real.spec, self.real.train.labels, self.recipe.epoch())
        about = {"data": self.real.spec.to_dict(), "recipe": self.recipe.model_dump(mode="json")}
        with locked(self.path / ".lock", f"expert trajectories of {self.real.spec.name}"):
            write_atomically(self.path / "experts.json", (json.dumps(about, indent=2) + "\n").encode())
            missing, done = self.missing(count), 0
            for group in (missing[k : k + at_once] for k in range(0, len(missing), at_once)):
                for _ in self._train_together(group, strategy):
                    done += len(group)
                    on_epoch(done)

    def pair(self, number: int, epoch: int, later: int) -> tuple[Tensor, Tensor]:
        """An expert's weights behind two epochs (0: the start): float, ``(P,)`` each, on the data's device.

        Raises:
            DataError: If the file is damaged, or of another network, data set or recipe.
        """
        with self._opened(number) as rows:
            start, goal = rows[epoch], rows[later]
        if not bool(start.isfinite().all()) or not bool(goal.isfinite().all()):
            raise DataError(f"{self.file(number)}: NaN or infinite weights{DAMAGED}")
        return start.to(self.real.device), goal.to(self.real.device)

    @contextmanager
    def _opened(self, number: int) -> Iterator[Any]:
        """The snapshots of an expert, which are read when they are indexed; float, ``(epochs + 1, P)``."""
        with opened(self.file(number), DataError, DAMAGED) as file:
            made_for = (file.metadata() or {}).get(MADE_FOR, self.path.name)
            if made_for != self.path.name:
                raise DataError(
                    f"{self.file(number)} belongs to {shortened(made_for)}; remove it to train this expert again"
                )
            rows = file.get_slice(KEY)
            shape, dtype, wanted = rows.get_shape(), rows.get_dtype(), self.recipe.epochs + 1
            if len(shape) != 2 or shape[0] != wanted or dtype not in DTYPES:
                raise DataError(f"{self.file(number)}: {dtype} {shape} is no float32 of {wanted} rows{DAMAGED}")
            yield rows

    def _check_memory(self, network: Network, count: int) -> None:
        """Refuses more networks, or more snapshots of them, than can be held until a group is done."""
        one, epochs = tensor_bytes(network), self.recipe.epochs
        hint = "--at-once trains fewer; fewer objective.training_epochs and a smaller network need less"
        require_memory({f"{count:,} experts": 2 * count * one}, self.real.device, hint)
        require_memory({f"weights after each of {epochs:,} epochs": count * (epochs + 1) * one}, hint=hint)

    def _train_together(self, group: Sequence[int], strategy: Strategy) -> Iterator[int]:
        """Trains a group epoch by epoch; yields behind each."""
        partial = self.path / f"partial-{group[0]:04d}-{len(group)}.safetensors"
        first = self.make_network(seed_for("expert", group[0])).train()
        self._check_memory(first, len(group))
        networks = [first, *(self.make_network(seed_for("expert", number)).train() for number in group[1:])]
        snapshots = [[flat_weights(network).cpu()] for network in networks]
        if (before := _taken_back(partial, group, snapshots[0][0].numel())) is not None:
            snapshots = before
            for network, taken in zip(networks, snapshots, strict=True):
                _put(network, taken[-1])
        train = self.real.train
        for epoch in range(len(snapshots[0]) - 1, self.recipe.epochs):
            train_networks(
                networks,
                train.images,
                train.labels,
                self.recipe.epoch(),
                self.real.spec,
                seeds=[seed_for("expert", number, epoch) for number in group],
                strategy=strategy,
            )
            for network, taken in zip(networks, snapshots, strict=True):
                taken.append(flat_weights(network).cpu())
            stacked = {str(number): torch.stack(taken) for number, taken in zip(group, snapshots, strict=True)}
            write_tensors(partial, stacked, {})
            yield epoch
        validation = self.real.validation
        for number, network, taken in zip(group, networks, snapshots, strict=True):
            reached = accuracy(network, validation.images, validation.labels)
            about = {MADE_FOR: self.path.name, "validation_accuracy": f"{reached:.4f}"}
            write_tensors(self.file(number), {KEY: torch.stack(taken)}, about)
        partial.unlink(missing_ok=True)


def _taken_back(partial: Path, group: Sequence[int], size: int) -> list[list[Tensor]] | None:
    """The snapshots that an interrupted training left; None where it left none of just these experts."""
    if not partial.exists():
        return None
    hint = "; remove it to begin these experts again"
    tensors, _ = read_tensors(partial, DataError, hint)
    names = [str(number) for number in group]
    if set(names) != set(tensors):
        return None
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if shapes != {(len(tensors[names[0]]), size)} or not all(bool(t.isfinite().all()) for t in tensors.values()):
        raise DataError(f"{partial}: not the finite weights of networks of {size:,} parameters{hint}")
    return [list(tensors[name]) for name in names]


@torch.no_grad()
def _put(network: nn.Module, weights: Tensor) -> None:
    """Gives a network the weights of one vector."""
    parameters = list(network.parameters())
    for parameter, part in zip(parameters, torch.split(weights, [p.numel() for p in parameters]), strict=True):
        parameter.copy_(part.view(parameter.shape))
