"""Priors ahead of the runs that need them."""

from __future__ import annotations

from benchmark_adapters.runner.config import RunConfig
from benchmark_adapters.runner.parts import Options, load_real, network_factory
from benchmark_adapters.runner.progress import Reporter
from benchmark_adapters.runner.system import interruptible_jobs
from dd_plugins import registry
from dd_plugins.api import parse_config
from dd_plugins.priors.find import find_prior
from dd_plugins.priors.train import PriorRecipe


def train_prior(config: RunConfig, options: Options, reporter: Reporter) -> list[str]:
    """Trains the prior of a run, or finds it, and says what it is worth.

    Args:
        config: The run.
        options: Device, data and folder.
        reporter: Shows the progress.

    Returns:
        The gates that it fails.
    """
    cls = registry.load("parameterization", config.parameterization.name)
    recipe: PriorRecipe = parse_config(cls.Config, config.parameterization.settings, "parameterization").recipe
    real = load_real(config, options)
    with interruptible_jobs(reporter) as job:
        found = find_prior(options.out, real, recipe, network_factory(config, real, options.device), job)
    gates, about = found.gates, found.about
    assert gates is not None  # measured with its training
    reporter.say(
        f"{found.path}: {found.prior().elements:,} elements, {found.generator.num_stages} levels, trained in "
        f"{about['seconds']:.0f} s, sha256 {about['sha256']}"
    )
    reporter.say(
        f"conditional accuracy {gates.accuracy:.3f} (real images {gates.real_accuracy:.3f}), spread within classes "
        f"{gates.spread:.2f} of real, worth of its samples {gates.worth:.3f}"
    )
    failed = gates.failed()
    if not failed:
        reporter.say("all gates passed")
    return failed
