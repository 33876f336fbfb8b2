"""Images of all kinds: transparency, 16 bits, damage, and how much memory their decoding takes."""

import os
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from test_datasets import encode, load, make_images, write_both, write_parquet

from dd_plugins.api import DataError
from dd_plugins.datasets import folder as folder_module
from dd_plugins.datasets.images import EncodedImage, decode, read_header


def encoded(picture, kind="PNG", **options):
    file = BytesIO()
    picture.save(file, kind, **options)
    return EncodedImage("here", file.getvalue)


def pixels_of(picture, kind="PNG", gray=False, **options):
    return decode(encoded(picture, kind, **options), gray).astype(int)


# ---- kinds of pixels ------------------------------------------------------------------------------------------------


def test_transparent_images_are_composited_on_white():
    values = make_images(1, 0, (16, 16, 4))[0]
    alpha = values[..., 3:].astype(float) / 255
    expected = values[..., :3] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(pixels_of(Image.fromarray(values)).transpose(1, 2, 0), expected, atol=1)
    gray = np.ascontiguousarray(values[..., [0, 3]])
    expected = gray[..., 0] * alpha[..., 0] + 255 * (1 - alpha[..., 0])
    np.testing.assert_allclose(pixels_of(Image.fromarray(gray), gray=True)[0], expected, atol=1)
    assert read_header(encoded(Image.fromarray(gray))).gray
    opaque = np.dstack([values[..., :3], np.full((16, 16), 255, np.uint8)])
    np.testing.assert_array_equal(pixels_of(Image.fromarray(opaque)).transpose(1, 2, 0), values[..., :3])


def test_transparent_palettes_and_colors_are_composited_on_white():
    palette = Image.fromarray(make_images(1, 0, (8, 8, 3))[0]).quantize(4)
    colors = np.array(palette.getpalette()[:12]).reshape(4, 3)
    expected = np.where((np.asarray(palette) == 2)[..., None], 255, colors[np.asarray(palette)])
    for options in ({"transparency": 2}, {"transparency": bytes([255, 255, 0, 255])}):
        np.testing.assert_array_equal(pixels_of(palette, **options).transpose(1, 2, 0), expected)
    values = make_images(1, 1, (8, 8, 3))[0]
    values[0, 0] = values[3, 3] = (9, 8, 7)
    found = pixels_of(Image.fromarray(values), transparency=(9, 8, 7)).transpose(1, 2, 0)
    values[0, 0] = values[3, 3] = 255
    np.testing.assert_array_equal(found, values)


def test_grayscale_of_16_bits_is_scaled():
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    expected = np.rint(values / 257).astype(int)
    for kind in ("PNG", "TIFF", "PPM"):
        assert read_header(encoded(Image.fromarray(values), kind)).gray
        np.testing.assert_array_equal(pixels_of(Image.fromarray(values), kind, gray=True)[0], expected)
    np.testing.assert_array_equal(pixels_of(Image.fromarray(values))[2], expected)


@pytest.mark.parametrize(("largest", "told"), [(4095, True), (4096, False), (65535, False)])
def test_16_bit_images_of_12_bits_are_told_once_with_their_largest_value(tmp_path, largest, told):
    for label in ("a", "b"):
        for row in range(4):
            path = tmp_path / "set" / label / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = np.full((8, 8), largest if (label, row) == ("b", 3) else 100, np.uint16)
            Image.fromarray(values).save(path)
    for _ in range(2):  # decoded, and read from the cache
        notes = load(f"folder:{tmp_path / 'set'}", tmp_path).notes
        found = [note for note in notes if "16-bit" in note]
        assert len(found) == told
        assert all(f"largest value of the 16-bit images is {largest} of 65535" in note for note in found)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_32_bits_are_refused(tmp_path, kind):
    folder = write_both(tmp_path / "set", shape=(8, 8))
    Image.fromarray(np.full((8, 8), 30_000, kind)).save(folder / "train" / "ant" / "000.tiff")
    with pytest.raises(DataError, match=r"000\.tiff: has 32 bits per channel"):
        load(f"folder:{folder}", tmp_path)


def test_cmyk_and_other_modes_are_as_pillow_converts_them():
    picture = Image.fromarray(make_images(1, 0, (8, 8, 3))[0])
    cmyk = encoded(picture.convert("CMYK"), "TIFF")
    expected = np.asarray(picture.convert("CMYK").convert("RGB"))
    np.testing.assert_array_equal(decode(cmyk, gray=False).transpose(1, 2, 0), expected)
    bits = picture.convert("1")
    np.testing.assert_array_equal(pixels_of(bits, gray=True)[0], np.asarray(bits) * 255)


def test_the_orientation_in_exif_is_not_applied():
    picture, exif = Image.fromarray(make_images(1, 0, (8, 6, 3))[0]), Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(pixels_of(picture, exif=exif).transpose(1, 2, 0), np.asarray(picture))


