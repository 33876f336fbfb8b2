"""Data sets: made-up images through every reader, the splits, the contract's checks and the messages."""

import json
import os
import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dd_plugins import registry
from dd_plugins.api import ConfigError, DataError, Dataset, RawData, Split, UnknownPluginError, UsageError
from dd_plugins.api.real_data import channel_statistics, hold_out
from dd_plugins.datasets import build_real_data, load_dataset
from dd_plugins.datasets.imagenet import SUBSETS
from dd_plugins.seeds import make_generator

NAMES = ("ant", "bee", "cat")


def make_images(count, seed, shape=(8, 8, 3)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def encode(image, kind="PNG"):
    file = BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def write_parquet(path, contents, labels, label="label", names=NAMES, plain=False):
    images = pa.array(contents if plain else [{"bytes": c, "path": None} for c in contents])
    table = pa.table({"image": images, label: pa.array(labels, pa.int64())})
    features = {"info": {"features": {label: {"_type": "ClassLabel", "names": names}}}}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)} if names else None), path)


def write_both(folder, per_class=12, test="test", **options):
    """One made-up set, class by class, as folders and as parquet."""
    for seed, (split, count) in enumerate((("train", per_class), (test, 2))):
        labels = [label for label in range(len(NAMES)) for _ in range(count)]
        contents = [encode(image) for image in make_images(len(labels), seed, **options)]
        for row, (label, content) in enumerate(zip(labels, contents, strict=True)):
            path = folder / split / NAMES[label] / f"{row:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        write_parquet(folder / f"{split}-00000-of-00001.parquet", contents, labels)
    return folder


def load(spec, tmp_path, **options):
    return load_dataset(str(spec), tmp_path / "root", cache=tmp_path / "cache", **options)


def make_raw(**changes):
    labels = torch.arange(3).repeat(10)
    images = torch.from_numpy(make_images(30, 0, (3, 8, 8)))
    return replace(RawData(images, labels, images[:6], labels[:6], NAMES), **changes)


def assert_same(first, second):
    for name in ("train", "validation", "test"):
        one, other = getattr(first, name), getattr(second, name)
        assert torch.equal(one.pixels[one.index], other.pixels[other.index])
        assert torch.equal(one.labels, other.labels)
    assert first.spec.fingerprint == second.spec.fingerprint


class Outsider(Dataset):
    """A plugin that nobody packaged."""

    api_version = 2
    takes_argument = True

    def read(self, root, artifacts):
        if self.argument == "fault":
            raise ZeroDivisionError("a fault of its own")
        return make_raw(train_labels=torch.full((30,), 7)) if self.argument == "labels" else make_raw()


# ------------------------------------------------------------------------------------------------ splits


def test_digits_shapes_dtypes_and_counts(tmp_path):
    real = load("digits", tmp_path)
    assert real.spec.image_shape == (1, 8, 8)
    assert real.spec.num_classes == len(real.class_names) == 10
    assert not real.spec.mirror
    assert real.train.pixels.dtype == torch.uint8
    assert real.train.pixels.shape == (1797, 1, 8, 8)
    assert real.train.pixels.max() == 255
    assert len(real.train) + len(real.validation) + len(real.test) == 1797
    for split in (real.train, real.validation, real.test):
        assert split.labels.dtype == split.index.dtype == torch.int64
        assert split.pixels is real.train.pixels
        assert len(split.labels) == len(split.index)
    assert len(real.spec.fingerprint) == 16


def test_digits_are_scikit_learns(tmp_path):
    from sklearn.datasets import load_digits

    source, real = load_digits(), load("digits", tmp_path)

    def sort_rows(images, labels):
        return np.unique(np.column_stack([images.reshape(len(images), -1), labels]), axis=0)

    rows = [np.asarray(x) for s in (real.train, real.validation, real.test) for x in (s.pixels[s.index], s.labels)]
    images, labels = np.concatenate(rows[::2]), np.concatenate(rows[1::2])
    expected = np.rint(source.images * 255 / 16).astype(int)
    np.testing.assert_array_equal(sort_rows(images.astype(int), labels), sort_rows(expected, source.target))


