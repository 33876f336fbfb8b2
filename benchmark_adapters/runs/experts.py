"""Expert trajectories ahead of the runs that need them."""

from __future__ import annotations

import time

from benchmark_adapters.runs.notes import general_settings
from benchmark_adapters.runs.parts import Options, load_real
from benchmark_adapters.runs.progress import Reporter
from dd_plugins import registry
from dd_plugins.api import UsageError, parse_config
from dd_plugins.engine.config import RunConfig
from dd_plugins.engine.parts import network_factory
from dd_plugins.trajectories import FOLDER, ExpertStore, TrajectoryMatchingConfig


def train_experts(
    config: RunConfig, num: int | None, at_once: int | None, options: Options, reporter: Reporter
) -> ExpertStore:
    """Trains whichever experts of a run are missing.

    Args:
        config: The run; its data set, network and objective decide what experts it needs.
        num: How many; by default as many as the objective takes.
        at_once: How many are trained together; by default the objective's own choice for the device.
        options: Device, data and folder.
        reporter: Shows the progress.

    Raises:
        UsageError: If the objective needs no experts.
    """
    cls = registry.load("objective", config.objective.name)
    settings = parse_config(cls.Config, config.objective.settings, "objective")
    if not isinstance(settings, TrajectoryMatchingConfig):
        raise UsageError(f"objective {config.objective.name} needs no expert trajectories")
    real = load_real(config, options)
    if warning := general_settings(config, real):
        reporter.say(warning)
    recipe = settings.recipe(config.network.model_dump(mode="json"))
    store = ExpertStore(options.out / FOLDER, real, recipe, network_factory(config, real, options.device))
    wanted = num or settings.experts
    missing, begun = len(store.missing(wanted)), time.perf_counter()
    reporter.say(f"{missing} of {wanted} experts are missing in {store.path}")
    with reporter.watch("train experts", missing * recipe.epochs) as update:
        store.train(wanted, at_once, update)
    if missing:
        seconds = time.perf_counter() - begun
        reporter.say(
            f"{missing} experts of {recipe.epochs} epochs in {seconds:.0f} s, {missing / seconds * 60:.2f} a minute"
        )
    return store