# ---- faults ---------------------------------------------------------------------------------------------------------


def damage(folder):
    """Faults of every kind in a set of 42 images of 8x8; the names of the files."""
    boxes = {name: folder / "train" / name for name in ("ant", "bee", "cat")}
    (boxes["ant"] / "000.png").write_bytes(b"not an image")
    whole = (boxes["ant"] / "003.png").read_bytes()
    (boxes["ant"] / "003.png").write_bytes(whole[:-40])
    jpeg = encode(make_images(1, 0, (8, 8, 3))[0], "JPEG")
    (boxes["bee"] / "100.jpg").write_bytes(jpeg[:-20])
    Image.fromarray(make_images(1, 5, (9, 8, 3))[0]).save(boxes["bee"] / "101.png")
    (boxes["cat"] / "024.png").write_bytes(b"")
    (boxes["cat"] / "025.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    (folder / "test" / "cat" / "004.png").write_bytes(whole[:30])
    found = ["ant/000.png", "ant/003.png", "bee/100.jpg", "bee/101.png", "cat/024.png", "cat/025.png"]
    return [*(f"train/{name}" for name in found), "test/cat/004.png"]


def test_all_images_that_cannot_be_used_are_listed_at_once(tmp_path):
    folder = write_both(tmp_path / "set")
    names = damage(folder)
    with pytest.raises(DataError, match="7 of 44 images cannot be used") as caught:
        load(f"folder:{folder}", tmp_path)
    text = str(caught.value)
    assert all(name in text for name in names)
    assert "cat/025.png: is a Git LFS pointer" in text
    assert "bee/101.png: expected 8x8 pixels as most images have, but found 8x9" in text
    assert "--set data.on_error=skip" in text
    assert "--set data.size=N" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_listed(tmp_path):
    folder = write_both(tmp_path / "set")
    (folder / "train" / "ant" / "001.png").chmod(0)
    with pytest.raises(DataError, match=r"001\.png: cannot be read \(Permission denied\)"):
        load(f"folder:{folder}", tmp_path)


def test_a_long_list_of_faults_is_cut(tmp_path):
    folder = write_both(tmp_path / "set")
    for path in (folder / "train").rglob("*.png"):
        if path.stem not in ("000", "001", "012", "013", "024", "025"):
            path.write_bytes(b"no image")
    with pytest.raises(DataError, match="30 of 42 images cannot be used") as caught:
        load(f"folder:{folder}", tmp_path)
    assert str(caught.value).count("cannot be decoded") == 20
    assert str(caught.value).endswith("and 10 more")


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_images_are_left_out_on_request_and_the_rest_is_as_without_them(tmp_path, caplog, kind):
    whole, part = write_both(tmp_path / "whole"), write_both(tmp_path / "part")
    names = damage(whole) if kind == "folder" else []
    if kind == "folder":
        for path in [path for path in part.rglob("*.png") if any(path.match(name) for name in names)]:
            path.unlink()
    else:
        contents, labels = [encode(image) for image in make_images(36, 0)], [0, 1, 2] * 12
        write_parquet(part / "train-00000-of-00001.parquet", contents[5:], labels[5:])
        write_parquet(whole / "train-00000-of-00001.parquet", [b"no image"] * 4 + [None] + contents[5:], labels)
    for config in ({"on_error": "skip"}, {"on_error": "skip"}):  # decoded, and from the cache
        found = load(f"{kind}:{whole}", tmp_path, config=config)
        expected = load(f"{kind}:{part}", tmp_path)
        assert found.spec.fingerprint == expected.spec.fingerprint
        assert len(found.skipped) == (7 if kind == "folder" else 5)
        assert all(any(name in line for line in found.skipped) for name in names)
    assert f"{len(found.skipped)} of " in caplog.text
    assert expected.skipped == ()
    with pytest.raises(DataError, match="images cannot be used"):  # a cached copy with faults is not taken for whole
        load(f"{kind}:{whole}", tmp_path)


def test_nothing_is_left_to_skip(tmp_path):
    folder = write_both(tmp_path / "set")
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="42 of 42 images cannot be used"):
        load(f"folder:{folder}", tmp_path, config={"on_error": "skip"})


def test_a_skipped_image_of_a_split_that_was_made(tmp_path):
    folder = write_both(tmp_path / "set", per_class=20)
    flat = folder / "train"
    (flat / "bee" / "020.png").write_bytes(b"no image")
    real = load(f"folder:{flat}", tmp_path, config={"on_error": "skip"})
    assert len(real.train) + len(real.validation) + len(real.test) == 59
    for split in (real.train, real.validation, real.test):
        for pixels, label in zip(split.pixels[split.index], split.labels, strict=True):
            known = torch.from_numpy(make_images(60, 0)[20 * label : 20 * label + 20]).permute(0, 3, 1, 2)
            assert (known == pixels).flatten(1).all(1).any()


