"""dd-bench train-prior: a generator for h-pd and glad, ahead of the runs that need it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmark_adapters.cli.options import ALLOWED, Assignments, DataRoot, Dataset, Device, Out, WeakPrior

EPILOG = """
**Examples**

`dd-bench train-prior --dataset digits`

`dd-bench train-prior --dataset cifar10 --kind vae --set parameterization.recipe.steps=20000`

The prior lies in the folder of all runs (OUT/priors), where those of the same recipe find it. An interrupted training
goes on. Settings: `dd-bench list parameterization h-pd`.

Its gates, measured on the validation split: a classifier of real images finds its samples in their class at least 0.8
times as often as real ones; samples of a class lie 0.7 to 1.3 times as far apart as real images; and a classifier that
learned from samples reaches at least 0.75 times what one of real images reaches. A prior that fails one is kept, and
the exit code is 1, unless `--allow-weak-prior`.
"""


class Kind(StrEnum):
    """How a prior is trained."""

    gan = "gan"
    vae = "vae"


def train_prior(
    kind: Annotated[Kind, typer.Option(case_sensitive=False, help="Adversarial, or as an auto-encoder.")] = Kind.gan,
    dataset: Dataset = None,
    assignments: Assignments = None,
    allow_weak_prior: WeakPrior = False,
    device: Device = None,
    data_root: DataRoot = None,
    out: Out = Path("runs"),
) -> None:
    """Train a small class-conditional generator on the training split, measure its gates, and store both."""
    from rich.console import Console

    from benchmark_adapters.runs.parts import Options
    from benchmark_adapters.runs.priors import train_prior as train
    from benchmark_adapters.runs.progress import Reporter
    from benchmark_adapters.runs.system import choose_device
    from dd_plugins.engine.config import resolve
    from dd_plugins.errors import DDPluginsError

    given = [f"parameterization.recipe.kind={kind.value}", *(assignments or []), *([ALLOWED] * allow_weak_prior)]
    config = resolve({"method": "h-pd", "dataset": dataset}, given)
    failed = train(config, Options(out, choose_device(device), data_root), Reporter(Console()))
    if failed and not config.parameterization.settings.get("allow_weak_prior"):
        raise DDPluginsError(
            f"this prior is too weak: {'; '.join(failed)}. It is kept; train another (longer: --set "
            f"parameterization.recipe.steps=N), or let runs take it (--allow-weak-prior)"
        )
