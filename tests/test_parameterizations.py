"""HMN and pixels: exact sizes, the budget, decoding row by row, pruning, files, gradients in chunks and seeds."""

from contextlib import contextmanager
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import CONTAINERS, make_container, make_real, make_spec
from torch.nn import functional

from dd_plugins.api import BudgetTooSmall, ConfigError, StorageBudget, UsageError, float32_cost
from dd_plugins.parameterizations.hmn import HMN
from dd_plugins.parameterizations.hmn_sizes import Sizes, grid_shape
from dd_plugins.parameterizations.pixel import Pixel
from dd_plugins.seeds import make_generator

# Classes, side, IPC, sizes as in `Sizes`, then the table's: shared floats R, s, images per class G, floats used.
SMALL_D, LARGE_D = (10, 10, 8), (48, 32, 16)
TABLE = [
    (10, 32, 1, (4, 4, 3, 2, 4, 1, SMALL_D), 3_421, 32, 85, 30_621),
    (10, 32, 10, (4, 32, 8, 6, 4, 3, LARGE_D), 40_091, 96, 278, 306_971),
    (10, 32, 50, (4, 32, 8, 8, 4, 3, LARGE_D), 40_955, 128, 1_168, 1_535_995),
    (100, 32, 1, (4, 4, 2, 2, 4, 1, SMALL_D), 7_851, 32, 93, 305_451),
    (100, 32, 10, (4, 64, 32, 8, 16, 1, (64,) * 3), 264_131, 128, 219, 3_067_331),
    (100, 32, 50, (4, 64, 32, 14, 16, 1, (64,) * 3), 267_587, 224, 673, 15_342_787),
    (200, 64, 1, (8, 8, 2, 2, 4, 1, (16, 16, 8)), 38_179, 128, 94, 2_444_579),
    (200, 64, 10, (8, 64, 8, 6, 16, 1, (64,) * 3), 407_427, 384, 314, 24_522_627),
    (200, 64, 50, (8, 64, 8, 16, 16, 1, (64,) * 3), 413_187, 1_024, 597, 122_678_787),
    (10, 224, 1, (14, 16, 4, 8, 8, 1, (32, 24, 16, 16)), 31_291, 1_568, 94, 1_505_211),
    (10, 224, 10, (14, 32, 16, 24, 16, 1, (64, 48, 32, 24)), 124_371, 4_704, 317, 15_036_051),
    (10, 224, 50, (14, 32, 16, 48, 16, 1, (64, 48, 32, 24)), 138_195, 9_408, 798, 75_214_035),
]


def stored(container):
    return sum(tensor.numel() for tensor in container.state_dict().values())


# ----------------------------------------------------------------------------------------------------- HMN's sizes


@pytest.mark.parametrize(("classes", "side", "ipc", "sizes", "shared", "instance", "images", "used"), TABLE)
def test_published_sizes_to_the_float(classes, side, ipc, sizes, shared, instance, images, used):
    spec, size = make_spec(classes, side, 3), Sizes(*sizes)
    budget = StorageBudget.ipc(spec, ipc)
    assert (size.shared(spec), size.instance(spec)) == (shared, instance)
    config = HMN.Config(**dict(zip(Sizes.__dataclass_fields__, sizes, strict=True)), init="noise")
    plan = HMN.plan(spec, budget, config, float32_cost)
    assert plan.counts == (images,) * classes
    assert shared + classes * images * instance == used <= budget.elements
    if used > 4e5:
        return
    container = HMN(spec, budget, plan=plan)
    assert stored(container) == container.storage().elements == used
    container.reset(make_generator(0), None)
    assert container.decode(torch.tensor([0, classes * images - 1])).shape == (2, 3, side, side)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(2, 200), st.sampled_from([8, 16, 28, 32, 64]), st.sampled_from([1, 3]), st.integers(1, 50))
def test_whatever_the_search_finds_fits(classes, side, channels, ipc):
    spec = make_spec(classes, side, channels)
    budget = StorageBudget.ipc(spec, ipc)
    try:
        plan = HMN.plan(spec, budget, HMN.Config(), float32_cost)
    except BudgetTooSmall as error:
        assert str(budget.elements) in str(error)  # noqa: PT017
        return
    elements = sum(prod(shape) for shape, _ in HMN.shapes(spec, plan.counts, plan.config).values())
    instance = plan.config.instance_channels * prod(grid_shape(spec, len(plan.config.widths)))
    assert elements <= budget.elements < elements + classes * instance  # not one more would fit
    assert min(plan.counts) >= 1


def test_bad_sizes_and_small_budgets_are_refused():
    with pytest.raises(ConfigError, match=r"grid = 5.* a side of 16 pixels; there are 16, 8, 4, 2, 1"):
        make_container("hmn", grid=5)
    with pytest.raises(ConfigError, match="expected 2 widths"):
        make_container("hmn", grid=4, widths=[8])
    with pytest.raises(BudgetTooSmall, match="the budget is 100"):
        HMN(make_spec(), StorageBudget(100))
    with pytest.raises(BudgetTooSmall, match="2047 elements"):
        Pixel(make_spec(), StorageBudget(2047))  # one image of each class takes 4 x 2 x 16 x 16
    assert make_container("hmn", max_images_per_class=3).counts == (3,) * 4


