"""The public calls of the package: load, distill, evaluate, prune, train."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import nn

from dd_plugins import registry
from dd_plugins.api import Cell, DataError, RealData, ScoreContext, SyntheticSet, UsageError, read_stored
from dd_plugins.datasets import load_dataset
from dd_plugins.engine.config import RunConfig, resolve
from dd_plugins.engine.distillation import condense
from dd_plugins.engine.distilled import Distilled, load_stored
from dd_plugins.engine.evaluation import evaluate as evaluate_set
from dd_plugins.engine.memory import estimate_memory
from dd_plugins.engine.networks import NetworkFactory
from dd_plugins.engine.parts import build_parts
from dd_plugins.engine.protocols import Protocol, default_protocol, resolve_protocol
from dd_plugins.engine.pruning import Pruner, build_pruning, check_pruning, unit_labels
from dd_plugins.engine.runtime import Runtime
from dd_plugins.engine.score import Score
from dd_plugins.errors import allocator_errors
from dd_plugins.seeds import seed_for
from dd_plugins.training import train_networks

__all__ = ["create", "distill", "evaluate", "load", "load_dataset", "prune", "train"]

Part = str | Mapping[str, Any]  # a plugin by name, or its name and settings: {"name": "hmn", "grid": 4}


class Choices(TypedDict, total=False):
    """What `distill` and `prune` take by keyword besides their own arguments.

    Attributes:
        parameterization: The container, by name, or by name with settings: ``{"name": "hmn", "memory_lr": 0.03}``.
        objective: In the same way; with the container alone a method that fits is chosen, as the command does.
        network: What the objective trains.
        pruning: Condense a set over the budget and prune it into the budget.
        over_budget: Share over the budget, 0.1 with ``pruning``.
        steps: Matching steps.
        minutes: Time limit of the condensation.
        protocol: Chooses among prunings, on the validation split.
    """

    parameterization: Part
    objective: Part
    network: Part
    pruning: Part
    over_budget: float
    steps: int
    minutes: float
    protocol: Part


def distill(
    real: RealData,
    method: str | None = None,
    ipc: int = 1,
    seed: int = 0,
    *,
    settings: Mapping[str, Any] | None = None,
    runtime: Runtime | None = None,
    **choices: Unpack[Choices],
) -> Distilled:
    """Distils a data set into a small synthetic one.

    Equal arguments give the same set as the command ``dd-bench run``, bit for bit on the CPU for equal threads.

    Args:
        real: From `load_dataset` or ``RealData.from_tensors``; the computation runs on its device.
        method: A named method: parts with their published settings for the data set and the budget.
        ipc: The budget in images per class.
        seed: Of initialisation and matching.
        settings: Single settings by dotted keys, as ``--set`` of the command takes them: ``{"optimizer.lr": 0.1}``.
        runtime: Callbacks, checkpointer, threads, chunk size; nothing in it but ``threads`` changes the result.
        **choices: Single parts; see `Choices`.

    Returns:
        The set, rebuilt from the bytes of its file alone.

    Raises:
        UsageError: If a name or a setting is wrong, or parts do not work together; before anything is computed.
        NotEnoughMemory: If it cannot fit into memory; before anything is allocated.
        Stopped: If a callback asked to stop; call again with the same checkpointer to go on.
        DivergedError: If a loss or gradient is NaN or infinite.

    Example:
        >>> import dd_plugins as dd
        >>> real = dd.load_dataset("digits")
        >>> distilled = dd.distill(real, "dm", ipc=1, steps=2)
        >>> distilled.images.shape
        torch.Size([10, 1, 8, 8])
    """
    config = _configure(real, {"method": method, "ipc": ipc, "seed": seed}, choices, settings)
    runtime = _on_device_of(real, runtime)
    with allocator_errors():
        estimate_memory(config, real).check()
        parts = build_parts(config, real)
        content, history = condense(parts, runtime)
        name = f"{config.parameterization.name} + {config.objective.name}"
        if parts.pruning is None or parts.within is None:
            return Distilled(content, name=name, device=real.device, history=history)
        container = load_stored(content).to(real.device)
        container.chunk_size = runtime.chunk_size
        digest = hashlib.sha256(content).hexdigest()
        pruner = Pruner(parts.pruning, real, digest, runtime)
        report = pruner.prune(container, len(unit_labels(parts.within)[0]))
        container.budget = parts.within.budget
        pruned = container.cpu().to_bytes(parts.plugin)
    return Distilled(pruned, name=name, device=real.device, history=history, pruning=report)


def load(source: str | Path | bytes, device: str | torch.device = "cpu") -> Distilled:
    """Reads a synthetic set; no real data is needed.

    Args:
        source: The file of a set, the folder of a run, or the bytes of a file.
        device: Where images and targets are.

    Raises:
        SyntheticFileError: If there is no such file, or if it is damaged.
    """
    return Distilled.load(source, device)


def evaluate(
    distilled: Distilled | SyntheticSet,
    real: RealData,
    protocol: Part | None = None,
    *,
    trials: int | None = None,
    network: Part | None = None,
    runtime: Runtime | None = None,
) -> Score:
    """Trains fresh networks on a synthetic set and tests each once on real images, after the last epoch.

    Args:
        distilled: The set.
        real: The data set that it was made from.
        protocol: A named protocol, or its name with values to replace: ``{"name": "dsa", "train.epochs": 300}``; by
            default that of the command: ``quick`` for the digits, else ``dsa``.
        trials: Number of networks; by default that of the protocol.
        network: Another architecture.
        runtime: Callbacks.

    Raises:
        DataError: If the set was made from other classes or another image shape.
        NotEnoughMemory: If the networks do not fit into memory.
    """
    synthetic = distilled.synthetic_set() if isinstance(distilled, Distilled) else distilled
    ipc = distilled.ipc if isinstance(distilled, Distilled) else len(synthetic.targets) / real.spec.num_classes
    _check_same_data(synthetic, real)
    values: dict[str, Any] = {"trials": trials} if trials is not None else {}
    chosen = _protocol(protocol or default_protocol(_known_as(real)), network, values)
    runtime = _on_device_of(real, runtime)
    begun = time.perf_counter()
    with allocator_errors(), runtime.callback.job(f"evaluate ({chosen.name}, {chosen.network.name})", 1) as job:
        context = ScoreContext(real, real.device, on_update=job.update_total)
        cell = Cell(real.spec.name, max(1, round(ipc)), chosen.network.name)
        accuracies = evaluate_set(synthetic, chosen, cell, context)
    seconds = time.perf_counter() - begun
    return Score(
        synthetic.name, accuracies, chosen.name, chosen.hash, chosen.network.name, chosen.split, round(seconds, 2)
    )


def prune(
    distilled: Distilled,
    real: RealData,
    strategy: Part = "aum",
    keep: float = 0.9,
    seed: int = 0,
    *,
    runtime: Runtime | None = None,
    **choices: Unpack[Choices],
) -> Distilled:
    """Keeps a share of the images of a set; its budget stays what it was.

    Args:
        distilled: The set; it is not changed.
        real: The data set that it was made from; candidates are compared on its validation split.
        strategy: A pruning strategy, by name or with settings: ``{"name": "aum", "beta": 0.2}``.
        keep: The share of the images that is kept, above 0 and at most 1.
        seed: Of the strategy's randomness.
        runtime: Callbacks, chunk size.
        **choices: ``network`` for the scores, ``protocol`` to compare candidates.

    Raises:
        UsageError: If ``keep`` is no share, or a class would be left with no image.
        IncompatibleError: If the container cannot drop single images.
    """
    if not 0 < keep <= 1:
        raise UsageError(f"keep = {keep}: expected a share of the set, above 0 and at most 1")
    if unused := sorted(set(choices) - {"network", "protocol"}):
        raise UsageError(f"prune takes network and protocol by keyword, but got {', '.join(unused)}")
    _check_same_data(distilled.synthetic_set(), real)
    flags = {"ipc": max(1, round(distilled.ipc)), "seed": seed, "parameterization": "pixel"}
    config = _configure(real, flags, {"pruning": strategy, "over_budget": 0.0, **choices}, None)
    container = load_stored(distilled.content).to(real.device)
    check_pruning(distilled.name, container)
    runtime = _on_device_of(real, runtime)
    container.chunk_size = runtime.chunk_size
    digest = hashlib.sha256(distilled.content).hexdigest()
    with allocator_errors():
        pruner = Pruner(build_pruning(config, real), real, digest, runtime)
        report = pruner.prune(container, int(Fraction(str(keep)) * len(unit_labels(container)[0])))
    content = container.cpu().to_bytes(registry.find("parameterization", _plugin_of(distilled)).spec)
    return Distilled(content, name=distilled.name, device=real.device, history=distilled.history, pruning=report)


def train(
    network: nn.Module,
    distilled: Distilled | SyntheticSet,
    protocol: Part = "dsa",
    seed: int = 0,
    *,
    runtime: Runtime | None = None,
) -> nn.Module:
    """Trains a network of one's own on a synthetic set, as the evaluator would.

    Args:
        network: Takes images in model space, ``(B, C, H, W)``, and returns logits, ``(B, classes)``. Trained in place,
            on the device of its parameters.
        distilled: The set.
        protocol: As for `evaluate`; its network and trials are not used.
        seed: Decides batch order and augmentation, as the number of a trial does for `evaluate`.
        runtime: Callbacks.

    Returns:
        The network.
    """
    synthetic = distilled.synthetic_set() if isinstance(distilled, Distilled) else distilled
    ipc = distilled.ipc if isinstance(distilled, Distilled) else len(synthetic.targets) / synthetic.data.num_classes
    device = next((parameter.device for parameter in network.parameters()), synthetic.images.device)
    chosen, callback = _protocol(protocol, None, {}), (runtime or Runtime()).callback
    with allocator_errors(), callback.job("train", 1) as job:
        train_networks(
            [network],
            synthetic.images.to(device),
            synthetic.targets.to(device),
            chosen.train,
            synthetic.data,
            seeds=[seed_for("eval", seed)],
            budget_images=max(1, round(ipc)) * synthetic.data.num_classes,
            on_update=job.update_total,
        )
    return network


def create(kind: str, name: str, *args: Any, **settings: Any) -> Any:
    """Creates one part by its name, as `timm.create_model` does.

    Args:
        kind: ``parameterization``, ``objective``, ``pruning``, ``dataset``, ``network`` or ``benchmark``.
        name: ``name``, ``distribution/name`` or ``module:Class``.
        *args: The arguments of the class before its settings; see its base class in ``dd_plugins.api``.
        **settings: Its settings.

    Raises:
        UnknownPluginError: If there is none of this name.
        ConfigError: If a setting is unknown or not allowed.

    Example:
        >>> from dd_plugins.api import DataSpec, StorageBudget
        >>> spec = DataSpec.example()
        >>> create("parameterization", "pixel", spec, StorageBudget.ipc(spec, 2), init="noise").counts
        (2, 2)
    """
    if kind == "network":
        return NetworkFactory(name, settings, args[0], torch.device("cpu"))(*args[1:])
    return registry.create(kind, name, *args, settings)


# ---- configuration --------------------------------------------------------------------------------------------------


def _configure(
    real: RealData, flags: Mapping[str, Any], choices: Mapping[str, Any], settings: Mapping[str, Any] | None
) -> RunConfig:
    """The configuration that the command would resolve for the same arguments."""
    given: dict[str, Any] = {**flags, "dataset": real.source.dataset or real.spec.name}
    given |= {f"data.{key}": value for key, value in real.source.settings.items()}
    for part, value in choices.items():
        given |= _flat(part, value)
    return resolve({**given, **(settings or {})})


def _flat(part: str, value: Any) -> dict[str, Any]:
    """A part as dotted keys."""
    if not isinstance(value, Mapping):
        return {part: value}
    if not isinstance(value.get("name"), str):
        raise UsageError(f"{part} = {dict(value)!r}: expected a name, or a mapping with a name and settings")
    return {part: value["name"], **{f"{part}.{key}": each for key, each in value.items() if key != "name"}}


def _protocol(protocol: Part, network: Part | None, values: Mapping[str, Any]) -> Protocol:
    given = {**_flat("protocol", protocol), **({} if network is None else _flat("network", network))}
    name = given.pop("protocol")
    replaced = {key.removeprefix("protocol."): value for key, value in given.items()}
    if "network" in replaced:
        replaced["network.name"] = replaced.pop("network")
    return resolve_protocol(name, {**replaced, **values})


def _known_as(real: RealData) -> str:
    return str(real.source.settings.get("as") or real.source.dataset or real.spec.name)


def _plugin_of(distilled: Distilled) -> str:
    return read_stored(distilled.content)[0].plugin


def _on_device_of(real: RealData, runtime: Runtime | None) -> Runtime:
    runtime = runtime or Runtime()
    return replace(runtime, execution=replace(runtime.execution, device=real.device))


def _check_same_data(synthetic: SyntheticSet, real: RealData) -> None:

    made, found = synthetic.data, real.spec
    if (made.image_shape, made.num_classes) != (found.image_shape, found.num_classes):
        raise DataError(
            f"the set was made from {made.name} ({made.num_classes} classes of {made.image_shape}), but the data is "
            f"{found.name} with {found.num_classes} classes of {found.image_shape}"
        )
    if made.fingerprint != found.fingerprint:
        raise DataError(
            f"the set was made from {made.name} with fingerprint {made.fingerprint}, the data has {found.fingerprint}: "
            f"other pixels, labels, splits, mean or standard deviation"
        )
