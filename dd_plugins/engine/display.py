"""How a synthetic set is shown in a notebook."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape

import torch
from PIL import Image
from torch import Tensor

from dd_plugins.api import DataSpec
from dd_plugins.datasets import has_colours, pixel_values

CLASSES, IMAGES, SIDE, GAP = 10, 10, 32, 1  # rows, columns, least pixels of a side, and pixels between two images


def table_html(title: str, rows: Mapping[str, str], below: str = "") -> str:
    """A title, a table of two columns, and further HTML below it; texts are escaped."""
    cells = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in rows.items())
    return f"<div><b>{escape(title)}</b><table>{cells}</table>{below}</div>"


def grid_html(images: Tensor, targets: Tensor, data: DataSpec) -> str:
    """The first images of the first classes, one row a class, as an inline PNG.

    Args:
        images: Float, ``(N, C, H, W)``, model space.
        targets: int64, ``(N,)``.
        data: The spec of the data set.
    """
    buffer = io.BytesIO()
    _enlarged(_grid(_pixels(images.cpu(), data), targets.cpu(), data)).save(buffer, "PNG")
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="image grid, one row a class" src="data:image/png;base64,{content}">'


def _pixels(images: Tensor, data: DataSpec) -> Tensor:
    """Pixel values from 0 to 1; whitened images whose colours are not known are scaled to their own range."""
    if has_colours(data):
        return pixel_values(images, data).clamp(0, 1)
    low, high = images.amin(), images.amax()
    return (images - low) / (high - low).clamp_min(1e-9)


def _grid(pixels: Tensor, targets: Tensor, data: DataSpec) -> Tensor:
    """uint8, ``(H, W, 3)``; white between images."""
    channels, height, width = data.image_shape
    classes = min(CLASSES, data.num_classes)
    grid = torch.ones(channels, classes * (height + GAP), IMAGES * (width + GAP))
    for label in range(classes):
        for column, row in enumerate(torch.nonzero(targets == label).flatten()[:IMAGES].tolist()):
            top, left = label * (height + GAP), column * (width + GAP)
            grid[:, top : top + height, left : left + width] = pixels[row]
    shown = grid[:3] if channels >= 3 else grid[:1].expand(3, -1, -1)
    return shown.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()


def _enlarged(grid: Tensor) -> Image.Image:
    """Small images are enlarged without smoothing."""
    image = Image.fromarray(grid.numpy())
    scale = max(1, SIDE * CLASSES // max(image.size))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
