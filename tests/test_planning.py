"""Plans: how many images fit at a price in bits, against loops over all counts; stored and learned tensors apart."""

from math import prod

import pytest
import torch
from made_up import make_real, make_spec
from torch import nn

from dd_plugins import registry
from dd_plugins.api import (
    BudgetTooSmall,
    NotEnoughMemory,
    Parameterization,
    Plan,
    PluginConfig,
    PluginContractError,
    StorageBudget,
    TensorSpec,
    UsageError,
    float32_cost,
    largest,
    parts_of_images,
    random_real_images,
    random_real_rows,
)
from dd_plugins.parameterizations.hmn import HMN
from dd_plugins.parameterizations.pixel import Pixel
from dd_plugins.seeds import make_generator

BUILT_IN = [info.name for info in registry.list_plugins("parameterization") if info.distribution == registry.OWN]


def int8_cost(shapes, images):
    """Eight bits for every number, and sixteen for a label."""
    return sum(8 * prod(spec.shape) for spec in shapes.values()) + 16 * images


def planned(name, spec, budget, cost):
    plugin = registry.load("parameterization", name)
    return plugin, plugin.plan(spec, budget, plugin.Config(), cost)


@pytest.mark.parametrize("cost", [float32_cost, int8_cost])
@pytest.mark.parametrize("name", BUILT_IN)
def test_one_unit_more_of_each_class_would_not_fit(name, cost):
    spec, budget = make_spec(3, 16, 3), StorageBudget(3 * 3 * 256 * 7 + 11)
    plugin, plan = planned(name, spec, budget, cost)
    assert plan.counts == (plan.counts[0],) * 3
    unit = plugin.images_per_unit(plan.config)
    counts = list(range(unit, 2 * plan.counts[0] + 2 * unit, unit))
    bits = [cost(plugin.shapes(spec, (count,) * 3, plan.config), 3 * count) for count in counts]
    fitting = [count for count, taken in zip(counts, bits, strict=True) if taken <= budget.bits]
    assert plan.counts[0] == max(fitting)
    assert len(fitting) < len(counts)


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_declared_is_what_is_stored_and_paid_for(name):
    spec, budget = make_spec(3, 16, 3), StorageBudget(3 * 3 * 256 * 7 + 11)
    plugin, plan = planned(name, spec, budget, float32_cost)
    container = plugin(spec, budget, plan=plan)
    assert (container.layout, container.counts, container.config) == (plan, plan.counts, plan.config)
    shapes = plugin.shapes(spec, plan.counts, plan.config)
    assert {name: (tuple(t.shape), t.dtype) for name, t in container.stored().items()} == dict(shapes)
    elements = sum(spec.elements for spec in shapes.values())
    assert elements == container.storage().elements
    assert 32 * elements == float32_cost(shapes, 0) <= budget.bits  # bytes cost as much as floats


def test_real_images_take_as_many_as_they_are_called_after():
    spec = make_spec(4, 16, 2)
    for ipc in (1, 3, 50):
        _, plan = planned("real", spec, StorageBudget.ipc(spec, ipc), float32_cost)
        assert plan.counts == (ipc,) * 4


def test_a_cheaper_codec_makes_room_for_more():
    spec = make_spec(4, 16, 2)
    budget = StorageBudget.ipc(spec, 10)
    each = 8 * 512 + 16
    assert planned("pixel", spec, budget, int8_cost)[1].counts == (budget.bits // (4 * each),) * 4
    _, hmn = planned("hmn", spec, budget, int8_cost)
    assert min(hmn.counts) > 2 * min(planned("hmn", spec, budget, float32_cost)[1].counts)
    wide = Pixel(spec, budget, plan=planned("pixel", spec, budget, int8_cost)[1])
    assert len(wide.decode()) == 4 * (budget.bits // (4 * each))


def test_planning_leaves_the_configuration_alone_and_is_repeatable():
    spec, budget = make_spec(4, 16, 2), StorageBudget.ipc(make_spec(4, 16, 2), 5)
    config = HMN.Config()
    plan = HMN.plan(spec, budget, config, float32_cost)
    assert config == HMN.Config()
    assert None not in plan.config.model_dump(exclude={"max_images_per_class"}).values()
    assert HMN.plan(spec, budget, plan.config, float32_cost) == plan
    assert HMN(spec, budget, config).layout == plan


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 8, 9, 100, 12345, 2**70 + 3])
def test_the_largest_number_that_fits(limit):
    calls = []
    assert largest(lambda number: calls.append(number) or number <= limit) == limit
    assert len(calls) <= 2 * limit.bit_length() + 2


