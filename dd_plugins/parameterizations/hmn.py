"""HMN: a hierarchical memory network of dataset-, class- and instance-level memories and one decoder.

Source:
    Zheng, Sun, Wu, Kailkhura, Mao, Xiao & Prakash, "Leveraging Hierarchical Feature Sharing for Efficient Dataset
    Condensation", ECCV 2024, arXiv 2310.07506:  x_{c,i} = D([f_c(m^D), m^C_c, m^I_{c,i}]), every float counted.
Deviations:
    The paper's tensor shapes and layers are not public; these are ours. Memories share one grid and are joined as
    channels; f_c is one convolution per class on m^D; D is a stack of [nearest x2, 3x3 convolution, LeakyReLU(0.2)] and
    a 3x3 convolution with a sigmoid. No normalisation inside D: batch statistics would couple the images.
    Images of any height and width: where doubling the grid does not lead to them, D's output is cropped evenly.
    The optional warm start (fit random real images before matching) is ours.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from math import cos, pi
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from dd_plugins.api import (
    Cost,
    DataSpec,
    Parameterization,
    Plan,
    PluginConfig,
    RealData,
    Shapes,
    StorageBudget,
    random_real_rows,
)
from dd_plugins.parameterizations.hmn_sizes import Sizes, find_sizes

SLOPE = 0.2  # of the LeakyReLU
MOST_SHARED = 0.5  # share of the budget above which the shared part is reported as too large
logger = logging.getLogger(__name__)


class HMN(Parameterization["HMN.Config"]):
    """Three memories and one decoder: many images share what they have in common."""

    api_version = 2
    check_settings: ClassVar[Mapping[str, Any]] = {
        "max_images_per_class": 5,
        "warm_start_steps": 2,
        "warm_start_batch": 8,
    }

    class Config(PluginConfig):
        """Settings of the hierarchical memory network; sizes left out are searched for within the budget."""

        grid: int | None = Field(
            None, ge=1, description="shorter side of every memory: the image's over a power of 2, rounded up"
        )
        dataset_channels: int | None = Field(None, ge=1, description="channels of the dataset-level memory")
        class_channels: int | None = Field(None, ge=1, description="channels of each class-level memory")
        instance_channels: int | None = Field(None, ge=1, description="channels of each instance-level memory")
        extractor_channels: int | None = Field(None, ge=1, description="channels that f_c makes of the dataset memory")
        extractor_kernel: Literal[1, 3] = Field(1, description="kernel of f_c")
        widths: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
            None, description="decoder channels after each doubling of the side"
        )
        max_images_per_class: int | None = Field(None, ge=1, description="fewer images than would fit")
        memory_lr: float = Field(1e-2, gt=0, description="learning rate of the memories")
        network_lr: float = Field(1e-3, gt=0, description="learning rate of f and D")
        init: Literal["real", "noise"] = Field("real", description="warm start from real images, or random")
        warm_start_steps: int = Field(2000, ge=0, description="steps of the warm start")
        warm_start_batch: int = Field(32, ge=1, description="images a step of the warm start")

    @classmethod
    def plan(cls, data: DataSpec, budget: StorageBudget, config: Config, cost: Cost) -> Plan[Config]:
        """As many instance memories as the shared part leaves room for, up to ``max_images_per_class``."""
        plan = super().plan(data, budget, config, cost)
        most = config.max_images_per_class or max(plan.counts)
        return replace(plan, counts=tuple(min(count, most) for count in plan.counts))

    @classmethod
    def resolve(cls, data: DataSpec, budget: StorageBudget, config: Config, cost: Cost) -> Config:
        """Searches for the sizes that are left open."""
        wanted = config.model_dump(include=set(Sizes.__annotations__))
        return config.model_copy(update=asdict(find_sizes(data, budget, wanted, cost)))

    @classmethod
    def shapes(cls, data: DataSpec, counts: Sequence[int], config: Config) -> Shapes:
        """The memories m^D, m^C and m^I, the extractors f and the decoder D."""
        return _sizes(config).shapes(data, counts)

    def build(self) -> None:
        """Allocates the memories, the extractors and the decoder, all zero."""
        self.sizes = size = _sizes(self.config)
        classes, grid = self.data.num_classes, size.memory_shape(self.data)
        self.dataset_memory = nn.Parameter(torch.zeros(1, size.dataset_channels, *grid))
        self.class_memory = nn.Parameter(torch.zeros(classes, size.class_channels, *grid))
        self.instance_memory = nn.Parameter(torch.zeros(sum(self.counts), size.instance_channels, *grid))
        self.extractors = _empty_conv(size.dataset_channels, classes * size.extractor_channels, size.extractor_kernel)
        channels = [size.joined, *size.widths]
        self.decoder = nn.ModuleList(_empty_conv(a, b, 3) for a, b in pairwise(channels))
        self.output = _empty_conv(channels[-1], self.data.image_shape[0], 3)

    def working_bytes(self) -> int:
        """One batch of the warm start."""
        config = self.config
        used = config.init == "real" and config.warm_start_steps
        return config.warm_start_batch * self.data.image_bytes if used else 0

    @torch.no_grad()
    def reset(self, generator: Generator, real: RealData | None) -> None:
        """Draws memories from N(0, 1) and Kaiming-normal weights, then fits real images if ``init`` is ``real``."""
        for memory in (self.dataset_memory, self.class_memory, self.instance_memory):
            memory.copy_(torch.randn(memory.shape, generator=generator))
        for conv in (self.extractors, *self.decoder, self.output):
            weight = torch.empty(conv.weight.shape)
            nn.init.kaiming_normal_(weight, a=SLOPE, generator=generator)
            conv.weight.copy_(weight)
            conv.bias.zero_()
        if self.config.init == "real":
            with torch.enable_grad():
                self._warm_start(generator, real)

    def _decode(self, index: Tensor) -> Tensor:
        labels = self.labels[index]
        grid = self.dataset_memory.shape[2:]
        extracted = self.extractors(self.dataset_memory).view(-1, self.sizes.extractor_channels, *grid)
        hidden = torch.cat([extracted[labels], self.class_memory[labels], self.instance_memory[index]], dim=1)
        for conv in self.decoder:
            hidden = functional.interpolate(hidden, scale_factor=2.0, mode="nearest")
            hidden = functional.leaky_relu(conv(hidden), SLOPE)
        return self.data.normalize(torch.sigmoid(self._cropped(self.output(hidden))))

    def _cropped(self, maps: Tensor) -> Tensor:
        """The middle of maps that are larger than the images."""
        _, height, width = self.data.image_shape
        top, left = (maps.shape[2] - height) // 2, (maps.shape[3] - width) // 2
        return maps[:, :, top : top + height, left : left + width]

    def _keep(self, index: Tensor) -> None:
        self.instance_memory = nn.Parameter(self.instance_memory.detach()[index])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Memories, and the weights of f and D, which take a smaller learning rate."""
        networks = [self.extractors, self.decoder, self.output]
        return [
            {"params": [self.dataset_memory, self.class_memory, self.instance_memory], "lr": self.config.memory_lr},
            {"params": [p for net in networks for p in net.parameters()], "lr": self.config.network_lr},
        ]

    def describe(self) -> str:
        """The sizes, how the budget is divided, and a warning if most of it is not spent on single images."""
        size, shared = self.sizes, self.sizes.shared(self.data)
        rows, columns = size.memory_shape(self.data)
        grid = f"{rows}" if rows == columns else f"{rows}x{columns}"
        share = shared / self.budget.elements
        sizes = (
            f"hmn: grid {grid}, channels of m^D {size.dataset_channels}, m^C {size.class_channels}, "
            f"m^I {size.instance_channels}, f {size.extractor_channels}, decoder {list(size.widths)}; R = {shared} "
            f"({share:.1%} of the budget), s = {size.instance(self.data)} an image, G = {min(self.counts)}"
        )
        if share <= MOST_SHARED:
            return sizes
        return (
            f"{sizes}; warning: most of the budget goes to the decoder and to memories that all images share, "
            f"which a larger IPC or smaller sizes would change"
        )

    def _warm_start(self, generator: Generator, real: RealData | None) -> None:
        """Fits one random real image with every instance: mean squared error, Adam, cosine to zero."""
        targets = random_real_rows(real, self.counts, generator)
        assert real is not None
        memory, networks = (group["params"] for group in self.parameter_groups())
        optimizer = torch.optim.Adam([{"params": memory, "lr": 2e-2}, {"params": networks, "lr": 5e-3}])
        rates = [group["lr"] for group in optimizer.param_groups]
        steps = self.config.warm_start_steps
        with self.job("warm start", steps) as update:
            for step in range(steps):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * 0.5 * (1 + cos(pi * step / steps))
                drawn = torch.randint(len(targets), (self.config.warm_start_batch,), generator=generator)
                index = drawn.to(targets.device)
                loss = functional.mse_loss(self._decode(index), real.train.images(targets[index]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                update(step + 1)
        if steps:
            logger.info("hmn: warm start, %d steps, mean squared error %.4f in model space", steps, loss.item())
        self.zero_grad(set_to_none=True)


def _sizes(config: HMN.Config) -> Sizes:
    """The sizes of a resolved configuration."""
    return Sizes(**config.model_dump(include=set(Sizes.__annotations__)))


def _empty_conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution with all weights zero: building draws nothing."""
    device = torch.empty(0).device  # the default one, which may be "meta"
    conv = nn.utils.skip_init(nn.Conv2d, inputs, outputs, kernel, padding=kernel // 2, device=device)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv
