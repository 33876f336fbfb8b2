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

import torch
from torch import Tensor

from dd_plugins.api import Artifact, ArtifactFiles, ArtifactStore, DataError, DataSpec, RealData
from dd_plugins.api.progress import StartJob

EPSILON = 0.1  # added to every eigenvalue
MOST = 4096  # numbers in an image up to which its covariance is computed
CHUNK = 4096  # images whitened at once


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


class WhiteningMatrix(Artifact[Whitening]):
    """The whitening of the training images of a data set.

    Args:
        data: The spec of the data set before it is whitened.
        real: The data set itself, which is needed to make it; None: it is only read.
    """

    kind = "zca"

    def __init__(self, data: DataSpec, real: RealData | None = None) -> None:
        self.data, self.real = data, real

    @property
    def key(self) -> str:
        """By the fingerprint of the data set."""
        return f"zca-{self.data.fingerprint}"

    @property
    def title(self) -> str:
        """Of which data set."""
        return f"the whitening matrix of {self.data.name}"

    @property
    def folder(self) -> str:
        """The store itself."""
        return "."

    def load(self, files: ArtifactFiles) -> Whitening | None:
        """Reads it; a damaged one is made again."""
        return _read(files, f"{self.key}.safetensors", prod(self.data.image_shape))

    def build(self, files: ArtifactFiles, job: StartJob) -> Whitening:
        """Fits it to the training images."""
        assert self.real is not None
        found = _fit(self.real)
        tensors = {"matrix": found.matrix.cpu(), "mean": found.mean.cpu()}
        files.write_tensors(f"{self.key}.safetensors", tensors, {})
        return found


def whitened(real: RealData, artifacts: ArtifactStore) -> RealData:
    """The same data set in whitened space.

    Args:
        real: The data set.
        artifacts: Keeps the whitening matrix, which takes a minute to compute.

    Returns:
        A data set of another fingerprint, whose ``pixels`` are float, ``(all rows, C, H, W)``, in [0, 1].

    Raises:
        DataError: If an image holds more than 4096 numbers.
    """
    size = prod(real.spec.image_shape)
    if size > MOST:
        raise DataError(f"data.zca: images of {size} numbers are too large to whiten; at most {MOST} are possible")
    found = artifacts.get(WhiteningMatrix(real.spec, real))
    whitening = Whitening(found.matrix.to(real.device), found.mean.to(real.device))
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


def find_whitening(data: DataSpec, artifacts: ArtifactStore) -> Whitening | None:
    """The whitening of a data set, if it exists.

    Args:
        data: The spec of the whitened data set.
        artifacts: The store that was given to `whitened`.
    """
    files = artifacts.files(WhiteningMatrix(data))
    for name in sorted(files.names("zca-*.safetensors")):
        if _fingerprint(name.removeprefix("zca-").removesuffix(".safetensors")) == data.fingerprint:
            return _read(files, name, prod(data.image_shape))
    return None


def _fingerprint(fingerprint: str) -> str:
    """The fingerprint of a whitened data set, from that of the data set."""
    return sha256(f"{fingerprint} zca {EPSILON}".encode()).hexdigest()[:16]


def _read(files: ArtifactFiles, name: str, size: int) -> Whitening | None:
    """The whitening of images of ``size`` numbers; None if the file is missing or damaged."""
    try:
        tensors, _ = files.read_tensors(name)
        found = Whitening(tensors["matrix"], tensors["mean"])
    except (DataError, KeyError):
        return None
    fits = found.matrix.shape == (size, size) and found.mean.shape == (1, size)
    return found if fits and found.matrix.dtype == found.mean.dtype == torch.float32 else None


def _fit(real: RealData) -> Whitening:
    from kornia.enhance import zca_mean  # seconds to import, and seldom needed

    images = _flat(real.train.pixels[real.train.index])
    matrix, mean, _ = zca_mean(images, dim=0, unbiased=True, eps=EPSILON)
    return Whitening(matrix, mean)


def _flat(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).float().div_(255)
