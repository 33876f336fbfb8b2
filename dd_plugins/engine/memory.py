"""What a run will allocate, by arithmetic on shapes, compared with what the machine has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dd_plugins import registry
from dd_plugins.api import DDPluginsError, Parameterization, PluginLoadError, RealData, Staged
from dd_plugins.api.memory import available_memory, in_units, require_memory, shapes_only, tensor_bytes
from dd_plugins.engine.config import OptimizerConfig, RunConfig
from dd_plugins.engine.evaluation import training_bytes
from dd_plugins.engine.parts import build_container, build_objective
from dd_plugins.networks import network_bytes

HINT = "a smaller --ipc, smaller networks and smaller batches (--set) need less"


@dataclass(frozen=True)
class MemoryEstimate:
    """A lower bound of what a run allocates on its device: activations and temporary tensors come on top.

    Attributes:
        device: Where the run computes.
        phases: For each phase of the run the bytes that are held at the same time, by what holds them.
        container: Bytes of the container, which is created on the CPU.
    """

    device: torch.device
    phases: Mapping[str, Mapping[str, int]]
    container: int = 0

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
        require_memory({"container": self.container}, "cpu", HINT)


def estimate_memory(config: RunConfig, real: RealData) -> MemoryEstimate:
    """Estimates a run before any part of it is allocated; only the data is there.

    What counts is what is certain to be held at the same time. Activations, and what a third party's plugin does that
    cannot be created without contents, are left out.

    Raises:
        NotEnoughMemory: If sizes are beyond what a tensor can have.
    """
    spec, pixels, protocol = real.spec, real.train.pixels, config.protocol
    container = _sized_container(config, real)
    data = {"data": pixels.numel() * pixels.element_size()}
    stored = {"container": 0 if container is None else tensor_bytes(container)}
    decoded = 0 if container is None else sum(container.counts) * spec.image_bytes
    learned = 0 if container is None else _learned_bytes(container)
    states = learned * _states(config.optimizer) if config.steps else 0
    network = network_bytes(config.network.name, spec.image_shape, spec.num_classes, config.network.settings)
    at_once = protocol.trials if real.device.type == "cuda" else 1
    phases = {
        # The set is loaded once more, and both are decoded, while the optimizer is there.
        "the check of the stored set": {
            **data, "container": 2 * stored["container"], "optimizer state": states, "decoded images": 2 * decoded,
        },
        "evaluation": {**data, "decoded images": decoded, "networks": training_bytes(protocol, spec, at_once)},
    }  # fmt: skip
    if container is not None:
        phases["initialization"] = {**data, **stored, "real batches": container.working_bytes()}
    if config.steps:
        work = {"networks and real batches": network + build_objective(config, spec).working_bytes(network)}
        kept = {"gradients and optimizer state": learned + states if config.steps > 1 else 0}  # of the step before
        phases["condensation"] = {**data, **stored, **kept, **work}
    if config.pruning is not None:
        strategy = registry.create("pruning", config.pruning.name, config.pruning.settings)
        watched = {"networks": strategy.working_bytes(network)}
        phases["pruning"] = {**data, **stored, "decoded images": decoded, **watched}
    return MemoryEstimate(real.device, phases, stored["container"])


def _sized_container(config: RunConfig, real: RealData) -> Parameterization | None:
    """The container of a run without contents; None where its class cannot be built so."""
    try:
        with shapes_only(f"{config.parameterization.name} at IPC {config.ipc}"):
            return build_container(config, real)
    except PluginLoadError:  # the code of a third party may need contents; building it for real tells what is wrong
        return None


def _learned_bytes(container: Parameterization) -> int:
    """Bytes of what an optimizer holds; 0 for containers whose stages learn other tensors than they store."""
    if isinstance(container, Staged):
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
