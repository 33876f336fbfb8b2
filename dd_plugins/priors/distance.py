"""How far synthetic images are from real ones where a trained classifier looks: no network is trained to find out.

Source:
    H-PD ("Hierarchical Features Matter", CVPR 2025, arXiv 2406.05704) chooses among candidates by a class-relevant
    feature distance; class activation maps: Zhou et al., CVPR 2016, arXiv 1512.04150.
Deviations:
    The paper's equation could not be read, and its released code compares features of untrained networks that differ
    between the two sides. This one is ours: features are the last maps of one classifier that is trained on real
    images; each counts as much as the classifier's weight for the class says, in units of its spread within classes.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd_plugins.api import (
    DataError,
    DataSpec,
    DivergedError,
    IncompatibleError,
    Network,
    RealData,
    SyntheticFileError,
    read_tensors,
    write_tensors,
)
from dd_plugins.api.progress import StartJob, silent_job
from dd_plugins.errors import is_out_of_memory
from dd_plugins.priors.gates import learned_nothing
from dd_plugins.priors.store import one_at_a_time
from dd_plugins.seeds import seed_for
from dd_plugins.training import TrainConfig, accuracy, train_networks

logger = logging.getLogger(__name__)
FOLDER = "judges"
CHUNK = 512
EPSILON = 1e-6
UPDATES = 600
VERSION = 1  # part of a judge's name; to be raised with any change that moves its weights


class ClassRelevantDistance:
    """``d(S) = 1/C sum_c sum_e a_ce ((mean_{s in S_c} A_e(s) - mu_ce) / sigma_e)^2``.

    ``A`` are the last maps of a frozen classifier, ``mu`` their means over all real images of the class, ``sigma`` the
    deviation of each channel within classes, and ``a_ce = |w_ce| / sum_e' |w_ce'|`` the classifier's weights.
    :meth:`of_activations` is a variant, which sees where in an image its class is found, and nothing else.

    Args:
        network: A classifier, trained on real images: its logits are linear in the features that it embeds images in.
        real: Whose training images are the other side.

    Raises:
        IncompatibleError: If the classifier's weights do not fit its features.
    """

    def __init__(self, network: Network, real: RealData) -> None:
        self.network, self.classes = network.eval().requires_grad_(False), real.spec.num_classes
        self.head = _head(network, real.spec)
        weights = self.head.flatten(1).abs()
        self.weights = weights / weights.sum(1, keepdim=True)
        means, squares, activations = [], [], []
        for label, rows in enumerate(real.train.class_rows()):
            found = torch.cat([self._maps(real.train.images(part)) for part in rows.split(CHUNK)])
            means.append(found.mean(0))
            squares.append((found - found.mean(0)).square().mean((0, 2, 3)))
            activations.append(self._activations(found, torch.full_like(rows, label)).mean(0))
        self.means, self.activations = torch.stack(means).flatten(1), torch.stack(activations)
        sigma = torch.stack(squares).mean(0).sqrt().clamp(min=EPSILON)
        self.sigma = sigma.view(-1, 1, 1).expand(found.shape[1:]).flatten()

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> float:
        """The distance of a set.

        Args:
            images: Float, ``(N, C, H, W)``, model space.
            labels: int64, ``(N,)``; every class once at least.
        """
        found = torch.cat([self._maps(chunk) for chunk in images.split(CHUNK)]).flatten(1)
        gaps = (self._class_means(found, labels) - self.means) / self.sigma
        return float((self.weights * gaps.square()).sum(1).mean())

    @torch.no_grad()
    def of_activations(self, images: Tensor, labels: Tensor) -> float:
        """The variant on class activation maps: mean squared gap of ``relu(CAM) / max``, averaged over each class.

        Where the last maps are of one pixel (8x8 images through three poolings) it tells only how many images are
        found to be of their class at all.

        Args:
            images: Float, ``(N, C, H, W)``, model space.
            labels: int64, ``(N,)``; every class once at least.
        """
        chunks = zip(images.split(CHUNK), labels.split(CHUNK), strict=True)
        found = torch.cat([self._activations(self._maps(shown), of_these) for shown, of_these in chunks])
        return float((self._class_means(found, labels) - self.activations).square().mean())

    def _activations(self, maps: Tensor, labels: Tensor) -> Tensor:
        """Class activation maps over their maximum: ``(N, h, w)``; zero where nothing speaks for the class."""
        seen = (self.head[labels] * maps).sum(1).relu()
        return seen / seen.amax((1, 2), keepdim=True).clamp(min=EPSILON)

    def _class_means(self, found: Tensor, labels: Tensor) -> Tensor:
        sums = found.new_zeros(self.classes, *found.shape[1:]).index_add(0, labels, found)
        counts = torch.bincount(labels, minlength=self.classes).clamp(min=1).to(sums.dtype)
        return sums / counts.view(-1, *[1] * (found.ndim - 1))

    @torch.no_grad()
    def _maps(self, images: Tensor) -> Tensor:
        maps: Tensor = self.network.taps(images)[-1]
        return maps


def check_judge(network: Network, data: DataSpec) -> None:
    """Raises an IncompatibleError if a network has no maps for the distance, or is not linear in them."""
    _head(network, data)


def _head(network: Network, data: DataSpec) -> Tensor:
    """What each number of the last maps adds to the logit of each class: ``(classes, c, h, w)``, frozen.

    Where the classifier sees the mean of a map, all of its pixels have the same weight.
    """
    with torch.no_grad():
        shape = network.taps(torch.zeros(2, *data.image_shape, device=next(network.parameters()).device))[-1].shape[1:]
    found = [p.detach() for p in network.parameters() if p.ndim == 2][-1:]
    channels, height, width = shape
    if found and tuple(found[0].shape) == (data.num_classes, shape.numel()):
        return found[0].view(data.num_classes, *shape)
    if found and tuple(found[0].shape) == (data.num_classes, channels):
        return (found[0] / (height * width))[:, :, None, None].expand(-1, -1, height, width)
    raise IncompatibleError(
        f"the distance needs a classifier that is linear in its last maps, but {type(network).__name__} has "
        f"{tuple(found[0].shape) if found else 'no'} weights for maps of {tuple(shape)}"
    )


def find_judge(
    real: RealData,
    network: Mapping[str, Any],
    make_network: Callable[[int], Network],
    cache: Path | None,
    job: StartJob = silent_job,
) -> Network:
    """The classifier that judges sets of a data set: trained once on its training split, then read.

    Args:
        real: The data set.
        network: The classifier's name and settings, for its file's name.
        make_network: From a seed to a fresh classifier.
        cache: Folder that all runs share; None to keep nothing.
        job: Shows the progress of a training.

    Raises:
        IncompatibleError: If the network has no maps for the distance, or is not linear in them.
        DataError: If the file in the folder is damaged.
    """
    count = len(real.train)
    recipe = TrainConfig(
        epochs=max(1, UPDATES // -(-count // 256)), lr=0.02, schedule="cosine", augmentation="dsa", strategy="auto"
    )
    content = {
        "version": VERSION,
        "data": real.spec.fingerprint,
        "network": dict(network),
        "train": recipe.model_dump(mode="json"),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    file = None if cache is None else cache / FOLDER / f"{real.spec.name}-{digest}.safetensors"
    judge = make_network(seed_for("judge", 0))
    check_judge(judge, real.spec)
    if file is None:
        _train(judge, recipe, real, job)
        return judge
    if not file.exists():
        with one_at_a_time(file.with_suffix(".lock"), f"the classifier of {real.spec.name} for distances", job):
            if not file.exists():
                _train(judge, recipe, real, job)
                reached = accuracy(judge, real.validation.images, real.validation.labels)
                write_tensors(file, dict(judge.state_dict()), {"validation_accuracy": f"{reached:.4f}"})
    try:
        tensors, notes = read_tensors(file)
        judge.load_state_dict(tensors)
        reached = float(notes["validation_accuracy"])
    except (SyntheticFileError, RuntimeError, KeyError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        why = " ".join(str(error).split())[:200]
        raise DataError(f"{file} holds no classifier of this kind ({why}); remove it to train it again") from None
    if learned_nothing(reached, 1 / real.spec.num_classes):
        logger.warning("the classifier that judges candidates reaches %.3f only: it hardly tells them apart", reached)
    return judge


def _train(judge: Network, recipe: TrainConfig, real: RealData, job: StartJob) -> None:
    """Trains the classifier in place.

    Raises:
        DivergedError: If its weights are NaN or infinite in the end.
    """
    train = real.train
    with job("train the judge", recipe.epochs * -(-len(train) // recipe.batch_size)) as update:
        train_networks(
            [judge],
            train.images,
            train.labels,
            recipe,
            real.spec,
            seeds=[seed_for("judge", 1)],
            on_update=lambda done, total: update(done),
        )
    if any(not bool(value.isfinite().all()) for value in judge.state_dict().values()):
        raise DivergedError("the classifier that judges candidates diverged; another network (network.*) may help")
