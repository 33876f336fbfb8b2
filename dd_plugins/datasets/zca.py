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

from dataclasses import replace
from hashlib import sha256
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from dd_plugins.api import DataError, RealData, SyntheticFileError, read_tensors, write_tensors

EPSILON = 0.1  # added to every eigenvalue
MOST = 4096  # numbers in an image up to which its covariance is worth the memory
CHUNK = 4096  # images whitened at once


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
    matrix, mean = _fitted(real, cache / f"zca-{real.spec.fingerprint}.safetensors")
    pixels = torch.empty(real.train.pixels.shape, dtype=torch.float32, device=real.device)
    for rows in torch.split(torch.arange(len(pixels)), CHUNK):
        pixels[rows] = ((_flat(real.train.pixels[rows]) - mean) @ matrix).view(-1, *real.spec.image_shape)
    reach = float(pixels[real.train.index].abs().max())
    pixels.div_(2 * reach).add_(0.5)
    channels = real.spec.image_shape[0]
    spec = replace(
        real.spec,
        mean=(0.5,) * channels,
        std=(1 / (2 * reach),) * channels,
        fingerprint=sha256(f"{real.spec.fingerprint} zca {EPSILON}".encode()).hexdigest()[:16],
        origin=f"{real.spec.origin}, ZCA" if real.spec.origin else "ZCA",
    )
    splits = [replace(split, spec=spec, pixels=pixels) for split in (real.train, real.validation, real.test)]
    return RealData(spec, real.class_names, *splits)


def _fitted(real: RealData, file: Path) -> tuple[Tensor, Tensor]:
    """The whitening matrix (float, ``(D, D)``) and the mean (float, ``(1, D)``) of the training images."""
    if file.exists():
        try:
            tensors, _ = read_tensors(file)
            return tensors["matrix"].to(real.device), tensors["mean"].to(real.device)
        except (SyntheticFileError, KeyError):
            file.unlink()  # a damaged copy is made anew
    from kornia.enhance import zca_mean  # seconds to import, and seldom needed

    images = _flat(real.train.pixels[real.train.index])
    matrix, mean, _ = zca_mean(images, dim=0, unbiased=True, eps=EPSILON)
    write_tensors(file, {"matrix": matrix.cpu(), "mean": mean.cpu()}, {})
    return matrix, mean


def _flat(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).float().div_(255)
