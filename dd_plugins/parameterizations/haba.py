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

from math import inf, nextafter, prod
from typing import Any

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from dd_plugins.api import BudgetTooSmall, Parameterization, RealData, UsageError

KERNEL = 3
PUBLISHED = 5  # hallucinators in the paper


class HaBa(Parameterization):
    """Bases of each class, and hallucinators that turn each of them into an image."""

    api_version = 2

    class Config(Parameterization.Config):
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

    config: Config

    def images_per_class(self) -> int:
        """Bases x hallucinators: a base costs H x W elements a channel, a hallucinator two convolutions and a scale."""
        self._settle()
        fitting = self._bases(int(self.config.hallucinators or 0), bool(self.config.grey))
        if fitting < 1:
            hallucinators, channels = int(self.config.hallucinators or 0), 1 if self.config.grey else None
            needed = hallucinators * self._hallucinator(channels) + self.data.num_classes * self._base(channels)
            raise BudgetTooSmall(
                f"haba: {hallucinators} hallucinators and one base per class need {needed} elements, but the budget is "
                f"{self.budget.elements}"
            )
        return fitting * int(self.config.hallucinators or 0)

    def build(self, num_images: int) -> None:
        """Allocates ``bases`` (float, ``(bases, channels, H, W)``, model space) and the hallucinators' weights."""
        if self.config.hallucinators is None or self.config.grey is None:
            self._settle()
        styles = int(self.config.hallucinators or 0)
        if any(count % styles for count in self.counts):
            raise UsageError(f"haba: expected multiples of {styles} images in every class, but got {self.counts}")
        channels, height, width = self.data.image_shape
        inputs = 1 if self.config.grey else channels
        inner = (channels, height - KERNEL + 1, width - KERNEL + 1)
        self.bases = nn.Parameter(torch.zeros(num_images // styles, inputs, height, width))
        self.encoder_weight = nn.Parameter(torch.zeros(styles, channels, inputs, KERNEL, KERNEL))
        self.encoder_bias = nn.Parameter(torch.zeros(styles, channels))
        self.scale = nn.Parameter(torch.ones(styles, *inner))
        self.shift = nn.Parameter(torch.zeros(styles, *inner))
        self.decoder_weight = nn.Parameter(torch.zeros(styles, channels, channels, KERNEL, KERNEL))
        self.decoder_bias = nn.Parameter(torch.zeros(styles, channels))
        # Within a class: all its bases under the first hallucinator, then under the second, and so on.
        counts = torch.tensor(self.counts)
        within = torch.cat([torch.arange(count) for count in self.counts])
        own = (counts // styles)[self.labels]
        first = ((torch.cumsum(counts, 0) - counts) // styles)[self.labels]
        self.register_buffer("_style", within // own, persistent=False)
        self.register_buffer("_base_of", first + within % own, persistent=False)

    _style: Tensor
    _base_of: Tensor

    @torch.no_grad()
    def reset(self, generator: Generator, real: RealData | None) -> None:
        """Copies random real images of each class into the bases; hallucinators begin as torch's convolutions do."""
        if real is None:
            raise UsageError("haba: bases begin as real images, so it needs real data")
        bases = [count // len(self.scale) for count in self.counts]
        rows = real.train.per_class(max(bases), generator)
        images = real.train.images(torch.cat([row[:n] for row, n in zip(rows, bases, strict=True)]))
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

    def oversize(self) -> float:
        """What the published way of counting takes, over the budget."""
        if not self.config.published_size:
            return 1.0
        stored = self.storage().elements
        ratio = stored / self.budget.elements
        if self.budget.scaled(ratio).elements < stored:  # the quotient was rounded down
            ratio = nextafter(ratio, inf)
        return max(1.0, ratio)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Bases and hallucinators together, with their own learning rate where one is set."""
        group: dict[str, Any] = {"params": list(self.parameters())}
        return [group if self.config.lr is None else {**group, "lr": self.config.lr}]

    def describe(self) -> str:
        """Sizes, and what they take of the budget."""
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

    def _settle(self) -> None:
        """Fills in what the config leaves open: bases of all channels if they fit, then up to five hallucinators."""
        if min(self.data.image_shape[1:]) < KERNEL:
            raise UsageError(f"haba: images of {self.data.image_shape} are smaller than its {KERNEL}x{KERNEL} kernels")
        greys = [False, True] if self.config.grey is None else [self.config.grey]
        styles = [self.config.hallucinators] if self.config.hallucinators else list(range(PUBLISHED, 0, -1))
        choices = [(grey, number) for grey in greys for number in styles]
        fitting = (choice for choice in choices if self._bases(choice[1], choice[0]) >= 1)
        grey, number = next(fitting, choices[-1])
        self.config = self.config.model_copy(update={"hallucinators": number, "grey": grey})

    def _bases(self, styles: int, grey: bool) -> int:
        """Bases of each class that fit beside so many hallucinators."""
        channels = 1 if grey else None
        spent = 0 if self.config.published_size else styles * self._hallucinator(channels)
        return (self.budget.elements - spent) // (self.data.num_classes * self._base(channels))

    def _base(self, channels: int | None) -> int:
        own, height, width = self.data.image_shape
        return (channels or own) * height * width

    def _hallucinator(self, inputs: int | None) -> int:
        """Elements of one hallucinator: two convolutions with biases, a scale and a shift."""
        channels, height, width = self.data.image_shape
        encoder = channels * ((inputs or channels) * KERNEL**2 + 1)
        decoder = channels * (channels * KERNEL**2 + 1)
        return encoder + decoder + 2 * channels * (height - KERNEL + 1) * (width - KERNEL + 1)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
