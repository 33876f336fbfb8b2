"""Trajectory matching: training on the synthetic images has to reach the weights that experts reach on real ones.

Source:
    Cazenavette et al., CVPR 2022, arXiv 2203.11932, Eq. 2 and Algorithm 1, and its released code.
Deviations:
    The gradient goes through all steps in constant memory (`dd_plugins.trajectories.unroll`).
    A negative learned learning rate stops the run; the code trains on with it until the loss is NaN.
    Start and target are drawn from all experts at random, with replacement (the code's ``load_all``).

Real images are used by the experts alone, which train on shuffled epochs of all of them: there is no real batch per
class, and images of small classes are not repeated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from dd_plugins.api import (
    Artifact,
    Context,
    DataSpec,
    DivergedError,
    Match,
    MatchingObjective,
    NeedsArtifacts,
    PluginConfig,
    RealData,
    UsageError,
)
from dd_plugins.augmentation import Augmentation, default_strategy
from dd_plugins.trajectories.experts import MAX_EXPERTS, ExpertRecipe, ExpertTrajectories
from dd_plugins.trajectories.unroll import Batch, FlatNetwork, pull_back, train_on

LATEST = 3  # learned learning rates that a diagnosis names
FAR = 10  # a rate that changed by more than this factor is what made a run diverge


class TrajectoryMatchingConfig(PluginConfig):
    """Settings of trajectory matching."""

    syn_steps: int = Field(50, ge=1, description="SGD steps on synthetic images, T")
    expert_epochs: int = Field(2, ge=1, description="epochs of the expert that they replace, M")
    max_start_epoch: int = Field(2, ge=1, description="the start is drawn from the epochs before this one")
    batch_syn: int | None = Field(None, ge=1, description="synthetic images a step; None: all")
    start_lr: float = Field(0.01, gt=0, description="learning rate of the SGD steps before it is learned")
    lr_lr: float = Field(1e-7, ge=0, description="learning rate of that learning rate; 0: it stays")
    lr_momentum: float = Field(0.5, ge=0, lt=1, description="momentum of that learning rate")
    lr_floor: float | None = Field(None, gt=0, description="least learning rate; None: unconstrained")
    gradient: Literal["exact", "tesla"] = Field("exact", description="through all steps, or TESLA's truncated one")
    strategy: str = Field("auto", description="DSA, not siamese, drawn anew every step; auto: the field's")
    experts: int = Field(100, ge=1, le=MAX_EXPERTS, description="expert trajectories")
    training_epochs: int = Field(50, ge=1, description="epochs of each expert")
    training_lr: float = Field(0.01, gt=0, description="learning rate of the experts, plain SGD")
    training_batch: int = Field(256, ge=1, description="real images an update of the experts")
    training_strategy: str = Field("auto", description="DSA of the experts' training; auto: the field's")

    def recipe(self, network: Mapping[str, Any]) -> ExpertRecipe:
        """How the experts are trained."""
        return ExpertRecipe(
            network=dict(network),
            epochs=self.training_epochs,
            lr=self.training_lr,
            batch_size=self.training_batch,
            strategy=self.training_strategy,
        )


class TrajectoryMatching(MatchingObjective, NeedsArtifacts):
    """``|| theta_T - theta*_{t+M} ||^2 / || theta*_t - theta*_{t+M} ||^2``.

    Attributes:
        lr: The learning rate of the SGD steps, learned during the run.
    """

    check_settings: ClassVar[Mapping[str, Any]] = {
        "syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 2, "experts": 2, "training_epochs": 3, "batch_syn": 8,
        "training_batch": 16,
    }  # fmt: skip

    class Config(TrajectoryMatchingConfig):
        """Settings of trajectory matching."""

    config: TrajectoryMatchingConfig

    def __init__(self, data: DataSpec, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        super().__init__(data, config)
        last = self.config.max_start_epoch - 1 + self.config.expert_epochs
        if last > self.config.training_epochs:
            raise UsageError(
                f"objective.max_start_epoch - 1 + expert_epochs = {last} is after the last of "
                f"objective.training_epochs = {self.config.training_epochs}"
            )
        strategy = default_strategy(data) if self.config.strategy == "auto" else self.config.strategy
        self.augmentation = Augmentation.dsa(strategy)
        if self.config.gradient == "tesla":
            self.inexact = "TESLA leaves out that an image changes the gradients of later steps"
        self.lr, self.lr_velocity = self.config.start_lr, 0.0
        self._latest: deque[float] = deque(maxlen=LATEST)  # learned rates of this session, for a diagnosis

    def artifacts(self, real: RealData, context: Context) -> Iterator[Artifact[Any]]:
        """The experts, which all runs share that need the same ones."""
        yield self._trajectories(real, context, sum(p.numel() for p in context.make_network(0).parameters()))

    def _trajectories(self, real: RealData, context: Context, size: int) -> ExpertTrajectories:
        recipe = self.config.recipe(context.network)
        return ExpertTrajectories(real, recipe, context.make_network, self.config.experts, size)

    def prepare(self, real: RealData, targets: Tensor, context: Context) -> None:
        """Trains the experts that are missing."""
        super().prepare(real, targets, context)
        self.network = FlatNetwork(context.make_network(0).train())
        trajectories = self._trajectories(real, context, sum(self.network.sizes))
        self.experts = context.artifacts.get(trajectories, context.job)

    def working_bytes(self, network_bytes: int) -> int:
        """The weights after every step."""
        return self.config.syn_steps * network_bytes

    def match(self, images: Tensor, targets: Tensor, step: int) -> Match:
        """One trajectory from an expert's weights, and the gradient through all of it."""
        del step
        start, goal = self._draw_pair()
        batches = [self._batch(rows, targets) for rows in self._rows(len(images))]
        trajectory = train_on(self.network, start, images, batches, self.lr)
        distance = (start - goal).square().sum()
        loss = (trajectory.last - goal).square().sum() / distance
        last_grad = 2 * (trajectory.last - goal) / distance
        truncated = self.config.gradient == "tesla"
        image_grad, lr_grad = pull_back(self.network, trajectory, images, batches, last_grad, truncated=truncated)
        self._learn_lr(float(lr_grad))
        return Match(loss, image_grad)

    def learned(self) -> dict[str, float]:
        """The learning rate of the SGD steps."""
        return {"lr": self.lr}

    def check_learned(self) -> None:
        """Stops a run whose learned learning rate is negative: its training would move away from the minimum."""
        if self.lr < 0:
            raise DivergedError(f"the learning rate of the SGD steps is negative; {self.diagnosis()}")

    def diagnosis(self) -> str:
        """How the learned learning rate has changed, and which setting to lower."""
        config, latest = self.config, list(self._latest) or [self.config.start_lr]
        course = ", ".join(f"{rate:.4g}" for rate in latest)
        history = f"the learned learning rate began at {config.start_lr:g}, its latest values are {course}"
        if config.start_lr / FAR < latest[-1] < config.start_lr * FAR:
            return f"{history}; a smaller optimizer.lr or objective.start_lr may help"
        floor = "" if config.lr_floor else ", or an objective.lr_floor,"
        return f"{history}; an objective.lr_lr below {config.lr_lr:g}{floor} may help"

    def state_dict(self) -> dict[str, Tensor]:
        """The learning rate, its velocity and the generator."""
        lr = torch.tensor([self.lr, self.lr_velocity], dtype=torch.float64)
        return {"lr": lr, "generator": self.context.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.lr, self.lr_velocity = state["lr"].tolist()
        self.context.generator.set_state(state["generator"])

    def _draw_pair(self) -> tuple[Tensor, Tensor]:
        generator = self.context.generator
        number = int(torch.randint(self.config.experts, (), generator=generator))
        epoch = int(torch.randint(self.config.max_start_epoch, (), generator=generator))
        return self.experts.pair(number, epoch, epoch + self.config.expert_epochs)

    def _rows(self, count: int) -> list[Tensor]:
        """Which images each step sees: a fresh order of all of them whenever the last one is used up.

        Where the container has groups (HaBa's hallucinators), each step takes its images from one group, drawn anew.
        """
        generator, groups = self.context.generator, self.context.groups
        if groups is None:
            members = [torch.arange(count)]
        else:
            members = [rows.cpu() for rows in (torch.nonzero(groups == k).flatten() for k in groups.unique().tolist())]
        queues: list[list[Tensor]] = [[] for _ in members]
        chosen = []
        for _ in range(self.config.syn_steps):
            k = int(torch.randint(len(members), (), generator=generator)) if len(members) > 1 else 0
            if not queues[k]:
                order = members[k][torch.randperm(len(members[k]), generator=generator)]
                queues[k] = list(torch.split(order, self.config.batch_syn or len(order)))
            chosen.append(queues[k].pop())
        return chosen

    def _batch(self, rows: Tensor, targets: Tensor) -> Batch:
        draw = self.augmentation.draw(len(rows), self.context.generator)
        rows = rows.to(targets.device)
        return Batch(rows, targets[rows], lambda images: self.augmentation(images, draw))

    def _learn_lr(self, gradient: float) -> None:
        self.lr_velocity = self.config.lr_momentum * self.lr_velocity + gradient
        self.lr -= self.config.lr_lr * self.lr_velocity
        if self.config.lr_floor is not None:
            self.lr = max(self.lr, self.config.lr_floor)
        if isfinite(self.lr):
            self._latest.append(self.lr)
