"""ZCA whitening of a whole data set, as trajectory matching uses it.

Source:
    Cazenavette et al., CVPR 2022, arXiv 2203.11932, released code: kornia's ZCA with epsilon 0.1, fitted on the
    training images in [0, 1], applied to train and test; mean and standard deviation of the channels are not used.
Deviations:
    Fitted on the training split alone, without the validation images.
    Whitened images are stored as floats that are scaled into [0, 1], and the spec's mean and deviation undo that
    scaling: so a container that makes pixels in [0, 1] reaches all of the whitened space.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from dd_plugins.api import DataError, DataSpec, RealData, SyntheticFileError, locked, read_tensors, write_tensors

EPSILON = 0.1  # added to every eigenvalue
MOST = 4096  # numbers in an image up to which its covariance is worth the memory
CHUNK = 4096  # images whitened at once
FILE = "zca-{}.safetensors"  # in the cache, by the fingerprint of the data set


@dataclass(frozen=True)
class Whitening:
    """Whitening of flattened images in [0, 1]: ``(x - mean) @ matrix``.

    Attributes:
        matrix: Float, ``(D, D)``.
        mean: Float, ``(1, D)``.
    """

    matrix: Tensor
    mean: Tensor

    def apply(self, images: Tensor) -> Tensor:
        """Whitens images: uint8 ``(N, C, H, W)`` to float ``(N, D)``."""
        return (_flat(images) - self.mean) @ self.matrix

    def invert(self, images: Tensor) -> Tensor:
        """Maps whitened images (float, ``(N, C, H, W)``) back to pixel values of the same shape, unclipped."""
        solved = torch.linalg.solve(self.matrix, images.flatten(1), left=False)
        return (solved + self.mean).view(images.shape)


def whitened(real: RealData, cache: Path) -> RealData:
    """The same data set in whitened space.

    Args:
        real: The data set.
        cache: Folder for the whitening matrix, which takes a minute to find; safe to delete.

    Returns:
        A data set of another fingerprint, whose ``pixels`` are float, ``(all rows, C, H, W)``, in [0, 1].

    Raises:
        DataError: If an image holds more than 4096 numbers.
    """
    size = prod(real.spec.image_shape)
    if size > MOST:
        raise DataError(f"data.zca: images of {size} numbers are too large to whiten; at most {MOST} are possible")
    whitening = _fitted(real, cache / FILE.format(real.spec.fingerprint))
    pixels = torch.empty(real.train.pixels.shape, dtype=torch.float32, device=real.device)
    for rows in torch.split(torch.arange(len(pixels)), CHUNK):
        pixels[rows] = whitening.apply(real.train.pixels[rows]).view(-1, *real.spec.image_shape)
    reach = float(pixels[real.train.index].abs().max())
    pixels.div_(2 * reach).add_(0.5)
    channels = real.spec.image_shape[0]
    spec = replace(
        real.spec,
        mean=(0.5,) * channels,
        std=(1 / (2 * reach),) * channels,
        fingerprint=_fingerprint(real.spec.fingerprint),
        origin=f"{real.spec.origin}, ZCA" if real.spec.origin else "ZCA",
    )
    splits = [replace(split, spec=spec, pixels=pixels) for split in (real.train, real.validation, real.test)]
    return replace(real, spec=spec, train=splits[0], validation=splits[1], test=splits[2])


def find_whitening(data: DataSpec, cache: Path) -> Whitening | None:
    """The whitening of a data set, from the cache; None if it is not there.

    Args:
        data: The spec of the whitened data set.
        cache: The folder that was given to `whitened`.
    """
    for file in sorted(cache.glob(FILE.format("*"))):
        if _fingerprint(file.stem.removeprefix("zca-")) == data.fingerprint:
            return _read(file, prod(data.image_shape))
    return None


def _fingerprint(fingerprint: str) -> str:
    """The fingerprint of a whitened data set, from that of the data set."""
    return sha256(f"{fingerprint} zca {EPSILON}".encode()).hexdigest()[:16]


def _read(file: Path, size: int) -> Whitening | None:
    """The whitening of images of ``size`` numbers; None if the file is missing or damaged."""
    try:
        tensors, _ = read_tensors(file)
        found = Whitening(tensors["matrix"], tensors["mean"])
    except (SyntheticFileError, KeyError):
        return None
    fits = found.matrix.shape == (size, size) and found.mean.shape == (1, size)
    return found if fits and found.matrix.dtype == found.mean.dtype == torch.float32 else None


def _fitted(real: RealData, file: Path) -> Whitening:
    """The whitening of the training images; a damaged copy in the cache is replaced."""
    size = prod(real.spec.image_shape)
    if (found := _read(file, size)) is None:
        with locked(file.with_suffix(".lock"), f"the whitening matrix of {real.spec.name}"):
            if (found := _read(file, size)) is None:
                found = _fit(real)
                write_tensors(file, {"matrix": found.matrix.cpu(), "mean": found.mean.cpu()}, {})
    return Whitening(found.matrix.to(real.device), found.mean.to(real.device))


def _fit(real: RealData) -> Whitening:
    from kornia.enhance import zca_mean  # seconds to import, and seldom needed

    images = _flat(real.train.pixels[real.train.index])
    matrix, mean, _ = zca_mean(images, dim=0, unbiased=True, eps=EPSILON)
    return Whitening(matrix, mean)


def _flat(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).float().div_(255)