class Free(Pixel):
    """Declares nothing."""

    api_version = 2

    @classmethod
    def shapes(cls, data, counts, config):
        return {}


class Hides(Pixel):
    """Stores a tensor that it does not declare."""

    api_version = 2

    def build(self):
        super().build()
        self.register_buffer("hidden", torch.zeros(3))


class Forgets(Pixel):
    """Keeps all of its images when others are dropped."""

    api_version = 2

    def _keep(self, index):
        return


def test_what_is_stored_must_be_declared():
    spec, budget = make_spec(), StorageBudget.ipc(make_spec(), 2)
    with pytest.raises(PluginContractError, match="does not grow"):
        Free(spec, budget)
    with pytest.raises(PluginContractError, match=r"Hides: .*no tensor for hidden, but \(3,\) is stored"):
        Hides(spec, budget)
    with pytest.raises(PluginContractError, match=r"declares \(4, 2, 16, 16\) for images, but \(8, 2, 16, 16\)"):
        Forgets(spec, budget).keep(torch.tensor([0, 2, 4, 6]))


def test_plans_that_do_not_go_with_the_data_are_refused():
    spec, budget = make_spec(), StorageBudget.ipc(make_spec(), 2)
    for counts in ((2, 2, 2), (2, 2, 2, 0)):
        with pytest.raises(UsageError, match="one positive count for each of 4 classes"):
            Pixel(spec, budget, plan=Plan(counts, Pixel.Config()))
    with pytest.raises(NotEnoughMemory):
        Pixel(spec, budget, plan=Plan((10**12,) * 4, Pixel.Config()))
    with pytest.raises(BudgetTooSmall, match=r"1 decoded image of each class take 2048 elements \(images 2048\), but"):
        Pixel.plan(spec, StorageBudget(2047), Pixel.Config(), float32_cost)


class Rounded(Parameterization["Rounded.Config"]):
    """Learns floats and stores whole numbers."""

    api_version = 2

    class Config(PluginConfig):
        """None."""

    @classmethod
    def shapes(cls, data, counts, config):
        return {"levels": TensorSpec((sum(counts), *data.image_shape), torch.int8)}

    def build(self):
        self.values = nn.Parameter(torch.zeros(len(self.labels), *self.data.image_shape))

    @torch.no_grad()
    def reset(self, generator, real):
        self.values.copy_(torch.randn(self.values.shape, generator=generator))

    def _decode(self, index):
        return self.values[index]

    def stored(self):
        return {"levels": (self.values.detach() * 10).round().clamp(-128, 127).to(torch.int8)}

    @torch.no_grad()
    def load_stored(self, tensors):
        self.values.copy_(tensors["levels"] / 10)


def test_a_file_can_hold_other_tensors_than_are_learned(tmp_path):
    spec, budget = make_spec(), StorageBudget.ipc(make_spec(), 2)
    container = Rounded(spec, budget)
    container.reset(make_generator(0), None)
    ledger = container.save(tmp_path / "set.safetensors")
    assert [(entry.name, entry.dtype, entry.nbytes) for entry in ledger.entries] == [("levels", "int8", 8 * 512)]
    loaded = Rounded.load(tmp_path / "set.safetensors")
    assert list(loaded.state_dict()) == ["values"]
    assert (loaded.decode() - container.decode()).abs().max() <= 0.05 + 1e-6
    assert not torch.equal(loaded.decode(), container.decode())
    assert Rounded.load(container.to_bytes()).decode().equal(loaded.decode())


@pytest.mark.parametrize(("counts", "parts"), [((4, 2, 6), 2), ((3, 9), 3), ((2, 1), 1), ((5,), 5)])
def test_parts_of_images(counts, parts):
    expected, first = [], 0
    for count in counts:
        for part in range(parts):
            for item in range(count // parts):
                expected.append((part, first + item))
        first += count // parts
    part, item = parts_of_images(counts, parts)
    assert list(zip(part.tolist(), item.tolist(), strict=True)) == expected


def test_random_real_images_are_of_their_class_and_differ():
    real = make_real()
    rows = random_real_rows(real, (3, 18, 1, 0), make_generator(0))
    assert real.train.labels[rows].tolist() == [0] * 3 + [1] * 18 + [2]
    assert len(rows.unique()) == 22
    assert torch.equal(random_real_images(real, (3, 18, 1, 0), make_generator(0)), real.train.images(rows))
    assert not torch.equal(random_real_rows(real, (3, 18, 1, 0), make_generator(1)), rows)
    with pytest.raises(UsageError, match="needs real data"):
        random_real_rows(None, (1,), make_generator(0))