def test_splits_are_disjoint_balanced_and_the_same_each_time(tmp_path):
    first, second = load("digits", tmp_path), load("digits", tmp_path)
    assert_same(first, second)
    rows = torch.cat([first.train.index, first.validation.index, first.test.index])
    assert torch.equal(rows.sort().values, torch.arange(1797))
    for held, rest in ((first.validation, first.train), (first.test, first.train)):
        assert not set(held.index.tolist()) & set(rest.index.tolist())
    trained = torch.bincount(first.train.labels) + torch.bincount(first.validation.labels)
    assert torch.equal(torch.bincount(first.validation.labels), trained // 10)


def test_loading_leaves_the_global_generator_alone(tmp_path):
    before = torch.get_rng_state()
    load("digits", tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("count", "held"), [(2, 1), (19, 1), (20, 2), (5000, 500), (50_000, 2500)])
def test_validation_is_a_tenth_but_at_least_one_and_at_most_5000_in_all(count, held):
    labels = torch.arange(2).repeat_interleave(count)
    images = torch.zeros(2 * count, 1, 1, 1, dtype=torch.uint8)
    real = build_real_data("made-up", RawData(images, labels, images[:1], labels[:1], ("a", "b")))
    assert torch.bincount(real.validation.labels).tolist() == [held, held]
    assert torch.bincount(real.train.labels).tolist() == [count - held, count - held]


def test_hold_out_takes_random_rows_of_each_class():
    labels = torch.tensor([2, 0, 1, 0, 2, 0, 1, 0])
    seen = set()
    for seed in range(50):
        rest, held = hold_out(labels, torch.tensor([1, 0, 2]), make_generator(seed))
        assert labels[held].sort().values.tolist() == [0, 2, 2]
        assert sorted(rest.tolist() + held.tolist()) == list(range(8))
        seen |= set(held.tolist())
    assert seen == {0, 1, 3, 4, 5, 7}


def test_per_class_draws_without_replacement_while_it_can(tmp_path):
    split = build_real_data("made-up", make_raw()).train  # 9 rows of each class
    rows = split.per_class(9, make_generator(0))
    assert rows.shape == (3, 9)
    for label, drawn in enumerate(rows):
        assert (split.labels[drawn] == label).all()
        assert len(set(drawn.tolist())) == 9
    more = split.per_class(20, make_generator(1))
    for label, drawn in enumerate(more):
        assert (split.labels[drawn] == label).all()
        assert set(torch.bincount(drawn, minlength=len(split))[split.labels == label].tolist()) == {2, 3}


def test_class_rows_and_images(tmp_path):
    split = build_real_data("made-up", make_raw()).train
    for label, rows in enumerate(split.class_rows()):
        assert torch.equal(rows, (split.labels == label).nonzero()[:, 0])
    rows = torch.tensor([4, 1])
    expected = split.spec.normalize(split.pixels[split.index])[rows]
    torch.testing.assert_close(split.images(rows), expected)


def test_normalize_and_denormalize_are_inverse():
    real = build_real_data("made-up", make_raw())
    pixels = real.train.pixels
    images = real.spec.normalize(pixels)
    torch.testing.assert_close(real.spec.denormalize(images), pixels / 255)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=0.1, rtol=0)
    assert pixels.dtype == torch.uint8


def test_statistics_agree_with_numpy():
    images = make_images(2100, 3, (3, 5, 4))
    mean, std = channel_statistics(torch.from_numpy(images))
    np.testing.assert_allclose(mean, (images / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 2, 3)), rtol=1e-10)
    assert channel_statistics(torch.full((3, 1, 2, 2), 9, dtype=torch.uint8))[1] == (1 / 255,)


def test_statistics_of_the_plugin_win():
    spec = build_real_data("made-up", make_raw(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))).spec
    assert spec.mean == (0.1, 0.2, 0.3)
    assert spec.std == (1.0, 1.0, 1.0)


def test_fingerprint_changes_with_pixels_and_labels():
    raw = make_raw()
    pixels, labels = raw.train_images.clone(), raw.train_labels.clone()
    pixels[0, 0, 0, 0] ^= 1
    labels[[0, 1]] = labels[[1, 0]]
    variants = [raw, make_raw(train_images=pixels), make_raw(train_labels=labels)]
    assert len({build_real_data("made-up", variant).spec.fingerprint for variant in variants}) == 3


