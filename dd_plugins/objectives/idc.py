"""IDC's matching: gradients of convolution weights on networks that train on real data. HMN was learned with it.

Source:
    Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022, arXiv 2205.14959,
    and its released code: siamese colour, crop and cutout; networks trained on real data with CutMix.
Deviations:
    All classes are summed into one step of the images (the code steps class by class; shared memories would lean
    towards the last class). ``metric``, ``pool`` and ``train_every`` generalise the code's one network at a time; the
    code is metric=mse, pool=1, train_every=1, network_updates=32, max_updates=3200.
    Images that train the networks are drawn with replacement, and those that are matched anew in every step; the code
    goes through both in shuffled passes. No difference is expected: a training sees a fraction of a pass or a few.
    A class with fewer training images than ``batch_real`` gives all of them and repeats some to fill the batch
    (`Split.per_class`); the code's batch is then smaller. The means of both are equal where every image appears
    equally often.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dd_plugins.api import Context, DataSpec, PluginConfig, RealData
from dd_plugins.augmentation import Augmentation, cutmix
from dd_plugins.execution import parallel_map
from dd_plugins.matching import GradientMatching, GradientMatchingConfig, TrainedNetwork
from dd_plugins.seeds import make_generator, seed_for


class IDC(GradientMatching):
    """Gradient matching of convolution weights along the training on real data."""

    api_version = 2
    check_settings: ClassVar[Mapping[str, Any]] = {
        "batch_real": 4, "batch_syn": 3, "pool": 2, "network_updates": 2, "max_updates": 4, "network_batch": 8,
    }  # fmt: skip

    class Config(GradientMatchingConfig):
        """Settings of IDC's matching."""

        metric: Literal["mse", "l1", "cosine", "dc"] = Field(
            "mse", description="distance; cosine is ours, layer by layer"
        )
        batch_real: int = Field(64, ge=1, description="real images of each class a step")
        batch_syn: int = Field(128, ge=1, description="synthetic images of each class a step, at most")
        strategy: str = Field("color_crop_cutout", description="siamese augmentation of the matching, joined by _")
        pool: int = Field(1, ge=1, description="networks kept, of different age; each step takes the next one")
        train_every: int = Field(1, ge=1, description="matching steps on each network between two trainings")
        network_updates: int = Field(32, ge=0, description="updates on real data in each training")
        max_updates: int = Field(3200, ge=0, description="updates at which a fresh network takes the place")
        network_batch: int = Field(64, ge=1, description="real images an update")
        network_lr: float = Field(0.01, gt=0, description="learning rate of the networks")
        network_momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the networks")
        network_weight_decay: float = Field(5e-4, ge=0, description="weight decay of the networks")
        network_strategy: str = Field("color_crop", description="augmentation of the networks' training, joined by _")
        cutmix: float = Field(0.5, ge=0, le=1, description="probability of CutMix in the networks' training")

    config: Config

    def __init__(self, data: DataSpec, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        super().__init__(data, config)
        self.metric = self.config.metric
        self.augmentation = Augmentation.idc(self.config.strategy)
        self.network_augmentation = Augmentation.idc(self.config.network_strategy)
        self.pool: list[TrainedNetwork] = []

    def working_bytes(self, network_bytes: int) -> int:
        """The other networks of the pool, and the larger batch of real images."""
        config, image = self.config, self.data.image_bytes
        trained = config.network_batch * image if config.network_updates else 0
        return (config.pool - 1) * network_bytes + max(super().working_bytes(network_bytes), trained)

    def prepare(self, real: RealData, targets: Tensor, context: Context) -> None:
        """Nothing is trained yet: the pool is filled at the first step, so that a resumed run need not."""
        super().prepare(real, targets, context)
        self.pool = []

    def select(self, step: int) -> Tensor:
        """All images of each class, or ``batch_syn`` random ones of it."""
        if int(torch.bincount(self.targets).max()) <= self.config.batch_syn:
            return super().select(step)
        noise = torch.rand(len(self.targets), generator=self.context.generator).to(self.targets.device)
        order = torch.argsort(noise.double() + self.targets, stable=True)
        sizes = torch.bincount(self.targets).tolist()
        chosen = torch.cat([rows[: self.config.batch_syn] for rows in torch.split(order, sizes)])
        return chosen.sort().values

    def network_for(self, images: Tensor, targets: Tensor, step: int) -> nn.Module:
        """The next network of the pool; when each has been matched on ``train_every`` times, all are trained on."""
        del images, targets
        if not self.pool:
            self._fill()
        if step and step % (self.config.train_every * len(self.pool)) == 0:
            self._train_on()
        network = self.pool[step % len(self.pool)].network
        network.train()
        return network

    def state_dict(self) -> dict[str, Tensor]:
        """The pool and the generator."""
        state = {f"{k}.{name}": value for k, net in enumerate(self.pool) for name, value in net.state_dict().items()}
        return {**state, "generator": self.context.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what :meth:`state_dict` returned."""
        self.context.generator.set_state(state["generator"])
        count = len({name.partition(".")[0] for name in state} - {"generator"})
        self.pool = [self._fresh(0) for _ in range(count)]
        for k, trained in enumerate(self.pool):
            own = {name.removeprefix(f"{k}."): v for name, v in state.items() if name.startswith(f"{k}.")}
            trained.load_state_dict(own)

    def _fill(self) -> None:
        """Networks of evenly spread age, so that every step of a training is met from the start."""
        self.pool = [self._fresh(self.context.draw_seed()) for _ in range(self.config.pool)]
        ages = [self.config.max_updates * k // len(self.pool) for k in range(len(self.pool))]
        done = itertools.count(1)  # atomic: networks may be trained side by side
        with self.context.job("train the pool of networks", sum(ages)) as update:
            self._train(list(zip(self.pool, ages, strict=True)), lambda: update(next(done)))

    def _train_on(self) -> None:
        last = self.config.max_updates - self.config.network_updates
        old = [trained.updates >= last for trained in self.pool]
        self._train([(t, self.config.network_updates) for t, out in zip(self.pool, old, strict=True) if not out])
        self.pool = [
            self._fresh(self.context.draw_seed()) if out else trained
            for trained, out in zip(self.pool, old, strict=True)
        ]

    def _train(self, work: list[tuple[TrainedNetwork, int]], note: Callable[[], None] = lambda: None) -> None:
        """Networks have generators of their own, so they can be trained side by side."""
        parallel_map(lambda pair: self._updates(*pair, note), work, parallel=not self.targets.is_cuda)

    def _updates(self, trained: TrainedNetwork, count: int, note: Callable[[], None]) -> None:
        generator, train = make_generator(seed_for("train", trained.seed, trained.updates)), self.real.train
        for _ in range(count):
            rows = torch.randint(len(train), (self.config.network_batch,), generator=generator).to(train.labels.device)
            batch = train.images(rows)
            batch = self.network_augmentation(batch, self.network_augmentation.draw(len(batch), generator))
            trained.update(cutmix(batch, train.labels[rows], self.config.cutmix, generator))
            note()

    def _fresh(self, seed: int) -> TrainedNetwork:
        config = self.config
        return TrainedNetwork(
            self.context.make_network(seed),
            config.network_lr,
            config.network_momentum,
            config.network_weight_decay,
            seed,
        )
