"""The loops of DC and DSA: networks that are trained on the synthetic images between matching steps.

Source:
    Zhao, Mopuri & Bilen, ICLR 2021, arXiv 2006.05929, Algorithm 1 and its code; DSA: ICML 2021, arXiv 2102.08259.
Deviations:
    Gradients with respect to the images alone (the code also computes those of the weights and drops them).
    One matching step is one step of the runner: the network is trained at the beginning of a step instead of behind the
    one before, which is the same, since the images do not change in between.
    A class with fewer training images than ``batch_real`` gives all of them and repeats some to fill the batch
    (`Split.per_class`); the code's batch is then smaller. The means of both are equal where every image appears
    equally often.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from dd_plugins.augmentation import Augmentation, CutMix
from dd_plugins.matching.gradients import Metric
from dd_plugins.matching.networks import TrainedNetwork
from dd_plugins.matching.objective import GradientMatching, GradientMatchingConfig

# Images per class -> (outer steps on one network, inner epochs between them), as in the authors' code.
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
BN_IMAGES = 16  # real images per class that set BatchNorm's statistics before they are frozen


class TrainOnSyntheticConfig(GradientMatchingConfig):
    """Settings of the loops of DC and DSA."""

    outer: int | None = Field(None, ge=1, description="matching steps on one network; None: the authors' table")
    inner: int | None = Field(None, ge=0, description="epochs on the synthetic images between them; None: the table")
    network_lr: float = Field(0.01, gt=0, description="learning rate of the network, plain SGD")
    batch_train: int = Field(256, ge=1, description="synthetic images a step of that training")


class TrainOnSynthetic(GradientMatching):
    """Matches at points along a training on the synthetic images themselves."""

    check_settings: ClassVar[Mapping[str, Any]] = {"batch_real": 4, "outer": 2, "inner": 1, "batch_train": 8}

    class Config(TrainOnSyntheticConfig):
        """Settings of the loops."""

    config: TrainOnSyntheticConfig
    metric: Metric = "dc"
    trained: TrainedNetwork | None = None

    def loops(self) -> tuple[int, int]:
        """Outer steps and inner epochs: as set, or the table's for the images per class, rounded down."""
        smallest = int(torch.bincount(self.targets, minlength=self.data.num_classes).min())
        outer, inner = LOOPS[max((key for key in LOOPS if key <= smallest), default=1)]
        return self.config.outer or outer, inner if self.config.inner is None else self.config.inner

    def network_for(self, images: Tensor, targets: Tensor, step: int) -> nn.Module:
        """A fresh network every ``outer`` steps, trained for ``inner`` epochs before each of the others."""
        outer, inner = self.loops()
        if step % outer == 0 or self.trained is None:
            self.trained = self._fresh(self.context.draw_seed())
        else:
            for _ in range(inner):
                synthetic_epoch(
                    self.trained, images, targets, self.augmentation, self.config.batch_train, self.context.generator
                )
        self.trained.network.train()
        self._freeze_batch_norm(self.trained.network)
        return self.trained.network

    def state_dict(self) -> dict[str, Tensor]:
        """The network and the generator."""
        state = {} if self.trained is None else self.trained.state_dict()
        return {**state, "generator": self.context.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what :meth:`state_dict` returned."""
        self.context.generator.set_state(state["generator"])
        if "updates" in state:
            self.trained = self._fresh(0)
            self.trained.load_state_dict(state)

    def _fresh(self, seed: int) -> TrainedNetwork:
        return TrainedNetwork(self.context.make_network(seed), self.config.network_lr, 0.0, 0.0)

    def _freeze_batch_norm(self, network: nn.Module) -> None:
        """Real images set the running statistics, which both sides then use: the authors' trick for BatchNorm."""
        norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if norms:
            rows = self.real.train.per_class(BN_IMAGES, self.context.generator).flatten()
            with torch.no_grad():
                network(self.real.train.images(rows))
            for norm in norms:
                norm.eval()


def synthetic_epoch(
    trained: TrainedNetwork,
    images: Tensor,
    targets: Tensor,
    augmentation: Augmentation,
    batch_size: int,
    generator: Generator,
) -> None:
    """Trains a network for one epoch on synthetic images, augmented one by one (not siamese).

    Args:
        trained: The network.
        images: Float, ``(N, C, H, W)``, model space, detached.
        targets: int64, ``(N,)``.
        augmentation: Drawn anew for every batch.
        batch_size: Images an update.
        generator: Decides order and augmentation.
    """
    order = torch.randperm(len(images), generator=generator)
    for rows in torch.split(order.to(images.device), batch_size):
        draw = augmentation.draw(len(rows), generator)
        labels = targets[rows]
        trained.update(CutMix(augmentation(images[rows], draw), labels, labels, 1.0))
