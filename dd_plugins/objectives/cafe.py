"""CAFE: features of every layer are aligned, and synthetic class centres must tell real images apart.

Source:
    Wang et al., "CAFE: Learning to Condense Dataset by Aligning Features", CVPR 2022, arXiv 2203.01531, Eqs. 2 to 6,
    and its released code (weights, loop rule).
Deviations:
    Any number of classes, any image size, and any depth of the ConvNet; the code knows 10 classes of 3x32x32.
    The cross entropy of real images, which the code adds, has no gradient with respect to the synthetic ones: left out.
    The loop rule watches accuracies whose noise decides when it stops; it can run on without end where the task is
    easy, so both loops have a cap. ``loops=fixed`` takes the rule's usual lengths and saves its probes: ours.
    A class with fewer training images than ``batch_real`` or ``probe`` gives all of them and repeats some to fill the
    batch (`Split.per_class`); the code's batch is then smaller. The means of both are equal where every image appears
    equally often.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from dd_plugins.api import DataSpec, Match, MatchingObjective, Network, PluginConfig
from dd_plugins.augmentation import Augmentation, Draw, default_strategy
from dd_plugins.matching import TrainedNetwork, class_means, synthetic_epoch

WINDOW = 10  # accuracies that the loop rule looks at
CHUNK = 1024  # real images whose maps are held at once


class CAFE(MatchingObjective):
    """Layer-wise feature alignment and a discrimination loss, along the training on the synthetic images."""

    api_version = 2
    check_settings: ClassVar[Mapping[str, Any]] = {
        "batch_real": 4,
        "probe": 4,
        "max_outer": 2,
        "max_inner": 2,
        "batch_train": 8,
    }

    class Config(PluginConfig):
        """Settings of CAFE."""

        batch_real: int = Field(256, ge=1, description="real images of each class a step")
        strategy: str = Field("none", description="siamese DSA (CAFE+DSA: auto, the field's for the data set)")
        shallow_weight: float = Field(0.1, ge=0, description="weight of all maps but the last two")
        deep_weight: float = Field(1.0, ge=0, description="weight of the last block's map, before and behind pooling")
        discrimination_weight: float = Field(0.01, ge=0, description="weight of the discrimination loss")
        loops: Literal["adaptive", "fixed"] = Field("adaptive", description="the paper's rule, or its usual lengths")
        outer_range: float = Field(0.04, gt=0, description="a fresh network once accuracy varies by less over 10 steps")
        inner_range: float = Field(0.03, gt=0, description="training goes on until accuracy varies by more")
        outer: int = Field(12, ge=1, description="matching steps on one network, with loops=fixed")
        inner: int = Field(10, ge=0, description="epochs between them, with loops=fixed")
        max_outer: int = Field(30, ge=1, description="most matching steps on one network, with loops=adaptive")
        max_inner: int = Field(30, ge=1, description="most epochs between them, with loops=adaptive")
        probe: int = Field(128, ge=1, description="real images of each class behind each accuracy of the rule")
        network_lr: float = Field(0.01, gt=0, description="learning rate of the network, plain SGD")
        batch_train: int = Field(256, ge=1, description="synthetic images a step of that training")

    config: Config

    def __init__(self, data: DataSpec, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        super().__init__(data, config)
        strategy = default_strategy(data) if self.config.strategy == "auto" else self.config.strategy
        self.augmentation = Augmentation.dsa(strategy)
        self.trained: TrainedNetwork | None = None
        self.outer = Window()
        self.steps_taken = 0  # on this network
        self.outer_done = True

    def check(self, targets: Tensor, groups: Tensor | None, network: Network) -> None:
        """The network must have maps at several depths."""
        with torch.no_grad():
            network.taps(torch.zeros(2, *self.data.image_shape))

    def working_bytes(self, network_bytes: int) -> int:
        """Real images: those of one class in a step, or those of all classes that accuracy is measured on."""
        del network_bytes
        config, image = self.config, self.data.image_bytes
        probed = self.data.num_classes * config.probe * image if config.loops == "adaptive" else 0
        return max(config.batch_real * image, probed)

    def match(self, images: Tensor, targets: Tensor, step: int) -> Match:
        """``sum_j w_j sum_c || mean f_j(real) - mean f_j(synthetic) ||^2 + 0.01 sum_i CE(f(x_i) . centres, y_i)``."""
        del step
        if self.outer_done or self.trained is None:
            self.trained = self._begin()
        else:
            self._train(self.trained, images, targets)
        network = self.trained.network
        leaf = images.detach().requires_grad_()
        loss = self._loss(network, leaf, targets)
        (image_grad,) = torch.autograd.grad(loss, leaf)
        self._note(network)
        return Match(loss.detach(), image_grad)

    def state_dict(self) -> dict[str, Tensor]:
        """The network, the rule's window and the generator."""
        state = {} if self.trained is None else self.trained.state_dict()
        return {
            **state,
            "outer_window": torch.tensor(self.outer.values, dtype=torch.float64),
            "outer_level": torch.tensor(self.outer.level, dtype=torch.float64),
            "outer_done": torch.tensor(self.outer_done),
            "steps_taken": torch.tensor(self.steps_taken),
            "generator": self.context.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what :meth:`state_dict` returned."""
        self.context.generator.set_state(state["generator"])
        self.outer = Window(state["outer_window"].tolist(), float(state["outer_level"]))
        self.outer_done, self.steps_taken = bool(state["outer_done"]), int(state["steps_taken"])
        if "updates" in state:
            self.trained = TrainedNetwork(self.context.make_network(0), self.config.network_lr, 0.0, 0.0)
            self.trained.load_state_dict(state)

    # ---- the loss -----------------------------------------------------------------------------------------------

    def _loss(self, network: Network, images: Tensor, targets: Tensor) -> Tensor:
        classes, config = self.data.num_classes, self.config
        draw = self.augmentation.draw(classes, self.context.generator, one_choice=False)
        real, features, labels = self._real(network, draw)
        synthetic = network.taps(self.augmentation(images, draw, targets.cpu()))
        weights = [config.shallow_weight] * (len(real) - 2) + [config.deep_weight] * 2
        loss = images.new_zeros(())
        for weight, expected, found in zip(weights, real, synthetic, strict=True):
            present, means = class_means(found, targets, classes)
            loss = loss + weight * (means - expected)[present].square().sum()
        # The centres of the last maps, flattened; their alignment counts once more, as in the code.
        present, centres = class_means(synthetic[-1].flatten(1), targets, classes)
        loss = loss + (centres - real[-1].flatten(1))[present].square().sum()
        logits = features @ centres.T
        return loss + config.discrimination_weight * functional.cross_entropy(logits, labels, reduction="sum")

    @torch.no_grad()
    def _real(self, network: Network, draw: Draw) -> tuple[list[Tensor], Tensor, Tensor]:
        """Class means of every map of real images, the last maps of all of them, and their labels.

        A few classes at a time, since the maps of all would take gigabytes.
        """
        rows = self.real.train.per_class(self.config.batch_real, self.context.generator)
        at_once = max(1, CHUNK // rows.shape[1])
        means: list[list[Tensor]] = []
        features = []
        for chunk in torch.split(torch.arange(len(rows)), at_once):
            records = chunk.repeat_interleave(rows.shape[1])
            images = self.real.train.images(rows[chunk.to(rows.device)].flatten())
            taps = network.taps(self.augmentation(images, draw, records))
            means.append([tap.view(len(chunk), rows.shape[1], *tap.shape[1:]).mean(1) for tap in taps])
            features.append(taps[-1].flatten(1))
        labels = torch.arange(len(rows), device=rows.device).repeat_interleave(rows.shape[1])
        return [torch.cat(tap) for tap in zip(*means, strict=True)], torch.cat(features), labels

    # ---- the loops ----------------------------------------------------------------------------------------------

    def _begin(self) -> TrainedNetwork:
        network = self.context.make_network(self.context.draw_seed())
        self.outer, self.steps_taken, self.outer_done = Window(), 0, False
        return TrainedNetwork(network, self.config.network_lr, 0.0, 0.0)

    def _train(self, trained: TrainedNetwork, images: Tensor, targets: Tensor) -> None:
        """Epochs on the synthetic images, until accuracy has varied enough."""
        config, window = self.config, Window()
        for _ in range(config.inner if config.loops == "fixed" else config.max_inner):
            synthetic_epoch(trained, images, targets, self.augmentation, config.batch_train, self.context.generator)
            if config.loops == "fixed":
                continue
            spread = window.add(self._accuracies(trained.network))
            if spread is not None and spread > config.inner_range:
                return

    def _note(self, network: Network) -> None:
        """Decides whether the next step begins with a fresh network."""
        self.steps_taken += 1
        if self.config.loops == "fixed":
            self.outer_done = self.steps_taken >= self.config.outer
            return
        spread = self.outer.add(self._accuracies(network))
        settled = spread is not None and spread < self.config.outer_range
        self.outer_done = settled or self.steps_taken >= self.config.max_outer

    @torch.no_grad()
    def _accuracies(self, network: Network) -> Tensor:
        """Accuracy on fresh real images of each class: float, ``(num_classes,)``."""
        rows = self.real.train.per_class(self.config.probe, self.context.generator)
        found = network(self.real.train.images(rows.flatten())).argmax(1).view(rows.shape)
        return (found == torch.arange(len(rows), device=found.device)[:, None]).float().mean(1)


class Window:
    """The rule's last ten levels, each of which carries a share of the one before, as in the code."""

    def __init__(self, values: list[float] | None = None, level: float = 0.0) -> None:
        self.values, self.level = list(values or []), level

    def add(self, accuracies: Tensor) -> float | None:
        """Takes the accuracies of all classes; returns the spread of ten levels, or None while there are fewer."""
        self.level = (self.level + float(accuracies.sum())) / len(accuracies)
        self.values = [*self.values[-(WINDOW - 1) :], self.level]
        return max(self.values) - min(self.values) if len(self.values) == WINDOW else None