# ---- cost -----------------------------------------------------------------------------------------------------------


def test_statistics_are_cached_and_a_damaged_cache_is_made_anew(tmp_path, monkeypatch):
    folder = write_both(tmp_path / "set")
    first = load(f"folder:{folder}", tmp_path)
    pixels = first.train.pixels[:36].numpy() / 255
    np.testing.assert_allclose(first.spec.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(first.spec.std, pixels.std((0, 2, 3)), rtol=1e-12)
    with monkeypatch.context() as patch:
        for module in ("api.real_data", "datasets.decode"):
            target = f"dd_plugins.{module}.channel_statistics"
            patch.setattr(target, lambda *_: pytest.fail("statistics were measured again"))
        assert load(f"folder:{folder}", tmp_path).spec == first.spec
    (cached,) = (tmp_path / "cache" / "decoded").glob("*.npz")
    whole = cached.read_bytes()
    for damaged in (
        b"",
        whole[:100],
        whole[:-200],
        whole[:600] + bytes([whole[600] ^ 1]) + whole[601:],
        b"\x80\x04K\x01.",
    ):
        cached.write_bytes(damaged)
        assert load(f"folder:{folder}", tmp_path).spec == first.spec
        assert len(cached.read_bytes()) == len(whole)
    with np.load(cached) as kept:
        np.savez(cached, **{**kept, "rows": np.array([999]), "reasons": np.array(["x"]), "images": kept["images"][1:]})
    assert load(f"folder:{folder}", tmp_path, config={"on_error": "skip"}).spec == first.spec


def test_the_same_files_with_another_border_between_splits_have_statistics_of_their_own(tmp_path):
    folder = write_both(tmp_path / "set", per_class=20)
    for fraction in (0.2, 0.5):
        real = load(f"folder:{folder}/train", tmp_path, config={"test_fraction": fraction})
        trained = torch.cat([real.train.index, real.validation.index])
        expected = (real.train.pixels[trained].numpy() / 255).mean((0, 2, 3))
        np.testing.assert_allclose(real.spec.mean, expected, rtol=1e-12)


@pytest.mark.parametrize("size", [200_000, 10**9])
def test_more_pixels_than_memory_are_refused_before_anything_is_decoded(tmp_path, size):
    folder = write_both(tmp_path / "set")
    with pytest.raises(DataError, match=rf"42 images of {size}x{size} pixels .*--set data\.size=N"):
        load(f"folder:{folder}", tmp_path, config={"size": size})


def test_suffixes_are_those_of_torchvision():
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert folder_module.IMG_EXTENSIONS == IMG_EXTENSIONS


def test_torchvision_is_not_imported_without_need():
    names = ("folder", "parquet", "torchvision_sets", "tiny_imagenet", "imagenet")
    lines = "; ".join(f"import dd_plugins.datasets.{name}" for name in names)
    code = f"import sys; {lines}; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PEAK = """
import sys
from pathlib import Path
from dd_plugins.datasets import load_dataset
import dd_plugins.datasets.parquet, dd_plugins.datasets.folder

def resident(name):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024

load_dataset(f"{sys.argv[1]}-small", cache=Path(sys.argv[2]))  # everything is imported
for _ in range(2):  # without a cached copy, and from it
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    real = load_dataset(sys.argv[1], cache=Path(sys.argv[2]))
    print((resident("VmHWM") - before) / real.train.pixels.numel())
    del real
"""


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_the_peak_of_memory_is_below_twice_the_pixels(tmp_path, kind):
    """In a process of its own; 96 MiB of pixels whose files are as large."""
    write_both(tmp_path / "set-small")
    write_large(tmp_path / "set", kind)
    words = [sys.executable, "-c", PEAK, f"{kind}:{tmp_path / 'set'}", str(tmp_path / "cache")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    cold, cached = map(float, done.stdout.split())
    assert 0.9 < cold < 1.8
    assert 0.9 < cached < 1.8


def write_large(folder, kind):
    side, count = (1024, 32) if kind == "folder" else (64, 8192)
    noise = np.random.default_rng(0).integers(0, 256, (8, side, side, 3), dtype=np.uint8)
    contents = [encode(image, "BMP") for image in noise]
    for split, rows in (("train", range(count * 7 // 8)), ("test", range(count // 8))):
        if kind == "parquet":
            images, labels = [contents[row % 8] for row in rows], [row % 2 for row in rows]
            write_parquet(folder / f"{split}.parquet", images, labels, names=None)
            continue
        for row in rows:
            path = folder / split / str(row % 2) / f"{row}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents[row % 8])
