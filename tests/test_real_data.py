"""Real data from tensors and from torch data sets: equal to what a loaded data set gives."""

import numpy
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from dd_plugins.api import DataError, RealData
from dd_plugins.datasets import load_dataset


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def arrays(digits):
    """The images and labels of the digits before they were split, from the shared pixels."""
    held = torch.cat([digits.train.index, digits.validation.index])
    order = held.argsort()
    labels = torch.cat([digits.train.labels, digits.validation.labels])[order]
    pixels = digits.train.pixels
    return (pixels[: len(order)], labels), (pixels[digits.test.index], digits.test.labels)


def same(one, other):
    assert one.spec.fingerprint == other.spec.fingerprint
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(one, split).images(), getattr(other, split).images())
        assert torch.equal(getattr(one, split).labels, getattr(other, split).labels)


def test_tensors_give_the_splits_and_the_fingerprint_of_the_loaded_data_set(digits, arrays):
    given = {"mirror": digits.spec.mirror, "statistics": (digits.spec.mean, digits.spec.std)}
    made = RealData.from_tensors(*arrays, "digits", **given)
    same(made, digits)
    assert made.class_names == tuple(map(str, range(10)))
    sizes = f"{len(digits.train)} train, {len(digits.validation)} validation, {len(digits.test)} test"
    assert repr(made) == f"RealData('digits', 10 classes of (1, 8, 8), {sizes}, cpu)"


def test_floats_arrays_and_lists_are_taken_too(digits, arrays):
    (train, train_labels), (test, test_labels) = arrays
    given = {"mirror": digits.spec.mirror, "statistics": (digits.spec.mean, digits.spec.std)}
    floats = (train.double().numpy() / 255, train_labels.tolist()), (test.float() / 255, test_labels.int().numpy())
    same(RealData.from_tensors(*floats, **given), digits)


def test_statistics_are_measured_where_none_are_given():
    images = torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 2
    spec = RealData.from_tensors((images, labels), (images, labels)).spec
    expected = images.double() / 255
    assert spec.mean == pytest.approx(expected.mean((0, 2, 3)).tolist())
    assert spec.std == pytest.approx(expected.std((0, 2, 3), unbiased=False).tolist())


def test_torch_data_sets_give_the_same(digits, arrays):
    given = {"mirror": digits.spec.mirror, "statistics": (digits.spec.mean, digits.spec.std)}
    same(RealData.from_dataset(*(TensorDataset(*pair) for pair in arrays), "digits", **given), digits)
    pictures = [[(Image.fromarray(i[0].numpy()), int(c)) for i, c in zip(*pair, strict=True)] for pair in arrays]
    same(RealData.from_dataset(*pictures, **given), digits)


def test_colours_of_pictures_are_channels():
    pixels = numpy.random.default_rng(0).integers(0, 256, (8, 5, 6, 3), dtype=numpy.uint8)
    pairs = [(Image.fromarray(image), number % 2) for number, image in enumerate(pixels)]
    made = RealData.from_dataset(pairs, pairs)
    assert made.spec.image_shape == (3, 5, 6)
    assert numpy.array_equal(made.train.pixels[8:].numpy(), pixels.transpose(0, 3, 1, 2))


IMAGES, LABELS = torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.arange(8) % 2


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((IMAGES[:, 0], LABELS), r"train images: expected shape \(N, C, H, W\) with N > 0, but got \(8, 4, 4\)"),
        ((torch.zeros(8, 28, 28, 3), LABELS), r"use images.permute\(0, 3, 1, 2\)"),
        ((IMAGES.int(), LABELS), "expected uint8, or float from 0 to 1, but got torch.int32"),
        ((IMAGES.float() + 255, LABELS), "expected float values from 0 to 1, but got 255 to 255"),
        ((IMAGES.float() * float("nan"), LABELS), "from 0 to 1"),
        ((IMAGES, LABELS.float()), r"train labels: expected integers of shape \(N,\), but got torch.float32"),
        ((IMAGES, LABELS[:4]), r"labels, shape \(8,\)"),
        ((IMAGES, LABELS * 5 - 1), "labels from 0 to"),
        ((IMAGES, LABELS * 0), "two classes at least"),
        ((IMAGES[:0], LABELS[:0]), "with N > 0"),
        (("pictures", LABELS), "expected a tensor or an array, but got str"),
    ],
)
def test_what_is_no_data_set_is_refused(train, message):
    with pytest.raises(DataError, match=message):
        RealData.from_tensors(train, (IMAGES, LABELS))


def test_all_bad_images_of_a_data_set_are_listed():
    pairs = [(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 5, 4), 0), (torch.full((1, 4, 4), 2.0), 1), (None, 1)]
    with pytest.raises(DataError, match=r"train: 3 bad images: row 1: shape .* row 2: .* row 3: ") as error:
        RealData.from_dataset(pairs, pairs)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="test: expected at least one image"):
        RealData.from_dataset([(torch.zeros(1, 4, 4), k % 2) for k in range(8)], [])
