"""Augmentation: every operation against a naive loop over images in NumPy; records and families."""

import math

import numpy as np
import pytest
import torch
from kornia.geometry.transform import rotate
from scipy import ndimage, stats

from dd_plugins.api import ConfigError, DataSpec
from dd_plugins.augmentation import Augmentation, Draw, default_strategy, ops
from dd_plugins.seeds import make_generator

SIX = "color_crop_cutout_flip_scale_rotate"
REACH = {32: 4, 28: 4, 64: 8, 8: 1, 9: 1}  # of the crop
SIDE = {32: 16, 28: 14, 64: 32, 8: 4, 9: 5}  # of the cutout


def resample(image, matrix):
    """Bilinear resampling of one image under a linear map of (x, y) in [-1, 1], zeros outside."""
    _, height, width = image.shape
    y, x = np.meshgrid((2 * np.arange(height) + 1) / height - 1, (2 * np.arange(width) + 1) / width - 1, indexing="ij")
    source_x, source_y = np.einsum("ij,jhw->ihw", np.asarray(matrix, dtype=float), np.stack([x, y]))
    points = [((source_y + 1) * height - 1) / 2, ((source_x + 1) * width - 1) / 2]
    return np.stack([ndimage.map_coordinates(c, points, order=1, mode="grid-constant", cval=0.0) for c in image])