# ------------------------------------------------------------------------------------------------ contract


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_images": torch.zeros(30, 3, 8, 8)},
            "mine: train: expected a uint8 tensor .* found Tensor of torch.float32",
        ),
        ({"train_images": torch.zeros(30, 8, 8, dtype=torch.uint8)}, r"\(N, C, H, W\).* found .*\(30, 8, 8\)"),
        ({"test_images": torch.zeros(0, 3, 8, 8, dtype=torch.uint8)}, "mine: test: expected a uint8 .* N > 0"),
        ({"train_labels": torch.zeros(29, dtype=torch.int64)}, r"shape \(30,\), but found .*\(29,\)"),
        ({"train_labels": np.zeros(30, dtype=int)}, "found ndarray of int64"),
        ({"train_labels": torch.zeros(30)}, "expected an int64 tensor .* found Tensor of torch.float32"),
        ({"test_labels": torch.tensor([0, 1, 2, 0, 3, -1])}, "mine: test: .* from 0 to 2 .* found 3 in row 4"),
        ({"test_labels": torch.tensor([0, -1, 2, 0, 3, 3])}, "found -1 in row 1"),
        ({"class_names": (*NAMES, "dog")}, r"at least 2 training images per class.* found 0 of class 3 \(dog\)"),
        ({"test_images": torch.zeros(6, 3, 8, 9, dtype=torch.uint8)}, r"shape \(3, 8, 8\) .* found \(3, 8, 9\)"),
        ({"mean": (0.5,)}, r"expected 3 values of mean, .* found \(0.5,\)"),
    ],
)
def test_breaches_of_contract_name_plugin_expectation_and_finding(changes, message):
    with pytest.raises(DataError, match=message):
        build_real_data("made-up", make_raw(**changes), who="mine")


def test_a_plugin_under_development_needs_no_packaging(tmp_path):
    spec = f"{__name__}:Outsider"
    with registry.trusted(spec):
        real = load(f"{spec}:some/where", tmp_path)
        assert real.spec.name == "where"
        with pytest.raises(UsageError, match="needs an argument"):
            load(spec, tmp_path)
        with pytest.raises(DataError, match=r"Outsider:labels: train: expected labels from 0 to 2 .* found 7 in row 0"):
            load(f"{spec}:labels", tmp_path)
        with pytest.raises(ZeroDivisionError) as caught:
            load(f"{spec}:fault", tmp_path)
        assert "Outsider" in caught.value.__notes__[0]


def test_unknown_names_and_arguments(tmp_path):
    with pytest.raises(UnknownPluginError, match="did you mean cifar10"):
        load("cifr10", tmp_path)
    with pytest.raises(UnknownPluginError, match="did you mean folder"):
        load("foldr:/some/path", tmp_path)
    with pytest.raises(UsageError, match="needs an argument: write folder:PATH"):
        load("folder", tmp_path)
    with pytest.raises(UsageError, match="'digits' takes no argument, but got 'x'"):
        load("digits:x", tmp_path)
    with pytest.raises(UsageError, match=r"unknown configuration key data\.sise; did you mean size"):
        load("folder:x", tmp_path, config={"sise": 3})
    with pytest.raises(UsageError, match=r"data\.KEY; known keys: as, classes, .*test_fraction, zca$"):
        load("folder:x", tmp_path, config={"KEY": 3})


def test_root_and_cache_come_from_the_environment(tmp_path, monkeypatch):
    write_both(tmp_path / "root" / "cifar10")
    monkeypatch.setenv("DD_PLUGINS_DATA", str(tmp_path / "root"))
    monkeypatch.setenv("DD_PLUGINS_CACHE", str(tmp_path / "elsewhere"))
    assert load_dataset("cifar10").spec.origin == "parquet"
    assert len(list((tmp_path / "elsewhere" / "decoded").glob("*.npz"))) == 1


# ------------------------------------------------------------------------------------------------ encoded images


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 6)])
def test_parquet_and_folder_give_the_same_pixels(tmp_path, shape):
    folder = write_both(tmp_path / "insects", shape=shape)
    from_folder, from_parquet = load(f"folder:{folder}", tmp_path), load(f"parquet:{folder}", tmp_path)
    assert_same(from_folder, from_parquet)
    assert from_folder.spec.name == "insects"
    assert from_folder.class_names == from_parquet.class_names == NAMES
    assert (from_folder.spec.origin, from_parquet.spec.origin) == ("folder", "parquet")
    expected = torch.from_numpy(np.concatenate([make_images(36, 0, shape), make_images(6, 1, shape)]))
    expected = expected[:, None] if len(shape) == 2 else expected.permute(0, 3, 1, 2)
    assert torch.equal(from_folder.train.pixels, expected)


