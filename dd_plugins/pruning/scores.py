"""Scores of single images, from one training that is watched for all images and all networks at once.

Source:
    aum: Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", NeurIPS 2020, Eq. 1.
    aum-probability: the same on probabilities, as in Zheng et al., "Coverage-centric Coreset Selection for High Pruning
    Rates", ICLR 2023, released code. el2n, grand: Paul et al., "Deep Learning on a Data Diet", NeurIPS 2021.
    forgetting: Toneva et al., ICLR 2019. herding: Welling, ICML 2009, in feature space. k-center: Sener & Savarese,
    "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018, Algorithm 1 (greedy).
Deviations:
    Images are watched in one clean pass behind every epoch, not in the augmented batches of the training. An image that
    was never classified right counts as forgotten at every epoch (the code of Zheng et al. gives it 0, as if it had
    never been forgotten). ``el2n`` is a mean, over the first ten epochs; ``grand`` is taken after the tenth.
    ``k-center`` works class by class and starts from the image nearest to the class mean, where the paper starts from
    the labelled pool of active learning; features are normalised to length 1, and several networks' are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

from dd_plugins.api import DataSpec, Network
from dd_plugins.training import OnEpoch, TrainConfig, train_networks

EARLY = 10  # epochs that el2n and grand look at
CHUNK = 512  # images of a clean pass at once
GRADIENTS = 64  # gradients of single images held at once

# Whether a large score tells of an easy image.
EASY_IS_HIGH = {
    "aum": True,
    "aum-probability": True,
    "el2n": False,
    "forgetting": False,
    "entropy": False,
    "loss": False,
    "grand": False,
    "random": True,
    "herding": True,
    "k-center": True,
}
SCORES = tuple(EASY_IS_HIGH)
OF_FEATURES = ("herding", "k-center")  # scores that need a network with features


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


class Watch:
    """What one network's training tells about every image; its memory does not grow with the epochs."""

    def __init__(self, targets: Tensor) -> None:
        self.targets, self.epochs = targets, 0
        zeros = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)
        self.margins, self.probability_margins, self.errors = zeros.clone(), zeros.clone(), zeros.clone()
        self.forgotten, self.entropy, self.loss = zeros.clone(), zeros.clone(), zeros.clone()
        self.right = torch.zeros_like(targets, dtype=torch.bool)
        self.ever_right = self.right.clone()

    def see(self, logits: Tensor) -> None:
        """One clean pass over all images: float, ``(N, classes)``."""
        targets = self.targets
        self.epochs += 1
        self.margins += margin(logits, targets)
        self.probability_margins += margin(logits.double().softmax(1), targets)
        if self.epochs <= EARLY:
            self.errors += error_norm(logits, targets)
        right = logits.argmax(1) == targets
        self.forgotten += self.right & ~right
        self.right, self.ever_right = right, self.ever_right | right
        self.entropy = entropy(logits)
        self.loss = functional.cross_entropy(logits.double(), targets, reduction="none")

    def scores(self) -> dict[str, Tensor]:
        """Every score that logits alone decide: float64, ``(N,)`` each."""
        never = torch.full_like(self.forgotten, self.epochs)
        return {
            "aum": self.margins / self.epochs,
            "aum-probability": self.probability_margins / self.epochs,
            "el2n": self.errors / min(self.epochs, EARLY),
            "forgetting": torch.where(self.ever_right, self.forgotten, never),
            "entropy": self.entropy,
            "loss": self.loss,
        }


