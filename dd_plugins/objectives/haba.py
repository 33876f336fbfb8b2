"""HaBa's matching: trajectory matching, and an adversary that keeps what hallucinators make of one base apart.

Source:
    Liu et al., "Dataset Distillation via Factorization", NeurIPS 2022, arXiv 2210.16774, Eqs. 4 to 6, and its released
    code; SupCon: Khosla et al., NeurIPS 2020, arXiv 2004.11362, Eq. 2.
Deviations:
    Minibatches are not standardised by their own mean and deviation, neither here nor in the experts' training: with
    instance norm it makes next to no difference, and a shared evaluator must not look at a test batch as a whole.
    The adversary takes its step before the container does, on the images of that step. In the code it takes it after
    the container, on images that are decoded again; here nothing is decoded twice, and the adversary that the next
    step meets has seen images that are one update older.
    With ``batch_syn`` set, each hallucinator goes through its own order of the bases; the code has one for all.
    Needs a container whose images come in groups, one for each hallucinator, in the same order of bases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from dd_plugins.api import Context, DataSpec, IncompatibleError, Match, Network, PluginConfig, RealData
from dd_plugins.matching import TrainedNetwork
from dd_plugins.trajectories import TrajectoryMatching, TrajectoryMatchingConfig

PREFIX = "adversary."


class HaBaMatching(TrajectoryMatching):
    """Trajectory matching with the contrastive term of HaBa."""

    api_version = 2

    class Config(TrajectoryMatchingConfig):
        """Settings of HaBa's matching."""

        lr_momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the learning rate of the SGD steps")
        lr_floor: float | None = Field(1e-3, gt=0, description="least learning rate; None: unconstrained")
        adversarial_weight: float = Field(0.1, ge=0, description="weight of the similarity that images avoid")
        classification_weight: float = Field(1.0, ge=0, description="adversary: weight of its cross entropy")
        likeness_weight: float = Field(0.1, ge=0, description="adversary: weight of two views of a base being alike")
        contrast_weight: float = Field(0.1, ge=0, description="adversary: weight of the supervised contrastive loss")
        temperature: float = Field(0.07, gt=0, description="of the supervised contrastive loss")
        adversary_lr: float = Field(1e-3, gt=0, description="learning rate of the adversary")
        adversary_momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the adversary")

    config: Config

    def __init__(self, data: DataSpec, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        super().__init__(data, config)
        self.adversary: TrainedNetwork | None = None

    def check(self, targets: Tensor, groups: Tensor | None, network: Network) -> None:
        """The container must have groups, all of the same classes, and the network features."""
        _members(targets, groups)
        with torch.no_grad():
            network.embed(torch.zeros(2, *self.data.image_shape))

    def prepare(self, real: RealData, targets: Tensor, context: Context) -> None:
        """Finds the images of each hallucinator, and builds the adversary."""
        self.members = _members(targets, context.groups)
        super().prepare(real, targets, context)
        if len(self.members) > 1:
            self.adversary = self._build(seed=context.draw_seed())

    def match(self, images: Tensor, targets: Tensor, step: int) -> Match:
        """Trajectory matching plus ``weight * mean (cos(E(h1(B)), E(h2(B))) + 1) / 2`` for two random hallucinators."""
        match = super().match(images, targets, step)
        if self.adversary is None:  # one hallucinator alone has nothing to be told apart from
            return match
        first, second = self._two()
        leaf = images.detach().requires_grad_()
        network = self.adversary.network.train()
        one, two = self._views(leaf, first, second)
        likeness = self._likeness(network.embed(one), network.embed(two))
        penalty = self.config.adversarial_weight * likeness
        (grad,) = torch.autograd.grad(penalty, leaf)
        self._train_adversary(images.detach(), targets)
        return Match(match.loss + penalty.detach(), match.image_grad + grad)

    def state_dict(self) -> dict[str, Tensor]:
        """The learning rate, the generator and the adversary."""
        own = {} if self.adversary is None else self.adversary.state_dict()
        return {**super().state_dict(), **{f"{PREFIX}{name}": value for name, value in own.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        own = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        if own:
            self.adversary = self._build(seed=0)
            self.adversary.load_state_dict(own)

    def _train_adversary(self, images: Tensor, targets: Tensor) -> None:
        """One step of the adversary: it classifies, finds two views of a base alike, and contrasts the classes."""
        if self.adversary is None:
            return
        config, network = self.config, self.adversary.network
        first, second = self._two()
        one, two = self._views(images, first, second)
        labels = targets[torch.cat([first, second])]
        views = torch.cat([one, two])
        features = network.embed(views)
        own, other = features.chunk(2)
        loss = (
            config.classification_weight * functional.cross_entropy(network(views), labels)
            + config.likeness_weight * (1 - self._likeness(own, other))
            + config.contrast_weight * supervised_contrast(features, labels, config.temperature)
        )
        self.adversary.optimizer.zero_grad()
        loss.backward()
        self.adversary.optimizer.step()
        self.adversary.updates += 1

    def _two(self) -> tuple[Tensor, Tensor]:
        """The images of two different hallucinators, bases in the same order."""
        chosen = torch.randperm(len(self.members), generator=self.context.generator)[:2].tolist()
        return self.members[chosen[0]], self.members[chosen[1]]

    def _views(self, images: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        draw = self.augmentation.draw(2 * len(first), self.context.generator)
        one, two = self.augmentation(images[torch.cat([first, second])], draw).chunk(2)
        return one, two

    def _likeness(self, first: Tensor, second: Tensor) -> Tensor:
        """The cosine of two views' features, mapped to [0, 1]; its complement is ``(1 - cos) / 2``."""
        return (functional.cosine_similarity(first, second) + 1).mean() / 2

    def _build(self, seed: int) -> TrainedNetwork:
        network = self.context.make_network(seed)
        return TrainedNetwork(network, self.config.adversary_lr, self.config.adversary_momentum, 0.0, seed)


def _members(targets: Tensor, groups: Tensor | None) -> list[Tensor]:
    """The images of each group."""
    if groups is None:
        raise IncompatibleError(
            "objective haba needs a container with shared components, such as haba; for others take mtt"
        )
    members = [torch.nonzero(groups == k).flatten() for k in groups.unique().tolist()]
    if any(not torch.equal(targets[rows], targets[members[0]]) for rows in members):
        raise IncompatibleError("objective haba needs the same classes in every group of images")
    return members


def supervised_contrast(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """SupCon, Eq. 2: ``-mean_i 1/|P(i)| sum_{p in P(i)} log(exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t))``.

    Args:
        features: Float, ``(N, D)``; normalised here.
        labels: int64, ``(N,)``; every label must occur twice at least.
        temperature: t.
    """
    unit = functional.normalize(features)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    logits = (unit @ unit.T / temperature).masked_fill(itself, float("-inf"))
    log_share = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(itself, 0.0)
    positive = (labels[:, None] == labels) & ~itself
    return -(log_share * positive).sum(1).div(positive.sum(1)).mean()
