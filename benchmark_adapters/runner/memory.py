"""What a run will allocate, by arithmetic on shapes, compared with what the machine has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from benchmark_adapters.evaluator import training_bytes
from benchmark_adapters.runner.config import OptimizerConfig, RunConfig
from benchmark_adapters.runner.parts import build_container, build_objective
from dd_plugins import registry
from dd_plugins.api import DDPluginsError, Parameterization, PluginLoadError, RealData
from dd_plugins.api.memory import available_memory, in_units, require_memory, shapes_only, tensor_bytes
from dd_plugins.networks import network_bytes

HINT = "a smaller --ipc, smaller networks and smaller batches (--set) need less"


@dataclass(frozen=True)
class MemoryEstimate:
    """A lower bound of what a run allocates on its device: activations and temporary tensors come on top.

    Attributes:
        device: Where the run computes.
        phases: For each phase of the run the bytes that are held at the same time, by what holds them.
    """

    device: torch.device
    phases: Mapping[str, Mapping[str, int]]

    @property
    def largest(self) -> str:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def total(self) -> int:
        """Bytes of that phase."""
        return sum(self.phases[self.largest].values())

    def parts(self) -> str:
        """What takes memory in that phase."""
        held = self.phases[self.largest]
        return ", ".join(f"{name} {in_units(nbytes)}" for name, nbytes in held.items() if nbytes)

    def describe(self) -> str:
        """One line: the estimate, its parts, and what the device has."""
        return (
            f"memory: at least {in_units(self.total)} during {self.largest} ({self.parts()}), activations not counted; "
            f"{in_units(available_memory(self.device))} available"
        )

    def check(self) -> None:
        """Refuses a run that cannot fit.

        Raises:
            NotEnoughMemory: If the device, or the CPU where parts are created first, has less.
        """
        require_memory(self.phases[self.largest], self.device, HINT)
        containers = [phase.get("container", 0) for phase in self.phases.values()]
        require_memory({"container": max(containers)}, "cpu", HINT)


def estimate_memory(config: RunConfig, real: RealData) -> MemoryEstimate:
    """Estimates a run before any part of it is allocated; only the data is there.

    What counts is what is certain to be held at the same time. The real training of a network, and what third-party
    plugins do that cannot be created without contents, is left out.

    Raises:
        NotEnoughMemory: If sizes are beyond what a tensor can have.
    """
    spec, container = real.spec, _sized_container(config, real)
    pixels = real.train.pixels
    held = {"data": pixels.numel() * pixels.element_size()}
    if container is not None:
        held["container"] = tensor_bytes(container)
        held["decoded images"] = sum(container.counts) * spec.image_bytes
    matched = network_bytes(config.network.name, spec.image_shape, spec.num_classes, config.network.settings)
    protocol = config.protocol
    at_once = protocol.trials if real.device.type == "cuda" else 1
    phases = {"condensation": dict(held), "evaluation": dict(held)}
    if config.steps:
        learned = 0 if container is None else _learned_bytes(container)
        work = build_objective(config, spec).working_bytes(matched)
        phases["condensation"]["gradients and optimizer state"] = learned * (1 + _states(config.optimizer))
        phases["condensation"]["networks and real batches"] = matched + work
    if container is not None:
        phases["initialization"] = {**held, "initialization": container.working_bytes()}
    phases["evaluation"]["networks"] = training_bytes(protocol, spec, at_once)
    if config.pruning is not None:
        strategy = registry.create("pruning", config.pruning.name, config.pruning.settings)
        phases["pruning"] = {**held, "networks": strategy.working_bytes(matched)}
    return MemoryEstimate(real.device, phases)


def _sized_container(config: RunConfig, real: RealData) -> Parameterization | None:
    """The container of a run without contents; None where its class cannot be built so."""
    try:
        with shapes_only(f"{config.parameterization.name} at IPC {config.ipc}"):
            return build_container(config, real)
    except PluginLoadError:  # the code of a third party may need contents; building it for real tells what is wrong
        return None


def _learned_bytes(container: Parameterization) -> int:
    """Bytes of what an optimizer holds; 0 for containers whose stages learn other tensors than they store."""
    if type(container).enter_stage is not Parameterization.enter_stage:
        return 0
    try:
        groups = container.parameter_groups()
    except DDPluginsError:  # nothing to learn: refused later, with its reason
        return 0
    held = {id(tensor): tensor for group in groups for tensor in group["params"]}
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())


def _states(config: OptimizerConfig) -> int:
    """Tensors that the optimizer keeps for each one that it learns."""
    return 2 if config.name == "adam" else int(config.momentum > 0)
