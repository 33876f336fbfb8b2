"""From a configuration to its parts: container, objective, networks."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch

from dd_plugins import registry
from dd_plugins.api import DataSpec, MatchingObjective, Network, Parameterization, RealData, StorageBudget
from dd_plugins.engine.config import RunConfig
from dd_plugins.networks import build_network


def build_container(config: RunConfig, real: RealData, *, within: bool = False) -> Parameterization:
    """The container of a run, allocated within its budget and not yet initialised.

    Args:
        config: The run; ``over_budget`` makes its budget larger, by images alone: what they share keeps its sizes.
        real: The data set.
        within: The container as it is within the true budget, whatever ``over_budget`` says.
    """
    name = config.parameterization.name
    budget = StorageBudget.ipc(real.spec, config.ipc)
    made: Parameterization = registry.create(
        "parameterization", name, real.spec, budget, config.parameterization.settings
    )
    made.data_source = real.source
    if within or not config.over_budget:
        return made
    more = StorageBudget(budget.elements + int(Fraction(str(config.over_budget)) * budget.elements))
    larger: Parameterization = registry.create("parameterization", name, real.spec, more, made.config)
    larger.data_source = made.data_source
    return larger


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
