"""The one training loop: many networks on one set of images, one after the other or stacked.

Source:
    ``evaluate_synset`` of the dataset-distillation literature (Zhao et al., ICLR 2021 and later).
Deviations:
    Explicit generators: every network has its own seed for batch order and augmentation, so that a strategy cannot
    change what a network sees.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.profiler import record_function

from dd_plugins.api import DataSpec, PluginConfig
from dd_plugins.augmentation import Augmentation, CutMix, cutmix, default_strategy
from dd_plugins.execution import SMALL_BATCH, parallel_map
from dd_plugins.seeds import make_generator, seed_for

Strategy = Literal["auto", "sequential", "side-by-side", "stacked"]
Prepare = Callable[[Tensor, Generator], CutMix]
OnEpoch = Callable[[int, nn.Module, int], bool]  # number of the network, the network, epochs done; True: enough
Images = Tensor | Callable[[Tensor], Tensor]  # a tensor of all images, or a function from rows to images


class TrainConfig(PluginConfig):
    """How a network is trained: SGD on cross entropy."""

    epochs: int = Field(1001, ge=1, description="passes over the images")
    match_updates: bool = Field(
        False, description="take as many SGD updates as pixels of the same IPC would take in these epochs"
    )
    batch_size: int = Field(256, ge=1, description="images a step; the last batch of an epoch may be smaller")
    lr: float = Field(0.01, gt=0, description="learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay, on all parameters")
    schedule: Literal["constant", "half", "multistep", "cosine"] = Field(
        "half",
        description="half: x0.1 behind epoch E//2+1, momentum reset; multistep: x0.2 at 2/3 and 5/6; cosine: to 0",
    )
    augmentation: Literal["none", "dsa", "idc"] = Field("dsa", description="family of augmentation")
    strategy: str = Field("auto", description="operations joined by _; auto: the field's for the data set")
    cutmix: float = Field(0.0, ge=0, le=1, description="probability of CutMix in each batch")


@dataclass(frozen=True)
class Plan:
    """The updates of one training: ``total`` of them in epochs of ``per_epoch``, and where the learning rate drops."""

    total: int
    per_epoch: int
    drops: tuple[int, ...]
    factor: float

    @classmethod
    def of(cls, config: TrainConfig, num_images: int, budget_images: int | None = None) -> Plan:
        """Plans a training of ``num_images``; ``budget_images`` is what pixels of the same budget would hold."""
        per_epoch = math.ceil(num_images / config.batch_size)
        counted = budget_images if config.match_updates and budget_images else num_images
        unit = math.ceil(counted / config.batch_size)
        total = config.epochs * unit
        drops: tuple[int, ...] = ()
        if config.schedule == "half":
            # The field's loop runs epochs 0..E and drops when epoch E // 2 + 1 is done.
            drops = (((config.epochs - 1) // 2 + 2) * unit,)
        elif config.schedule == "multistep":
            drops = (config.epochs * 2 // 3 * unit, config.epochs * 5 // 6 * unit)
        return cls(total, per_epoch, drops, 0.1 if config.schedule == "half" else 0.2)


def build_augmentation(config: TrainConfig, data: DataSpec) -> Augmentation:
    """The augmentation that a training config names, for a data set."""
    if config.augmentation == "none":
        return Augmentation(())
    strategy = default_strategy(data) if config.strategy == "auto" else config.strategy
    if config.augmentation == "dsa":
        return Augmentation.dsa(strategy)
    # IDC trains without cutout where CutMix is on.
    return Augmentation.idc("_".join(s for s in strategy.split("_") if s != "cutout" or not config.cutmix))


def train_networks(
    networks: Sequence[nn.Module],
    images: Images,
    targets: Tensor,
    config: TrainConfig,
    data: DataSpec,
    *,
    seeds: Sequence[int],
    budget_images: int | None = None,
    strategy: Strategy = "auto",
    on_update: Callable[[int, int], None] | None = None,
    on_epoch: OnEpoch | None = None,
) -> None:
    """Trains networks in place, all on the same images, each with its own seed.

    Args:
        networks: Of one architecture.
        images: Float, ``(N, C, H, W)``, model space; or a function that maps rows (int64, ``(B,)``) to such images.
        targets: int64, ``(N,)``.
        config: The recipe.
        data: For the default augmentation.
        seeds: One for each network: decides batch order and augmentation.
        budget_images: Images that plain pixels of the same budget would hold, for ``match_updates``.
        strategy: ``stacked`` trains all at once with stacked parameters, which pays on a GPU; not for networks with
            buffers such as BatchNorm's. ``side-by-side`` gives each network a thread of its own, which pays on the CPU
            where batches are small. The accuracies are those of ``sequential`` to rounding.
        on_update: Called with (updates done, updates in all) of all networks together.
        on_epoch: Called behind each pass over the images with (number of the network, the network, passes done); it
            may change the network's mode, but not its weights, and says whether that network's training ends here.
            Networks side by side call it from threads of their own.
    """
    if len(networks) != len(seeds):
        raise ValueError(f"Expected one seed for each of {len(networks)} networks, but got {len(seeds)}")
    plan = Plan.of(config, len(targets), budget_images)
    augment = build_augmentation(config, data)
    runs = [
        _Training(network, _batches(plan, len(targets), config, seed))
        for network, seed in zip(networks, seeds, strict=True)
    ]
    done, total = itertools.count(1), plan.total * len(networks)

    def prepare(rows: Tensor, generator: Generator) -> CutMix:
        return _prepare(images, targets, rows, augment, config, generator)

    def note() -> None:
        count = next(done)  # atomic: networks may be trained side by side
        if on_update:
            on_update(count, total)

    resolved = _resolve(strategy, networks, data, targets, config)
    if resolved == "stacked":
        _train_stacked(runs, plan, config, prepare, note, on_epoch)
    else:
        numbered = list(enumerate(runs))
        parallel_map(
            lambda pair: _train_one(*pair, plan, config, prepare, note, on_epoch),
            numbered,
            parallel=resolved == "side-by-side",
        )


def networks_at_once(data: DataSpec, targets: Tensor, config: TrainConfig) -> int:
    """How many networks are best given to `train_networks` together.

    Any number on a GPU; on the CPU a few for each thread where batches are small, so that no thread idles for long at
    the end, and else one.
    """
    if targets.is_cuda:
        return sys.maxsize
    threads = torch.get_num_threads()
    return 2 * threads + 1 if threads > 1 and _small(data, targets, config) else 1


@torch.no_grad()
def accuracy(network: nn.Module, images: Images, targets: Tensor, batch_size: int = 512) -> float:
    """Top-1 accuracy, a fraction between 0 and 1, in evaluation mode without augmentation."""
    network.eval()
    correct = torch.zeros((), dtype=torch.int64, device=targets.device)
    for rows in torch.split(torch.arange(len(targets), device=targets.device), batch_size):
        batch = images[rows] if isinstance(images, Tensor) else images(rows)
        correct += (network(batch).argmax(1) == targets[rows]).sum()
    return int(correct) / len(targets)


def _batches(plan: Plan, count: int, config: TrainConfig, seed: int) -> Iterator[tuple[Tensor, Generator]]:
    """Rows of every batch with the generator that also draws its augmentation."""
    generator = make_generator(seed_for("train", seed))
    done = 0
    while done < plan.total:
        for rows in torch.split(torch.randperm(count, generator=generator), config.batch_size):
            if done < plan.total:
                yield rows, generator
                done += 1


def _prepare(
    images: Images, targets: Tensor, rows: Tensor, augment: Augmentation, config: TrainConfig, generator: Generator
) -> CutMix:
    rows = rows.to(targets.device, non_blocking=True)
    batch = images[rows] if isinstance(images, Tensor) else images(rows)
    batch = augment(batch, augment.draw(len(batch), generator))
    return cutmix(batch, targets[rows], config.cutmix, generator)


def _sgd(parameters: Iterator[nn.Parameter] | Sequence[Tensor], config: TrainConfig) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _schedule(optimizer: torch.optim.Optimizer, plan: Plan, config: TrainConfig, update: int) -> None:
    group = optimizer.param_groups[0]
    if config.schedule == "cosine":
        group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * update / plan.total))
    elif update in plan.drops:
        group["lr"] *= plan.factor
        if config.schedule == "half":
            optimizer.state.clear()


@dataclass
class _Training:
    """A network and the batches it will see."""

    network: nn.Module
    batches: Iterator[tuple[Tensor, Generator]]


def _train_one(
    number: int,
    training: _Training,
    plan: Plan,
    config: TrainConfig,
    prepare: Prepare,
    note: Callable[[], None],
    on_epoch: OnEpoch | None,
) -> None:
    network = training.network.train()
    optimizer = _sgd(network.parameters(), config)
    for update, (rows, generator) in enumerate(training.batches):
        _schedule(optimizer, plan, config, update)
        with record_function("batch"):
            batch = prepare(rows, generator)
        with record_function("forward"):
            loss = batch.cross_entropy(network(batch.images))
        optimizer.zero_grad()
        with record_function("backward"):
            loss.backward()
        with record_function("update"):
            optimizer.step()
        note()
        if on_epoch and (update + 1) % plan.per_epoch == 0:
            enough = on_epoch(number, network, (update + 1) // plan.per_epoch)
            network.train()
            if enough:
                return


def _train_stacked(
    runs: Sequence[_Training],
    plan: Plan,
    config: TrainConfig,
    prepare: Prepare,
    note: Callable[[], None],
    on_epoch: OnEpoch | None,
) -> None:
    """One SGD update of all networks at a time: parameters stacked, forward and backward under ``vmap``."""
    networks = [training.network.train() for training in runs]
    base, (stacked, _) = networks[0], torch.func.stack_module_state(networks)
    names, parameters = list(stacked), [value.detach().requires_grad_() for value in stacked.values()]
    optimizer = _sgd(parameters, config)

    def forward(own: list[Tensor], batch: Tensor) -> Tensor:
        return torch.func.functional_call(base, dict(zip(names, own, strict=True)), (batch,))

    for update, rows in enumerate(zip(*(training.batches for training in runs), strict=True)):
        _schedule(optimizer, plan, config, update)
        batches = [prepare(*own) for own in rows]
        logits = torch.func.vmap(forward)(parameters, torch.stack([batch.images for batch in batches]))
        # Each network's own mean loss; their sum keeps the gradients apart.
        loss = torch.stack([b.cross_entropy(z) for b, z in zip(batches, logits, strict=True)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for _ in runs:
            note()
        if on_epoch and (update + 1) % plan.per_epoch == 0:
            _unstack(parameters, networks)
            passes = (update + 1) // plan.per_epoch
            enough = [on_epoch(number, network, passes) for number, network in enumerate(networks)]
            for network in networks:
                network.train()
            if all(enough):
                break
    _unstack(parameters, networks)


@torch.no_grad()
def _unstack(parameters: Sequence[Tensor], networks: Sequence[nn.Module]) -> None:
    """Gives every network its row of the stacked parameters."""
    for position, network in enumerate(networks):
        for parameter, own in zip(parameters, network.parameters(), strict=True):
            own.copy_(parameter[position])


def _small(data: DataSpec, targets: Tensor, config: TrainConfig) -> bool:
    return min(len(targets), config.batch_size) * math.prod(data.image_shape) <= SMALL_BATCH


def _resolve(
    strategy: Strategy, networks: Sequence[nn.Module], data: DataSpec, targets: Tensor, config: TrainConfig
) -> Strategy:
    # BatchNorm's buffers are updated in place, and dropout draws from the global generator: vmap does neither.
    dropout = any(isinstance(module, nn.modules.dropout._DropoutNd) for module in networks[0].modules())
    stackable = len(networks) > 1 and not dropout and not any(True for _ in networks[0].buffers())
    if strategy == "stacked" and not stackable:
        return "sequential"
    if strategy != "auto":
        return strategy
    if targets.is_cuda:
        return "stacked" if stackable else "sequential"
    return "side-by-side" if _small(data, targets, config) else "sequential"
