"""Training of the small generator as a conditional GAN.

Source:
    Miyato & Koyama, "cGANs with Projection Discriminator", ICLR 2018 (projection head, hinge loss, spectral norm);
    Karras et al., ICLR 2018 (standard deviation of the minibatch); Mao et al., "Mode Seeking Generative Adversarial
    Networks", CVPR 2019; Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020.
Deviations:
    Batches hold a few classes with several images each, and the deviation over the minibatch is computed class by
    class: without it the images of a class collapse to one image, which the accuracy of samples does not show.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from dd_plugins.priors.small import SLOPE, SmallConfig, sides
from dd_plugins.priors.train import Trainer


class GanTrainer(Trainer):
    """Hinge loss, a projection head, and a term against images that are alike."""

    def build(self) -> dict[str, nn.Module]:
        """Generator and discriminator."""
        return {"generator": self.make(), "discriminator": Discriminator(self.config, self.recipe.images)}

    def update(self, images: Tensor, labels: Tensor) -> Tensor:
        """One update of the discriminator, then one of the generator.

        Layers are so small that the number of passes counts, not the number of images: two halves go in one pass.
        """
        discriminator, model, twice = self.networks["discriminator"], self.model, torch.cat([labels, labels])
        with torch.no_grad():
            fake = model(model.styles_of(self.draw_noise(len(labels)), labels))
        of_real, of_fake = discriminator(self._augment(torch.cat([images, fake])), twice).chunk(2)
        hinge = functional.relu(1 - of_real).mean() + functional.relu(1 + of_fake).mean()
        self._apply("discriminator", hinge)
        noise = self.draw_noise(len(twice))
        made = model(model.styles_of(noise, twice))
        (one, two), (first, other) = made.chunk(2), noise.chunk(2)
        loss = -discriminator(self._augment(one), labels).mean()
        apart = (one - two).abs().flatten(1).mean(1) / (first - other).abs().mean(1)
        self._apply("generator", loss + self.recipe.mode_seeking * (1 / (apart + 0.1)).mean())
        return loss.detach() + hinge.detach()

    def _apply(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        self.networks.zero_grad()
        loss.backward()
        optimizer.step()

    def _augment(self, images: Tensor) -> Tensor:
        """Brightness, and a shift of up to an eighth of the side."""
        bright = torch.rand(len(images), 1, 1, 1, generator=self.generator) - 0.5
        height, width = images.shape[2:]
        reach = (height // 8, width // 8)
        down, right = (
            torch.randint(-r, r + 1, (len(images), 1, 1), generator=self.generator).to(images.device) for r in reach
        )
        padded = functional.pad(images + bright.to(images.device), (reach[1], reach[1], reach[0], reach[0]))
        rows = torch.arange(height, device=images.device).view(1, -1, 1) + reach[0] + down
        columns = torch.arange(width, device=images.device).view(1, 1, -1) + reach[1] + right
        number = torch.arange(len(images), device=images.device).view(-1, 1, 1)
        return padded.permute(0, 2, 3, 1)[number, rows, columns].permute(0, 3, 1, 2)


class Discriminator(nn.Module):
    """Convolutions under spectral norm, the deviation within each class of the batch, and a projection head."""

    def __init__(self, config: SmallConfig, per_class: int) -> None:
        super().__init__()
        self.per_class = per_class
        channels, height, width = config.image_shape
        halvings = min(len(sides(height)), len(sides(width))) - 1
        layers: list[nn.Module] = []
        for position in range(halvings + 1):
            inputs = channels if not position else config.width
            layers += [spectral_norm(nn.Conv2d(inputs, config.width, 3, padding=1)), nn.LeakyReLU(SLOPE)]
            layers += [spectral_norm(nn.Conv2d(config.width, config.width, 3, padding=1)), nn.LeakyReLU(SLOPE)]
            layers += [nn.AvgPool2d(2)] if position < halvings else []
        self.body = nn.Sequential(*layers)
        self.last = spectral_norm(nn.Conv2d(config.width + 1, config.width, 3, padding=1))
        self.head = spectral_norm(nn.Linear(config.width, 1))
        self.classes = nn.Embedding(config.num_classes, config.width)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """How real the images (float, ``(N, C, H, W)``, classes in blocks) look: float, ``(N,)``."""
        maps = self.body(images)
        blocks = maps.view(-1, self.per_class, *maps.shape[1:])
        deviation = blocks.var(1, unbiased=False).add(1e-8).sqrt().mean((1, 2, 3))
        plane = deviation.repeat_interleave(self.per_class).view(-1, 1, 1, 1).expand(-1, 1, *maps.shape[2:])
        summed = functional.leaky_relu(self.last(torch.cat([maps, plane], dim=1)), SLOPE).sum((2, 3))
        projected = (summed * self.classes(labels)).sum(1)
        scores: Tensor = self.head(summed).squeeze(1) + projected
        return scores