# ------------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("kind", list(CONTAINERS))
def test_rows_decode_alone_as_together(kind):
    container = make_container(kind)
    images = container.decode()
    assert images.shape == (20, 2, 16, 16)
    assert images.dtype == torch.float32
    assert not images.requires_grad
    assert container.labels.tolist() == [label for label in range(4) for _ in range(5)]
    tolerance = 1e-6 / 0.3  # 1e-6 of a pixel value, in model space
    for row in range(20):
        torch.testing.assert_close(container.decode(torch.tensor([row]))[0], images[row], atol=tolerance, rtol=0)
    rows = torch.tensor([7, 0, 7, 19])
    torch.testing.assert_close(container.decode(rows), images[rows], atol=tolerance, rtol=0)
    container.chunk_size = 3
    torch.testing.assert_close(container.decode(), images, atol=tolerance, rtol=0)


def test_hmn_decodes_pixels_between_0_and_1():
    container = make_container("hmn", ipc=20)
    pixels = container.data.denormalize(container.decode())
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6
    assert pixels.std() > 0.05  # not grey all over, which the framework's own initialisation would be


@pytest.mark.parametrize("kernel", [1, 3])
def test_hmn_is_its_formula(kernel):
    """x = D([f_c(m^D), m^C_c, m^I_i]), image by image and class by class."""
    container = make_container("hmn", extractor_kernel=kernel)
    images, size = container.decode(), container.sizes
    for row, image in enumerate(images):
        label = row // 5
        own = slice(label * size.extractor_channels, (label + 1) * size.extractor_channels)
        weight, bias = container.extractors.weight[own], container.extractors.bias[own]
        extracted = functional.conv2d(container.dataset_memory, weight, bias, padding=kernel // 2)[0]
        hidden = torch.cat([extracted, container.class_memory[label], container.instance_memory[row]])
        for conv in container.decoder:
            hidden = hidden.repeat_interleave(2, 1).repeat_interleave(2, 2)
            hidden = functional.conv2d(hidden[None], conv.weight, conv.bias, padding=1)[0]
            hidden = hidden.clamp(min=0) + 0.2 * hidden.clamp(max=0)
        logits = functional.conv2d(hidden[None], container.output.weight, container.output.bias, padding=1)[0]
        torch.testing.assert_close(image, (1 / (1 + torch.exp(-logits)) - 0.4) / 0.3, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", list(CONTAINERS))
@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_backward_in_chunks_is_autograd(kind, chunk_size):
    container, index = make_container(kind), torch.tensor([1, 2, 5, 6, 9, 13, 19])
    image_grad = torch.randn(7, 2, 16, 16, generator=make_generator(1))
    whole = torch.autograd.grad((container._decode(index) * image_grad).sum(), list(container.parameters()))
    container.chunk_size = chunk_size
    for decoded in (True, False):  # with the graph of the decode before, and without one
        container.zero_grad()
        if decoded:
            container.decode(index)
        container.backward(index, image_grad)
        for (name, parameter), expected in zip(container.named_parameters(), whole, strict=True):
            torch.testing.assert_close(parameter.grad, expected, atol=1e-4, rtol=1e-4, msg=name)
            assert parameter.grad.abs().max() > 0, name
    memory = container.instance_memory if kind == "hmn" else container.images
    touched = memory.grad.flatten(1).abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == index.tolist()  # the others get exactly nothing


def test_every_parameter_is_in_a_group():
    for kind in CONTAINERS:
        container = make_container(kind)
        grouped = [p for group in container.parameter_groups() for p in group["params"]]
        assert {id(p) for p in grouped} == {id(p) for p in container.parameters()}
        assert len(grouped) == len(list(container.parameters()))


# -------------------------------------------------------------------------------------------------------- pruning


@pytest.mark.parametrize("kind", list(CONTAINERS))
def test_keep_leaves_the_other_images(kind, tmp_path):
    container = make_container(kind)
    images, labels = container.decode(), container.labels
    before = container.save(tmp_path / "before")
    index = torch.tensor([0, 4, 6, 11, 12, 13, 19])
    container.keep(index)
    assert container.counts == (2, 1, 3, 1)
    assert torch.equal(container.labels, labels[index])
    torch.testing.assert_close(container.decode(), images[index], atol=1e-6 / 0.3, rtol=0)
    each = container.sizes.instance(container.data) if kind == "hmn" else 512
    behind = container.save(tmp_path / "behind")
    assert before.elements - behind.elements == 13 * each
    assert (tmp_path / "behind").stat().st_size < (tmp_path / "before").stat().st_size - 13 * each * 4 + 100
    assert torch.equal(type(container).load(tmp_path / "behind").decode(), container.decode())


@pytest.mark.parametrize(
    ("index", "message"),
    [([0, 5, 10], "Class 3"), ([], "ascending"), ([0, 0, 5, 10, 15], "ascending"), ([5, 0, 10, 15], "ascending"),
     ([-1, 0, 5, 10, 15], "ascending"), ([0, 5, 10, 15, 20], "ascending")],
)  # fmt: skip
def test_keep_refuses(index, message):
    container = make_container("pixel")
    with pytest.raises(UsageError, match=message):
        container.keep(torch.tensor(index, dtype=torch.int64))
    assert container.counts == (5,) * 4
    assert len(container.images) == 20


def test_a_graph_from_before_pruning_is_not_used():
    container = make_container("pixel")
    container.decode(torch.arange(4))
    container.keep(torch.tensor([2, 3, 5, 10, 15]))
    container.backward(torch.arange(4), torch.ones(4, 2, 16, 16))
    assert container.images.grad is not None


def test_the_warm_start_tells_how_far_it_is():
    told = []

    @contextmanager
    def job(name, total):
        yield lambda done: told.append((name, done, total))

    container = HMN(make_spec(), StorageBudget.ipc(make_spec(), 5), {"warm_start_steps": 3})
    container.job = job
    container.reset(make_generator(0), make_real(4, (2, 16, 16)))
    assert told == [("warm start", done, 3) for done in (1, 2, 3)]
