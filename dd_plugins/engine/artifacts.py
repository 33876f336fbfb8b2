"""The artifacts that a configuration needs: experts, a prior, a reference classifier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from dd_plugins.api import Artifact, ArtifactStore, Context, Grouped, NeedsArtifacts, NeedsPrior, RealData
from dd_plugins.api.progress import StartJob, silent_job
from dd_plugins.engine.config import RunConfig
from dd_plugins.engine.networks import NetworkFactory
from dd_plugins.engine.parts import build_container, build_objective
from dd_plugins.seeds import make_generator


def needed_artifacts(
    config: RunConfig,
    real: RealData,
    artifacts: ArtifactStore,
    device: torch.device,
    job: StartJob = silent_job,
) -> Iterator[Artifact[Any]]:
    """What the container and the objective of a run will ask ``artifacts`` for, in order.

    An artifact that depends on an earlier one is only yielded if the earlier one has been made by then.

    Args:
        config: The run.
        real: Its data set.
        artifacts: The store of the run.
        device: Where the run computes.
        job: Shows the progress of what is made on the way.

    Raises:
        DDPluginsError: If a part does not fit the data set or the network.
    """
    container, objective = build_container(config, real).to(device), build_objective(config, real.spec)
    make_network = NetworkFactory.of(config.network, real)
    context = Context(
        make_network,
        make_generator(0),
        config.steps,
        device,
        artifacts=artifacts,
        groups=container.groups() if isinstance(container, Grouped) else None,
        network=config.network.model_dump(mode="json"),
        job=job,
    )
    if isinstance(container, NeedsPrior):
        container.check(make_network(0).cpu())
    for part in (container, objective):
        if isinstance(part, NeedsArtifacts):
            yield from part.artifacts(real, context)
