"""IDC, HaBa and RTP: published sizes, decoding against naive loops, starts, and the contract of all containers."""

import random
from itertools import product
from math import ceil, prod, sqrt

import numpy as np
import pytest
import torch
from made_up import make_real
from scipy import stats
from test_parameterization_files import HEADER_DAMAGE, TENSOR_DAMAGE, rewrite
from torch import nn

from dd_plugins.api import (
    BudgetTooSmall,
    ConfigError,
    DataSpec,
    Grouped,
    RawData,
    StorageBudget,
    SyntheticFileError,
    UsageError,
)
from dd_plugins.datasets import build_real_data
from dd_plugins.parameterizations.haba import HaBa
from dd_plugins.parameterizations.idc import IDC
from dd_plugins.parameterizations.rtp import RTP
from dd_plugins.seeds import make_generator

CIFAR = (3, 32, 32)
MEAN, STD = (0.4, 0.5, 0.45), (0.3, 0.2, 0.25)
CLOSE = {"atol": 2e-5, "rtol": 1e-5}

# Class, IPC, config; on the 4 classes of 2 x 8 x 8 of `make_real` so many images of each class fit.
PUBLISHED = {
    "idc": (IDC, 3, {"factor": 2}),
    "haba": (HaBa, 7, {"hallucinators": 3}),
    "rtp": (RTP, 3, {"bases": 18}),
}
IMAGES = {"idc": 12, "haba": 15, "rtp": 13}


def spec_of(classes, shape):
    return DataSpec("made-up", classes, shape, MEAN[: shape[0]], STD[: shape[0]])


def make(plugin, classes, shape, ipc, counts=None, **config):
    """A container that was not reset yet: all zeros."""
    spec = spec_of(classes, shape)
    return plugin(spec, StorageBudget.ipc(spec, ipc), config, counts=counts)


def make_published(kind, seed=0, **config):
    """A container that was reset; all of them get real data, which HaBa and IDC's default need."""
    plugin, ipc, defaults = PUBLISHED[kind]
    real = make_real()
    container = plugin(real.spec, StorageBudget.ipc(real.spec, ipc), {**defaults, **config})
    container.reset(make_generator(seed), real)
    return container


def stored(container):
    return sum(tensor.numel() for tensor in container.state_dict().values())


def fill(container, seed=0):
    """Noise in every stored tensor, so that nothing is hidden by a zero or a one."""
    generator = make_generator(seed)
    with torch.no_grad():
        for parameter in container.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * 1.4 - 0.2)
    return container


def enlarge(image, height, width):
    """Bilinear interpolation with align_corners False: a matrix of weights for each axis."""

    def weights(small, large):
        matrix = torch.zeros(large, small, dtype=torch.float64)
        for row in range(large):
            at = max((row + 0.5) * small / large - 0.5, 0.0)
            low = int(at)
            matrix[row, low] += 1 - (at - low)
            matrix[row, min(low + 1, small - 1)] += at - low
        return matrix

    return weights(image.shape[1], height) @ image.double() @ weights(image.shape[2], width).T


def normalized(image):
    return torch.stack([(channel - mean) / std for channel, mean, std in zip(image, MEAN, STD, strict=False)])


