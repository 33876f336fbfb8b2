"""The six elementary operations of DSA, each a pure differentiable function of images and uniform noise.

Source:
    Zhao & Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021, arXiv 2102.08259
    (operations and ranges as in the authors' released defaults).
Deviations:
    Parameters are explicit: every function takes noise ``u`` (float, ``(R, k)``, uniform in [0, 1)), with one row for
    the whole batch (siamese) or a row for each image, instead of re-seeding a global generator. A batch of one works.

Images are float, ``(B, C, H, W)``, in model space; zero is the fill value of every operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

SCALE = 1.2  # sides are scaled by 1/1.2 to 1.2
ROTATE = math.radians(15)
CROP = 0.125  # of the side
CUTOUT = 0.5  # of the side


def color(images: Tensor, u: Tensor) -> Tensor:
    """Brightness, saturation and contrast, in this order; ``u``: ``(R, 3)``."""
    brightness, saturation, contrast = (u[:, k].view(-1, 1, 1, 1) for k in range(3))
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def crop(images: Tensor, u: Tensor) -> Tensor:
    """Shifts by whole pixels, up to an eighth of the side, filling with zero; ``u``: ``(R, 2)`` for rows and columns.

    A shift is a product with a 0/1 matrix on either side: exact, and differentiated without scattered writes.
    """
    rows, columns = (_shift_matrix(size, u[:, k]) for k, size in enumerate(images.shape[2:]))
    return rows.unsqueeze(1) @ images @ columns.unsqueeze(1).transpose(-1, -2)


def _shift_matrix(size: int, u: Tensor) -> Tensor:
    reach = math.floor(CROP * size + 0.5)
    shift = torch.floor(u * (2 * reach + 1)) - reach
    position = torch.arange(size, device=u.device)
    return (position == (position.unsqueeze(1) + shift.view(-1, 1, 1))).to(u.dtype)


def cutout(images: Tensor, u: Tensor) -> Tensor:
    """Sets a square of half the side to zero, clipped at the borders; ``u``: ``(R, 2)`` for its centre."""
    rows, columns = (_inside(size, u[:, k]) for k, size in enumerate(images.shape[2:]))
    box = rows.view(-1, 1, rows.shape[1], 1) & columns.view(-1, 1, 1, columns.shape[1])
    return images * ~box


def _inside(size: int, u: Tensor) -> Tensor:
    side = math.floor(CUTOUT * size + 0.5)
    centre = torch.floor(u * (size + (1 - side % 2)))
    offset = torch.arange(size, device=u.device) - (centre - side // 2).view(-1, 1)
    return (offset >= 0) & (offset < side)


def flip(images: Tensor, u: Tensor) -> Tensor:
    """Mirrors left to right where ``u`` (``(R, 1)``) is below one half."""
    return torch.where(u.view(-1, 1, 1, 1) < 0.5, images.flip(3), images)


def scale(images: Tensor, u: Tensor) -> Tensor:
    """Scales the sampling grid by independent factors between 1/1.2 and 1.2; ``u``: ``(R, 2)`` for columns and rows."""
    factors = u * (SCALE - 1 / SCALE) + 1 / SCALE
    return _affine(images, torch.diag_embed(factors))


def rotate(images: Tensor, u: Tensor) -> Tensor:
    """Rotates by up to 15 degrees either way, anticlockwise for positive angles; ``u``: ``(R, 1)``."""
    angle = (2 * u[:, 0] - 1) * ROTATE
    cos, sin = torch.cos(angle), torch.sin(angle)
    return _affine(images, torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2))


def _affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Bilinear resampling under a linear map of the centred grid; ``matrix``: ``(R, 2, 2)``."""
    theta = functional.pad(matrix, (0, 1)).to(images.dtype).expand(len(images), 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


Operation = Callable[[Tensor, Tensor], Tensor]
# Each operation with the columns of noise that are its own.
OPERATIONS: dict[str, tuple[Operation, slice]] = {
    "color": (color, slice(0, 3)),
    "crop": (crop, slice(3, 5)),
    "cutout": (cutout, slice(5, 7)),
    "flip": (flip, slice(7, 8)),
    "scale": (scale, slice(8, 10)),
    "rotate": (rotate, slice(10, 11)),
}
NOISE_COLUMNS = 11
