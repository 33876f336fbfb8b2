"""From a set that is larger than its budget to one that fits: score, choose on validation, drop, store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmark_adapters.runs.parts import Options
from benchmark_adapters.runs.progress import Reporter
from benchmark_adapters.runs.scoring import score_trials
from benchmark_adapters.runs.store import CANDIDATE, RunFolder
from dd_plugins import registry
from dd_plugins.api import (
    Context,
    FolderArtifacts,
    IncompatibleError,
    Parameterization,
    PluginContractError,
    PruningStrategy,
    PruningUnits,
    RealData,
    SyntheticSet,
    UsageError,
    read_tensors,
    write_tensors,
)
from dd_plugins.engine.config import RunConfig
from dd_plugins.engine.distilled import load_stored
from dd_plugins.engine.parts import build_container, network_factory
from dd_plugins.engine.protocols import Protocol
from dd_plugins.errors import EmptyClassError
from dd_plugins.seeds import make_generator, seed_for


def check_pruning(config: RunConfig, container: Parameterization, within: Parameterization | None = None) -> None:
    """Finds what is wrong with a pruning before hours are spent on the larger set.

    Args:
        config: The run.
        container: The larger set.
        within: The set as it is within its budget, where that is where pruning ends.

    Raises:
        IncompatibleError: If the container cannot drop single images.
        UsageError: If the larger set is no larger.
    """
    strategy_of(config)
    if not container.prunable():
        raise IncompatibleError(
            f"{config.parameterization.name} cannot be pruned: none of its images is stored apart from the others"
        )
    if within is not None and len(unit_labels(container)[0]) <= len(unit_labels(within)[0]):
        raise UsageError(
            f"{config.over_budget:g} over the budget of {config.parameterization.name} at IPC {config.ipc} is not one "
            f"image of each class more; there is nothing to prune (--over-budget, or a larger IPC)"
        )


def prune(
    config: RunConfig, real: RealData, larger: RunFolder, folder: RunFolder, options: Options, reporter: Reporter
) -> None:
    """Brings the set of ``larger`` into the budget of ``config`` and stores it in ``folder``; ``larger`` stays."""
    container = load_stored(larger.synthetic).to(options.device)
    container.chunk_size = options.chunk_size
    within = build_container(config, real, within=True)
    before, keep = container.storage().elements, len(unit_labels(within)[0])
    note = prune_container(container, keep, larger.digest(), config, real, folder, options, reporter)
    container.budget, container.data_source = within.budget, within.data_source
    ledger = container.storage()
    ledger.enforce(within.budget.scaled(container.budget_ratio()), config.parameterization.name)
    container.cpu().save(folder.synthetic, registry.find("parameterization", config.parameterization.name).spec)
    reporter.say(f"pruned: {before} -> {ledger.elements} elements, budget {within.budget.elements}")
    (folder.path / "preview.png").unlink(missing_ok=True)
    folder.mark("prune", larger=larger.path.name, elements=[before, ledger.elements], **note)
    folder.mark("condense", **{**larger.stages()["condense"], "sha256": folder.digest()})


def prune_container(
    container: Parameterization,
    keep: int,
    digest: str,
    config: RunConfig,
    real: RealData,
    folder: RunFolder,
    options: Options,
    reporter: Reporter,
) -> dict[str, Any]:
    """Scores the images of a container, chooses among the strategy's candidates, and drops the others.

    Scores lie in ``scores.safetensors`` of the folder and every trial of every candidate in ``trials.jsonl``, so that
    an interrupted pruning goes on where it was.

    Args:
        container: Pruned in place.
        keep: Images, or units of them, that stay.
        digest: Names the container's content: scores of another one are not taken.
        config: Strategy, network, seed, and the protocol that chooses.
        real: Whose validation split decides.
        folder: Where scores and trials go.
        options: Device.
        reporter: Shows the progress.

    Returns:
        What was done, for the record.
    """
    begun = time.perf_counter()
    units, owners = unit_labels(container)
    images = SyntheticSet("over budget", real.spec, container.decode(), container.labels, container.storage())
    strategy = strategy_of(config)
    check_selection(strategy, units, keep, real.class_names)
    score = _scores(config, strategy, images, real, folder, options, reporter, digest)
    of_units = torch.zeros(len(units), dtype=score.dtype).index_add(0, owners, score) / torch.bincount(owners)
    candidates = [(one, _kept(one, of_units, units, keep)) for one in strategy.candidates()]
    chosen, tried = _choose(candidates, owners, images, config, real, folder, options, reporter, digest)
    index = torch.nonzero(torch.isin(owners, candidates[chosen][1])).flatten()
    container.keep(index.to(container.labels.device))
    return {
        "strategy": config.pruning.name if config.pruning else "",
        "settings": candidates[chosen][0].config.model_dump(mode="json"),
        "images": [len(images.targets), len(index)],
        "kept": index.tolist(),
        "candidates": tried,
        "prune_seconds": round(time.perf_counter() - begun, 2),
    }


def check_selection(strategy: PruningStrategy, units: Tensor, keep: int, class_names: Sequence[str]) -> None:
    """Finds what cannot be selected before networks are trained for the scores.

    Args:
        strategy: Each of its candidates selects.
        units: The label of every unit; int64.
        keep: Units that stay.
        class_names: Of the data set.

    Raises:
        EmptyClassError: If a class would be left with no image; names it.
    """
    try:
        for one in strategy.candidates():
            _kept(one, torch.zeros(len(units), dtype=torch.float64), units, keep)
    except EmptyClassError as error:
        raise error.named(class_names) from None


def unit_labels(container: Parameterization) -> tuple[Tensor, Tensor]:
    """What can be dropped alone: the label of every unit, and the unit of every image; int64, on the CPU."""
    labels = container.labels.cpu()
    owners = container.units().cpu() if isinstance(container, PruningUnits) else torch.arange(len(labels))
    of_unit = torch.zeros(int(owners.max()) + 1, dtype=torch.int64)
    of_unit[owners] = labels
    return of_unit, owners


def choose(accuracies: Sequence[float]) -> int:
    """The best candidate, the first of equals."""
    return max(range(len(accuracies)), key=lambda k: (accuracies[k], -k))


def strategy_of(config: RunConfig) -> PruningStrategy:
    """The strategy of a run.

    Raises:
        UsageError: If the run is not pruned.
    """
    if config.pruning is None:
        raise UsageError("this run is not pruned")
    settings = config.pruning.settings
    if settings.get("seed", 0) is None:
        settings["seed"] = config.seed
    made: PruningStrategy = registry.create("pruning", config.pruning.name, settings)
    return made


def _scores(
    config: RunConfig,
    strategy: PruningStrategy,
    images: SyntheticSet,
    real: RealData,
    folder: RunFolder,
    options: Options,
    reporter: Reporter,
    larger: str,
) -> Tensor:
    """The score of every image, from the folder if it is there for the same larger set (its sha256)."""
    file = folder.path / "scores.safetensors"
    if file.exists():
        tensors, notes = read_tensors(file)
        if notes.get("larger") == larger:
            return tensors["score"]
    context = Context(
        network_factory(config, real, options.device),
        make_generator(seed_for("pruning", config.seed)),
        config.steps,
        options.device,
        artifacts=FolderArtifacts(options.out),
        network=config.network.model_dump(mode="json"),
        job=reporter.watch,
    )
    score = strategy.score(images, context).double().cpu()
    if score.shape != images.targets.shape:
        raise PluginContractError(
            f"{type(strategy).__name__}.score: expected {tuple(images.targets.shape)}, but got {tuple(score.shape)}"
        )
    if not bool(torch.isfinite(score).all()):
        bad = int((~torch.isfinite(score)).sum())
        raise UsageError(f"{bad} of {len(score)} scores are NaN or infinite; the larger set is kept")
    write_tensors(file, {"score": score}, {"larger": larger})
    return score


def _kept(strategy: PruningStrategy, score: Tensor, targets: Tensor, keep: int) -> Tensor:
    kept = strategy.select(score, targets, keep).cpu()
    if len(kept) != keep or len(kept.unique()) != keep or int(kept.min()) < 0 or int(kept.max()) >= len(targets):
        raise PluginContractError(
            f"{type(strategy).__name__}.select: expected {keep} different images of {len(targets)}, but got {len(kept)}"
        )
    return kept


def _choose(
    candidates: Sequence[tuple[PruningStrategy, Tensor]],
    owners: Tensor,
    images: SyntheticSet,
    config: RunConfig,
    real: RealData,
    folder: RunFolder,
    options: Options,
    reporter: Reporter,
    larger: str,
) -> tuple[int, list[dict[str, Any]]]:
    """The candidate whose images train networks best on the validation split, and all that were tried."""
    if len(candidates) == 1:
        return 0, []
    protocol: Protocol = config.choosing
    scored: dict[tuple[int, ...], tuple[float, ...]] = {}
    tried: list[dict[str, Any]] = []
    for position, (strategy, kept) in enumerate(candidates):
        same = tuple(kept.tolist())  # of few images many candidates drop the same ones
        if same not in scored:
            index = torch.nonzero(torch.isin(owners, kept)).flatten().to(images.targets.device)
            part = SyntheticSet(images.name, images.data, images.images[index], images.targets[index], images.ledger)
            title = f"candidate {position + 1} of {len(candidates)}"
            place = f"{CANDIDATE}{position}/{larger[:10]}/{protocol.hash}/{protocol.network.name}"
            found = score_trials(part, protocol, config.ipc, title, folder, real, options.device, reporter, place)
            scored[same] = found
        accuracies = scored[same]
        settings = strategy.config.model_dump(mode="json")
        tried.append({"settings": settings, "accuracy": fmean(accuracies), "trials": list(accuracies)})
    return choose([float(entry["accuracy"]) for entry in tried]), tried
