"""From a configuration to its parts: data, container, networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from benchmark_adapters.runner.config import RunConfig
from dd_plugins import registry
from dd_plugins.api import (
    DataError,
    DataSource,
    DataSpec,
    MatchingObjective,
    Network,
    Parameterization,
    RealData,
    StorageBudget,
)
from dd_plugins.datasets import load_dataset
from dd_plugins.networks import build_network


@dataclass(frozen=True)
class Options:
    """Where and how a run is made; nothing here has an influence on its result."""

    out: Path
    device: torch.device
    data_root: Path | None = None
    full_data: bool | None = None  # whether the whole training set is scored too; None: if it is small
    chunk_size: int | None = None
    checkpoint_seconds: float = 30.0


def load_real(config: RunConfig, options: Options) -> RealData:
    """The data set of a run, on its device."""
    return load_dataset(config.dataset, options.data_root, options.device, config=config.data)


def build_container(config: RunConfig, real: RealData, *, within: bool = False) -> Parameterization:
    """The container of a run, allocated within its budget and not yet initialised.

    Args:
        config: The run; ``over_budget`` makes its budget larger, by images alone: what they share keeps its sizes.
        real: The data set.
        within: The container as it is within the true budget, whatever ``over_budget`` says.
    """
    name = config.parameterization.name
    budget = StorageBudget.for_ipc(real.spec, config.ipc)
    made: Parameterization = registry.create(
        "parameterization", name, real.spec, budget, config.parameterization.settings
    )
    made.data_source = data_source(config, real)
    if within or not config.over_budget:
        return made
    more = StorageBudget(budget.elements + int(Fraction(str(config.over_budget)) * budget.elements))
    larger: Parameterization = registry.create("parameterization", name, real.spec, more, made.config)
    larger.data_source = made.data_source
    return larger


def data_source(config: RunConfig, real: RealData) -> DataSource:
    """Which data set a run is made from, as its set will say."""
    return DataSource(config.dataset, config.data, real.class_names)


def build_objective(config: RunConfig, spec: DataSpec) -> MatchingObjective:
    """The objective of a run, before it is prepared."""
    made: MatchingObjective = registry.create("objective", config.objective.name, spec, config.objective.settings)
    return made


def network_factory(config: RunConfig, real: RealData, device: torch.device) -> Callable[[int], Network]:
    """From a seed to a freshly initialised network of the condensation."""
    spec, name, settings = real.spec, config.network.name, config.network.settings

    def make_network(seed: int) -> Network:
        return build_network(name, spec.image_shape, spec.num_classes, settings, seed=seed, device=device)

    return make_network


def same_data(real: RealData, made: DataSpec, spec: str) -> RealData:
    """Refuses other data than a set was made from.

    Args:
        real: The data.
        made: The spec that the set keeps.
        spec: The data as the user names it, for messages.
    """
    found = real.spec
    if (made.image_shape, made.num_classes) != (found.image_shape, found.num_classes):
        raise DataError(
            f"the set was made from {made.name} ({made.num_classes} classes of {made.image_shape}), but {spec} has "
            f"{found.num_classes} classes of {found.image_shape}"
        )
    if made.fingerprint != found.fingerprint:
        raise DataError(
            f"the set was made from {made.name} with fingerprint {made.fingerprint}, {spec} has {found.fingerprint}: "
            f"other pixels, labels, splits, or another mean and standard deviation (data.as)"
        )
    return real
