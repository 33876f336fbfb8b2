"""The one evaluator: a frozen protocol, fresh networks, accuracy of the last epoch on the test set."""

from __future__ import annotations

from itertools import islice

from dd_plugins.api import DataSpec, SyntheticSet
from dd_plugins.api.benchmark import Cell, ScoreContext
from dd_plugins.api.memory import require_memory
from dd_plugins.engine.protocols import Protocol
from dd_plugins.networks import build_network, network_bytes
from dd_plugins.seeds import seed_for
from dd_plugins.training import accuracy, networks_at_once, train_networks

NAME = "native"  # of its scores, beside those of other benchmarks


def training_bytes(protocol: Protocol, data: DataSpec, networks: int) -> int:
    """Bytes of the weights, gradients and momentum of networks that are trained together."""
    one = network_bytes(protocol.network.name, data.image_shape, data.num_classes, protocol.network.settings)
    return networks * one * (3 if protocol.train.momentum else 2)


def evaluate(synthetic: SyntheticSet, protocol: Protocol, cell: Cell, context: ScoreContext) -> tuple[float, ...]:
    """Trains fresh networks on a synthetic set and tests each once, behind its last epoch.

    Trial k of every method starts from the same weights and sees batches in the same order, so that comparisons are
    paired. Trials are trained together where that pays: all of them on a GPU, as many as threads for small batches.

    Returns:
        Test accuracies, fractions between 0 and 1, one a trial.
    """
    known = dict(context.known)
    missing = (trial for trial in range(protocol.trials) if trial not in context.known)
    images, targets = synthetic.images.to(context.device), synthetic.targets.to(context.device)
    at_once = networks_at_once(context.real.spec, targets, protocol.train)
    together = min(at_once, protocol.trials - len(known))
    require_memory({f"{together:,} networks": training_bytes(protocol, synthetic.data, together)}, context.device)
    while group := list(islice(missing, at_once)):
        networks = [
            build_network(
                protocol.network.name,
                synthetic.data.image_shape,
                synthetic.data.num_classes,
                protocol.network.settings,
                seed=seed_for("eval", trial),
                device=context.device,
            )
            for trial in group
        ]

        def report(done: int, total: int, before: int = len(known), size: int = len(group)) -> None:
            if context.on_update:
                per_trial = total // size
                context.on_update(before * per_trial + done, protocol.trials * per_trial)

        train_networks(
            networks,
            images,
            targets,
            protocol.train,
            synthetic.data,
            seeds=[seed_for("eval", trial) for trial in group],
            budget_images=cell.ipc * synthetic.data.num_classes,
            on_update=report,
        )
        test = context.real.test if protocol.split == "test" else context.real.validation
        for trial, network in zip(group, networks, strict=True):
            known[trial] = accuracy(network, test.images, test.labels)
            if context.on_trial:
                context.on_trial(trial, known[trial])
    return tuple(known[trial] for trial in range(protocol.trials))
