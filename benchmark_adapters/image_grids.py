"""Image grids: synthetic images class by class, next to real ones."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dd_plugins.api import DataError, DataSpec, RealData, SyntheticSet, write_atomically
from dd_plugins.datasets import pixel_values
from dd_plugins.errors import one_line

MAX_IMAGES, MAX_REAL, MAX_ROWS = 10, 3, 20
PAGE_WIDTH = 1600  # pixels; classes stand side by side as far as they fit
SMALLEST, LARGEST = 64, 128  # pixels a side: smaller images are enlarged by a whole number, larger ones reduced
GAP, MARGIN, FONT_SIZE, LINE = 2, 10, 13, 18
INK, DIM, RULE, PAPER = (20, 20, 20), (90, 90, 90), (190, 190, 190), (255, 255, 255)


@dataclass(frozen=True)
class Layout:
    """Where everything goes on a page of blocks, one block for each class shown.

    Attributes:
        classes: The classes shown.
        synthetic: Synthetic images of each.
        real: Real images of each.
        tile: ``(width, height)`` of an image in pixels.
        columns: Blocks side by side.
    """

    classes: tuple[int, ...]
    synthetic: int
    real: int
    tile: tuple[int, int]
    columns: int

    @classmethod
    def of(cls, num_classes: int, most: int, real: bool, image_shape: tuple[int, int, int]) -> Layout:
        """As many classes as fit on a page, evenly chosen.

        Args:
            num_classes: Classes in all.
            most: Synthetic images of the largest class.
            real: Whether real images are shown too.
            image_shape: ``(C, H, W)``.
        """
        tile = _tile(*image_shape[1:])
        synthetic = min(most, MAX_IMAGES)
        shown = min(MAX_REAL, synthetic) if real else 0
        block = _block_width(synthetic, shown, tile[0])
        fitting = max(1, PAGE_WIDTH // (block + 2 * MARGIN))
        count = min(num_classes, fitting * MAX_ROWS)
        columns = -(-count // -(-count // fitting))  # as few as these rows need
        chosen = torch.linspace(0, num_classes - 1, count).round().long().tolist()
        return cls(tuple(chosen), synthetic, shown, tile, columns)

    @property
    def block(self) -> tuple[int, int]:
        """``(width, height)`` of a class: its name, and its images below."""
        return _block_width(self.synthetic, self.real, self.tile[0]), LINE + self.tile[1]

    @property
    def rows(self) -> int:
        """Blocks below each other."""
        return -(-len(self.classes) // self.columns)


def save_preview(
    path: Path, synthetic: SyntheticSet, class_names: Sequence[str] = (), real: RealData | None = None
) -> None:
    """Writes a grid of evenly chosen synthetic images, class by class, clipped to [0, 1] for display only.

    Args:
        path: A PNG file.
        synthetic: The set.
        class_names: One name a class; the classes' numbers by default.
        real: The data set, whose first training images are shown next to the synthetic ones.
    """
    data, targets = synthetic.data, synthetic.targets.cpu()
    counts = torch.bincount(targets, minlength=data.num_classes)
    layout = Layout.of(data.num_classes, int(counts.max()), real is not None, data.image_shape)
    wanted = [_evenly(torch.nonzero(targets == label).flatten(), layout.synthetic) for label in layout.classes]
    pixels, note = _displayed(synthetic.images[torch.cat(wanted).to(synthetic.images.device)], data)
    made = torch.split(pixels, [len(rows) for rows in wanted])
    beside: Sequence[Tensor] = [pixels[:0]] * len(wanted)
    if real is not None:
        by_class = real.train.class_rows()
        rows = [by_class[label][: layout.real] for label in layout.classes]
        beside = torch.split(_displayed(real.train.images(torch.cat(rows)), data)[0], [len(one) for one in rows])
    names = [one_line(class_names[label]) if class_names else f"class {label}" for label in layout.classes]
    page = _draw(layout, names, made, beside, _caption(layout, data, counts, note))
    content = io.BytesIO()
    page.save(content, format="PNG")
    write_atomically(path, content.getvalue())


def _caption(layout: Layout, data: DataSpec, counts: Tensor, note: str) -> list[str]:
    """What is shown, and what is left out."""
    most, least = int(counts.max()), int(counts.min())
    held = f"{most:,}" if most == least else f"{least:,} to {most:,}"
    images = f"{layout.synthetic} of {held}" if most > layout.synthetic else held
    shown, classes = len(layout.classes), f"{data.num_classes:,} classes"
    of_all = f", {shown} of {classes}" if shown < data.num_classes else f", {classes}"
    lines = [f"{data.name}: {images} image{'' if most == 1 else 's'} per class{of_all}{note}"]
    if layout.real:
        lines.append("right of the line: real training images")
    return lines


def _displayed(images: Tensor, data: DataSpec) -> tuple[Tensor, str]:
    """Pixel values (float, ``(N, C, H, W)``, [0, 1], on the CPU) and a remark about their colours."""
    images = images.detach().cpu().float()
    try:
        return pixel_values(images, data).clamp(0, 1), ""
    except DataError:  # a whitened set without its whitening matrix
        return data.denormalize(images).clamp(0, 1), ", whitened colours"


def _draw(
    layout: Layout, names: Sequence[str], made: Sequence[Tensor], beside: Sequence[Tensor], caption: Sequence[str]
) -> Image.Image:
    font = _font()
    width, height = layout.block
    head = MARGIN + LINE * len(caption)
    needed = 2 * MARGIN + max(int(font.getlength(line)) for line in caption)
    size = (
        max(needed, layout.columns * (width + 2 * MARGIN)),
        head + layout.rows * (height + MARGIN) + MARGIN,
    )
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(caption):
        draw.text((MARGIN, MARGIN // 2 + number * LINE), line, DIM, font)
    for position, (name, ours, theirs) in enumerate(zip(names, made, beside, strict=True)):
        row, column = divmod(position, layout.columns)
        left, top = MARGIN + column * (width + 2 * MARGIN), head + row * (height + MARGIN)
        draw.text((left, top), _fitting(name, width, font), INK, font)
        _paste(page, ours, layout.tile, left, top + LINE)
        if layout.real:
            border = left + layout.synthetic * (layout.tile[0] + GAP) + MARGIN // 2 - GAP
            draw.line([(border, top + LINE), (border, top + height - 1)], RULE, 2)
            _paste(page, theirs, layout.tile, border + MARGIN // 2, top + LINE)
    return page


def _paste(page: Image.Image, pixels: Tensor, tile: tuple[int, int], left: int, top: int) -> None:
    for number, image in enumerate(picture(image) for image in pixels):
        method = Image.Resampling.NEAREST if image.width <= tile[0] else Image.Resampling.LANCZOS
        page.paste(image.resize(tile, method).convert("RGB"), (left + number * (tile[0] + GAP), top))


def picture(pixels: Tensor) -> Image.Image:
    """An image of 8 bits of pixel values (float, ``(C, H, W)``, [0, 1]): RGB for three channels, else the first."""
    scaled = (pixels * 255).round().to(torch.uint8)
    return Image.fromarray((scaled.permute(1, 2, 0) if len(scaled) == 3 else scaled[0]).contiguous().numpy())


def _tile(height: int, width: int) -> tuple[int, int]:
    longest = max(height, width)
    if longest > LARGEST:
        return max(1, width * LARGEST // longest), max(1, height * LARGEST // longest)
    factor = -(-SMALLEST // longest)
    return width * factor, height * factor


def _block_width(synthetic: int, real: int, tile: int) -> int:
    return (synthetic + real) * (tile + GAP) - GAP + (MARGIN if real else 0)


def _evenly(rows: Tensor, count: int) -> Tensor:
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()]


def _font() -> ImageFont.FreeTypeFont:
    import matplotlib  # its font has more than Latin letters, and is there on every machine

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT_SIZE)


def _fitting(name: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """A name on one line, cut to a width in pixels."""
    line = "".join(letter if letter.isprintable() else " " for letter in name[:200]).strip()
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line.rstrip()}…"
