"""Where the time goes: a few matching steps and a few updates of the evaluation under torch's profiler."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from benchmark_adapters.runs.parts import Options, load_real
from benchmark_adapters.runs.pipeline import check_plan
from dd_plugins.api import Parameterization, RealData
from dd_plugins.engine.callbacks import Callback
from dd_plugins.engine.config import RunConfig
from dd_plugins.engine.distillation import start
from dd_plugins.networks import build_network
from dd_plugins.training import Plan, accuracy, networks_at_once, train_networks

CONDENSE_PARTS = ("select", "decode", "match", "pull back", "update")
TRAIN_PARTS = ("batch", "forward", "backward", "update")
OPERATORS = 8  # listed for each phase


@dataclass(frozen=True)
class Phase:
    """One phase of a run.

    Attributes:
        name: What it is.
        unit: What is repeated: a step or an update.
        seconds: Wall time of one unit, without the profiler.
        cpu_seconds: Processor time of one unit, over all threads.
        parts: Share of each named part of a unit, 0 to 1.
        operators: The operators with most time of their own: name, share.
        notes: What else was measured, for people.
    """

    name: str
    unit: str
    seconds: float
    cpu_seconds: float
    parts: dict[str, float]
    operators: dict[str, float]
    notes: str


def profile_run(config: RunConfig, options: Options, reporter: Callback, steps: int) -> tuple[Phase, Phase]:
    """Profiles the condensation and the evaluation of a run; nothing is stored.

    Args:
        config: The run.
        options: Its device and data; ``out`` holds what runs share, such as expert trajectories.
        reporter: Shows the progress of one-off work.
        steps: Matching steps, and SGD updates, to measure.
    """
    real = load_real(config, options)
    parts, runtime = check_plan(config, real), options.runtime(reporter)
    with runtime.execution.for_data(real.spec).scope():
        begun = time.perf_counter()
        condensation = start(parts, runtime)
        started = time.perf_counter()

        def take_steps() -> None:
            for _ in range(steps):
                condensation.take_step()
                condensation.step += 1

        condensation.take_step()
        condensation.step += 1
        first = time.perf_counter() - started
        seconds, cpu_seconds = _timed(take_steps, steps, options.device)
        shares, operators = _profiled(take_steps, CONDENSE_PARTS, options.device)
    container = condensation.parameterization
    whole = started - begun + first + (config.steps - 1) * seconds
    notes = (
        f"start {started - begun:.1f} s, first step {first:.1f} s; {config.steps} steps make {whole / 60:.1f} min; "
        f"{sum(container.counts)} images"
    )
    condense = Phase("condensation", "step", seconds, cpu_seconds, shares, operators, notes)
    return condense, _profile_evaluation(config, container, real, options.device, steps)


def _profile_evaluation(
    config: RunConfig, container: Parameterization, real: RealData, device: torch.device, updates: int
) -> Phase:
    protocol, spec = config.protocol, real.spec
    with torch.no_grad():
        images = container.decode()
    budget_images = config.ipc * spec.num_classes
    plan = Plan.of(protocol.train, len(images), budget_images)
    short = protocol.train.model_copy(
        update={"epochs": max(1, math.ceil(updates / plan.per_epoch)), "match_updates": False}
    )
    count = min(networks_at_once(spec, container.labels, short), protocol.trials)
    taken = Plan.of(short, len(images)).total * count
    networks = [
        build_network(
            protocol.network.name,
            spec.image_shape,
            spec.num_classes,
            protocol.network.settings,
            seed=seed,
            device=device,
        )
        for seed in range(count)
    ]

    def train() -> None:
        train_networks(networks, images, container.labels, short, spec, seeds=range(count))

    train()
    seconds, cpu_seconds = _timed(train, taken, device)
    parts, operators = _profiled(train, TRAIN_PARTS, device)
    begun = time.perf_counter()
    test = real.validation  # the test images are for scores alone; these cost the same
    accuracy(networks[0], test.images, test.labels)
    testing = (time.perf_counter() - begun) / len(test) * len(real.test)
    whole = protocol.trials * (plan.total * seconds + testing)
    notes = (
        f"{count} networks at a time; {plan.total:,} updates a trial, {testing:.1f} s to test; "
        f"{protocol.trials} trials make {whole / 60:.1f} min"
    )
    name = f"evaluation ({protocol.name}, {protocol.network.name})"
    return Phase(name, "update", seconds, cpu_seconds, parts, operators, notes)


def _timed(work: Callable[[], None], count: int, device: torch.device) -> tuple[float, float]:
    """Wall and processor time of one of ``count`` repetitions, in seconds."""
    _synchronize(device)
    begun, cpu_begun = time.perf_counter(), time.process_time()
    work()
    _synchronize(device)
    return (time.perf_counter() - begun) / count, (time.process_time() - cpu_begun) / count


def _profiled(
    work: Callable[[], None], parts: tuple[str, ...], device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of the named parts and of the operators that take most time of their own."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(activities=activities, experimental_config=every_thread) as profiler:
        work()
        _synchronize(device)
    events = profiler.key_averages()
    named = {event.key: event.cpu_time_total for event in events if event.key in parts}
    own: dict[str, float] = {event.key: _own_time(event, device) for event in events if "::" in event.key}
    highest = sorted(own, key=lambda key: -own[key])[:OPERATORS]
    return _shares({part: named.get(part, 0.0) for part in parts}), {
        key: own[key] / max(sum(own.values()), 1e-9) for key in highest
    }


def _own_time(event: Any, device: torch.device) -> float:
    return float(event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total)


def _shares(values: dict[str, float]) -> dict[str, float]:
    total = max(sum(values.values()), 1e-9)
    return {name: value / total for name, value in values.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
