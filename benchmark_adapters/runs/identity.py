"""The id of a run: a hash of everything that decides its result."""

from __future__ import annotations

import hashlib
import json

from dd_plugins import registry
from dd_plugins.api import NeedsPrior, parse_config
from dd_plugins.engine.config import RunConfig
from dd_plugins.engine.keys import PARTS


def compute_run_id(config: RunConfig, fingerprint: str) -> str:
    """Ten hexadecimal digits of everything that decides the synthetic images.

    The protocol is left out: another protocol scores the same images. It counts where it chooses among prunings.

    Args:
        config: The configuration of the run.
        fingerprint: The hash of the data set's content.
    """
    content = config.model_dump(mode="json", exclude={"method", "dataset", "data", "protocol"})
    content["fingerprint"] = fingerprint
    parts = {**PARTS, **({"pruning": "pruning"} if config.pruning else {})}
    if config.pruning:
        content["chosen_by"] = config.chosen_by
        strategy = registry.create("pruning", config.pruning.name, config.pruning.settings)
        for kind, name in strategy.plugins().items():
            if registry.find(kind, name).distribution != registry.OWN:
                content[kind] = plugin_identity(kind, name)
    else:
        del content["pruning"], content["pruning_trials"]
    if not config.over_budget:
        del content["over_budget"]
    container = registry.load("parameterization", config.parameterization.name)
    settings = parse_config(container.Config, config.parameterization.settings, "parameterization")
    if issubclass(container, NeedsPrior) and (outside := list(container.external_fingerprints(settings))):
        content["outside"] = outside
    for part, kind in parts.items():
        content[part]["plugin"] = plugin_identity(kind, getattr(config, part).name)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def plugin_identity(kind: str, name: str) -> list[str]:
    """What tells a plugin from its other versions: distribution, version, class; under development its source too."""
    info = registry.find(kind, name)
    identity = [info.distribution, info.version, info.value]
    return [*identity, str(info.record()["sha256"])] if info.distribution == registry.MODULE else identity