def naive(name, image, u):
    """One operation on one image, ``(C, H, W)`` in float64, from the formulas of the authors' code."""
    image, u = torch.as_tensor(image).double().numpy().copy(), [float(value) for value in u]
    height, width = image.shape[1:]
    if name == "color":
        image = image + (u[0] - 0.5)
        grey = image.mean(0)
        image = (image - grey) * 2 * u[1] + grey
        return (image - image.mean()) * (u[2] + 0.5) + image.mean()
    if name == "crop":
        reach = REACH[height]
        down, right = (int(v * (2 * reach + 1)) for v in u)  # 0 .. 2 reach, in the padded image
        padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)))
        return padded[:, down : down + height, right : right + width]
    if name == "cutout":
        side = SIDE[height]
        row, column = (int(v * (height + 1 - side % 2)) - side // 2 for v in u)
        for i in range(side):
            for j in range(side):
                image[:, min(max(row + i, 0), height - 1), min(max(column + j, 0), width - 1)] = 0
        return image
    if name == "flip":
        return image[:, :, ::-1] if u[0] < 0.5 else image
    if name == "scale":
        x, y = (v * (1.2 - 1 / 1.2) + 1 / 1.2 for v in u)
        return resample(image, [[x, 0], [0, y]])
    angle = math.radians(30 * u[0] - 15)
    return resample(image, [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def noise_for(name, rows, seed=0):
    columns = ops.OPERATIONS[name][1]
    return torch.rand(rows, columns.stop - columns.start, generator=make_generator(seed))


def images_of(count, side=8, channels=3, seed=1):
    return torch.randn(count, channels, side, side, generator=make_generator(seed))


def assert_like(images, expected):
    np.testing.assert_allclose(images.numpy(), np.stack(list(expected)), atol=2e-5)


@pytest.mark.parametrize("side", [8, 9, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list(ops.OPERATIONS))
def test_operation_is_the_naive_loop(name, channels, side):
    images, operation = images_of(7, side, channels), ops.OPERATIONS[name][0]
    u = noise_for(name, 7)
    assert_like(operation(images, u), (naive(name, image, row) for image, row in zip(images, u, strict=True)))
    assert_like(operation(images, u[:1]), (naive(name, image, u[0]) for image in images))  # one record for all
    assert_like(operation(images[:1], u[:1]), [naive(name, images[0], u[0])])  # a batch of one


@pytest.mark.parametrize("name", list(ops.OPERATIONS))
def test_gradcheck(name):
    images = images_of(2, 8, 2).double()[:, :, :4, :4].clone().requires_grad_()
    for rows in (1, 2):
        u = noise_for(name, rows, seed=rows).double()
        assert torch.autograd.gradcheck(lambda batch, u=u: ops.OPERATIONS[name][0](batch, u), images)


@pytest.mark.parametrize("side", [8, 28, 32, 64])
def test_crop_is_a_zero_padded_shift_for_every_shift(side):
    reach = REACH[side]
    shifts = [(tx, ty) for tx in range(-reach, reach + 1) for ty in range(-reach, reach + 1)]
    u = (torch.tensor(shifts) + reach + 0.5) / (2 * reach + 1)
    image = torch.arange(1.0, side * side + 1).view(1, 1, side, side)
    for (tx, ty), out in zip(shifts, ops.crop(image.expand(len(shifts), -1, -1, -1), u)[:, 0], strict=True):
        expected = torch.zeros(side, side)
        rows, columns = (slice(max(-t, 0), side - max(t, 0)) for t in (tx, ty))
        expected[rows, columns] = image[0, 0, max(tx, 0) : side + min(tx, 0), max(ty, 0) : side + min(ty, 0)]
        assert torch.equal(out, expected)  # out[r, c] = image[r + tx, c + ty]


def test_cutout_areas_at_32_pixels():
    centres = torch.cartesian_prod(torch.arange(33), torch.arange(33))
    masked = (ops.cutout(torch.ones(33 * 33, 1, 32, 32), (centres + 0.5) / 33) == 0).sum((1, 2, 3))
    assert (int(masked.min()), int(masked.max())) == (64, 256)
    assert float(masked.double().mean()) / 1024 == pytest.approx(0.186, abs=5e-4)


def test_rotation_is_anticlockwise():
    images, u = images_of(5, 16), noise_for("rotate", 5)
    expected = rotate(images, 30 * u[:, 0] - 15)  # positive: anticlockwise
    torch.testing.assert_close(ops.rotate(images, u), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_noise_stays_in_range(sign):
    u = torch.full((1, 2), 0.0 if sign < 0 else 1 - 2**-24)  # the least and the greatest that torch.rand returns
    dot = torch.zeros(1, 1, 32, 32)
    dot[0, 0, 16, 16] = 1
    assert ops.crop(dot, u)[0, 0].nonzero().tolist() == [[16 - 4 * sign, 16 - 4 * sign]]
    assert int((ops.cutout(torch.ones(1, 1, 32, 32), u) == 0).sum()) == 64


def test_ranges_are_attained_and_never_exceeded():
    u = Augmentation.dsa(SIX).draw(4000, make_generator(0)).noise
    columns = {name: u[:, part] for name, (_, part) in ops.OPERATIONS.items()}
    # color: channel pattern p and column pattern q become (contrast)(2 saturation p + q) + brightness.
    p, q = torch.tensor([1.0, 0, -1]).view(1, 3, 1, 1), torch.tensor([1.0, -1]).view(1, 1, 1, 2)
    out = ops.color((p + q).expand(4000, 3, 1, 2), columns["color"])
    contrast = (out[:, :, 0, 0] - out[:, :, 0, 1]).mean(1) / 2
    x_ramp = ((2 * torch.arange(9.0) + 1) / 9 - 1).expand(9, 9)
    ramps = torch.stack([x_ramp, x_ramp.T]).expand(4000, 2, 9, 9)
    zoomed, turned = ops.scale(ramps, columns["scale"]), ops.rotate(ramps, columns["rotate"])
    found = {
        "brightness": (out.mean((1, 2, 3)), -0.5, 0.5),
        "contrast": (contrast, 0.5, 1.5),
        "saturation": ((out[:, 0] - out[:, 2]).mean((1, 2)) / 2 / contrast, 0, 2),
        "scale x": (zoomed[:, 0, 4, 5] / x_ramp[4, 5], 1 / 1.2, 1.2),
        "scale y": (zoomed[:, 1, 5, 4] / x_ramp[4, 5], 1 / 1.2, 1.2),
        "rotate": (torch.atan2(turned[:, 1, 4, 5], turned[:, 0, 4, 5]) * 180 / math.pi, -15, 15),
    }
    for name, (values, low, high) in found.items():
        assert low - 1e-5 <= values.min() < low + 0.01 * (high - low), name
        assert high + 1e-5 >= values.max() > high - 0.01 * (high - low), name
        assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3, name
    assert stats.binomtest(int((columns["flip"] < 0.5).sum()), 4000).pvalue > 1e-3
    dot = torch.zeros(1, 1, 28, 28)
    dot[0, 0, 14, 14] = 1
    moved = ops.crop(dot.expand(4000, -1, -1, -1), columns["crop"]).nonzero()[:, 2:] - 14
    assert set(map(tuple, moved.tolist())) == {(r, c) for r in range(-4, 5) for c in range(-4, 5)}
    holes = ops.cutout(torch.ones(4000, 1, 8, 8), columns["cutout"])[:, 0] == 0
    assert set(holes.any(2).sum(1).tolist()) == set(holes.any(1).sum(1).tolist()) == {2, 3, 4}


# ------------------------------------------------------------------------------------------ records and families


def chain(image, names, noise):
    for name in names:
        image = torch.from_numpy(naive(name, image, noise[ops.OPERATIONS[name][1]]).copy())
    return image


def test_one_record_treats_batches_of_256_and_10_alike():
    augment, batch = Augmentation.dsa(SIX), images_of(256)
    for seed in range(12):
        draw = augment.draw(1, make_generator(seed))
        large, small = augment(batch, draw), augment(batch[:10], draw)
        torch.testing.assert_close(large[:10], small, atol=1e-6, rtol=1e-6)
        name = SIX.split("_")[int(draw.choice[0, 0])]
        assert_like(small, (naive(name, image, draw.noise[0, ops.OPERATIONS[name][1]]) for image in batch[:10]))


@pytest.mark.parametrize("one_choice", [True, False])
def test_records_of_each_image_and_of_each_class(one_choice):
    augment, batch = Augmentation.dsa(SIX), images_of(40)
    draw = augment.draw(40, make_generator(3), one_choice=one_choice)
    names = [SIX.split("_")[k] for k in draw.choice[:, 0].tolist()]
    assert len(set(names)) == (1 if one_choice else 6)
    assert len(draw.noise.unique(dim=0)) == 40  # the choice may be shared, the parameters never are
    expected = [chain(image, [name], u) for image, name, u in zip(batch, names, draw.noise, strict=True)]
    assert_like(augment(batch, draw), expected)
    rows = torch.randint(40, (25,), generator=make_generator(4))
    expected = [chain(image, [names[r]], draw.noise[r]) for image, r in zip(batch, rows.tolist(), strict=False)]
    assert_like(augment(batch[:25], draw, rows), expected)
    assert_like(augment(batch[:1], draw, rows[:1]), expected[:1])


@pytest.mark.parametrize("strategy", [SIX, "rotate_cutout_scale_color_crop_flip"])
def test_idc_flips_and_colours_then_one_of_three_then_cuts_out(strategy):
    augment, batch = Augmentation.idc(strategy), images_of(6)
    middle = [name for name in strategy.split("_") if name in ("crop", "scale", "rotate")]
    seen = set()
    for seed in range(12):
        draw = augment.draw(6, make_generator(seed))
        names = ["flip", "color", middle[int(draw.choice[0, 2])], "cutout"]
        seen.add(names[2])
        assert_like(augment(batch, draw), (chain(x, names, u) for x, u in zip(batch, draw.noise, strict=True)))
    assert seen == {"crop", "scale", "rotate"}


def test_idc_does_what_is_named_alone():
    draw = Draw(torch.zeros(1, 3, dtype=torch.int64), noise_for("flip", 1).expand(1, ops.NOISE_COLUMNS))
    batch = images_of(3)
    expected = [chain(x, ["color", "crop", "cutout"], draw.noise[0]) for x in batch]
    assert_like(Augmentation.idc("color_crop_cutout")(batch, draw), expected)
    assert [len(slot) for slot in Augmentation.idc("scale_crop").slots] == [2]


@pytest.mark.parametrize("strategy", [SIX, "crop_flip", "color_crop_cutout_scale_rotate"])
def test_choice_is_uniform_over_calls(strategy):
    augment, generator = Augmentation.dsa(strategy), make_generator(0)
    chosen = [int(augment.draw(3, generator).choice[0, 0]) for _ in range(3000)]
    assert stats.chisquare(np.bincount(chosen, minlength=len(strategy.split("_")))).pvalue > 1e-3


@pytest.mark.parametrize("family", [Augmentation.dsa, Augmentation.idc])
def test_strategies_are_parsed(family):
    with pytest.raises(ConfigError, match="unknown augmentation noise, wobble in 'crop_wobble_noise'; known: color"):
        family("crop_wobble_noise")
    for strategy in ("none", ""):
        nothing, batch = family(strategy), images_of(4)
        assert torch.equal(nothing(batch, nothing.draw(1, make_generator(0))), batch)
    with pytest.raises(ValueError, match="1 or 4 records for 4 images, but got 3"):
        family("crop")(images_of(4), family("crop").draw(3, make_generator(0)))


def test_default_strategy_mirrors_only_where_labels_survive():
    spec = {"name": "a", "num_classes": 2, "image_shape": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}
    assert default_strategy(DataSpec(**spec)).split("_") == SIX.split("_")
    assert set(SIX.split("_")) - set(default_strategy(DataSpec(**spec, mirror=False)).split("_")) == {"flip"}


def test_draws_come_from_the_generator_alone():
    augment, before = Augmentation.idc(SIX), torch.get_rng_state()
    first, second, third = (augment.draw(5, make_generator(seed), one_choice=False) for seed in (1, 1, 2))
    assert torch.equal(first.choice, second.choice)
    assert torch.equal(first.noise, second.noise)
    assert not torch.equal(first.noise, third.noise)
    assert first.noise.device.type == first.choice.device.type == "cpu"
    augment(images_of(5), first)
    assert torch.equal(torch.get_rng_state(), before)
