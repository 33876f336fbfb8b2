"""The contract of a prior: a chain of stages from a latent state to an image, with a style for every stage.

Source:
    GLaD: Cazenavette et al., "Generalizing Dataset Distillation via Deep Generative Prior", CVPR 2023, arXiv
    2305.01649.
    H-PD: "Hierarchical Features Matter", CVPR 2025, arXiv 2406.05704.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from torch import Generator, Tensor, nn

from dd_plugins.api.config import PluginConfig

SCALE_SAMPLES = 64
PIXELS_AT_ONCE = 2**19  # without a graph
Styles = tuple[Tensor, ...]  # one tensor a stage, float ``(N, d)``; d may be 0 where a stage takes none


class LayeredGenerator(nn.Module, ABC):
    """Base of every prior: ``num_stages`` stages, each of which maps a state to the next one.

    State k is the output of k stages; state K is what :meth:`to_pixels` turns into an image. Generators are frozen and
    in evaluation mode, and images of a batch do not depend on each other. Everything that they need is in their
    parameters and buffers; one that is stored here is constructed from its ``Config`` alone.

    Attributes:
        marker: A file by which a folder in another project's format is known, such as ``config.json``; empty if
            :meth:`from_folder` reads none.
        weights_file: The safetensors file in such a folder, whose sha256 stands for the prior.
        num_stages: K.
        image_shape: ``(C, H, W)`` of the images.
        num_classes: Classes that it knows; 0 if it knows none, and makes images of no class.
    """

    api_version: ClassVar[int]  # declared by each plugin class itself: the release of this contract it is written for
    check_settings: ClassVar[Mapping[str, Any] | None] = {}  # of conformance checks; None: it has no weights of its own
    marker: ClassVar[str] = ""
    weights_file: ClassVar[str] = ""

    class Config(PluginConfig):
        """Sizes of the network; override with a subclass."""

    num_stages: int
    image_shape: tuple[int, int, int]
    num_classes: int

    @classmethod
    def from_folder(cls, folder: Path, image_shape: tuple[int, int, int]) -> Self:
        """Reads a pretrained generator in another project's format.

        Args:
            folder: Contains :attr:`marker` and :attr:`weights_file`.
            image_shape: ``(C, H, W)`` of the images.

        Raises:
            DataError: If the folder does not hold such a generator.
        """
        raise NotImplementedError

    @abstractmethod
    def sample_styles(self, labels: Tensor, generator: Generator) -> Styles:
        """Random styles for images of these classes.

        Args:
            labels: int64, ``(N,)``.
            generator: On the CPU; everything random comes from it.
        """

    @abstractmethod
    def begin(self, styles: Styles) -> Tensor:
        """State 0: float32, ``(N, ...)``."""

    @abstractmethod
    def step(self, stage: int, state: Tensor, styles: Styles) -> Tensor:
        """State ``stage + 1`` from state ``stage``."""

    @abstractmethod
    def to_pixels(self, state: Tensor) -> Tensor:
        """Images from state K: float, ``(N, C, H, W)``, pixel values, not normalised and not clipped.

        Values from 0 to 1 are colors; a few may lie outside, where they still have a gradient.
        """

    def encode(self, images: Tensor, labels: Tensor) -> Styles | None:
        """Styles that come close to real images (float, ``(N, C, H, W)``, pixel values); None if it cannot."""
        del images, labels
        return None

    @final
    def decode_from(self, stage: int, state: Tensor, styles: Styles) -> Tensor:
        """Images from a state: float, ``(N, C, H, W)``, pixel values.

        Args:
            stage: How many stages have made the state, 0 to K.
            state: As ``begin`` or ``step`` returned it.
            styles: Those of the stages that are left have an effect.
        """
        for later in range(stage, self.num_stages):
            state = self.step(later, state, styles)
        return self.to_pixels(state)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        held = [*self.parameters(), *self.buffers()]
        return held[0].device if held else torch.device("cpu")

    def forward(self, styles: Styles) -> Tensor:
        """Images from styles alone: float, ``(N, C, H, W)``, pixel values."""
        return self.decode_from(0, self.begin(styles), styles)

    @torch.no_grad()
    def scales(self) -> tuple[float, list[float]]:
        """Root mean square of random styles, and of every state that they lead to; always of the same samples.

        Learning rates and clipping are relative to them.
        """
        labels = torch.arange(SCALE_SAMPLES, device=self.device) % max(1, self.num_classes)
        styles = self.sample_styles(labels, torch.Generator().manual_seed(0))
        filled = [style for style in styles if style.numel()]
        of_styles = float(torch.cat([style.flatten() for style in filled]).square().mean().sqrt()) if filled else 1.0
        squares = torch.zeros(self.num_stages + 1, dtype=torch.float64)
        for rows in torch.arange(SCALE_SAMPLES).split(rows_at_once(self.image_shape)):
            part = tuple(style[rows] for style in styles)
            for number, state in enumerate(self.states(part)):
                squares[number] += len(rows) * float(state.square().mean(dtype=torch.float64))
        return of_styles, (squares / SCALE_SAMPLES).sqrt().tolist()

    @final
    @torch.no_grad()
    def states(self, styles: Styles) -> Iterator[Tensor]:
        """All states, from 0 to K, one after the other."""
        state = self.begin(styles)
        yield state
        for stage in range(self.num_stages):
            state = self.step(stage, state, styles)
            yield state


def rows_at_once(image_shape: tuple[int, int, int]) -> int:
    """How many images a generator may make at once without a graph: 512 at 32 px, 32 at 128 px."""
    return max(1, PIXELS_AT_ONCE // (image_shape[1] * image_shape[2]))
