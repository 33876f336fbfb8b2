"""Made-up data and networks that several test files share."""

import torch

from dd_plugins.api import DataSpec, LayeredGenerator, RawData, StorageBudget, checked_match
from dd_plugins.datasets import build_real_data
from dd_plugins.networks import build_network
from dd_plugins.parameterizations.hmn import HMN
from dd_plugins.parameterizations.pixel import Pixel
from dd_plugins.seeds import make_generator

CONTAINERS = {
    "hmn": (HMN, {"max_images_per_class": 5, "warm_start_steps": 2, "warm_start_batch": 8}),
    "pixel": (Pixel, {}),
}


def make_real(classes=4, shape=(2, 8, 8), count=20):
    """Noise around a mean of each class's own; a tenth of the images is for validation."""
    labels = torch.arange(classes).repeat(count)
    noise = torch.randint(0, 100, (len(labels), *shape), generator=make_generator(0))
    images = (noise + (140 // classes) * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    names = tuple(f"class {label}" for label in range(classes))
    return build_real_data("made-up", RawData(images, labels, images[:8], labels[:8], names))


class Factory:
    """Makes tiny networks and remembers them as they were born."""

    def __init__(self, real, fixed=None, **config):
        self.spec, self.fixed, self.born = real.spec, fixed, []
        self.config = {"width": 4, "depth": 2, **config}

    def __call__(self, seed):
        seed = seed if self.fixed is None else self.fixed
        network = build_network("convnet", self.spec.image_shape, self.spec.num_classes, self.config, seed=seed)
        self.born.append((network, {name: value.clone() for name, value in network.state_dict().items()}))
        return network


class Mirror(LayeredGenerator):
    """A prior that knows no classes and gives back what it encodes."""

    def __init__(self, shape=(2, 8, 8)):
        super().__init__()
        self.image_shape, self.num_classes, self.num_stages = shape, 0, 4
        self.eval()

    def sample_styles(self, labels, generator):
        return self._styles(torch.rand(len(labels), *self.image_shape, generator=generator))

    def encode(self, images, labels):
        return self._styles(images)

    def begin(self, styles):
        return styles[0]

    def step(self, stage, state, styles):
        return state

    def to_pixels(self, state):
        return state

    def _styles(self, images):
        return (images, *[images.new_zeros(len(images), 0)] * 3)


def drive(objective, images, steps, lr=0.1):
    """What a runner does, with pixels and plain SGD: changes ``images`` and returns every match."""
    matches = []
    for step in steps:
        index = objective.select(step)
        match = checked_match(objective, images[index], objective.targets[index], step)
        images[index] -= lr * match.image_grad
        matches.append(match)
    return matches


def make_spec(classes=4, side=16, channels=2):
    return DataSpec("made-up", classes, (channels, side, side), (0.4,) * channels, (0.3,) * channels)


def make_container(kind, spec=None, ipc=5, seed=0, **config):
    """A container of 4 classes with 5 noisy images each."""
    plugin, defaults = CONTAINERS[kind]
    spec = spec or make_spec()
    container = plugin(spec, StorageBudget.ipc(spec, ipc), {"init": "noise", **defaults, **config})
    container.reset(make_generator(seed), None)
    return container
