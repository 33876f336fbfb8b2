"""One distillation: prepare, initialise, condense, store, reload."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from dd_plugins.api import (
    Context,
    DDPluginsError,
    Grouped,
    NeedsPrior,
    Parameterization,
    PluginContractError,
    Prior,
    Staged,
)
from dd_plugins.api.progress import StartJob
from dd_plugins.engine.checkpoints import NoCheckpoints
from dd_plugins.engine.condensation import Condensation
from dd_plugins.engine.distilled import load_stored
from dd_plugins.engine.parts import Parts
from dd_plugins.engine.runtime import Runtime
from dd_plugins.errors import Stopped, is_out_of_memory
from dd_plugins.seeds import make_generator, seed_for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class History:
    """What a condensation reports besides its result.

    Attributes:
        steps: Matching steps that were taken.
        seconds: Wall time of them, and of the initialisation.
        cpu_seconds: CPU time of both, over all threads.
        prepare_seconds: Wall time of one-off work, such as training experts.
        threads: Threads of one torch operation.
        losses: The loss of each step.
        learned: Other values that were learned, such as a learning rate.
        priors: Frozen pretrained weights that the set needs.
    """

    steps: int
    seconds: float
    cpu_seconds: float
    prepare_seconds: float
    threads: int
    losses: list[float]
    learned: dict[str, float] = field(default_factory=dict)
    priors: tuple[Prior, ...] = ()


def condense(parts: Parts, runtime: Runtime) -> tuple[bytes, History]:
    """Takes all steps of a condensation, from its last checkpoint if there is one.

    Returns:
        The bytes of the stored set, and what the condensation reports.

    Raises:
        Stopped: If a callback asked to stop; the state is in the last checkpoint.
        DivergedError: If a loss or gradient is NaN or infinite; the last good checkpoint stays.
        PluginContractError: If the stored set gives other images than those that were condensed.
    """
    execution, callback = runtime.execution.for_data(parts.real.spec), runtime.callback
    with callback.stopping():
        condensation = start(parts, runtime)
        container, limit = condensation.parameterization, condensation.limit
        _report(condensation, parts, runtime)
        with callback.job("condense", parts.steps, condensation.step) as job:

            def on_step(step: int, loss: float) -> None:
                timed = f", {condensation.seconds / limit:.0%} of the time" if limit else ""
                job.update(step, f"loss {loss:.4g}{timed}")

            with naming_plugin(f"run of {parts.name}, during condense"), execution.scope():
                finished = condensation.run(on_step, callback.should_stop, runtime.checkpoint_seconds)
        if not finished:
            raise Stopped(f"interrupted at step {condensation.step} of {parts.steps}")
        if isinstance(container, Staged):
            container.finish()
    history = History(
        condensation.step,
        condensation.seconds,
        condensation.cpu_seconds,
        condensation.prepare_seconds,
        execution.threads or 1,
        condensation.losses,
        {**condensation.objective.learned(), **(container.summary() if isinstance(container, Staged) else {})},
        tuple(container.priors()) if isinstance(container, NeedsPrior) else (),
    )
    return _stored(container, parts.plugin), history


def start(parts: Parts, runtime: Runtime) -> Condensation:
    """A condensation that is ready for its first step, or for the one after its last checkpoint."""
    container, objective, real = parts.container.to(runtime.execution.device), parts.objective, parts.real
    checkpointer = runtime.checkpointer or NoCheckpoints()
    job = runtime.callback.stoppable_job
    container.chunk_size, container.job = runtime.chunk_size, job
    preparing = time.perf_counter()
    if isinstance(container, NeedsPrior):
        container.prepare(real, make_context(parts, runtime, job, "parameterization"))
    objective.prepare(real, container.labels, make_context(parts, runtime, job, "objective"))
    begun, cpu_begun = time.perf_counter(), time.process_time()
    if not checkpointer.place():  # before the optimizer is built: a reset may replace its tensors
        named = naming_plugin(f"parameterization {parts.plugin}, during reset")
        with named, runtime.execution.for_data(real.spec).scope():  # prepare() may use all threads
            container.reset(make_generator(seed_for("reset", parts.seed)), real)
    condensation = Condensation(container, objective, parts.optimizer, parts.steps, checkpointer, parts.seconds)
    condensation.prepare_seconds = begun - preparing
    if not condensation.resume():
        condensation.seconds = time.perf_counter() - begun
        condensation.cpu_seconds = time.process_time() - cpu_begun
        condensation.save()
    return condensation


def make_context(parts: Parts, runtime: Runtime, job: StartJob, purpose: str) -> Context:
    """What a plugin works with; each purpose draws from a generator of its own."""
    container = parts.container
    return Context(
        parts.network,
        make_generator(seed_for(purpose, parts.seed)),
        parts.steps,
        runtime.execution.device,
        artifacts=runtime.artifacts,
        groups=container.groups() if isinstance(container, Grouped) else None,
        network=parts.network.describe(),
        job=job,
    )


def _report(condensation: Condensation, parts: Parts, runtime: Runtime) -> None:
    container = condensation.parameterization
    over = container.budget_ratio()
    lines = [container.describe(), condensation.left_out()]
    lines += [f"{parts.plugin}: takes {over:.3f} times its budget, as configured"] if over > 1 else []
    lines += [f"continuing at step {condensation.step} of {parts.steps}"] if condensation.resumed else []
    for line in filter(None, lines):
        runtime.callback.on_message(line)


def _stored(container: Parameterization, plugin: str) -> bytes:
    """The bytes of a set, once they are known to give what was condensed.

    Raises:
        PluginContractError: If they give other images or labels.
    """
    content = container.to_bytes(plugin)
    try:
        loaded = load_stored(content).to(container.labels.device)
        loaded.chunk_size = container.chunk_size
        with torch.no_grad():
            images, expected = loaded.decode(), container.decode()
        same = torch.equal(loaded.labels, container.labels) and images.shape == expected.shape
        same = same and torch.allclose(images.float(), expected.float(), rtol=1e-3, atol=1e-4, equal_nan=True)
    except DDPluginsError:
        raise
    except Exception as error:  # whatever its code reads is missing after loading
        if is_out_of_memory(error):
            raise
        logger.exception("%s does not decode from its file", plugin)
        same, why = False, f" ({type(error).__name__}: {' '.join(str(error).split())})"
    else:
        why = ""
    if not same:
        raise PluginContractError(
            f"{plugin}: what was stored gives other images than what was condensed{why}; "
            f"whatever _decode reads must be an nn.Parameter or a buffer (dd-bench check {plugin})"
        )
    return content


@contextmanager
def naming_plugin(where: str) -> Iterator[None]:
    """A scope within which an unexpected error gets a note that names the plugin at work."""
    try:
        yield
    except DDPluginsError:
        raise
    except Exception as error:
        error.add_note(f"in {where}")
        raise
