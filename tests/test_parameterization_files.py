"""Containers: files, budgets, seeds and initialisation."""

import json

import pytest
import torch
from made_up import CONTAINERS, make_container, make_real, make_spec
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import stats

from dd_plugins.api import RawData, StorageBudget, StorageBudgetExceeded, SyntheticFileError, UsageError
from dd_plugins.datasets import build_real_data
from dd_plugins.parameterizations.hmn import HMN
from dd_plugins.parameterizations.pixel import Pixel
from dd_plugins.seeds import make_generator

KEY = "dd_plugins"


@pytest.fixture(params=list(CONTAINERS))
def saved(request, tmp_path):
    """A container and its file."""
    container, path = make_container(request.param), tmp_path / "synthetic.safetensors"
    container.save(path)
    return container, path


def rewrite(path, change_tensors=None, change_header=None):
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[KEY])
    if change_tensors:
        change_tensors(tensors)
    if change_header:
        header = change_header(header) or header
    save_file(tensors, path, {KEY: json.dumps(header)})


# --------------------------------------------------------------------------------------------------------- files


def test_round_trip_from_the_file_alone(saved):
    container, path = saved
    loaded = type(container).load(path)
    assert torch.equal(loaded.decode(), container.decode())
    assert torch.equal(loaded.labels, container.labels)
    assert (loaded.data, loaded.budget, loaded.counts) == (container.data, container.budget, container.counts)
    assert loaded.config == container.config
    assert loaded.storage() == container.storage()
    on_disk = load_file(path)
    assert sum(tensor.numel() for tensor in on_disk.values()) == container.storage().elements
    assert sum(tensor.nbytes for tensor in on_disk.values()) == container.storage().nbytes <= path.stat().st_size
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no leftovers
    loaded.save(path.with_name("again"))
    assert path.with_name("again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("left", [0, 7, 8, 200, 0.5, -1])
def test_truncated_files_are_refused(saved, left):
    container, path = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * left) if isinstance(left, float) else left])
    with pytest.raises(SyntheticFileError, match=r"synthetic\.safetensors: truncated"):
        type(container).load(path)


def test_missing_and_foreign_files_are_refused(saved, tmp_path):
    container, path = saved
    with pytest.raises(SyntheticFileError, match="no such file"):
        type(container).load(tmp_path / "nowhere")
    save_file({"images": torch.zeros(3)}, path)
    with pytest.raises(SyntheticFileError, match="not a synthetic set"):
        type(container).load(path)
    path.write_bytes(b"not even tensors " * 100)
    with pytest.raises(SyntheticFileError):
        type(container).load(path)
    with pytest.raises(SyntheticFileError):
        type(container).load(tmp_path)  # a folder


def test_the_other_class_is_refused(saved):
    container, path = saved
    (other,) = {HMN, Pixel} - {type(container)}
    with pytest.raises(SyntheticFileError, match=r"synthetic\.safetensors"):
        other.load(path)


def spoil(tensors, value):
    next(iter(tensors.values())).view(-1)[5] = value


def reshape(tensors):
    name = sorted(tensors)[-1]
    tensors[name] = torch.cat([tensors[name], tensors[name][:1]])


TENSOR_DAMAGE = {
    "nan": (lambda tensors: spoil(tensors, float("nan")), "NaN"),
    "infinite": (lambda tensors: spoil(tensors, float("inf")), "infinite"),
    "shape": (reshape, "should be torch.float32"),
    "dtype": (lambda tensors: tensors.update({k: v.double() for k, v in tensors.items()}), "torch.float64"),
    "missing": (lambda tensors: tensors.pop(sorted(tensors)[0]), "holds nothing"),
    "surplus": (lambda tensors: tensors.update(hidden=torch.zeros(3)), "tensor hidden should be nothing"),
}


@pytest.mark.parametrize("damage", list(TENSOR_DAMAGE))
def test_damaged_tensors_are_refused(saved, damage):
    container, path = saved
    change, message = TENSOR_DAMAGE[damage]
    rewrite(path, change)
    with pytest.raises(SyntheticFileError, match=message):
        type(container).load(path)


HEADER_DAMAGE = {
    "list": lambda header: [header],
    "text": lambda header: "header",
    "newer": lambda header: {**header, "format": 99},
    "no budget": lambda header: {k: v for k, v in header.items() if k != "budget"},
    "budget": lambda header: {**header, "budget": {"elements": "many"}},
    "small budget": lambda header: {**header, "budget": {"elements": 3}, "counts": [1] * 4},
    "data": lambda header: {**header, "data": "cifar10"},
    "no classes": lambda header: {**header, "data": {**header["data"], "num_classes": 0}},
    "statistics": lambda header: {**header, "data": {**header["data"], "std": [0.0, 0.0]}},
    "config": lambda header: {**header, "config": {"wrong": 1}},
    "counts": lambda header: {**header, "counts": header["counts"][1:]},
    "zero": lambda header: {**header, "counts": [0, *header["counts"][1:]]},
    "more": lambda header: {**header, "counts": [9, *header["counts"][1:]]},
    "text counts": lambda header: {**header, "counts": "5555x"},
}


