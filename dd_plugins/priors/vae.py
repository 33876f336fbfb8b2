"""The small generator with an encoder, trained as a conditional auto-encoder.

Source:
    Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014, arXiv 1312.6114.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dd_plugins.api import RealData
from dd_plugins.api.prior import Styles
from dd_plugins.priors.small import SLOPE, SmallConfig, SmallGenerator, sides
from dd_plugins.priors.train import PriorRecipe, Trainer


class SmallAutoEncoder(SmallGenerator):
    """The small generator with an encoder: a distillation can begin with real images."""

    api_version = 2

    class Config(SmallConfig):
        """Sizes of the small generator."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__(config)
        channels, height, width = config.image_shape
        halvings = min(len(sides(height)), len(sides(width))) - 1
        layers: list[nn.Module] = []
        for position in range(halvings + 1):
            inputs = channels if not position else config.width
            layers += [nn.Conv2d(inputs, config.width, 3, padding=1), nn.LeakyReLU(SLOPE)]
            layers += [nn.AvgPool2d(2)] if position < halvings else []
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        self.moments = nn.Linear(config.width * self.first[0] * self.first[1] + config.noise, 2 * config.noise)

    @classmethod
    def trainer(cls, recipe: PriorRecipe, real: RealData) -> Trainer:
        """A conditional auto-encoder."""
        return VaeTrainer(recipe, real)

    def encoded(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the noise that encodes images: float, ``(N, noise)`` each."""
        found = self.moments(torch.cat([self.encoder(images), self.classes(labels)], dim=1))
        mean, log_variance = found.chunk(2, dim=1)
        return mean, log_variance

    def encode(self, images: Tensor, labels: Tensor) -> Styles:
        """Styles of the mean."""
        return self.styles_of(self.encoded(images, labels)[0], labels)

    def styles_of(self, noise: Tensor, labels: Tensor) -> Styles:
        """As the generator's, but noise keeps its length: it is a place, not a direction."""
        joined = torch.cat([noise, self.classes(labels)], dim=1)
        return (self.mapping(joined),) * self.num_stages


class VaeTrainer(Trainer):
    """Absolute error and a small divergence from N(0, 1)."""

    def make(self) -> SmallGenerator:
        """With its encoder."""
        return SmallAutoEncoder(self.config)

    def build(self) -> dict[str, nn.Module]:
        """One network: the encoder is part of it."""
        return {"generator": self.make()}

    def update(self, images: Tensor, labels: Tensor) -> Tensor:
        """One update."""
        model = self.model
        assert isinstance(model, SmallAutoEncoder)
        mean, log_variance = model.encoded(images, labels)
        noise = mean + (log_variance / 2).exp() * self.draw_noise(len(labels))
        error = (model(model.styles_of(noise, labels)) - images).abs().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = error + self.recipe.kl * divergence
        self.optimizers["generator"].zero_grad()
        loss.backward()
        self.optimizers["generator"].step()
        return loss.detach()
