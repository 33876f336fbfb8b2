"""Image grids: which images are shown, in which colours, next to which real ones."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark_adapters.image_grids import FONT_SIZE, LARGEST, Layout, _fitting, _font, save_preview
from dd_plugins.api import DataSpec, FolderArtifacts, RawData, StorageLedger, SyntheticSet
from dd_plugins.datasets import build_real_data
from dd_plugins.datasets.zca import whitened


def solid(levels, side=8):
    """Images of one colour each: uint8, ``(N, 3, side, side)``."""
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 3, 1, 1).expand(-1, 3, side, side).contiguous()


def make_set(images, targets, data):
    return SyntheticSet("x", data, data.normalize(images), torch.tensor(targets), StorageLedger(()))


def count(path, colour):
    page = np.asarray(Image.open(path).convert("RGB"))
    return int((page == np.array(colour)).all(-1).sum())


RED, GREEN, BLUE, BROWN = (200, 10, 20), (10, 200, 20), (10, 20, 200), (120, 80, 40)
DATA = DataSpec("x", 2, (3, 8, 8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_images_keep_their_colours_and_are_enlarged_without_smoothing(tmp_path):
    file = tmp_path / "preview.png"
    save_preview(file, make_set(solid([RED, RED, GREEN]), [0, 0, 1], DATA))
    assert count(file, RED) == 2 * 64 * 64
    assert count(file, GREEN) == 64 * 64
    checkered = solid([RED])
    checkered[:, :, ::2, ::2] = torch.tensor(BLUE, dtype=torch.uint8).view(3, 1, 1)
    save_preview(file, make_set(torch.cat([checkered, solid([GREEN])]), [0, 1], DATA))
    assert count(file, BLUE) == 16 * 8 * 8
    assert count(file, RED) == 48 * 8 * 8


def test_real_images_stand_next_to_synthetic_ones(tmp_path):
    images, labels = solid([GREEN] * 4 + [BROWN] * 4), torch.arange(8) // 4
    real = build_real_data("x", RawData(images, labels, images, labels, ("a", "b")))
    file = tmp_path / "preview.png"
    made = make_set(solid([RED, RED, BLUE, BLUE]), [0, 0, 1, 1], real.spec)
    save_preview(file, made, real.class_names, real)
    assert [count(file, colour) for colour in (RED, BLUE, GREEN, BROWN)] == [2 * 64 * 64] * 4
    page = np.asarray(Image.open(file).convert("RGB"))
    for ours, theirs in ((RED, GREEN), (BLUE, BROWN)):  # on the same rows, and to the right
        (rows, columns), (real_rows, real_columns) = ((page == colour).all(-1).nonzero() for colour in (ours, theirs))
        assert (rows.min(), rows.max()) == (real_rows.min(), real_rows.max())
        assert columns.max() < real_columns.min()


def test_whitened_sets_are_shown_in_the_colours_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_PLUGINS_CACHE", str(tmp_path))
    noise = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images, labels = torch.cat([solid([RED] * 4 + [BLUE] * 4), noise]), torch.tensor([0] * 4 + [1] * 4 + [0, 1] * 20)
    plain = build_real_data("x", RawData(images, labels, images, labels, ("a", "b")))
    real = whitened(plain, FolderArtifacts(tmp_path))
    held = torch.cat([real.test.images()[:1], real.test.images()[4:5]])
    made = SyntheticSet("x", real.spec, held, torch.tensor([0, 1]), StorageLedger(()))
    save_preview(tmp_path / "preview.png", made)
    assert count(tmp_path / "preview.png", RED) == 64 * 64
    assert count(tmp_path / "preview.png", BLUE) == 64 * 64
    (tmp_path / f"zca-{plain.spec.fingerprint}.safetensors").unlink()
    save_preview(tmp_path / "preview.png", made)  # no matrix: no colours, but no error
    assert count(tmp_path / "preview.png", RED) == 0


@pytest.mark.parametrize(
    ("classes", "most", "shape", "shown", "synthetic"),
    [
        (10, 1, (1, 8, 8), 10, 1),
        (10, 85, (3, 32, 32), 10, 10),
        (200, 1, (3, 64, 64), 200, 1),
        (200, 50, (3, 64, 64), 20, 10),
        (1000, 1, (3, 224, 224), 100, 1),
        (1, 3, (3, 33, 20), 1, 3),
    ],
)
def test_what_fits_on_a_page(classes, most, shape, shown, synthetic):
    layout = Layout.of(classes, most, True, shape)
    assert (len(layout.classes), layout.synthetic) == (shown, synthetic)
    assert len(set(layout.classes)) == shown
    assert (layout.classes[0], layout.classes[-1]) == (0, classes - 1)
    assert 64 <= max(layout.tile) <= LARGEST
    assert layout.columns * (layout.block[0] + 20) <= 1600
    assert shown <= layout.columns * layout.rows < shown + layout.columns


def test_a_page_says_what_is_left_out(tmp_path, monkeypatch):
    texts = []
    monkeypatch.setattr("PIL.ImageDraw.ImageDraw.text", lambda self, at, text, *_: texts.append(text))
    images, targets = torch.zeros(200 * 12, 3, 8, 8, dtype=torch.uint8), np.arange(200).repeat(12).tolist()
    data = DataSpec("many", 200, (3, 8, 8), (0.5,) * 3, (0.25,) * 3)
    names = [f"name {number}" for number in range(200)]
    save_preview(tmp_path / "preview.png", make_set(images, targets, data), names)
    assert texts[0] == "many: 10 of 12 images per class, 40 of 200 classes"
    assert texts[1:3] == ["name 0", "name 5"]
    texts.clear()
    save_preview(tmp_path / "preview.png", make_set(images[:3], [0, 0, 1], DATA))
    assert texts == ["x: 1 to 2 images per class, 2 classes", "class 0", "class 1"]


@pytest.mark.parametrize("name", ["", "a" * 2_000_000, "two\nlines\x1b[31m", "日本 Ωμέγα", "\udcff"])
def test_names_fit_their_block(name):
    font = _font()
    line = _fitting(name, 100, font)
    assert font.getlength(line) <= 100
    assert "\n" not in line
    assert "\x1b" not in line
    assert font.getbbox("A")[3] <= 2 * FONT_SIZE