@pytest.mark.parametrize("damage", list(HEADER_DAMAGE))
def test_damaged_headers_are_refused(saved, damage):
    container, path = saved
    rewrite(path, change_header=HEADER_DAMAGE[damage])
    with pytest.raises(SyntheticFileError, match=r"synthetic\.safetensors"):
        type(container).load(path)


def test_files_over_budget_are_refused(saved):
    container, _ = saved
    ledger = container.storage()
    ledger.enforce(StorageBudget(ledger.elements), "it")
    with pytest.raises(StorageBudgetExceeded) as caught:
        ledger.enforce(StorageBudget(ledger.elements - 3), "it")
    for number in (ledger.elements, ledger.nbytes, ledger.elements - 3, 4 * (ledger.elements - 3), "+3"):
        assert str(number) in str(caught.value)
    assert max(ledger.entries, key=lambda entry: entry.nbytes).name in str(caught.value)
    wide = container.double().storage()  # as many elements, twice the bytes
    with pytest.raises(StorageBudgetExceeded):
        wide.enforce(StorageBudget(ledger.elements), "it")
    pixels = Pixel(make_spec(), StorageBudget.ipc(make_spec(), 2), counts=(2, 2, 2, 3))
    with pytest.raises(StorageBudgetExceeded, match=r"\+512 elements"):
        pixels.storage().enforce(pixels.budget, "pixel")


# ----------------------------------------------------------------------------------------------- initialisation


@pytest.mark.parametrize("init", ["noise", "real"])
@pytest.mark.parametrize("kind", list(CONTAINERS))
def test_only_the_seed_decides(kind, init):
    real, before = make_real(), torch.get_rng_state()
    plugin, config = CONTAINERS[kind]
    budget, config = StorageBudget.ipc(real.spec, 12), {**config, "init": init}
    one, two, three = (plugin(real.spec, budget, config) for _ in range(3))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    for container, seed in ((one, 1), (two, 1), (three, 2)):
        container.reset(make_generator(seed), real)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.decode(), three.decode())
    two.reset(make_generator(2), real)  # nothing is left of the first time
    assert torch.equal(two.decode(), three.decode())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in one.parameters())


def test_pixels_start_from_different_real_images_of_their_class():
    real = make_real()
    container = Pixel(real.spec, StorageBudget.ipc(real.spec, 6))
    container.reset(make_generator(0), real)
    images, source = container.decode(), real.train.images()
    rows = [(source == image).flatten(1).all(1).nonzero().item() for image in images]
    assert len(set(rows)) == 24
    assert torch.equal(real.train.labels[rows], container.labels)


def test_pixels_start_from_noise_and_are_clamped_if_asked():
    free, clamped = (make_container("pixel", ipc=40, clamp=clamp) for clamp in (False, True))
    assert stats.kstest(free.decode().flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.equal(free.decode(), clamped.decode())
    inside = ((free.data.denormalize(free.decode())) * 1.0).clamp(0, 1)
    untouched = free.decode()
    for container in (free, clamped):
        container.project()
    assert torch.equal(free.decode(), untouched)
    torch.testing.assert_close(clamped.data.denormalize(clamped.decode()), inside, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", list(CONTAINERS))
def test_real_start_needs_real_data(kind):
    plugin, config = CONTAINERS[kind]
    container = plugin(make_spec(), StorageBudget.ipc(make_spec(), 5), {**config, "init": "real"})
    with pytest.raises(UsageError, match="needs real data"):
        container.reset(make_generator(0), None)


def test_hmn_warm_start_fits_real_images():
    labels = torch.arange(4).repeat(10)
    pictures = torch.randint(0, 256, (4, 2, 8, 8), generator=make_generator(0), dtype=torch.uint8)
    raw = RawData(pictures[labels], labels, pictures, torch.arange(4), tuple("abcd"))
    real, errors = build_real_data("one picture a class", raw), []
    for steps in (0, 80):
        config = {"max_images_per_class": 5, "warm_start_steps": steps, "warm_start_batch": 16}
        container = HMN(real.spec, StorageBudget.ipc(real.spec, 20), config)
        container.reset(make_generator(0), real)
        errors.append(float((container.decode() - real.spec.normalize(pictures)[container.labels]).square().mean()))
    assert errors[1] < 0.5 * errors[0]