@pytest.mark.parametrize("test", ["valid", "validation"])
def test_a_validation_split_serves_as_test_split(tmp_path, test):
    folder = write_both(tmp_path, test=test)
    assert_same(load(f"folder:{folder}", tmp_path), load(f"parquet:{folder}", tmp_path))


def test_one_image_in_colour_makes_all_rgb(tmp_path):
    folder = write_both(tmp_path, shape=(8, 8))
    Image.fromarray(make_images(1, 5)[0]).save(folder / "test" / "cat" / "005.png")
    real = load(f"folder:{folder}", tmp_path)
    assert real.spec.image_shape == (3, 8, 8)
    grey = real.train.pixels[real.train.index]
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_shards_plain_bytes_fine_labels_and_numbers_for_names(tmp_path):
    contents = [encode(image) for image in make_images(6, 0)]
    labels = [0, 1, 0, 1, 0, 1]
    for shard, rows in enumerate((slice(0, 4), slice(4, 6))):
        path = tmp_path / f"train-{shard}.parquet"
        write_parquet(path, contents[rows], labels[rows], "fine_label", names=None, plain=True)
    write_parquet(tmp_path / "test.parquet", contents[:1], labels[:1], "only", names=None)
    real = load(f"parquet:{tmp_path}", tmp_path)
    assert real.class_names == ("0", "1")
    assert torch.equal(real.train.pixels[:6], torch.from_numpy(make_images(6, 0)).permute(0, 3, 1, 2))


def test_mixed_sizes_need_the_setting_size(tmp_path):
    folder = write_both(tmp_path)
    odd = folder / "train" / "bee" / "999.png"
    Image.fromarray(make_images(1, 5, (20, 10, 3))[0]).save(odd)
    with pytest.raises(DataError, match=r"999.png: expected 8x8 pixels .*, but found 10x20; --set data.size=N"):
        load(f"folder:{folder}", tmp_path)
    real = load(f"folder:{folder}", tmp_path, config={"size": 6, "mirror": False})
    assert real.spec.image_shape == (3, 6, 6)
    assert not real.spec.mirror


def test_size_crops_the_centre(tmp_path):
    image = np.zeros((8, 16, 3), dtype=np.uint8)
    image[:, 4:12] = 255
    write_both(tmp_path)
    for path in tmp_path.glob("t*/*/*.png"):
        Image.fromarray(image).save(path)
    pixels = load(f"folder:{tmp_path}", tmp_path, config={"size": 8}).train.pixels
    assert pixels.unique().tolist() == [255]


def test_images_that_do_not_decode_are_named(tmp_path):
    folder = write_both(tmp_path)
    broken = folder / "train" / "cat" / "030.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"030\.png: cannot be decoded"):
        load(f"folder:{folder}", tmp_path)
    contents = [encode(image) for image in make_images(6, 0)]
    for content in (b"no image", None):
        contents[4] = content
        write_parquet(folder / "train-00000-of-00001.parquet", contents, [0, 1, 2] * 2)
        with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet: row 4: cannot be decoded"):
            load(f"parquet:{folder}", tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path):
    folder = write_both(tmp_path / "set")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        load("folder:nowhere", tmp_path)
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        load("parquet:nowhere", tmp_path)
    shard = folder / "test-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet: truncated, or not a parquet file"):
        load(f"parquet:{folder}", tmp_path)
    (folder / "test" / "wasp").mkdir()
    with pytest.raises(DataError, match="wasp: there is no class of this name in train"):
        load(f"folder:{folder}", tmp_path)
    (folder / "train" / "wasp").mkdir()
    with pytest.raises(DataError, match="train/wasp: expected image files"):
        load(f"folder:{folder}", tmp_path)


