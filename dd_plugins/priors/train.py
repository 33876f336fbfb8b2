"""Training of a prior on the training split: the recipe, and what all trainings share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from dd_plugins import registry
from dd_plugins.api import ConfigError, DivergedError, PluginConfig, RealData
from dd_plugins.api.memory import require_memory, shapes_only, tensor_bytes
from dd_plugins.priors.base import TrainablePrior, pixel_values
from dd_plugins.priors.small import SmallConfig, SmallGenerator
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


def _under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
