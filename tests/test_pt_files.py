"""Tensor files from elsewhere that are odd or hostile: each is refused in one line, at once, and nothing in it runs."""

import os
import resource
import time
import warnings
import zipfile

import pytest
import torch
from made_up import make_real

from benchmark_adapters.formats.base import checked, load_tensors, rescaled
from benchmark_adapters.formats.dc_bench import DCBenchFormat
from benchmark_adapters.formats.published import DC, MTT, DDRanking
from dd_plugins.api import DataError

REAL = make_real()  # 4 classes of 2x8x8
SHAPE = REAL.spec.image_shape
IMAGES = torch.zeros(4, *SHAPE)
LABELS = torch.arange(4)


def nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype in torch
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in torch
        return torch.quantize_per_tensor(IMAGES, 0.1, 0, torch.qint8)


UNUSUAL = {
    "meta": lambda: torch.zeros(4, *SHAPE, device="meta"),
    "sparse": lambda: IMAGES.to_sparse(),
    "sparse_csr": lambda: torch.eye(4).to_sparse_csr(),
    "nested": nested,
    "quantized": quantized,
    "expanded": lambda: torch.zeros(1).expand(10**9, *SHAPE),
    "strided": lambda: torch.zeros(4).as_strided((10**6, 10**6), (0, 0)),
}


def refused(act, *args):
    start = time.perf_counter()
    with pytest.raises(DataError) as caught:
        act(*args)
    assert time.perf_counter() - start < 2
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500
    return str(caught.value)


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_tensors_that_are_not_plain_numbers_in_the_file(kind, tmp_path):
    for content in (UNUSUAL[kind](), {"data": [[IMAGES, UNUSUAL[kind]()]]}, [(1, {"a": {2: UNUSUAL[kind]()}})]):
        try:
            torch.save(content, tmp_path / "set.pt")
        except (RuntimeError, NotImplementedError):
            pytest.skip("torch does not save it")
        message = refused(load_tensors, tmp_path / "set.pt")
        assert str(tmp_path / "set.pt") in message


def test_plain_tensors_and_views_of_them_are_read(tmp_path):
    base = torch.arange(24.0).view(2, 3, 4)
    content = {"view": base[:, 1], "transposed": base.mT, "scalar": torch.tensor(3), "numbers": [1, 2.5, "a"]}
    content["again"] = content["numbers"]
    torch.save(content, tmp_path / "set.pt")
    found = load_tensors(tmp_path / "set.pt")
    assert torch.equal(found["view"], content["view"])
    assert torch.equal(found["transposed"], content["transposed"])
    assert found["numbers"] == [1, 2.5, "a"]
    torch.save(base, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_tensors(tmp_path / "old.pt"), base)


def test_a_list_that_holds_itself_is_read(tmp_path):
    endless = [torch.zeros(1)]
    endless.append(endless)
    torch.save(endless, tmp_path / "set.pt")
    assert load_tensors(tmp_path / "set.pt")[1][0].shape == (1,)


WRONG = {
    "0-d images": (torch.tensor(1.0), LABELS, "images of shape"),
    "0-d labels": (IMAGES, torch.tensor(1), "labels of shape"),
    "no image": (IMAGES[:0], LABELS[:0], "no image"),
    "many dimensions": (torch.zeros((1,) * 60), LABELS, "images of shape"),
    "NaN": (IMAGES.index_fill(0, torch.tensor(1), torch.nan), LABELS, "128 of 512 pixel values are NaN"),
    "infinite": (IMAGES - torch.inf, LABELS, "NaN or infinite"),
    "complex images": (IMAGES.to(torch.complex64), LABELS, "torch.complex64"),
    "8 bit floats": (IMAGES.to(torch.float8_e4m3fn), LABELS, "torch.float8_e4m3fn"),
    "complex labels": (IMAGES, LABELS.to(torch.complex64), "torch.complex64"),
    "8 bit labels": (IMAGES, LABELS.float().to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
    "half labels": (IMAGES, LABELS + 0.5, "no whole numbers"),
    "NaN labels": (IMAGES, LABELS * torch.nan, "no whole numbers"),
    "unsigned labels": (IMAGES, LABELS.to(torch.uint16), "torch.uint16"),
    "no tensor": (IMAGES.tolist(), LABELS, "expected two tensors"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_images_and_labels_that_are_none(kind):
    images, labels, part = WRONG[kind]
    message = refused(checked, images, labels, REAL.spec, REAL.class_names, "set.pt")
    assert message.startswith("set.pt: ")
    assert part in message


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float16, torch.float64])
def test_labels_of_usual_types_are_whole_numbers(dtype):
    found = checked(IMAGES.double(), LABELS.to(dtype), REAL.spec, REAL.class_names, "set.pt")
    assert torch.equal(found.targets, LABELS)


@pytest.mark.parametrize("form", [DC(), MTT(), DDRanking(), DCBenchFormat()], ids=lambda form: type(form).__name__)
def test_a_pipe_or_a_device_in_the_place_of_a_file(form, tmp_path):
    names = ("res.pt", "res_DM_CIFAR10_ConvNet_1ipc.pt", "images_best.pt", "labels_best.pt", "images.pt", "labels.pt")
    for name in names:
        os.mkfifo(tmp_path / name)
    (tmp_path / "zero").symlink_to("/dev/zero")
    path = tmp_path / "res.pt" if isinstance(form, DC) else tmp_path
    message = refused(form.read, path, REAL)
    assert "not a regular file" in message or "expected one set" in message
    assert "not a regular file" in refused(load_tensors, tmp_path / "zero")


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path):
    torch.save(torch.zeros(10**6), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(
        tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED
    ) as small:  # fmt: skip
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    assert (tmp_path / "small.pt").stat().st_size < 10**5
    assert "a compressed file" in refused(load_tensors, tmp_path / "small.pt")
    assert load_tensors(tmp_path / "plain.pt").shape == (10**6,)


def test_pixels_that_do_not_fit_into_the_space_of_the_data_set():
    assert "too large" in refused(rescaled, IMAGES + 3e38, (0.0, 0.0), (2.0, 2.0), REAL.spec)


class Large:
    """Pickled as the name of a function that allocates, and a number of bytes: nothing else is in the file."""

    def __reduce__(self):
        return bytearray, (2**36,)


def test_a_small_file_that_asks_for_much_memory_is_refused_before_it_gets_it(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_AS)
    torch.save({"data": [[Large(), LABELS]]}, tmp_path / "res.pt")
    assert (tmp_path / "res.pt").stat().st_size < 5000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "would take more than 1.0 GiB of memory" in refused(load_tensors, tmp_path / "res.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