def test_parquet_columns_must_be_clear(tmp_path):
    write_both(tmp_path)
    table = pa.table({"image": [b"x"], "fine": [1], "coarse": [2]})
    pq.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(ConfigError, match=r"data\.label_column=NAME: fine, coarse; found image \(binary\), fine"):
        load(f"parquet:{tmp_path}", tmp_path)
    write_parquet(tmp_path / "train-00000-of-00001.parquet", [b"x", b"y"], [0, None])
    with pytest.raises(DataError, match=r"expected a label in every row, but some are empty: .*\(1 of 2 rows\)"):
        load(f"parquet:{tmp_path}", tmp_path)


def test_the_cache_is_hit_and_a_damaged_file_is_rebuilt(tmp_path, monkeypatch):
    folder = write_both(tmp_path)
    first = load(f"folder:{folder}", tmp_path)
    (cached,) = (tmp_path / "cache" / "decoded").glob("*.npz")
    whole = cached.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("dd_plugins.datasets.decode._decode", lambda *_: pytest.fail("the cache was not used"))
        assert_same(load(f"folder:{folder}", tmp_path), first)
    cached.write_bytes(whole[: len(whole) // 2])
    assert_same(load(f"folder:{folder}", tmp_path), first)
    assert cached.read_bytes() == whole


def test_changed_images_and_settings_miss_the_cache(tmp_path):
    folder = write_both(tmp_path)
    first = load(f"folder:{folder}", tmp_path)
    Image.fromarray(make_images(1, 9)[0]).save(folder / "train" / "ant" / "000.png")
    assert load(f"folder:{folder}", tmp_path).spec.fingerprint != first.spec.fingerprint
    assert load(f"folder:{folder}", tmp_path, config={"size": 4}).spec.image_shape == (3, 4, 4)


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path):
    folder = write_both(tmp_path)
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(DataError, match="DD_PLUGINS_CACHE can name another folder"):
        load(f"folder:{folder}", tmp_path)


# ------------------------------------------------------------------------------------------------ named sets


def write_idx(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">I{values.ndim}I", 0x0800 + values.ndim, *values.shape)
    path.write_bytes(header + values.tobytes())


@pytest.mark.parametrize(
    ("name", "folder", "mirror"), [("mnist", "MNIST", False), ("fashion-mnist", "FashionMNIST", True)]
)
def test_mnist_reads_files_on_disk(tmp_path, name, folder, mirror):
    raw = tmp_path / "root" / folder / "raw"
    for split, count in (("train", 40), ("t10k", 10)):
        write_idx(raw / f"{split}-images-idx3-ubyte", make_images(count, count, (28, 28)))
        write_idx(raw / f"{split}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    real = load(name, tmp_path)
    assert real.spec.image_shape == (1, 28, 28)
    assert (real.spec.name, real.spec.origin, real.spec.mirror) == (name, "torchvision", mirror)
    assert len(real.class_names) == 10
    assert [len(s) for s in (real.train, real.validation, real.test)] == [30, 10, 10]
    assert torch.equal(real.train.pixels[:40, 0], torch.from_numpy(make_images(40, 40, (28, 28))))


def test_truncated_mnist_is_a_data_error(tmp_path):
    raw = tmp_path / "root" / "MNIST" / "raw"
    for split in ("train", "t10k"):
        write_idx(raw / f"{split}-images-idx3-ubyte", make_images(20, 0, (28, 28)))
        write_idx(raw / f"{split}-labels-idx1-ubyte", np.arange(20, dtype=np.uint8) % 10)
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="mnist: cannot be read or downloaded"):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "source", "layout"), [("svhn", "SVHN", (20, 3, 32, 32)), ("cifar100", "CIFAR100", (20, 32, 32, 3))]
)
def test_arrays_of_torchvision_become_channels_first(tmp_path, monkeypatch, name, source, layout):
    class Fake:
        def __init__(self, root, train=True, split="train", download=False):
            assert download
            self.data = make_images(20, 7, layout[1:])
            labels = np.arange(20) % 10
            if source == "SVHN":
                self.labels = labels
            else:
                self.targets, self.classes = labels.tolist(), list("abcdefghij")

    monkeypatch.setattr(f"torchvision.datasets.{source}", Fake)
    pixels = load(name, tmp_path).train.pixels
    expected = torch.from_numpy(make_images(20, 7, layout[1:]))
    assert torch.equal(pixels[:20], expected if source == "SVHN" else expected.permute(0, 3, 1, 2))