def nearest(image, height, width):
    """Nearest neighbours: row i of the small image is row floor(i H / h) of the large one."""
    rows = [i * image.shape[-2] // height for i in range(height)]
    columns = [i * image.shape[-1] // width for i in range(width)]
    return image[..., rows, :][..., columns]


def source_rows(real, candidates, wanted):
    """For every wanted image the one training image that it is, given what candidates have been turned into."""
    rows = []
    for image in wanted:
        (row,) = ((candidates - image).flatten(1).abs().amax(1) < 1e-4).nonzero().flatten().tolist()
        rows.append(row)
    assert len(set(rows)) == len(rows)
    return rows, real.train.labels[rows]


# ------------------------------------------------------------------------------------------------------------- IDC


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize(("ipc", "elements"), [(1, 30_720), (10, 307_200), (50, 1_536_000)])
def test_idc_fills_its_budget_whatever_the_factor(ipc, elements, factor):
    container = make(IDC, 10, CIFAR, ipc, factor=factor)
    assert stored(container) == container.storage().elements == elements
    assert container.counts == (factor**2 * ipc,) * 10
    assert container.budget_ratio() == 1
    assert f"{10 * ipc} stored images of {factor**2} tiles, {10 * ipc * factor**2} decoded" in container.describe()


def test_idc_budgets_that_are_no_multiple():
    spec = spec_of(4, (2, 8, 8))
    assert IDC(spec, StorageBudget(4 * 128 * 3 - 1)).counts == (8,) * 4  # two stored ones, not three
    with pytest.raises(BudgetTooSmall, match="511 elements"):
        IDC(spec, StorageBudget(511))


def naive_idc(container):
    factor, (channels, height, width) = container.config.factor, container.data.image_shape
    side = ceil(height / factor), ceil(width / factor)
    images, pictures = [], iter(container.images.detach())
    for count in container.counts:
        own = [next(pictures) for _ in range(count // factor**2)]
        for row, column in product(range(factor), range(factor)):  # tile-major: all of one tile, then of the next
            for picture in own:
                canvas = torch.full((channels, side[0] * factor, side[1] * factor), 0.5)
                canvas[:, :height, :width] = picture
                top, left = row * side[0], column * side[1]
                tile = canvas[:, top : top + side[0], left : left + side[1]]
                images.append(normalized(enlarge(tile, height, width)))
    assert next(pictures, None) is None
    return torch.stack(images).float()


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("shape", "stored_each"),
    [((2, 8, 8), (1, 1, 1)), ((3, 12, 8), (3, 3, 3)), ((1, 10, 10), (2, 2, 2)), ((2, 7, 11), (1, 3, 2))],
)
def test_idc_decodes_tile_by_tile(shape, stored_each, factor):
    counts = [n * factor**2 for n in stored_each]
    container = fill(make(IDC, 3, shape, max(stored_each), counts, factor=factor))
    images = container.decode()
    torch.testing.assert_close(images, naive_idc(container), **CLOSE)
    assert container.labels.tolist() == [label for label, count in enumerate(counts) for _ in range(count)]


def test_idc_images_change_with_their_own_tile_alone():
    container = fill(make(IDC, 2, (2, 8, 8), 3))
    before = container.decode()
    with torch.no_grad():
        container.images[4, :, 4:, :4] += 0.1  # of class 1 the second picture, its third tile
    changed = (container.decode() - before).flatten(1).abs().amax(1) > 1e-4
    assert changed.nonzero().flatten().tolist() == [12 + 2 * 3 + 1]


@pytest.mark.parametrize(("factor", "ipc"), [(1, 5), (2, 4), (3, 2), (4, 1)])
def test_idc_mix_starts_from_shrunk_real_images(factor, ipc):
    real = make_real(classes=3, shape=(2, 8, 8))
    container = IDC(real.spec, StorageBudget.ipc(real.spec, ipc), {"factor": factor})
    container.reset(make_generator(0), real)
    (height, width), side = (8, 8), ceil(8 / factor)
    source = real.train.pixels[real.train.index].float() / 255
    images = container.images.detach()
    for label, (row, column) in product(range(3), product(range(factor), range(factor))):
        top, left = row * side, column * side
        tiles = images[label * ipc : (label + 1) * ipc, :, top : top + side, left : left + side]
        rows, labels = source_rows(real, nearest(source, *tiles.shape[2:]), tiles)
        assert labels.tolist() == [label] * ipc
        if 8 % factor:
            continue
        first = label * ipc * factor**2 + (row * factor + column) * ipc
        decoded = real.spec.denormalize(container.decode(torch.arange(first, first + ipc)))
        for image, index in zip(decoded, rows, strict=True):
            shrunk = nearest(source[index], side, side)
            torch.testing.assert_close(image, enlarge(shrunk, height, width).float(), **CLOSE)


@pytest.mark.parametrize(("side", "sizes"), [(28, [10, 10, 8]), (9, [3, 3, 3]), (8, [3, 3, 2])])
def test_idc_mix_fills_just_the_tiles_that_are_decoded(side, sizes):
    values = (torch.arange(40) * 6).to(torch.uint8)  # every image of one brightness of its own
    images, labels = values.view(-1, 1, 1, 1).expand(-1, 1, side, side), torch.arange(40) % 2
    real = build_real_data("flat", RawData(images, labels, images[:4], labels[:4], ("a", "b")))
    container = IDC(real.spec, StorageBudget.ipc(real.spec, 1), {"factor": 3})
    container.reset(make_generator(0), real)
    for stored in container.images.detach():
        for line in (stored[0, 0], stored[0, :, 0]):
            assert line.unique_consecutive(return_counts=True)[1].tolist() == sizes
    full = real.spec.denormalize(container.decode(torch.tensor([0, 1, 3, 4])))  # tiles without padding have no seam
    torch.testing.assert_close(full, full[:, :, :1, :1].expand_as(full))


def test_idc_mix_uses_every_real_image_once():
    real = make_real(classes=3, shape=(2, 8, 8))  # 18 training images of each class
    container = IDC(real.spec, StorageBudget.ipc(real.spec, 4))
    container.reset(make_generator(0), real)
    source = real.train.pixels[real.train.index].float() / 255
    shrunk = torch.stack([enlarge(nearest(image, 4, 4), 8, 8) for image in source]).float()
    rows, labels = source_rows(real, shrunk, real.spec.denormalize(container.decode()))
    assert len(rows) == 48
    assert torch.equal(labels, container.labels)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_idc_constant_images_decode_to_themselves(factor):
    labels = torch.arange(3).repeat_interleave(20)
    images = torch.randint(0, 256, (60, 2, 1, 1), generator=make_generator(0)).expand(60, 2, 8, 8).to(torch.uint8)
    real = build_real_data("constant", RawData(images, labels, images[:3], labels[:3], tuple("abc")))
    container = IDC(real.spec, StorageBudget.ipc(real.spec, 1), {"factor": factor})
    container.reset(make_generator(0), real)
    decoded = container.decode()
    torch.testing.assert_close(decoded, decoded[:, :, :1, :1].expand_as(decoded), **CLOSE)
    difference = (decoded[:, None] - real.train.images()[None]).flatten(2).abs().amax(2)
    assert difference.amin(1).max() < 1e-4
    assert torch.equal(real.train.labels[difference.argmin(1)], container.labels)


@pytest.mark.parametrize("config", [{"factor": 2, "init": "real"}, {"factor": 1, "init": "mix"}])
def test_idc_real_starts_from_whole_real_images(config):
    real = make_real(classes=3, shape=(2, 8, 8))
    container = IDC(real.spec, StorageBudget.ipc(real.spec, 5), config)
    container.reset(make_generator(0), real)
    source = real.train.pixels[real.train.index].float() / 255
    _, labels = source_rows(real, source, container.images.detach())
    assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_idc_noise_start():
    """Normal with mean 1/2 and deviation 1/4, clipped to [0, 1]: the ends have Phi(-2) each."""
    container = make(IDC, 10, CIFAR, 1, init="noise")
    container.reset(make_generator(0), None)
    values = container.images.detach().flatten().numpy()
    assert ((values >= 0) & (values <= 1)).all()
    for end in (0, 1):
        assert (values == end).mean() == pytest.approx(stats.norm.cdf(-2), abs=0.004)
    inside = values[(values > 0) & (values < 1)]
    assert stats.kstest(inside, stats.truncnorm(-2, 2, 0.5, 0.25).cdf).pvalue > 1e-3


@pytest.mark.parametrize("init", ["mix", "real"])
def test_idc_needs_real_data_unless_noise(init):
    with pytest.raises(UsageError, match="needs real data"):
        make(IDC, 2, (2, 8, 8), 1, init=init).reset(make_generator(0), None)


def test_idc_project_clips_pixels():
    container = make(IDC, 2, (1, 4, 4), 1)
    values = [-3.0, -1e-6, 0.0, 0.25, 1.0, 1.000001, 7.0, 0.5] * 4
    with torch.no_grad():
        container.images.copy_(torch.tensor(values).view_as(container.images))
    container.project()
    assert container.images.flatten().tolist() == [min(max(value, 0.0), 1.0) for value in values]


def test_idc_refuses_what_it_cannot_tile():
    for counts in ((4, 4, 3), (4, 5, 4), (2, 4, 4)):
        with pytest.raises(UsageError, match="multiples of 4"):
            make(IDC, 3, (2, 8, 8), 5, counts)
    with pytest.raises(UsageError, match="multiples of 9"):
        make(IDC, 3, (2, 8, 8), 5, (9, 8, 9), factor=3)
    with pytest.raises(ConfigError, match="factor"):
        make(IDC, 3, (2, 8, 8), 5, factor=0)


@pytest.mark.parametrize("factor", range(1, 9))
def test_idc_has_no_tile_of_padding_alone(factor):
    """Such a tile would be grey for ever: no stored pixel would reach its image."""
    for side in range(1, 25):
        filled = {line // ceil(side / factor) for line in range(side)}  # the tiles into which rows of pixels fall
        if filled != set(range(factor)):
            for shape in ((1, side, 48), (1, 48, side)):
                with pytest.raises(ConfigError, match=rf"factor = {factor}:"):
                    make(IDC, 2, shape, 1, factor=factor)
            continue
        container = make(IDC, 2, (1, side, side), 1, factor=factor)
        container.backward(torch.arange(factor**2), torch.ones(factor**2, 1, side, side))
        assert (container.images.grad[0] > 0).all()
        for image in range(factor**2):
            container.zero_grad()
            container.backward(torch.tensor([image]), torch.ones(1, 1, side, side))
            assert container.images.grad.abs().max() > 0


# ------------------------------------------------------------------------------------------------------------ HaBa


def hallucinator_modules(channels, grey):
    inputs = 1 if grey else channels
    return nn.Conv2d(inputs, channels, 3), nn.ConvTranspose2d(channels, channels, 3)


def hallucinator_elements(shape, grey):
    channels, height, width = shape
    convolutions = sum(p.numel() for module in hallucinator_modules(channels, grey) for p in module.parameters())
    return convolutions + 2 * torch.zeros(1, channels, height, width)[:, :, 1:-1, 1:-1].numel()


@pytest.mark.parametrize(("grey", "elements"), [(False, 5_568), (True, 5_514)])
def test_haba_hallucinators_to_the_float(grey, elements):
    assert hallucinator_elements(CIFAR, grey) == elements
    for number in (1, 3, 5):
        container = make(HaBa, 10, CIFAR, 10, grey=grey, hallucinators=number)
        assert container.bases.shape[1:] == (1 if grey else 3, 32, 32)
        assert stored(container) - container.bases.numel() == number * elements


@pytest.mark.parametrize(
    ("ipc", "config", "hallucinators", "bases", "grey", "elements"),
    [
        (1, {}, 3, 1, True, 26_782),
        (1, {"hallucinators": 1}, 1, 2, True, 25_994),
        (10, {}, 5, 9, False, 304_320),
        (10, {"grey": True}, 5, 27, True, 304_050),
        (50, {}, 5, 49, False, 1_533_120),
        (50, {"grey": True}, 5, 147, True, 5 * 5_514 + 10 * 147 * 1_024),
    ],
)
def test_haba_fits_its_budget(ipc, config, hallucinators, bases, grey, elements):
    container = make(HaBa, 10, CIFAR, ipc, **config)
    assert stored(container) == container.storage().elements == elements <= 30_720 * ipc
    assert (container.config.hallucinators, container.config.grey) == (hallucinators, grey)
    assert container.bases.shape == (10 * bases, 1 if grey else 3, 32, 32)
    assert container.counts == (hallucinators * bases,) * 10
    assert container.budget_ratio() == 1
    assert f"{elements / (30_720 * ipc):.3f} of the budget" in container.describe()
    container.storage().enforce(container.budget, "haba")


@pytest.mark.parametrize(
    ("classes", "ipc", "elements", "ratio"),
    [(10, 1, 58_560, 1.906), (10, 10, 335_040, 1.091), (10, 50, 1_563_840, 1.018), (100, 1, 335_040, 1.091)],
)
def test_haba_published_sizes(classes, ipc, elements, ratio):
    container = make(HaBa, classes, CIFAR, ipc, published_size=True)
    assert stored(container) == elements
    assert container.counts == (5 * ipc,) * classes
    assert container.budget_ratio() == pytest.approx(ratio, abs=5e-4)


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("ipc", [1, 2, 10, 13, 19, 50])
def test_haba_budget_ratio_allows_what_it_stores_and_no_more(classes, ipc):
    container = make(HaBa, classes, (1, 8, 8), ipc, published_size=True)
    assert stored(container) == 64 * ipc * classes + 5 * 92
    assert container.budget.scaled(container.budget_ratio()).elements == stored(
        container
    )  # also where the ratio rounds


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 12, 9), (3, 16, 16)])
@pytest.mark.parametrize(("classes", "ipc"), [(2, 1), (2, 3), (10, 1), (10, 2), (10, 10), (40, 1)])
def test_haba_takes_the_first_choice_that_fits(classes, ipc, shape):
    """Bases of all channels before grey ones, then as many hallucinators as can be, then as many bases."""
    budget, expected = ipc * classes * prod(shape), None
    for grey, number in product([False, True], [5, 4, 3, 2, 1]):
        base = prod(shape[1:]) * (1 if grey else shape[0])
        left, bases = budget - number * hallucinator_elements(shape, grey), 0
        while left >= classes * base:
            left, bases = left - classes * base, bases + 1
        if bases and expected is None:
            expected = number, grey, bases
    if expected is None:
        with pytest.raises(BudgetTooSmall, match=f"the budget is {budget}"):
            make(HaBa, classes, shape, ipc)
        return
    container = make(HaBa, classes, shape, ipc)
    bases = len(container.bases) / classes
    assert (container.config.hallucinators, container.config.grey, bases) == expected
    assert container.counts == (expected[0] * expected[2],) * classes


@pytest.mark.parametrize(
    ("shape", "ipc", "bases", "elements"),
    [((1, 28, 28), 10, 9, 77_420), ((1, 28, 28), 50, 49, 391_020), ((1, 8, 8), 10, 9, 6_220)],
)
def test_haba_on_one_channel(shape, ipc, bases, elements):
    real = make_real(10, shape)
    container = HaBa(real.spec, StorageBudget.ipc(real.spec, ipc))
    container.reset(make_generator(0), real)
    assert stored(container) == elements <= container.budget.elements
    assert container.counts == (5 * bases,) * 10
    torch.testing.assert_close(container.decode(), naive_haba(container), **CLOSE)


def test_haba_too_small_budgets_are_refused():
    with pytest.raises(BudgetTooSmall, match=r"take 732 elements .*, but the budget is 640"):
        make(HaBa, 10, (1, 8, 8), 1)  # one hallucinator of 92 and ten bases of 64
    with pytest.raises(BudgetTooSmall, match=r"5 decoded images of each class take 1100 elements"):
        make(HaBa, 10, (1, 8, 8), 1, hallucinators=5)
    with pytest.raises(BudgetTooSmall, match=r"take 36288 elements .*, but the budget is 30720"):
        make(HaBa, 10, CIFAR, 1, grey=False, hallucinators=1)
    spec = spec_of(10, (1, 8, 8))
    assert HaBa(spec, StorageBudget(732)).counts == (1,) * 10
    with pytest.raises(BudgetTooSmall):
        HaBa(spec, StorageBudget(731))
    with pytest.raises(UsageError, match="smaller than its 3x3 kernels"):
        make(HaBa, 2, (1, 2, 8), 50)
    with pytest.raises(UsageError, match="multiples of 3"):
        make(HaBa, 2, (2, 8, 8), 9, (3, 4), hallucinators=3, grey=False)


def naive_haba(container):
    """Class by class, hallucinator by hallucinator, base by base, with torch's modules."""
    channels = container.data.image_shape[0]
    styles, images, first = len(container.scale), [], 0
    modules = []
    for style in range(styles):
        encoder, decoder = hallucinator_modules(channels, container.config.grey)
        encoder.load_state_dict({"weight": container.encoder_weight[style], "bias": container.encoder_bias[style]})
        decoder.load_state_dict({"weight": container.decoder_weight[style], "bias": container.decoder_bias[style]})
        modules.append((encoder, decoder))
    for count in container.counts:
        for style, (encoder, decoder) in enumerate(modules):
            for base in container.bases[first : first + count // styles]:
                hidden = container.scale[style] * encoder(base[None]) + container.shift[style]
                images.append(decoder(hidden)[0].detach())
        first += count // styles
    return torch.stack(images)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize(
    ("shape", "styles", "counts"),
    [((2, 8, 8), 3, (6, 6)), ((3, 9, 6), 5, (5, 15)), ((1, 3, 4), 2, (4, 2)), ((2, 6, 6), 1, (3, 2))],
)
def test_haba_is_two_convolutions_with_a_scale_and_a_shift(shape, styles, counts, grey):
    container = fill(make(HaBa, 2, shape, 50, counts, hallucinators=styles, grey=grey))
    torch.testing.assert_close(container.decode(), naive_haba(container), **CLOSE)
    assert container.labels.tolist() == [0] * counts[0] + [1] * counts[1]


@pytest.mark.parametrize("grey", [False, True])
def test_haba_hallucinators_are_affine(grey):
    """h(a) + h(c) = h(a + c) + h(0), and no h is linear."""
    container = fill(make(HaBa, 1, (3, 8, 8), 50, (12,), hallucinators=3, grey=grey)).double()
    with torch.no_grad():
        container.bases[2] = container.bases[0] + container.bases[1]
        container.bases[3] = 0
    for a, c, both, nothing in container.decode().split(4):
        torch.testing.assert_close(a + c, both + nothing, atol=1e-12, rtol=1e-12)
        assert nothing.abs().max() > 0.01
        assert (a - both).abs().max() > 0.01


def test_haba_groups_are_the_hallucinators():
    container = fill(make(HaBa, 3, (2, 8, 8), 9, (6, 9, 3), hallucinators=3, grey=False))
    groups, labels = container.groups(), container.labels
    assert groups.dtype == torch.int64
    assert groups.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 1, 2]
    members = [(groups == style).nonzero().flatten() for style in range(3)]
    assert [labels[rows].tolist() for rows in members] == [[0, 0, 1, 1, 1, 2]] * 3
    before = container.decode()
    for base in range(6):  # each base comes in every group, at the same place
        with torch.no_grad():
            container.bases[base] += 1
        now = container.decode()
        changed = (now - before).flatten(1).abs().amax(1) > 1e-4
        assert [changed[rows].nonzero().flatten().tolist() for rows in members] == [[base]] * 3
        before = now
    with torch.no_grad():
        container.scale[1] += 1
    changed = (container.decode() - before).flatten(1).abs().amax(1) > 1e-4
    assert changed.nonzero().flatten().tolist() == members[1].tolist()


@pytest.mark.parametrize("grey", [False, True])
def test_haba_starts_from_real_images_and_torch_defaults(grey):
    real = make_real(classes=4, shape=(3, 8, 8), count=30)
    container = HaBa(real.spec, StorageBudget.ipc(real.spec, 8), {"grey": grey, "hallucinators": 2})
    with torch.no_grad():  # reset leaves nothing of what was there
        container.scale.fill_(7)
        container.shift.fill_(7)
    container.reset(make_generator(0), real)
    source = (real.train.pixels[real.train.index].double() / 255).float()
    source = torch.stack([real.spec.normalize(image[None])[0] for image in source])
    source = torch.stack([sum(image) / 3 for image in source])[:, None] if grey else source
    _, labels = source_rows(real, source, container.bases.detach())
    each = len(container.bases) // 4
    assert labels.tolist() == [label for label in range(4) for _ in range(each)]
    assert (container.scale == 1).all()
    assert (container.shift == 0).all()
    many = make(HaBa, 2, (3, 8, 8), 400, grey=grey, hallucinators=100)
    many.reset(make_generator(1), make_real(classes=2, shape=(3, 8, 8)))
    for place, own in ((0, (many.encoder_weight, many.encoder_bias)), (1, (many.decoder_weight, many.decoder_bias))):
        modules = [hallucinator_modules(3, grey)[place] for _ in range(300)]
        for tensor, name in zip(own, ("weight", "bias"), strict=True):
            top = max(getattr(module, name).abs().max().item() for module in modules)  # as good as torch's bound
            assert tensor.min().item() == pytest.approx(-top, rel=0.03)
            assert tensor.max().item() == pytest.approx(top, rel=0.03)
            assert stats.kstest(tensor.detach().flatten().numpy(), stats.uniform(-top, 2 * top).cdf).pvalue > 1e-3


def test_haba_needs_real_data():
    with pytest.raises(UsageError, match="needs real data"):
        make(HaBa, 2, (2, 8, 8), 9).reset(make_generator(0), None)


# ------------------------------------------------------------------------------------------------------------- RTP


@pytest.mark.parametrize(
    ("classes", "ipc", "bases", "images"),
    [
        (10, 1, 8, 307), (10, 1, 16, 115), (10, 1, 32, 19),
        (10, 10, 64, 403), (10, 10, 128, 163), (10, 10, 160, 115), (10, 10, 256, 43),
        (10, 50, 256, 523), (10, 50, 512, 223), (10, 50, 800, 115),
        (100, 1, 64, 40), (100, 1, 128, 16), (100, 10, 256, 112), (100, 10, 512, 52),
    ],
)  # fmt: skip
def test_rtp_published_sizes(classes, ipc, bases, images):
    container = make(RTP, classes, CIFAR, ipc, bases=bases)
    budget = ipc * classes * 3_072
    assert container.counts == (images,) * classes
    assert stored(container) == container.storage().elements == bases * 768 + classes * images * bases <= budget
    assert stored(container) + classes * bases > budget  # not one more of each class
    assert container.budget_ratio() == 1
    container.storage().enforce(container.budget, "rtp")


@pytest.mark.parametrize(("ipc", "bases", "elements"), [(1, 16, 30_688), (10, 160, 306_880), (50, 800, 1_534_400)])
def test_rtp_finds_its_number_of_bases(ipc, bases, elements):
    container = make(RTP, 10, CIFAR, ipc)
    assert container.bases.shape == (bases, 768)
    assert container.coefficients.shape == (1_150, bases)
    assert container.config.bases == bases
    assert stored(container) == elements
    assert f"{bases} bases ({bases * 768 / (30_720 * ipc):.1%} of the budget), 115 images" in container.describe()


@pytest.mark.parametrize("downsample", [1, 2, 4])
@pytest.mark.parametrize(("classes", "ipc"), [(2, 1), (2, 10), (4, 50), (10, 1), (10, 3), (50, 1)])
def test_rtp_search_against_trying_all(classes, ipc, downsample):
    """The most bases that leave 115 images of each class; 16 if those are fewer; as many as fit if 16 do not."""
    budget, basis = ipc * classes * 128, 128 // downsample**2
    images = {k: (budget - k * basis) // (classes * k) for k in range(1, 1 + budget // basis)}
    fitting = [k for k, m in images.items() if m >= 1]
    if not fitting:
        with pytest.raises(BudgetTooSmall, match=f"take  {basis + classes} elements .*budget is {budget}"):
            make(RTP, classes, (2, 8, 8), ipc, downsample=downsample)
        return
    wanted = max([k for k in fitting if images[k] >= 115] + [k for k in fitting if k <= 16])
    container = make(RTP, classes, (2, 8, 8), ipc, downsample=downsample)
    assert len(container.bases) == wanted
    assert container.counts == (images[wanted],) * classes


@pytest.mark.parametrize(
    ("shape", "downsample"),
    [((2, 8, 8), 1), ((2, 8, 8), 2), ((3, 12, 8), 4), ((1, 6, 9), 3), ((1, 4, 4), 4), ((2, 9, 7), 2)],
)
def test_rtp_is_a_sum_over_bases(shape, downsample):
    counts = (3, 1, 4)
    container = fill(make(RTP, 3, shape, 9, counts, bases=5, downsample=downsample))
    channels, height, width = shape
    images = container.decode()
    assert len(images) == 8
    for row, image in enumerate(images):
        small = torch.zeros(channels, ceil(height / downsample), ceil(width / downsample))
        for k in range(5):
            for place, value in enumerate(container.bases[k].tolist()):  # channels, then rows, then columns
                channel, rest = divmod(place, small[0].numel())
                small[channel, rest // small.shape[2], rest % small.shape[2]] += container.coefficients[row, k] * value
        torch.testing.assert_close(image, enlarge(small.detach(), height, width).float(), **CLOSE)
    assert container.labels.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]


def test_rtp_starts_xavier_uniform_and_small():
    container = make(RTP, 10, CIFAR, 1)
    container.reset(make_generator(0), None)
    bounds = {"coefficients": sqrt(6 / (1_150 + 16)), "bases": sqrt(6 / (16 + 768))}
    assert bounds == {"coefficients": pytest.approx(0.0717, abs=5e-5), "bases": pytest.approx(0.0875, abs=5e-5)}
    for name, bound in bounds.items():
        values = getattr(container, name).detach()
        assert values.abs().max() <= bound
        assert values.min().item() == pytest.approx(-bound, rel=0.01)
        assert values.max().item() == pytest.approx(bound, rel=0.01)
        assert stats.kstest(values.flatten().numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
    # A sum of 16 products of two uniforms; an enlarged pixel mixes four with weights 9, 3, 3 and 1 sixteenths.
    small = sqrt(16) * bounds["coefficients"] * bounds["bases"] / 3
    assert small == pytest.approx(0.008, abs=5e-4)
    images = container.decode()
    assert images[:, :, 1:-1, 1:-1].std().item() == pytest.approx(small * 10 / 16, rel=0.05)
    assert images.abs().max() < 0.1


@pytest.mark.parametrize("downsample", [1, 2])
def test_rtp_keep_drops_the_other_images(tmp_path, downsample):
    container = make(RTP, 4, (2, 8, 8), 5, bases=12, downsample=downsample)
    container.reset(make_generator(0), None)
    images, labels, before = container.decode(), container.labels, container.storage().elements
    each = len(images) // 4
    index = torch.tensor([0, 2, each + 1, 2 * each, 2 * each + 1, 4 * each - 1])
    container.keep(index)
    assert container.counts == (2, 1, 2, 1)
    assert torch.equal(container.labels, labels[index])
    torch.testing.assert_close(container.decode(), images[index], atol=1e-6, rtol=0)
    assert before - container.storage().elements == 12 * (len(images) - 6)
    assert {id(p) for group in container.parameter_groups() for p in group["params"]} == {
        id(p) for p in container.parameters()
    }
    container.backward(torch.arange(6), torch.ones(6, 2, 8, 8))
    assert container.coefficients.grad.shape == (6, 12)
    container.save(tmp_path / "kept")
    loaded = RTP.load(tmp_path / "kept")
    assert loaded.counts == container.counts
    assert torch.equal(loaded.decode(), container.decode())


def test_rtp_refuses_what_does_not_fit():
    assert make(RTP, 10, CIFAR, 1, bases=39).counts == (1,) * 10  # 39 x (768 + 10) = 30,342
    with pytest.raises(BudgetTooSmall, match=r"take 31120 elements .*, but the budget is 30720"):
        make(RTP, 10, CIFAR, 1, bases=40)
    with pytest.raises(BudgetTooSmall, match="take 778000 elements"):  # the bases alone are too many
        make(RTP, 10, CIFAR, 1, bases=1000)
    with pytest.raises(BudgetTooSmall, match=r"take 202 elements .*, but the budget is 200"):
        RTP(spec_of(10, (3, 16, 16)), StorageBudget(200))
    with pytest.raises(ConfigError, match="bases"):
        make(RTP, 10, CIFAR, 1, bases=0)


# -------------------------------------------------------------------------------------------- the contract of all


@pytest.mark.parametrize("kind", list(PUBLISHED))
def test_rows_decode_alone_as_together(kind):
    container = make_published(kind)
    each = IMAGES[kind]
    images = container.decode()
    assert images.shape == (4 * each, 2, 8, 8)
    assert images.dtype == torch.float32
    assert not images.requires_grad
    assert container.labels.tolist() == [label for label in range(4) for _ in range(each)]
    assert len({tuple(image.flatten().tolist()) for image in images}) == 4 * each  # no two alike
    for row in range(4 * each):
        torch.testing.assert_close(container.decode(torch.tensor([row]))[0], images[row], **CLOSE)
    rows = torch.tensor([7, 0, 4 * each - 1, 7, 20, 3])
    torch.testing.assert_close(container.decode(rows), images[rows], **CLOSE)
    container.chunk_size = 5
    torch.testing.assert_close(container.decode(), images, **CLOSE)
    torch.testing.assert_close(container.decode(rows), images[rows], **CLOSE)
    assert container.decode(rows[:0]).shape == (0, 2, 8, 8)


@pytest.mark.parametrize("kind", list(PUBLISHED))
@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_backward_in_chunks_is_autograd(kind, chunk_size):
    container, index = fill(make_published(kind)), torch.tensor([1, 2, 9, 16, 35, 12, 2])
    image_grad = torch.randn(7, 2, 8, 8, generator=make_generator(1))
    parameters = dict(container.named_parameters())
    assert set(parameters) == set(container.state_dict())  # all that is stored is learned
    whole = torch.autograd.grad((container._decode(index) * image_grad).sum(), list(parameters.values()))
    container.chunk_size = chunk_size
    for decoded in (True, False):  # with the graph of the decode before, and without one
        container.zero_grad()
        if decoded:
            container.decode(index, for_backward=True)
        container.backward(index, image_grad)
        for (name, parameter), expected in zip(parameters.items(), whole, strict=True):
            torch.testing.assert_close(parameter.grad, expected, atol=1e-4, rtol=1e-4, msg=name)
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", list(PUBLISHED))
def test_gradients_are_finite_differences(kind):
    """Along a random direction through each stored tensor; decoders are polynomials, so the slope is all but exact."""
    container = fill(make_published(kind)).double()
    index, generator = torch.arange(len(container.labels)), make_generator(2)
    image_grad = torch.randn(len(index), 2, 8, 8, generator=generator, dtype=torch.float64)
    container.backward(index, image_grad)
    for name, parameter in container.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        ends = []
        for step in (1e-4, -2e-4, 1e-4):  # there, to the other side, and back
            with torch.no_grad():
                parameter += step * direction
            ends.append((container.decode() * image_grad).sum().item())
        slope = (ends[0] - ends[1]) / 2e-4
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("kind", list(PUBLISHED))
def test_every_stored_number_gets_a_gradient_and_only_from_its_images(kind):
    container = fill(make_published(kind))
    everything = torch.arange(len(container.labels))
    container.backward(everything, torch.rand(len(everything), 2, 8, 8, generator=make_generator(3)) + 0.5)
    for name, parameter in container.named_parameters():
        assert (parameter.grad != 0).all(), name
    container.zero_grad()
    container.backward(torch.tensor([2]), torch.ones(1, 2, 8, 8))
    owner = {"idc": "images", "haba": "bases", "rtp": "coefficients"}[kind]
    # Number 2 is the third picture's first tile, the third base under the first hallucinator, or the third row.
    touched = dict(container.named_parameters())[owner].grad.flatten(1).abs().amax(1) > 0
    assert touched.nonzero().flatten().tolist() == [2]
    if kind == "idc":
        assert ((container.images.grad[2] != 0) == nn.functional.pad(torch.ones(2, 4, 4), (0, 4, 0, 4)).bool()).all()
    if kind == "haba":
        assert container.scale.grad[0].abs().max() > 0
        for name, parameter in container.named_parameters():
            assert name == "bases" or (parameter.grad[1:] == 0).all(), name


@pytest.mark.parametrize("kind", list(PUBLISHED))
def test_every_parameter_is_in_one_group(kind):
    for lr in (None, 0.3):
        container = make_published(kind, lr=lr)
        groups = container.parameter_groups()
        grouped = [p for group in groups for p in group["params"]]
        assert sorted(map(id, grouped)) == sorted(map(id, container.parameters()))
        assert {group.get("lr") for group in groups} == {lr}
    torch.optim.SGD(groups, lr=1.0)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("idc", {}),
        ("idc", {"init": "real"}),
        ("idc", {"init": "noise"}),
        ("haba", {}),
        ("haba", {"grey": True}),
        ("rtp", {}),
    ],
)
def test_only_the_generator_decides(kind, config):
    def globals_now():
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    before = globals_now()
    one, other = (make_published(kind, seed, **config) for seed in (1, 2))
    assert globals_now() == before
    torch.rand(3), random.random(), np.random.rand()
    real, again = make_real(), make_published(kind, 3, **config)
    again.reset(make_generator(1), real)  # nothing is left of the first time
    for (name, first), second, third in zip(
        one.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(first, second), name
        assert torch.equal(first, third) == (name in ("scale", "shift")), name  # these begin as constants
    assert all(parameter.grad is None and parameter.requires_grad for parameter in one.parameters())


@pytest.fixture(params=list(PUBLISHED))
def saved(request, tmp_path):
    """A container and its file."""
    container, path = fill(make_published(request.param)), tmp_path / "synthetic.safetensors"
    container.save(path)
    return container, path


def test_round_trip_from_the_file_alone(saved):
    container, path = saved
    loaded = type(container).load(path)
    assert torch.equal(loaded.decode(), container.decode())
    for name, tensor in container.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded.labels, container.labels)
    assert (loaded.data, loaded.budget, loaded.counts) == (container.data, container.budget, container.counts)
    assert (loaded.config, loaded.describe()) == (container.config, container.describe())
    assert loaded.storage() == container.storage()
    assert isinstance(container, Grouped) == isinstance(container, HaBa)
    loaded.save(path.with_name("again"))
    assert path.with_name("again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("plugin", "classes", "shape", "ipc", "config"),
    [
        (IDC, 3, (2, 8, 8), 2, {"factor": 3}),
        (HaBa, 4, (3, 12, 12), 1, {}),  # grey bases, fewer than five hallucinators
        (HaBa, 3, (2, 8, 8), 2, {"published_size": True}),
        (RTP, 3, (2, 8, 8), 4, {}),
    ],
)
def test_sizes_that_were_searched_for_are_read_back(tmp_path, plugin, classes, shape, ipc, config):
    container = fill(make(plugin, classes, shape, ipc, **config))
    container.save(tmp_path / "file")
    loaded = plugin.load(tmp_path / "file")
    assert torch.equal(loaded.decode(), container.decode())
    assert (loaded.config, loaded.counts) == (container.config, container.counts)
    assert (loaded.budget_ratio() > 1) == bool(config.get("published_size"))
    assert loaded.budget_ratio() == container.budget_ratio()
    if plugin is HaBa:
        assert torch.equal(loaded.groups(), container.groups())


@pytest.mark.parametrize("damage", list(TENSOR_DAMAGE))
def test_damaged_tensors_are_refused(saved, damage):
    container, path = saved
    change, message = TENSOR_DAMAGE[damage]
    rewrite(path, change)
    with pytest.raises(SyntheticFileError, match=message):
        type(container).load(path)


@pytest.mark.parametrize("damage", list(HEADER_DAMAGE))
def test_damaged_headers_are_refused(saved, damage):
    container, path = saved
    rewrite(path, change_header=HEADER_DAMAGE[damage])
    with pytest.raises(SyntheticFileError, match=r"synthetic\.safetensors"):
        type(container).load(path)


def test_other_containers_files_are_refused(saved):
    container, path = saved
    for other in {IDC, HaBa, RTP} - {type(container)}:
        with pytest.raises(SyntheticFileError, match=r"synthetic\.safetensors"):
            other.load(path)


@pytest.mark.parametrize("kind", ["idc", "haba"])
def test_images_that_share_storage_cannot_be_dropped(kind):
    container = make_published(kind)
    images, counts = container.decode(), container.counts
    told = {"idc": "dropping single tiles saves no storage", "haba": "cannot drop single images"}
    with pytest.raises(UsageError, match=told[kind]):
        container.keep(torch.arange(1, len(container.labels)))
    assert container.counts == counts
    assert torch.equal(container.decode(), images)


def test_idc_drops_whole_stored_images():
    container = make_published("idc")
    images, units = container.decode(), container.units()
    kept = torch.nonzero(units != units[0]).flatten()
    before = container.storage().elements
    container.keep(kept)
    assert torch.equal(container.decode(), images[kept])
    assert container.storage().elements == before - container.images[0].numel()
    assert container.units().unique().tolist() == list(range(len(container.images)))