def watched_training(
    networks: Sequence[Network],
    images: Tensor,
    targets: Tensor,
    config: TrainConfig,
    data: DataSpec,
    *,
    seeds: Sequence[int],
    wanted: str | None = None,
    on_update: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Trains networks on all images and returns what each image's score is, averaged over the networks.

    Args:
        networks: Fresh ones of one architecture; trained in place.
        images: Float, ``(N, C, H, W)``, model space.
        targets: int64, ``(N,)``.
        config: The training; its epochs are those that are watched.
        data: For the default augmentation.
        seeds: One for each network.
        wanted: The one score that matters, if there is one: ``grand``, ``herding`` and ``k-center`` cost passes of
            their own and are computed on demand only, and a training whose end does not matter ends early.
        on_update: Called with (updates done, updates in all).

    Returns:
        For each score float64, ``(N,)``.

    Raises:
        IncompatibleError: If the score needs features and the networks have none, before they are trained.
    """
    if wanted in OF_FEATURES:
        features(networks[0], images[:2])
    watches = [Watch(targets) for _ in networks]
    gradients: dict[int, Tensor] = {}

    def look(number: int, network: torch.nn.Module, epoch: int) -> bool:
        network.eval()
        with torch.no_grad():
            watches[number].see(torch.cat([network(chunk) for chunk in torch.split(images, CHUNK)]))
        if wanted == "grand" and epoch == min(EARLY, config.epochs):
            gradients[number] = gradient_norms(network, images, targets)
        return wanted in ("el2n", "grand") and epoch == EARLY

    on_epoch: OnEpoch = look
    train_networks(networks, images, targets, config, data, seeds=seeds, on_update=on_update, on_epoch=on_epoch)
    found = [watch.scores() for watch in watches]
    scores = {name: torch.stack([own[name] for own in found]).mean(0) for name in found[0]}
    if wanted == "grand":
        scores["grand"] = torch.stack([gradients[number] for number in range(len(networks))]).mean(0)
    if wanted == "herding":
        scores["herding"] = torch.stack([herding(features(n, images), targets) for n in networks]).mean(0)
    if wanted == "k-center":
        scores["k-center"] = k_center([features(network, images) for network in networks], targets)
    return scores


@torch.no_grad()
def features(network: Network, images: Tensor) -> Tensor:
    """Features in evaluation mode: float, ``(N, D)``."""
    network.eval()
    return torch.cat([network.embed(chunk) for chunk in torch.split(images, CHUNK)])


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


def herding(found: Tensor, targets: Tensor) -> Tensor:
    """How early greedy herding takes each image of its class: the first has the largest score.

    In every class the next image is the one that brings the mean of those taken closest to the mean of all.

    Args:
        found: Features, float ``(N, D)``; normalised to length 1 here.
        targets: int64, ``(N,)``.

    Returns:
        float64, ``(N,)``: the class's images left when it was taken.
    """
    score = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)
    for label in targets.unique().tolist():
        rows = torch.nonzero(targets == label).flatten()
        own = functional.normalize(found[rows].double())
        lengths, to_goal, to_taken = own.square().sum(1), own @ own.mean(0), torch.zeros_like(own[:, 0])
        free = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        for count in range(1, len(rows) + 1):
            # count^2 || goal - (taken + x) / count ||^2, without what is the same for every x
            gaps = lengths + 2 * (to_taken - count * to_goal)
            best = int(gaps.masked_fill(~free, float("inf")).argmin())
            free[best] = False
            to_taken += own @ own[best]
            score[rows[best]] = len(rows) - count
    return score


def k_center(found: Sequence[Tensor], targets: Tensor) -> Tensor:
    """How early greedy k-center takes each image of its class: the first has the largest score.

    The first center of a class is the image nearest to the mean of its features; each next one is the image farthest
    from its nearest center. Equal distances go to the lowest index. Memory is one distance an image.

    Args:
        found: Features of each network, float ``(N, D)``; normalised to length 1 here. Squared distances are summed
            over the networks.
        targets: int64, ``(N,)``.

    Returns:
        float64, ``(N,)``: the class's images left when it was taken.
    """
    score = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)
    for label in targets.unique().tolist():
        rows = torch.nonzero(targets == label).flatten()
        own = torch.cat([functional.normalize(part[rows].double()) for part in found], dim=1)
        center = int(_distances(own, own.mean(0)).argmin())
        nearest = torch.full((len(rows),), float("inf"), dtype=torch.float64, device=rows.device)
        for left in range(len(rows) - 1, -1, -1):
            score[rows[center]] = left
            nearest = torch.minimum(nearest, _distances(own, own[center]))
            nearest[center] = -1  # taken: below the distance of every image that is left
            center = int(nearest.argmax())
    return score


def _distances(points: Tensor, center: Tensor) -> Tensor:
    """Euclidean distances to one point, float ``(n,)``; exactly 0 for equal points, as no dot product gives them."""
    return torch.cdist(points, center[None], compute_mode="donot_use_mm_for_euclid_dist").squeeze(1)


def random_scores(count: int, generator: Generator) -> Tensor:
    """float64, ``(count,)``, uniform."""
    return torch.rand(count, dtype=torch.float64, generator=generator)
