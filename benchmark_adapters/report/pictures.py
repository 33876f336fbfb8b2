"""Pictures of synthetic images."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from dd_plugins.api import DataSpec, write_atomically

MAX_CLASSES, MAX_IMAGES, MIN_SIDE = 20, 10, 32


def save_preview(path: Path, images: Tensor, targets: Tensor, data: DataSpec) -> None:
    """Writes a grid with a row for each class: evenly chosen images, clipped to [0, 1] for display alone.

    Args:
        path: A PNG file.
        images: Float, ``(N, C, H, W)``, model space.
        targets: int64, ``(N,)``.
        data: Maps model space back to pixel values.
    """
    zoom = max(1, MIN_SIDE // images.shape[-1])
    rows = [torch.nonzero(targets == label).flatten() for label in range(min(data.num_classes, MAX_CLASSES))]
    columns = min(MAX_IMAGES, max(len(row) for row in rows))
    shown = torch.cat([row[torch.linspace(0, len(row) - 1, columns).long()] for row in rows])
    pixels = data.denormalize(images[shown].cpu().float()).clamp(0, 1)
    pixels = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    content = io.BytesIO()
    to_pil_image(make_grid(pixels, nrow=columns, padding=2, pad_value=1.0)).save(content, format="PNG")
    write_atomically(path, content.getvalue())
