"""Scores from the logits of a training, gradient norms, and random scores.

Source:
    aum: Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", NeurIPS 2020, Eq. 1.
    aum-probability: the same on probabilities, as in Zheng et al., "Coverage-centric Coreset Selection for High Pruning
    Rates", ICLR 2023, released code. el2n, grand: Paul et al., "Deep Learning on a Data Diet", NeurIPS 2021.
    forgetting: Toneva et al., ICLR 2019.
Deviations:
    An image that was never classified correctly counts as forgotten at every epoch (the code of Zheng et al. gives it
    0, as if it had never been forgotten). ``el2n`` is a mean over the first ten epochs; ``grand`` is computed after the
    tenth.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional

from dd_plugins.api import Network
from dd_plugins.api.pruning import Score

EARLY = 10  # epochs that el2n and grand observe
GRADIENTS = 64  # gradients of single images in memory at once


def margin(values: Tensor, targets: Tensor) -> Tensor:
    """The value of the target class minus the largest other one.

    Args:
        values: Float, ``(N, classes)``: logits, or probabilities.
        targets: int64, ``(N,)``.

    Returns:
        float64, ``(N,)``.
    """
    values = values.double()
    own = values.gather(1, targets[:, None]).squeeze(1)
    return own - values.scatter(1, targets[:, None], float("-inf")).amax(1)


def error_norm(logits: Tensor, targets: Tensor) -> Tensor:
    """``|| softmax(z) - onehot(y) ||_2`` (Paul et al., Definition 2.2): float64, ``(N,)``."""
    probabilities = logits.double().softmax(1)
    return (probabilities - functional.one_hot(targets, logits.shape[1])).norm(dim=1)


def entropy(logits: Tensor) -> Tensor:
    """``- sum_c p_c log p_c``, in nats: float64, ``(N,)``."""
    return torch.special.entr(logits.double().softmax(1)).sum(1)


class EpochMean(Score):
    """The mean over networks and observed epochs of a value of each image."""

    from_logits: ClassVar[bool] = True

    def start(self, networks: Sequence[Network], images: Tensor, targets: Tensor, generator: Generator) -> None:
        """Begins with no epoch."""
        super().start(networks, images, targets, generator)
        shape = (len(networks), len(targets))
        self.total = torch.zeros(shape, dtype=torch.float64, device=targets.device)
        self.seen = [0] * len(networks)

    def update(self, number: int, logits: Tensor) -> None:
        """Adds the values of one epoch."""
        if self.epochs is None or self.seen[number] < self.epochs:
            self.total[number] += self.value(logits)
            self.seen[number] += 1

    def compute(self) -> Tensor:
        """float64, ``(N,)``."""
        return (self.total / self.total.new_tensor(self.seen)[:, None]).mean(0)

    @abstractmethod
    def value(self, logits: Tensor) -> Tensor:
        """The value of every image after one epoch: float64, ``(N,)``."""


class AUMScore(EpochMean):
    """Area under the margin: the logit of the image's class minus the largest other one, averaged over all epochs."""

    api_version = 2

    def value(self, logits: Tensor) -> Tensor:
        """The margin of logits."""
        return margin(logits, self.targets)


class AUMProbabilityScore(EpochMean):
    """Area under the margin of probabilities in the place of logits."""

    api_version = 2

    def value(self, logits: Tensor) -> Tensor:
        """The margin of probabilities."""
        return margin(logits.double().softmax(1), self.targets)


class EL2NScore(EpochMean):
    """The L2 norm of the error of the probabilities, averaged over the first ten epochs."""

    api_version = 2
    easy_is_high = False
    epochs = EARLY

    def value(self, logits: Tensor) -> Tensor:
        """The norm of the error."""
        return error_norm(logits, self.targets)


class LastEpoch(Score):
    """The mean over networks of a value of each image after the last epoch."""

    easy_is_high: ClassVar[bool] = False
    from_logits: ClassVar[bool] = True

    def start(self, networks: Sequence[Network], images: Tensor, targets: Tensor, generator: Generator) -> None:
        """Begins with no epoch."""
        super().start(networks, images, targets, generator)
        self.last: dict[int, Tensor] = {}

    def update(self, number: int, logits: Tensor) -> None:
        """Replaces the values of the epoch before."""
        self.last[number] = self.value(logits)

    def compute(self) -> Tensor:
        """float64, ``(N,)``."""
        return torch.stack([self.last[number] for number in range(len(self.networks))]).mean(0)

    @abstractmethod
    def value(self, logits: Tensor) -> Tensor:
        """The value of every image: float64, ``(N,)``."""


class EntropyScore(LastEpoch):
    """The entropy of the predicted probabilities after the training."""

    api_version = 2

    def value(self, logits: Tensor) -> Tensor:
        """The entropy, in nats."""
        return entropy(logits)


class LossScore(LastEpoch):
    """The cross entropy after the training."""

    api_version = 2

    def value(self, logits: Tensor) -> Tensor:
        """The cross entropy, in nats."""
        return functional.cross_entropy(logits.double(), self.targets, reduction="none")


class ForgettingScore(Score):
    """How often an image that was classified correctly is misclassified an epoch later."""

    api_version = 2
    easy_is_high = False
    from_logits = True

    def start(self, networks: Sequence[Network], images: Tensor, targets: Tensor, generator: Generator) -> None:
        """Begins with no epoch."""
        super().start(networks, images, targets, generator)
        shape, device = (len(networks), len(targets)), targets.device
        self.forgotten = torch.zeros(shape, dtype=torch.float64, device=device)
        self.right = torch.zeros(shape, dtype=torch.bool, device=device)
        self.ever_right, self.seen = self.right.clone(), [0] * len(networks)

    def update(self, number: int, logits: Tensor) -> None:
        """Counts the images that were forgotten in one epoch."""
        right = logits.argmax(1) == self.targets
        self.forgotten[number] += self.right[number] & ~right
        self.right[number] = right
        self.ever_right[number] |= right
        self.seen[number] += 1

    def compute(self) -> Tensor:
        """float64, ``(N,)``."""
        never = self.forgotten.new_tensor(self.seen)[:, None]
        return torch.where(self.ever_right, self.forgotten, never).mean(0)


class GraNdScore(Score):
    """The norm of the gradient of an image's loss in all weights, after ten epochs."""

    api_version = 2
    easy_is_high = False
    epochs = EARLY

    def compute(self) -> Tensor:
        """float64, ``(N,)``."""
        norms = [gradient_norms(network.eval(), self.images, self.targets) for network in self.networks]
        return torch.stack(norms).mean(0)


class RandomScore(Score):
    """A uniform random number for each image."""

    api_version = 2
    epochs = 0

    def compute(self) -> Tensor:
        """float64, ``(N,)``."""
        return torch.rand(len(self.targets), dtype=torch.float64, generator=self.generator)


def gradient_norms(network: torch.nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """GraNd: the norm of each image's own gradient of the cross entropy in all weights: float64, ``(N,)``.

    Needs a network whose images do not depend on each other, as all do in evaluation mode.
    """
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def loss(own: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        logits = torch.func.functional_call(network, (own, buffers), (image[None],))
        return functional.cross_entropy(logits, target[None])

    gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    norms = []
    with torch.no_grad():
        for batch, labels in zip(torch.split(images, GRADIENTS), torch.split(targets, GRADIENTS), strict=True):
            found = gradient(parameters, batch, labels)
            norms.append(sum(g.flatten(1).double().square().sum(1) for g in found.values()).sqrt())
    return torch.cat(norms)
