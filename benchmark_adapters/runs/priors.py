"""Priors ahead of the runs that need them."""

from __future__ import annotations

import json
import shlex

from benchmark_adapters.runs.notes import general_settings
from benchmark_adapters.runs.parts import Options, load_real
from benchmark_adapters.runs.progress import Reporter
from benchmark_adapters.runs.system import interruptible_jobs
from dd_plugins import registry
from dd_plugins.api import parse_config
from dd_plugins.engine.config import RunConfig, flatten, resolve
from dd_plugins.engine.parts import network_factory
from dd_plugins.priors.find import find_prior, gates_of
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
    if warning := general_settings(config, real):
        reporter.say(warning)
    with interruptible_jobs(reporter) as job:
        judges = (config.network.model_dump(mode="json"), network_factory(config, real, options.device))
        found = find_prior(options.out, real, recipe, *judges, job)
        gates, about = gates_of(found, real, *judges, options.out, job), found.about
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
    reporter.say(f"taken by: dd-bench run {_flags(config, options, bool(failed))}")
    return failed


def _flags(config: RunConfig, options: Options, weak: bool) -> str:
    """What a run of the same data set, network and recipe is called with."""
    named = {"dataset": config.dataset, "data.as": config.data.get("as")}
    own, usual = (
        flatten(each.model_dump(mode="json")) for each in (config, resolve({"method": config.method, **named}))
    )
    words = ["--method", config.method, "--dataset", config.dataset]
    words += ["--set", f"data.as={config.data['as']}"] if config.data.get("as") else []
    for key, value in own.items():
        if key.partition(".")[0] in ("data", "network", "parameterization") and value != usual.get(key):
            words += ["--set", f"{key}={json.dumps(value)}"]
    if weak and not own.get("parameterization.allow_weak_prior"):
        words.append("--allow-weak-prior")
    if options.data_root is not None:
        words += ["--data-root", str(options.data_root)]
    return shlex.join([*words, "--out", str(options.out)])
