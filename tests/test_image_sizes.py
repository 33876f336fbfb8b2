"""HMN on images of any height and width: sizes, decoding against a naive form, and what is said about the budget."""

from math import ceil

import pytest
import torch
from test_odd_data import folder
from tiny_runs import command
from torch.nn import functional

from dd_plugins.api import ConfigError, DataSpec, StorageBudget, float32_cost
from dd_plugins.parameterizations.hmn import HMN
from dd_plugins.parameterizations.hmn_sizes import Sizes, find_sizes
from dd_plugins.seeds import make_generator

FREE = dict.fromkeys(Sizes.__annotations__) | {"extractor_kernel": 1}


def spec_of(height, width, channels=3, classes=3):
    return DataSpec("made-up", classes, (channels, height, width), (0.4,) * channels, (0.3,) * channels)


def made(spec, ipc=10, **config):
    container = HMN(spec, StorageBudget.ipc(spec, ipc), {"init": "noise", "max_images_per_class": 4, **config})
    container.reset(make_generator(0), None)
    return container


def sizes_of(spec, ipc=10):
    return find_sizes(spec, StorageBudget.ipc(spec, ipc), FREE, float32_cost)


@pytest.mark.parametrize(("side", "grid"), [(8, 4), (16, 4), (28, 7), (32, 4), (48, 6), (64, 8), (128, 8), (224, 14)])
def test_square_sides_that_halve_evenly_are_decoded_without_a_crop(side, grid):
    found = sizes_of(spec_of(side, side))
    assert (found.grid, found.grid << len(found.widths)) == (grid, side)
    assert found.memory_shape(spec_of(side, side)) == (grid, grid)


@pytest.mark.parametrize(
    ("height", "width", "grid", "doublings"),
    [
        (33, 33, (5, 5), 3),
        (24, 32, (6, 8), 2),
        (32, 24, (8, 6), 2),
        (7, 7, (4, 4), 1),
        (7, 40, (4, 20), 1),
        (45, 80, (6, 10), 3),
        (225, 301, (15, 19), 4),
        (3, 5, (3, 5), 0),
    ],
)
def test_any_height_and_width(height, width, grid, doublings):
    spec = spec_of(height, width)
    found = sizes_of(spec)
    assert grid == (ceil(height / 2**doublings), ceil(width / 2**doublings))
    assert (found.memory_shape(spec), len(found.widths)) == (grid, doublings)
    assert found.instance(spec) == found.instance_channels * grid[0] * grid[1]
    if doublings:  # a decoder that images share leaves room for many of them
        assert StorageBudget.ipc(spec, 10).elements > found.shared(spec) + 50 * spec.num_classes * found.instance(spec)


@pytest.mark.parametrize(("height", "width"), [(33, 33), (24, 32), (7, 40), (9, 12), (5, 3)])
def test_the_decoder_is_cropped_to_its_middle(height, width, tmp_path):
    container = made(spec_of(height, width))
    images = container.decode()
    assert images.shape == (12, 3, height, width)
    for row, image in enumerate(images):
        label, channels = row // 4, container.sizes.extractor_channels
        own = slice(label * channels, (label + 1) * channels)
        weight, bias = container.extractors.weight[own], container.extractors.bias[own]
        extracted = functional.conv2d(container.dataset_memory, weight, bias)[0]
        maps = torch.cat([extracted, container.class_memory[label], container.instance_memory[row]])
        for conv in container.decoder:
            maps = maps.repeat_interleave(2, 1).repeat_interleave(2, 2)
            maps = functional.leaky_relu(functional.conv2d(maps, conv.weight, conv.bias, padding=1), 0.2)
        maps = functional.conv2d(maps, container.output.weight, container.output.bias, padding=1).sigmoid()
        above, left = (maps.shape[1] - height) // 2, (maps.shape[2] - width) // 2
        below, right = maps.shape[1] - height - above, maps.shape[2] - width - left
        assert 0 <= below - above <= 1
        assert 0 <= right - left <= 1
        expected = maps[:, above : maps.shape[1] - below, left : maps.shape[2] - right]
        torch.testing.assert_close(image, (expected - 0.4) / 0.3)
    container.save(tmp_path / "set")
    assert torch.equal(HMN.load(tmp_path / "set").decode(), images)
    container.storage().enforce(container.budget, "hmn")


def test_a_chosen_grid_and_one_that_does_not_lead_to_the_images():
    assert made(spec_of(33, 40), ipc=50, grid=9).dataset_memory.shape[2:] == (9, 10)
    assert made(spec_of(33, 33), grid=33).decode().shape[2:] == (33, 33)
    with pytest.raises(ConfigError, match=r"grid = 4: .* a side of 33 pixels; there are 33, 17, 9, 5, 3, 2, 1"):
        made(spec_of(33, 40), grid=4)


def test_a_budget_that_mostly_goes_to_shared_parts_is_reported():
    spec = spec_of(16, 16)
    wide = made(spec, ipc=10, widths=[48, 32])
    shared = wide.sizes.shared(spec)
    assert shared > 0.5 * wide.budget.elements
    assert "warning: most of the budget goes to the decoder" in wide.describe()
    assert "warning" not in made(spec, ipc=50, widths=[16, 12]).describe()


def test_the_command_takes_images_that_are_not_square(tmp_path, capsys):
    dataset = folder(tmp_path / "oblong", size=(32, 24))
    words = ["run", "--method", "hmn", "--dataset", dataset, "--ipc", "10", "--out", tmp_path / "runs", "--dry-run"]
    assert command(*words) == 0
    assert "grid 6x8" in capsys.readouterr().out
