"""Training of the small generator on the training split: as a conditional GAN, or as a conditional auto-encoder.

Source:
    Miyato & Koyama, "cGANs with Projection Discriminator", ICLR 2018 (projection head, hinge loss, spectral norm);
    Karras et al., ICLR 2018 (standard deviation of the minibatch); Mao et al., "Mode Seeking Generative Adversarial
    Networks", CVPR 2019; Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020.
    Kingma & Welling, ICLR 2014 (the auto-encoder).
Deviations:
    Batches hold a few classes with several images each, and the deviation over the minibatch is computed class by
    class: without it the images of a class collapse to one image, which the accuracy of samples does not show.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from dd_plugins import registry
from dd_plugins.api import ConfigError, DivergedError, PluginConfig, RealData
from dd_plugins.api.memory import require_memory, shapes_only, tensor_bytes
from dd_plugins.api.prior import Styles
from dd_plugins.priors.base import TrainablePrior, pixel_values
from dd_plugins.priors.small import SLOPE, SmallConfig, SmallGenerator, sides
from dd_plugins.seeds import make_generator, seed_for, seeded_layers


class PriorRecipe(PluginConfig):
    """How a prior is trained."""

    kind: str = Field("gan", description="prior that is trained: gan (adversarial), vae (as an auto-encoder), a plugin")
    width: int = Field(32, ge=4, description="channels of the generator")
    noise: int = Field(32, ge=1, description="numbers that are drawn for an image")
    style: int = Field(64, ge=1, description="numbers of a style")
    steps: int = Field(1500, ge=1, description="updates of the generator")
    classes: int = Field(8, ge=1, description="classes of a batch, at most")
    images: int = Field(8, ge=2, description="images of each of them")
    lr: float = Field(5e-4, gt=0, description="learning rate of Adam")
    mode_seeking: float = Field(0.1, ge=0, description="gan: weight of the term that keeps images of a class apart")
    average: float = Field(0.998, ge=0, lt=1, description="decay of the weights' moving average, which is exported")
    kl: float = Field(1e-3, ge=0, description="vae: weight of the divergence from N(0, 1)")
    seed: int = Field(0, ge=0, description="seed of weights and batches")

    @field_validator("kind")
    @classmethod
    def _can_be_trained(cls, kind: str) -> str:
        trainable_prior(kind)
        return kind


def trainable_prior(kind: str) -> type[TrainablePrior]:
    """The prior of this name, which can be trained.

    Raises:
        UnknownPluginError: If there is none.
        ConfigError: If it is only read.
    """
    found = registry.load("prior", kind)
    if not issubclass(found, TrainablePrior):
        raise ConfigError(f"parameterization.recipe.kind = {kind!r}: this prior cannot be trained here")
    return found


class Trainer(ABC):
    """A training that can be interrupted: networks, optimizers, a generator, and the average of the weights.

    Attributes:
        model: The generator that is trained.
        exported: Its moving average.
        step: Updates done.
    """

    def __init__(self, recipe: PriorRecipe, real: RealData) -> None:
        self.recipe, self.real, self.step = recipe, real, 0
        self.generator = make_generator(seed_for("prior batches", recipe.seed))
        self.config = SmallConfig(
            image_shape=real.spec.image_shape,
            num_classes=real.spec.num_classes,
            width=recipe.width,
            noise=recipe.noise,
            style=recipe.style,
        )
        self._check_memory()
        with seeded_layers(seed_for("prior weights", recipe.seed)):
            self.networks = nn.ModuleDict(self.build()).to(real.device)
            self.exported = self.make().to(real.device)
        self.exported.load_state_dict(self.model.state_dict())
        self.exported.eval().requires_grad_(False)
        self.optimizers = {name: self._adam(network) for name, network in self.networks.items()}

    def _check_memory(self) -> None:
        """Refuses networks, or a batch, that cannot fit; before they are allocated."""
        recipe = self.recipe
        with torch.random.fork_rng(devices=[]), shapes_only("the prior"):
            networks = sum(tensor_bytes(network) for network in self.build().values())
        batch = min(recipe.classes, self.config.num_classes) * recipe.images * self.real.spec.image_bytes
        held = {"networks of the prior": 4 * networks, "a batch": batch}  # weights, gradients, two moments of Adam
        require_memory(held, self.real.device, "smaller parameterization.recipe sizes need less")

    @property
    def model(self) -> SmallGenerator:
        """The generator that is trained."""
        found = self.networks["generator"]
        assert isinstance(found, SmallGenerator)
        return found

    def make(self) -> SmallGenerator:
        """A fresh generator of this kind."""
        return SmallGenerator(self.config)

    @abstractmethod
    def build(self) -> dict[str, nn.Module]:
        """The networks, ``generator`` among them."""

    @abstractmethod
    def update(self, images: Tensor, labels: Tensor) -> Tensor:
        """One update of all networks; returns the generator's loss.

        Args:
            images: Float, ``(N, C, H, W)``, pixel values in [0, 1]; classes in blocks of equal size.
            labels: int64, ``(N,)``.
        """

    def run(self, on_step: Callable[[int], None] = lambda done: None) -> None:
        """Makes all updates that are left, and reports after each how many are done.

        Raises:
            DivergedError: If a loss is NaN or infinite.
        """
        while self.step < self.recipe.steps:
            images, labels = self._batch()
            loss = self.update(images, labels)
            self.step += 1
            if (self.step % 10 == 0 or self.step == self.recipe.steps) and not bool(torch.isfinite(loss)):
                raise DivergedError(f"NaN or infinite loss of the prior after update {self.step}")
            self._average()
            on_step(self.step)

    def draw_noise(self, count: int) -> Tensor:
        """Noise from N(0, 1): float, ``(count, noise)``, on the data's device."""
        return torch.randn(count, self.recipe.noise, generator=self.generator).to(self.real.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next update depends on."""
        state = {f"networks.{name}": value for name, value in self.networks.state_dict().items()}
        state |= {f"exported.{name}": value for name, value in self.exported.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for position, values in optimizer.state_dict()["state"].items():
                state |= {f"optimizer.{name}.{position}.{key}": value for key, value in values.items()}
        return {**state, "generator": self.generator.get_state(), "step": torch.tensor(self.step)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.networks.load_state_dict(_under("networks.", state))
        self.exported.load_state_dict(_under("exported.", state))
        for name, optimizer in self.optimizers.items():
            saved = optimizer.state_dict()
            for key, value in _under(f"optimizer.{name}.", state).items():
                position, _, what = key.partition(".")
                saved["state"].setdefault(int(position), {})[what] = value
            optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"])
        self.step = int(state["step"])

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Some classes with some images each, in blocks."""
        recipe, train = self.recipe, self.real.train
        classes = torch.randperm(self.config.num_classes, generator=self.generator)[: recipe.classes]
        rows = train.per_class(recipe.images, self.generator)[classes.to(train.labels.device)].flatten()
        return pixel_values(self.real, rows), train.labels[rows]

    @torch.no_grad()
    def _average(self) -> None:
        """One step of the average; early on it decays faster, or a short training would export its random start."""
        decay = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        for kept, fresh in zip(self.exported.parameters(), self.model.parameters(), strict=True):
            kept.lerp_(fresh, 1 - decay)

    def _adam(self, network: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(network.parameters(), lr=self.recipe.lr, betas=(0.0, 0.99), fused=True)


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


def _under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
