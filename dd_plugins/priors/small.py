"""A small class-conditional generator of our own, for images from 8 to 64 pixels.

Its blocks are modulated by styles as in StyleGAN (Karras et al., CVPR 2019, arXiv 1812.04948): instance normalisation,
then a scale and a shift that an affine map makes of the stage's style.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from dd_plugins.api import PluginConfig, RealData
from dd_plugins.api.prior import Styles
from dd_plugins.priors.base import TrainablePrior

if TYPE_CHECKING:
    from dd_plugins.priors.train import PriorRecipe, Trainer

SLOPE = 0.2  # of the leaky ReLUs
EPSILON = 1e-5


class SmallConfig(PluginConfig):
    """Sizes of the small generator."""

    image_shape: tuple[int, int, int] = Field((1, 8, 8), description="C, H, W")
    num_classes: int = Field(10, ge=1, description="classes")
    width: int = Field(32, ge=4, description="channels of every block")
    noise: int = Field(32, ge=1, description="numbers that are drawn for an image")
    style: int = Field(64, ge=1, description="numbers of a style")


def sides(side: int) -> list[int]:
    """Sides of the maps, from the smallest up: halved down to 4, or as long as they are even."""
    found = [side]
    while found[0] > 4 and found[0] % 2 == 0:
        found.insert(0, found[0] // 2)
    return found


class Block(nn.Module):
    """Modulated convolution: [enlarge,] 3x3 convolution, instance norm, scale and shift by the style, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, style: int, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(style, 2 * inputs)

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        """From float ``(N, inputs, h, w)`` and ``(N, style)`` to float ``(N, outputs, H, W)``."""
        if self.size is not None:
            maps = functional.interpolate(maps, size=self.size, mode="nearest")
        scale, shift = self.affine(style)[:, :, None, None].chunk(2, dim=1)
        # By hand: with torch's var the normalisation takes eight times as long on a CPU.
        centred = maps - maps.mean((2, 3), keepdim=True)
        normal = centred * centred.square().mean((2, 3), keepdim=True).add(EPSILON).rsqrt()
        return self.conv(functional.leaky_relu(normal * (1 + scale) + shift, SLOPE))


class SmallGenerator(TrainablePrior):
    """Mapping network, a learned start, two modulated blocks for every size of the maps, and an output convolution."""

    api_version = 2

    class Config(SmallConfig):
        """Sizes of the small generator."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.config = config
        channels, height, width = config.image_shape
        self.image_shape, self.num_classes = config.image_shape, config.num_classes
        rows, columns = sides(height), sides(width)
        count = min(len(rows), len(columns))
        sizes = list(zip(rows[-count:], columns[-count:], strict=True))
        self.first = sizes[0]
        self.classes = nn.Embedding(config.num_classes, config.noise)
        self.mapping = nn.Sequential(
            nn.Linear(2 * config.noise, config.style),
            nn.LeakyReLU(SLOPE),
            nn.Linear(config.style, config.style),
        )
        self.start = nn.Linear(config.style, config.width * self.first[0] * self.first[1])
        enlarged = [size if position and not half else None for position, size in enumerate(sizes) for half in (0, 1)]
        self.blocks = nn.ModuleList(Block(config.width, config.width, config.style, size) for size in enlarged)
        self.num_stages = len(self.blocks)
        self.output = nn.Conv2d(config.width, channels, 3, padding=1)

    @classmethod
    def trainer(cls, recipe: PriorRecipe, real: RealData) -> Trainer:
        """A conditional GAN."""
        from dd_plugins.priors.gan import GanTrainer  # which imports this module

        return GanTrainer(recipe, real)

    def styles_of(self, noise: Tensor, labels: Tensor) -> Styles:
        """The styles of given noise: one for all stages at first; float ``(N, style)`` each."""
        joined = torch.cat([_rms_normal(noise), _rms_normal(self.classes(labels))], dim=1)
        return (self.mapping(joined),) * self.num_stages

    def sample_styles(self, labels: Tensor, generator: Generator) -> Styles:
        """Styles of fresh noise from N(0, 1)."""
        noise = torch.randn(len(labels), self.config.noise, generator=generator).to(labels.device)
        return self.styles_of(noise, labels)

    def begin(self, styles: Styles) -> Tensor:
        """The smallest maps: float ``(N, width, h, w)``."""
        return self.start(styles[0]).view(-1, self.config.width, *self.first)

    def step(self, stage: int, state: Tensor, styles: Styles) -> Tensor:
        """One block."""
        made: Tensor = self.blocks[stage](state, styles[stage])
        return made

    def to_pixels(self, state: Tensor) -> Tensor:
        """Output convolution and a sigmoid."""
        return torch.sigmoid(self.output(functional.leaky_relu(state, SLOPE)))


def _rms_normal(values: Tensor) -> Tensor:
    return values * values.square().mean(1, keepdim=True).add(1e-8).rsqrt()
