"""From a configuration to the parts that it names; after that nothing reads the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from dd_plugins import registry
from dd_plugins.api import DataSpec, Grouped, MatchingObjective, NeedsPrior, Parameterization, RealData, StorageBudget
from dd_plugins.engine.config import OptimizerConfig, RunConfig
from dd_plugins.engine.networks import NetworkFactory
from dd_plugins.engine.pruning import PruningParts, build_pruning, check_pruning
from dd_plugins.training import build_augmentation


@dataclass(frozen=True)
class Parts:
    """What one distillation is made of.

    Attributes:
        name: Container and objective, for messages.
        real: The data set.
        container: Planned and allocated within its budget, not initialised.
        plugin: The spec by which the registry finds the container's class.
        objective: Not prepared.
        network: What the objective trains.
        optimizer: Optimizer and schedule of what the container learns.
        steps: Matching steps.
        seconds: Time limit of the condensation; None: no limit.
        seed: Of initialisation and matching.
        ipc: Of the budget.
        within: For a set that is pruned: the container as it is within its true budget; else None.
        pruning: How it is pruned; None: it is not.
    """

    name: str
    real: RealData
    container: Parameterization
    plugin: str
    objective: MatchingObjective
    network: NetworkFactory
    optimizer: OptimizerConfig
    steps: int
    seconds: float | None
    seed: int
    ipc: int
    within: Parameterization | None = None
    pruning: PruningParts | None = None


def build_parts(config: RunConfig, real: RealData) -> Parts:
    """Builds all parts of a distillation on the data's device, and finds what is wrong with any of them.

    Raises:
        UsageError: If parts do not work together, or do not fit the budget or the data set.
    """
    container = build_container(config, real)
    container.storage().enforce(container.budget.scaled(container.budget_ratio()), config.parameterization.name)
    within = build_container(config, real, within=True) if config.pruning else None
    parts = Parts(
        f"{config.parameterization.name} with {config.objective.name}",
        real,
        container,
        registry.find("parameterization", config.parameterization.name).spec,
        build_objective(config, real.spec),
        NetworkFactory.of(config.network, real),
        config.optimizer,
        config.steps,
        None if config.minutes is None else 60 * config.minutes,
        config.seed,
        config.ipc,
        within,
        build_pruning(config, real) if config.pruning else None,
    )
    if within is not None:
        check_pruning(config.parameterization.name, container, within)
    _check(parts)
    build_augmentation(config.protocol.train, real.spec)
    NetworkFactory.of(config.protocol.network, real).on_cpu()
    return parts


def _check(parts: Parts) -> None:
    container, matched_on = parts.container, parts.network.on_cpu()
    container.parameter_groups()  # a container with nothing to learn raises an error
    if isinstance(container, NeedsPrior):
        container.check(matched_on)
    groups = container.groups() if isinstance(container, Grouped) else None
    parts.objective.check(container.labels, groups, matched_on)


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