def test_a_failed_download_says_where_to_put_the_files(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no\nnetwork")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(DataError, match=r"\(no network\); put the folder cifar-10-batches-py under .*root") as caught:
        load("cifar10", tmp_path)
    assert "\n" not in str(caught.value)


def test_cifar10_is_read_from_parquet_under_root(tmp_path):
    write_both(tmp_path / "root" / "cifar10")
    spec = load("cifar10", tmp_path).spec
    assert (spec.name, spec.origin) == ("cifar10", "parquet")
    assert spec.mean == (0.4914, 0.4822, 0.4465)
    write_both(tmp_path / "root" / "mnist", shape=(28, 28))
    assert not load("mnist", tmp_path).spec.mirror


def write_archive(folder):
    """The layout of tiny-imagenet-200.zip, and the labels of its validation images."""
    for label, name in enumerate(NAMES):
        for row, image in enumerate(make_images(4, label)):
            path = folder / "train" / name / "images" / f"{name}_{row}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(image, "JPEG"))
        (folder / "train" / name / f"{name}_boxes.txt").write_text("0 0 8 8\n")
    (folder / "val" / "images").mkdir(parents=True)
    labels = [2, 0, 1, 1]
    for row, image in enumerate(make_images(4, 9)):
        (folder / "val" / "images" / f"val_{row}.JPEG").write_bytes(encode(image, "JPEG"))
    lines = [f"val_{row}.JPEG\t{NAMES[label]}\t0\t0\t7\t7\n" for row, label in enumerate(labels)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return labels


@pytest.mark.parametrize("name", ["tiny-imagenet-200", "tiny-imagenet"])
def test_tiny_imagenet_as_its_archive_has_it(tmp_path, name):
    folder = tmp_path / "root" / name
    labels = write_archive(folder)
    real = load("tiny-imagenet", tmp_path)
    assert (real.spec.name, real.spec.mean, real.class_names) == ("tiny-imagenet", (0.485, 0.456, 0.406), NAMES)
    assert len(real.train) + len(real.validation) == 12
    assert real.test.labels.tolist() == labels
    (folder / "val" / "images" / "val_3.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_3\.JPEG: cannot be read \(No such file"):
        load("tiny-imagenet", tmp_path)
    annotations = folder / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text().replace("cat", "cow"))
    with pytest.raises(DataError, match=r"val_annotations\.txt, line 1: there is no class 'cow'"):
        load("tiny-imagenet", tmp_path)
    annotations.write_text(f"../../train/{NAMES[0]}/images/x.JPEG\t{NAMES[0]}\n/dev/zero\t{NAMES[0]}\n")
    with pytest.raises(DataError, match=r"line 1: '\.\./\.\./train.*' is no name of a file; line 2: '/dev/zero' is"):
        load("tiny-imagenet", tmp_path)


def test_tiny_imagenet_as_parquet_or_missing(tmp_path):
    with pytest.raises(DataError, match=r"put train\*\.parquet and valid\*\.parquet into .*root/tiny-imagenet"):
        load("tiny-imagenet", tmp_path)
    write_both(tmp_path / "root" / "tiny-imagenet", test="valid")
    assert load("tiny-imagenet", tmp_path).spec.origin == "parquet"


@pytest.mark.data
def test_real_cifar10(tmp_path):
    root = os.environ.get("DD_PLUGINS_DATA")
    if not root:
        pytest.skip("DD_PLUGINS_DATA is not set")
    real = load_dataset("cifar10", Path(root), cache=tmp_path)
    assert real.spec.image_shape == (3, 32, 32)
    assert real.class_names[0] == "airplane"
    for split, count in ((real.train, 4500), (real.validation, 500), (real.test, 1000)):
        assert isinstance(split, Split)
        assert torch.bincount(split.labels).tolist() == [count] * 10
    mean, _ = channel_statistics(real.train.pixels[:50_000])
    np.testing.assert_allclose(mean, real.spec.mean, atol=0.005)


# ---- some classes of many --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_some_classes_alone_and_in_another_order(tmp_path, kind):
    folder = write_both(tmp_path / "made")
    whole, some = load(f"{kind}:{folder}", tmp_path), load(f"{kind}:{folder}", tmp_path, config={"classes": [2, 0]})
    assert some.class_names == ("cat", "ant")
    assert some.spec.num_classes == 2
    assert some.spec.fingerprint != whole.spec.fingerprint
    for new, old in enumerate((2, 0)):
        for split in ("test", "train"):
            one, other = getattr(some, split), getattr(whole, split)
            found = one.pixels[one.index[one.class_rows()[new]]].flatten(1)
            expected = other.pixels[other.index[other.class_rows()[old]]].flatten(1)
            if split == "test":  # of train, other images may be held out
                assert torch.equal(found, expected)
            else:
                assert len(found) == len(expected)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_classes_by_name_are_those_by_number(tmp_path, kind):
    folder = write_both(tmp_path / "made")
    numbered = load(f"{kind}:{folder}", tmp_path, config={"classes": [2, 0]})
    for classes in (["cat", "ant"], ["Cat", 0]):
        named = load(f"{kind}:{folder}", tmp_path, config={"classes": classes})
        assert named.spec.fingerprint == numbered.spec.fingerprint
        assert named.class_names == numbered.class_names


def test_a_class_name_that_is_none_is_told_with_all_names_and_numbers(tmp_path):
    folder = write_both(tmp_path / "made")
    with pytest.raises(ConfigError, match=r"but found 'cats'; did you mean cat\? \(classes: 0 ant, 1 bee, 2 cat\)"):
        load(f"folder:{folder}", tmp_path, config={"classes": ["ant", "cats"]})


@pytest.mark.parametrize("classes", [[0, 3], [1, 1], [-1, 0], ["cat", 2]])
def test_classes_that_are_none_are_told(tmp_path, classes):
    folder = write_both(tmp_path / "made")
    with pytest.raises(ConfigError, match=r"data\.classes = .*expected different classes from 0 to 2"):
        load(f"folder:{folder}", tmp_path, config={"classes": classes})


@pytest.fixture
def imagenet(tmp_path):
    """A thousand classes' folders, with images in those of imagenette alone."""
    for number in range(1000):
        for split in ("train", "val"):
            (tmp_path / "root" / "imagenet" / split / f"n{number:08}").mkdir(parents=True)
    for label, number in enumerate(SUBSETS["imagenette"]):
        for split, count in (("train", 3), ("val", 2)):
            for row, image in enumerate(make_images(count, label, (20, 30, 3))):
                path = tmp_path / "root" / "imagenet" / split / f"n{number:08}" / f"{row}.JPEG"
                path.write_bytes(encode(image, "JPEG"))
    return tmp_path


@pytest.mark.parametrize(("config", "side"), [({}, 128), ({"size": 256}, 256), ({"size": 16}, 16)])
def test_a_subset_of_imagenet(imagenet, config, side):
    real = load("imagenet:imagenette", imagenet, config=config)
    assert real.spec.name == "imagenette"
    assert real.spec.image_shape == (3, side, side)
    assert real.spec.mean == (0.485, 0.456, 0.406)
    assert real.class_names[:2] == ("n00000000", "n00000217")
    assert len(real.train) + len(real.validation) == 30
    assert real.test.labels.bincount().tolist() == [2] * 10


def test_what_is_no_subset_or_no_imagenet_is_told(imagenet):
    with pytest.raises(UsageError, match=r"no such subset; there are imagenet-a, .*imagecats"):
        load("imagenet:nette", imagenet)
    with pytest.raises(DataError, match=r"imagenet: not found; expected .*train/<wnid> and"):
        load_dataset("imagenet:imagewoof", imagenet / "elsewhere")
    (imagenet / "root" / "imagenet" / "train" / "n00000500").rmdir()
    with pytest.raises(DataError, match=r"expected the folders of all 1000 classes.*found 999"):
        load("imagenet:imagenette", imagenet)


def test_subsets_have_ten_different_classes_each():
    assert all(len(set(numbers)) == 10 and max(numbers) < 1000 for numbers in SUBSETS.values())
    assert len(SUBSETS) == 10
    sums = {  # of their numbers: class k of a subset counts k + 1 times
        "imagenet-a": 23452,
        "imagenet-b": 23891,
        "imagenet-c": 13518,
        "imagenet-d": 10237,
        "imagenet-e": 25402,
        "imagenette": 30452,
        "imagewoof": 11206,
        "imagebirds": 4575,
        "imagefruits": 52196,
        "imagecats": 15836,
    }
    assert {name: sum(place * number for place, number in enumerate(SUBSETS[name], 1)) for name in SUBSETS} == sums
