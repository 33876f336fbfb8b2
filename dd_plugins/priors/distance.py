"""How far synthetic images are from real ones in the features of a trained classifier; no network is trained on them.

Source:
    H-PD ("Hierarchical Features Matter", CVPR 2025, arXiv 2406.05704) chooses among candidates by a class-relevant
    feature distance; class activation maps: Zhou et al., CVPR 2016, arXiv 1512.04150.
Deviations:
    The paper's equation could not be read, and its released code compares features of untrained networks that differ
    between the two sides. This one is ours: features are the last maps of one classifier that is trained on real
    images; each is weighted by the classifier's weight for the class, in units of its deviation within classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dd_plugins.api import DataSpec, IncompatibleError, Network, RealData

CHUNK = 512
EPSILON = 1e-6


class ClassRelevantDistance:
    """``d(S) = 1/C sum_c sum_e a_ce ((mean_{s in S_c} A_e(s) - mu_ce) / sigma_e)^2``.

    ``A`` are the last maps of a frozen classifier, ``mu`` their means over all real images of the class, ``sigma`` the
    deviation of each channel within classes, and ``a_ce = |w_ce| / sum_e' |w_ce'|`` the classifier's weights.
    :meth:`of_activations` is a variant that only sees where in an image its class is found.

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

        Where the last maps are of one pixel (8x8 images through three poolings) it only shows how many images are
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


def check_reference_network(network: Network, data: DataSpec) -> None:
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
