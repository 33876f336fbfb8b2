"""What a run will allocate, by arithmetic."""

from __future__ import annotations

from benchmark_adapters.evaluator import PartConfig
from benchmark_adapters.runner.config import OptimizerConfig, RunConfig
from dd_plugins.api import Parameterization, RealData, Split
from dd_plugins.api.parameterization import decoded_bytes
from dd_plugins.networks import network_bytes

DATA = "data"


def estimate_memory(config: RunConfig, real: RealData, container: Parameterization) -> dict[str, int]:
    """Bytes of what a run certainly holds in memory at some time; activations come on top.

    Args:
        config: The run.
        real: The data set, which is in memory already.
        container: Built, not initialised.

    Returns:
        Bytes by part: ``data`` (pixels and labels), ``container`` (stored tensors, gradients and state of the
        optimizer), ``decoded images`` (with their labels), ``networks`` (one of the condensation with gradients, one of
        the protocol with gradients and momentum).
    """
    learned = sum(
        parameter.nbytes for group in container.parameter_groups() for parameter in group["params"] if config.steps
    )
    return {
        DATA: real.train.pixels.nbytes + sum(s.labels.nbytes + s.index.nbytes for s in _splits(real)),
        "container": container.storage().nbytes + learned * (1 + _states(config.optimizer)),
        "decoded images": sum(container.counts) * decoded_bytes(container.data),
        "networks": 2 * _network(config.network, real) + 3 * _network(config.protocol.network, real),
    }


def _states(optimizer: OptimizerConfig) -> int:
    """Tensors that the optimizer keeps for each one it learns."""
    return 2 if optimizer.name == "adam" else int(optimizer.momentum > 0)


def _network(part: PartConfig, real: RealData) -> int:
    return network_bytes(part.name, real.spec.image_shape, real.spec.num_classes, part.settings)


def _splits(real: RealData) -> tuple[Split, ...]:
    return (real.train, real.validation, real.test)
