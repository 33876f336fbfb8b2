"""The contract of a matching objective: it sees images, never the container that made them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from dd_plugins.api.artifacts import ArtifactStore, MemoryArtifacts
from dd_plugins.api.config import PluginConfig, parse_config
from dd_plugins.api.data import DataSpec
from dd_plugins.api.network import Network
from dd_plugins.api.progress import StartJob, silent_job
from dd_plugins.api.real_data import RealData
from dd_plugins.errors import PluginContractError


@dataclass(frozen=True)
class Context:
    """What an objective is given to work with.

    Attributes:
        make_network: Builds a freshly initialised network in model space from a seed.
        generator: The objective's own source of randomness, on the CPU.
        steps: Steps that this run will take.
        device: Where the images are.
        artifacts: Makes and keeps results of one-off work that runs share; by default in memory, for this context only.
        groups: int64, ``(N,)``: which of its shared components made each synthetic image, where the container has such
            a structure (:meth:`Grouped.groups`); else None.
        network: The network's name and settings, which are part of the keys of artifacts.
        job: Shows how far a costly piece of one-off work is: ``with context.job("experts", total) as update:
            update(done)``.
    """

    make_network: Callable[[int], Network]
    generator: Generator
    steps: int
    device: torch.device
    artifacts: ArtifactStore = field(default_factory=MemoryArtifacts)
    groups: Tensor | None = None
    network: Mapping[str, Any] = field(default_factory=dict)
    job: StartJob = silent_job

    def draw_seed(self) -> int:
        """A fresh seed, drawn from :attr:`generator`: for a network, say."""
        return int(torch.randint(2**62, (), generator=self.generator))


@dataclass(frozen=True)
class Match:
    """What matching returns.

    Attributes:
        loss: Float, scalar.
        image_grad: Float, like the images: d loss / d images. Networks that were trained on the images are held fixed.
        target_grad: Float, like the targets, where soft labels are learned; else None.
    """

    loss: Tensor
    image_grad: Tensor
    target_grad: Tensor | None = None


class MatchingObjective(ABC):
    """Base of every objective.

    Authors write :meth:`match`; :meth:`prepare` for one-off work, and :meth:`state_dict` / :meth:`load_state_dict` if
    anything is carried from step to step, so that an interrupted run goes on bit by bit as if nothing had happened.

    Attributes:
        inexact: Why ``image_grad`` is on purpose not the gradient of the loss at the first step; empty where it is, as
            conformance checks test. An objective that decides it by a setting sets it in its constructor.
    """

    api_version: ClassVar[int]  # declared by each plugin class itself: the release of this contract it is written for
    inexact: str = ""
    check_settings: ClassVar[Mapping[str, Any]] = {}  # what conformance checks run with, where defaults take long

    class Config(PluginConfig):
        """Settings of the objective; override with a subclass."""

    real: RealData
    context: Context
    targets: Tensor

    def __init__(self, data: DataSpec, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        self.data = data
        self.config: PluginConfig = parse_config(type(self).Config, config, "objective")

    def check(self, targets: Tensor, groups: Tensor | None, network: Network) -> None:
        """Refuses what it cannot work with, before a run writes anything; by default it works with everything.

        Args:
            targets: Labels of all synthetic images, int64, ``(N,)``, on the CPU.
            groups: As in :class:`Context`.
            network: One that :attr:`Context.make_network` would build, on the CPU.

        Raises:
            IncompatibleError: In one line, what is missing.
        """
        del targets, groups, network

    def working_bytes(self, network_bytes: int) -> int:
        """Bytes that a step holds at the least besides one network and the synthetic images; 0 by default.

        For the estimate that refuses a run before it starts: arithmetic alone, and only what is certain.

        Args:
            network_bytes: Bytes of one network.
        """
        del network_bytes
        return 0

    def prepare(self, real: RealData, targets: Tensor, context: Context) -> None:
        """Takes the real data, the labels of all synthetic images (int64, ``(N,)``), and does one-off work."""
        self.real, self.targets, self.context = real, targets, context

    def select(self, step: int) -> Tensor:
        """The synthetic images that this step needs: int64, ``(B,)``; all by default."""
        del step
        return torch.arange(len(self.targets), device=self.targets.device)

    @abstractmethod
    def match(self, images: Tensor, targets: Tensor, step: int) -> Match:
        """Compares synthetic with real images.

        Args:
            images: Float, ``(B, C, H, W)``, model space, detached.
            targets: int64, ``(B,)``.
            step: Counts from 0.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """All that is carried from step to step, as tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what :meth:`state_dict` returned; called after :meth:`prepare`."""
        del state

    def learned(self) -> dict[str, float]:
        """What the objective has learned besides the images, for the record: a learning rate, say."""
        return {}

    def check_learned(self) -> None:
        """Called after each step of a run with a finite loss; accepts everything by default.

        Raises:
            DivergedError: If what the objective has learned besides the images is of no use any more.
        """
        return

    def diagnosis(self) -> str:
        """What it knows about a run that diverged, in words: how what it learns has changed, and what to lower.

        Asked for when a loss or a gradient is NaN or infinite; empty by default.
        """
        return ""


class DifferentiableObjective(MatchingObjective):
    """For authors who only want to write a loss; autograd does the rest."""

    @abstractmethod
    def loss(self, images: Tensor, targets: Tensor, step: int) -> Tensor:
        """A scalar that can be differentiated with respect to ``images``."""

    def match(self, images: Tensor, targets: Tensor, step: int) -> Match:
        """Differentiates :meth:`loss`."""
        leaf = images.detach().requires_grad_()
        loss = self.loss(leaf, targets, step)
        (image_grad,) = torch.autograd.grad(loss, leaf)
        return Match(loss.detach(), image_grad)


def checked_match(objective: MatchingObjective, images: Tensor, targets: Tensor, step: int) -> Match:
    """Calls ``objective.match`` and checks what comes back.

    Raises:
        PluginContractError: Naming the objective, what was expected and what came.
    """
    match = objective.match(images, targets, step)
    name = type(objective).__name__
    if not isinstance(match, Match):
        raise PluginContractError(f"{name}.match: expected a Match, but got {type(match).__name__}")
    if match.loss.numel() != 1:
        raise PluginContractError(f"{name}.match: expected a scalar loss, but got shape {tuple(match.loss.shape)}")
    if match.target_grad is not None:
        raise PluginContractError(f"{name}.match: learned labels are not supported yet, but it returned a target_grad")
    if match.image_grad.shape != images.shape:
        raise PluginContractError(
            f"{name}.match: expected an image gradient of shape {tuple(images.shape)}, but got "
            f"{tuple(match.image_grad.shape)}"
        )
    return match
