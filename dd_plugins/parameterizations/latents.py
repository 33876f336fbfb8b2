"""Latents of a layered generator: styles and a state for every image, at one level, from which it is decoded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dd_plugins.api import ConfigError, DivergedError, LayeredGenerator, Styles

logger = logging.getLogger(__name__)


class Latents:
    """What is learned at a level of a generator.

    Attributes:
        level: The level.
        styles: One tensor for each stage of the generator, ``(N, ...)``; those before ``level`` have no effect.
        state: ``(N, ...)``, the input of stage ``level``.
    """

    def __init__(
        self,
        prior: LayeredGenerator,
        scales: tuple[float, list[float]],
        styles: Styles,
        chunks: Sequence[Tensor],
    ) -> None:
        """Begins at level 0.

        Args:
            prior: The generator.
            scales: Root mean square of its styles, and of its state at each level.
            styles: The first styles.
            chunks: Rows that go through the generator at once, for all of this.
        """
        self.prior, self.scales, self.chunks = prior, scales, chunks
        self.styles = [style.detach().clone() for style in styles]
        parts = [prior.begin(tuple(style[rows] for style in styles)) for rows in chunks]
        self.state, self.level = torch.cat(parts).detach(), 0

    def advance(self, level: int) -> None:
        """Pushes the state through the stages up to a level, without changing the images.

        Raises:
            ConfigError: If the level is below the one that is reached.
            DivergedError: If the state becomes NaN or infinite.
        """
        if level < self.level:
            raise ConfigError(f"parameterization.levels: level {level} cannot follow level {self.level}")
        pushed = []
        for rows in self.chunks:
            styles, part = tuple(style[rows] for style in self.styles), self.state[rows]
            for stage in range(self.level, level):
                part = self.prior.step(stage, part, styles)
            pushed.append(part)
        state = torch.cat(pushed)
        _check_finite(state, level)
        self.level = level
        self.state = state.detach().clone().requires_grad_()
        self.styles = [style.detach().clone().requires_grad_() for style in self.styles]

    def decode(self, index: Tensor) -> Tensor:
        """Pixel values of images: ``index`` (int64, ``(B,)``) to float ``(B, C, H, W)``."""
        return self.prior.decode_from(self.level, self.state[index], tuple(style[index] for style in self.styles))

    def groups(self, lr_states: float, lr_styles: float) -> list[dict[str, Any]]:
        """Groups for an optimizer: the state, and the styles that have an effect; rates in units of their scales."""
        of_styles, of_states = self.scales
        alive = [style for style in self.styles[self.level :] if style.numel()]
        groups = [{"params": [self.state], "lr": lr_states * of_states[self.level]}]
        return [*groups, {"params": alive, "lr": lr_styles * of_styles}] if alive else groups

    def clip(self, most: float) -> None:
        """Clips the state to ``most`` times its scale.

        Raises:
            DivergedError: If it is NaN or infinite, which clipping would hide.
        """
        _check_finite(self.state, self.level)
        limit = most * self.scales[1][self.level]
        beyond = int((self.state.abs() > limit).sum())
        if beyond:
            logger.info("h-pd: %d values of the state at level %d clipped to %.3g", beyond, self.level, limit)
            self.state.clamp_(-limit, limit)

    def named(self) -> dict[str, Tensor]:
        """State and styles, by name."""
        return {"state": self.state, **{f"style.{k}": style for k, style in enumerate(self.styles)}}


def diverged(what: str) -> DivergedError:
    """The error about NaN or infinite values in something."""
    return DivergedError(f"h-pd: NaN or infinite {what}; smaller rates (lr_*) may help")


def _check_finite(state: Tensor, level: int) -> None:
    if not bool(state.isfinite().all()):
        raise diverged(f"state at level {level}")
