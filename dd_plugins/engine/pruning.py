"""From a set that is larger than its budget to one that fits: score, choose on the validation split, drop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any
from typing import Protocol as TypingProtocol

import torch
from torch import Tensor

from dd_plugins import registry
from dd_plugins.api import (
    Cell,
    Context,
    IncompatibleError,
    Parameterization,
    PluginContractError,
    PruningStrategy,
    PruningUnits,
    RealData,
    ScoreContext,
    SyntheticSet,
    UsageError,
)
from dd_plugins.engine.config import RunConfig
from dd_plugins.engine.evaluation import evaluate
from dd_plugins.engine.networks import NetworkFactory
from dd_plugins.engine.protocols import Protocol
from dd_plugins.engine.runtime import Runtime
from dd_plugins.errors import EmptyClassError
from dd_plugins.seeds import make_generator, seed_for

CANDIDATE = "candidate "  # begins the key of a trial that compares candidates


@dataclass(frozen=True)
class PruningParts:
    """How an over-budget set is pruned.

    Attributes:
        strategy: Scores images and selects those to keep.
        network: What the strategy trains.
        protocol: How candidates are compared: on the validation split.
        seed: Of the strategy's randomness.
        steps: Matching steps of the set that is pruned.
        ipc: Of the budget.
    """

    strategy: PruningStrategy
    network: NetworkFactory
    protocol: Protocol
    seed: int
    steps: int
    ipc: int


class PruningStore(TypingProtocol):
    """Keeps what an interrupted pruning goes on from."""

    def known_trials(self, key: str) -> dict[int, float]:
        """Accuracies of the trials that are done under a key."""

    def add_trial(self, key: str, trial: int, score: float) -> None:
        """Keeps the accuracy of a trial."""

    def load_scores(self, digest: str) -> Tensor | None:
        """The scores of the set with that digest; None if they are not known."""

    def save_scores(self, digest: str, score: Tensor) -> None:
        """Keeps the scores of the set with that digest."""


class MemoryStore:
    """Keeps trials and scores in memory."""

    def __init__(self) -> None:
        self._trials: dict[str, dict[int, float]] = {}
        self._scores: dict[str, Tensor] = {}

    def known_trials(self, key: str) -> dict[int, float]:
        """Accuracies of the trials that are done under a key."""
        return dict(self._trials.get(key, {}))

    def add_trial(self, key: str, trial: int, score: float) -> None:
        """Keeps the accuracy of a trial."""
        self._trials.setdefault(key, {})[trial] = score

    def load_scores(self, digest: str) -> Tensor | None:
        """The scores of the set with that digest; None if they are not known."""
        return self._scores.get(digest)

    def save_scores(self, digest: str, score: Tensor) -> None:
        """Keeps the scores of the set with that digest."""
        self._scores[digest] = score


def build_pruning(config: RunConfig, real: RealData) -> PruningParts:
    """The pruning that a configuration names.

    Raises:
        UsageError: If it names none.
    """
    if config.pruning is None:
        raise UsageError("the configuration names no pruning")
    settings = config.pruning.settings
    if settings.get("seed", 0) is None:
        settings["seed"] = config.seed
    strategy: PruningStrategy = registry.create("pruning", config.pruning.name, settings)
    network = NetworkFactory.of(config.network, real)
    return PruningParts(strategy, network, config.choosing, config.seed, config.steps, config.ipc)


def check_pruning(name: str, container: Parameterization, within: Parameterization | None = None) -> None:
    """Refuses what cannot be pruned.

    Args:
        name: Of the container, for messages.
        container: The larger set.
        within: The set within its budget, if it is to be pruned to that budget.

    Raises:
        IncompatibleError: If the container cannot drop single images.
        UsageError: If the larger set is no larger.
    """
    if not container.prunable():
        raise IncompatibleError(f"{name} cannot be pruned: none of its images is stored apart from the others")
    if within is not None and len(unit_labels(container)[0]) <= len(unit_labels(within)[0]):
        share = container.budget.elements / within.budget.elements - 1
        raise UsageError(
            f"{share:.3g} over the budget of {name} is not one image of each class more; there is nothing to prune "
            f"(--over-budget, or a larger IPC)"
        )


def unit_labels(container: Parameterization) -> tuple[Tensor, Tensor]:
    """What can be dropped alone: the class of every unit, and the unit of every image; int64, on the CPU."""
    labels = container.labels.cpu()
    owners = container.units().cpu() if isinstance(container, PruningUnits) else torch.arange(len(labels))
    of_unit = torch.zeros(int(owners.max()) + 1, dtype=torch.int64)
    of_unit[owners] = labels
    return of_unit, owners


def check_selection(strategy: PruningStrategy, units: Tensor, keep: int, class_names: Sequence[str]) -> None:
    """Finds what cannot be selected before networks are trained for the scores.

    Args:
        strategy: Each of its candidates selects.
        units: The class of every unit; int64, ``(U,)``.
        keep: Units that are kept.
        class_names: Of the data set.

    Raises:
        EmptyClassError: If a class would be left with no image; names it.
    """
    try:
        for one in strategy.candidates():
            _select(one, torch.zeros(len(units), dtype=torch.float64), units, keep)
    except EmptyClassError as error:
        raise error.named(class_names) from None


@dataclass(frozen=True)
class PruningReport:
    """What a pruning did.

    Attributes:
        settings: Of the strategy, with what was chosen.
        images: Before and after.
        kept: The images that stayed, by their number before.
        candidates: Each candidate's settings, mean accuracy on the validation split, and trials.
        seconds: Wall time.
    """

    settings: dict[str, Any]
    images: tuple[int, int]
    kept: list[int]
    candidates: list[dict[str, Any]]
    seconds: float


class Pruner:
    """Prunes one set.

    Scores and the trials of every candidate are kept in ``store``, so that an interrupted pruning goes on.
    """

    def __init__(
        self, parts: PruningParts, real: RealData, digest: str, runtime: Runtime, store: PruningStore | None = None
    ) -> None:
        """Prepares a pruning.

        Args:
            parts: Strategy, network, and how candidates are compared.
            real: Whose validation split decides.
            digest: Of the set that is pruned: scores of another one are not reused.
            runtime: Where and how.
            store: Keeps scores and trials; in memory by default.
        """
        self.parts, self.real, self.digest, self.runtime = parts, real, digest, runtime
        self.store: PruningStore = store or MemoryStore()

    def prune(self, container: Parameterization, keep: int) -> PruningReport:
        """Keeps ``keep`` images, or units of images that are dropped together, and drops the others in place."""
        begun = time.perf_counter()
        strategy = self.parts.strategy
        units, owners = unit_labels(container)
        images = SyntheticSet("over budget", self.real.spec, container.decode(), container.labels, container.storage())
        check_selection(strategy, units, keep, self.real.class_names)
        score = self._scores(images)
        of_units = torch.zeros(len(units), dtype=score.dtype).index_add(0, owners, score) / torch.bincount(owners)
        candidates = [(one, _select(one, of_units, units, keep)) for one in strategy.candidates()]
        chosen, tried = self._choose(candidates, owners, images)
        index = torch.nonzero(torch.isin(owners, candidates[chosen][1])).flatten()
        container.keep(index.to(container.labels.device))
        settings = candidates[chosen][0].config.model_dump(mode="json")
        seconds = round(time.perf_counter() - begun, 2)
        return PruningReport(settings, (len(images.targets), len(index)), index.tolist(), tried, seconds)

    def _scores(self, images: SyntheticSet) -> Tensor:
        """The score of every image: float64, ``(N,)``, on the CPU."""
        if (known := self.store.load_scores(self.digest)) is not None:
            return known
        parts, strategy = self.parts, self.parts.strategy
        context = Context(
            parts.network,
            make_generator(seed_for("pruning", parts.seed)),
            parts.steps,
            self.runtime.execution.device,
            artifacts=self.runtime.artifacts,
            network=parts.network.describe(),
            job=self.runtime.callback.stoppable_job,
        )
        score = strategy.score(images, context).double().cpu()
        if score.shape != images.targets.shape:
            raise PluginContractError(
                f"{type(strategy).__name__}.score: expected {tuple(images.targets.shape)}, but got {tuple(score.shape)}"
            )
        if not bool(torch.isfinite(score).all()):
            bad = int((~torch.isfinite(score)).sum())
            raise UsageError(f"{bad} of {len(score)} scores are NaN or infinite; the larger set is kept")
        self.store.save_scores(self.digest, score)
        return score

    def _choose(
        self, candidates: Sequence[tuple[PruningStrategy, Tensor]], owners: Tensor, images: SyntheticSet
    ) -> tuple[int, list[dict[str, Any]]]:
        """The candidate whose images train networks best on the validation split, and all that were tried."""
        if len(candidates) == 1:
            return 0, []
        scored: dict[tuple[int, ...], tuple[float, ...]] = {}
        tried: list[dict[str, Any]] = []
        for position, (strategy, kept) in enumerate(candidates):
            same = tuple(kept.tolist())  # of few images many candidates drop the same ones
            if same not in scored:
                index = torch.nonzero(torch.isin(owners, kept)).flatten().to(images.targets.device)
                part = SyntheticSet(
                    images.name, images.data, images.images[index], images.targets[index], images.ledger
                )
                scored[same] = self._evaluate(part, position, len(candidates))
            accuracies = scored[same]
            settings = strategy.config.model_dump(mode="json")
            tried.append({"settings": settings, "accuracy": fmean(accuracies), "trials": list(accuracies)})
        return choose([float(entry["accuracy"]) for entry in tried]), tried

    def _evaluate(self, part: SyntheticSet, position: int, count: int) -> tuple[float, ...]:
        protocol = self.parts.protocol
        key = f"{CANDIDATE}{position}/{self.digest[:10]}/{protocol.hash}/{protocol.network.name}"
        with self.runtime.callback.job(f"candidate {position + 1} of {count}", 1) as job:
            context = ScoreContext(
                self.real,
                self.runtime.execution.device,
                known=self.store.known_trials(key),
                on_trial=lambda trial, score: self.store.add_trial(key, trial, score),
                on_update=job.update_total,
            )
            return evaluate(part, protocol, Cell(self.real.spec.name, self.parts.ipc, protocol.network.name), context)


def choose(accuracies: Sequence[float]) -> int:
    """The best candidate, the first of equals."""
    return max(range(len(accuracies)), key=lambda k: (accuracies[k], -k))


def _select(strategy: PruningStrategy, score: Tensor, targets: Tensor, keep: int) -> Tensor:
    kept = strategy.select(score, targets, keep).cpu()
    if len(kept) != keep or len(kept.unique()) != keep or int(kept.min()) < 0 or int(kept.max()) >= len(targets):
        raise PluginContractError(
            f"{type(strategy).__name__}.select: expected {keep} different images of {len(targets)}, but got {len(kept)}"
        )
    return kept
