"""HaBa: bases and a few hallucinators that all classes share; every base can go with every hallucinator.

Source:
    Liu et al., "Dataset Distillation via Factorization", NeurIPS 2022, arXiv 2210.16774, and its released code:
    hallucinator = convolution, element-wise scale and shift, transposed convolution, all affine.
Deviations:
    The released code counts the bases alone and spends up to 1.9 times the budget. Here everything is counted: what
    the hallucinators leave of the budget is for bases, and where five hallucinators do not fit, fewer do.
    ``published_size`` gives the released sizes, with their ratio to the budget shown.
    Any channels and image sizes; the code knows 3 x 32 x 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nextafter, prod

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from dd_plugins.api import (
    Cost,
    DataSpec,
    Grouped,
    Parameterization,
    Plan,
    PluginConfig,
    RealData,
    Shapes,
    StorageBudget,
    TensorSpec,
    UsageError,
    parts_of_images,
    random_real_images,
)

KERNEL = 3
PUBLISHED = 5  # hallucinators in the paper


class HaBa(Grouped, Parameterization["HaBa.Config"]):
    """Bases of each class, and hallucinators that turn each of them into an image."""

    api_version = 2
    bases: nn.Parameter  # float, (bases, channels, H, W), model space
    encoder_weight: nn.Parameter
    encoder_bias: nn.Parameter
    scale: nn.Parameter
    shift: nn.Parameter
    decoder_weight: nn.Parameter
    decoder_bias: nn.Parameter
    _style: Tensor
    _base_of: Tensor

    class Config(PluginConfig):
        """Settings of the factorization."""

        hallucinators: int | None = Field(
            None, ge=1, description="shared by all classes; None: 5, or fewer where the budget is too small for them"
        )
        grey: bool | None = Field(
            None, description="bases of one channel; None: only where one base of all channels does not fit"
        )
        published_size: bool = Field(
            False, description="count the bases alone against the budget, as the released code does"
        )
        lr: float | None = Field(None, gt=0, description="learning rate; None for the optimizer's")

    @classmethod
    def plan(cls, data: DataSpec, budget: StorageBudget, config: Config, cost: Cost) -> Plan[Config]:
        """As many bases as fit beside the hallucinators; with ``published_size``, as many as fit alone."""
        return super().plan(data, budget, config, _counted_cost(config, cost))

    @classmethod
    def resolve(cls, data: DataSpec, budget: StorageBudget, config: Config, cost: Cost) -> Config:
        """Fills in what is open: bases of all channels if they fit, then up to five hallucinators."""
        if min(data.image_shape[1:]) < KERNEL:
            raise UsageError(f"haba: images of {data.image_shape} are smaller than its {KERNEL}x{KERNEL} kernels")
        greys = [False, True] if config.grey is None else [config.grey]
        numbers = [config.hallucinators] if config.hallucinators else list(range(PUBLISHED, 0, -1))
        choices = [config.model_copy(update={"hallucinators": n, "grey": grey}) for grey in greys for n in numbers]
        cost = _counted_cost(config, cost)
        fitting = (one for one in choices if cls.price(data, cls.images_per_unit(one), one, cost) <= budget.bits)
        return next(fitting, choices[-1])

    @classmethod
    def images_per_unit(cls, config: Config) -> int:
        """Every base goes with every hallucinator."""
        return config.hallucinators or 1

    @classmethod
    def shapes(cls, data: DataSpec, counts: Sequence[int], config: Config) -> Shapes:
        """The bases, and of each hallucinator two convolutions with biases, a scale and a shift."""
        channels, height, width = data.image_shape
        inputs, styles = 1 if config.grey else channels, config.hallucinators or 1
        inner = (styles, channels, height - KERNEL + 1, width - KERNEL + 1)
        shapes = {
            "bases": (sum(counts) // styles, inputs, height, width),
            "encoder_weight": (styles, channels, inputs, KERNEL, KERNEL),
            "encoder_bias": (styles, channels),
            "scale": inner,
            "shift": inner,
            "decoder_weight": (styles, channels, channels, KERNEL, KERNEL),
            "decoder_bias": (styles, channels),
        }
        return {name: TensorSpec(shape) for name, shape in shapes.items()}

    def build(self) -> None:
        """Allocates bases and hallucinators; hallucinator and base of each image follow from the counts."""
        super().build()
        style, base = parts_of_images(self.counts, len(self.scale))
        self.register_buffer("_style", style, persistent=False)
        self.register_buffer("_base_of", base, persistent=False)

    @torch.no_grad()
    def reset(self, generator: Generator, real: RealData | None) -> None:
        """Copies random real images of each class into the bases; hallucinators begin as torch's convolutions do."""
        images = random_real_images(real, [count // len(self.scale) for count in self.counts], generator)
        self.bases.copy_(images.mean(1, keepdim=True) if self.config.grey else images)
        # torch's default: uniform in 1 / sqrt(fan in), weights and biases alike.
        for weight, bias in ((self.encoder_weight, self.encoder_bias), (self.decoder_weight, self.decoder_bias)):
            limit = prod(weight.shape[2:]) ** -0.5
            for tensor in (weight, bias):
                tensor.copy_((torch.rand(tensor.shape, generator=generator) * 2 - 1) * limit)
        self.scale.fill_(1)
        self.shift.fill_(0)

    def _decode(self, index: Tensor) -> Tensor:
        style, bases = self._style[index], self.bases[self._base_of[index]]
        images = bases.new_empty(len(index), *self.data.image_shape)
        order, parts = [], []
        for number in range(len(self.scale)):  # a handful of hallucinators, each for all of its images at once
            rows = torch.nonzero(style == number).flatten()
            if len(rows):
                order.append(rows)
                parts.append(self._hallucinate(bases[rows], number))
        return images.index_copy(0, torch.cat(order), torch.cat(parts)) if parts else images

    def groups(self) -> Tensor:
        """The hallucinator of each image."""
        return self._style

    def budget_ratio(self) -> float:
        """What is stored over the budget, where the published way of counting was chosen."""
        if not self.config.published_size:
            return 1.0
        stored = self.storage().elements
        ratio = stored / self.budget.elements
        if self.budget.scaled(ratio).elements < stored:  # the quotient was rounded down
            ratio = nextafter(ratio, inf)
        return max(1.0, ratio)

    def describe(self) -> str:
        """Sizes, and their share of the budget."""
        grey, styles = "grey " if self.config.grey else "", len(self.scale)
        bases = min(self.counts) // styles
        return (
            f"haba: {_counted(styles, 'hallucinator')} and {_counted(bases, f'{grey}base')} of each class, "
            f"{self.storage().elements / self.budget.elements:.3f} of the budget"
        )

    def _hallucinate(self, bases: Tensor, style: int) -> Tensor:
        hidden = functional.conv2d(bases, self.encoder_weight[style], self.encoder_bias[style])
        hidden = hidden * self.scale[style] + self.shift[style]
        return functional.conv_transpose2d(hidden, self.decoder_weight[style], self.decoder_bias[style])


def _counted_cost(config: HaBa.Config, cost: Cost) -> Cost:
    """The cost of what counts against the budget: the bases alone with ``published_size``."""
    if not config.published_size:
        return cost
    return lambda shapes, images: cost({"bases": shapes["bases"]}, images)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
