"""The pruned set of a run, made from the larger set of another run folder."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmark_adapters.runs.parts import Options
from benchmark_adapters.runs.store import RunFolder
from dd_plugins import registry
from dd_plugins.api import RealData
from dd_plugins.engine.callbacks import Callback
from dd_plugins.engine.config import RunConfig
from dd_plugins.engine.distilled import load_stored
from dd_plugins.engine.parts import build_container
from dd_plugins.engine.pruning import Pruner, PruningReport, build_pruning, unit_labels


def prune(
    config: RunConfig, real: RealData, larger: RunFolder, folder: RunFolder, options: Options, reporter: Callback
) -> None:
    """Prunes the set of ``larger`` to the budget of ``config`` and stores it in ``folder``; ``larger`` stays."""
    container = load_stored(larger.synthetic).to(options.device)
    container.chunk_size = options.chunk_size
    within = build_container(config, real, within=True)
    before, keep = container.storage().elements, len(unit_labels(within)[0])
    pruner = Pruner(build_pruning(config, real), real, larger.digest(), options.runtime(reporter), folder)
    report = pruner.prune(container, keep)
    container.budget, container.data_source = within.budget, within.data_source
    ledger = container.storage()
    ledger.enforce(within.budget.scaled(container.budget_ratio()), config.parameterization.name)
    container.cpu().save(folder.synthetic, registry.find("parameterization", config.parameterization.name).spec)
    reporter.on_message(f"pruned: {before} -> {ledger.elements} elements, budget {within.budget.elements}")
    (folder.path / "preview.png").unlink(missing_ok=True)
    folder.mark("prune", larger=larger.path.name, elements=[before, ledger.elements], **notes_of(config, report))
    folder.mark("condense", **{**larger.stages()["condense"], "sha256": folder.digest()})


def notes_of(config: RunConfig, report: PruningReport) -> dict[str, Any]:
    """What a run folder keeps of a pruning."""
    notes = asdict(report)
    return {"strategy": config.pruning.name if config.pruning else "", "prune_seconds": notes.pop("seconds"), **notes}
