"""Records of runs: new ones, those of runs that were not scored to the end, and what made them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmark_adapters.runs.schema import Failure, RunRecord
from benchmark_adapters.runs.store import RunFolder, read_checked, read_record_file
from benchmark_adapters.runs.system import versions
from dd_plugins import registry
from dd_plugins.api import DataSpec, DDPluginsError, StorageBudget, StorageLedger, read_stored
from dd_plugins.engine.config import RunConfig, read_config
from dd_plugins.engine.keys import PARTS

KINDS = {**PARTS, "pruning": "pruning"}  # the plugin kind of each part of a record
PACKAGES = ("dd-plugins", "torch")  # whose versions decide a result


def make_record(config: RunConfig, data: DataSpec, run_id: str, folder: RunFolder) -> dict[str, Any]:
    """The record so far, or a new one."""
    known = read_record_file(folder.record, RunRecord)
    if known is None:
        return new_record(config, data, run_id, folder)
    if rename_data(known, config, data):
        (folder.path / "preview.png").unlink(missing_ok=True)  # its title has the name
    return known


def rename_data(record: dict[str, Any], config: RunConfig, data: DataSpec) -> bool:
    """Gives a record the names of the data set that this call uses: equal content may have been read elsewhere.

    Returns:
        Whether the record has changed.
    """
    before = record["data"], record.get("config")
    record["data"] = json.loads(json.dumps(data.to_dict()))  # lists, as a record that was read has them
    if "config" in record:
        record["config"] = {**record["config"], "dataset": config.dataset, "data": config.data}
    return before != (record["data"], record.get("config"))


def new_record(config: RunConfig, data: DataSpec, run_id: str, folder: RunFolder) -> dict[str, Any]:
    """The record of a stored set without scores, from the file of the set and the notes of its condensation."""
    header, tensors = read_stored(folder.synthetic)
    ledger = StorageLedger.of(sorted(tensors.items()))
    stages = folder.stages()
    made = stages.get("condense", {})
    return {
        "id": run_id,
        "name": _name(config),
        "status": "stored",
        "config": config.model_dump(mode="json"),
        "data": data.to_dict(),
        "plugins": {
            "method": _plugin("method", config.method),
            **{part: _plugin(kind, chosen.name) for part, kind in KINDS.items() if (chosen := getattr(config, part))},
        },
        "versions": versions(),
        "storage": {
            "elements": ledger.elements,
            "bytes": ledger.nbytes,
            "budget": StorageBudget.ipc(data, config.ipc).elements,
            "ledger": [asdict(entry) for entry in ledger.entries],
            "priors": made.get("priors", []),
        },
        "images_per_class": list(header.counts),
        "condensation": made,
        **({"pruning": stages["prune"]} if "prune" in stages else {}),
        "scores": [],
        "yardsticks": [],
    }


def _name(config: RunConfig) -> str:
    parts = (config.parameterization.name, config.objective.name)
    name = " + ".join(parts) + (f" ({config.method})" if config.method not in parts else "")
    if config.pruning is not None:
        return f"{name}, {config.pruning.name}"
    return f"{name}, {100 * config.over_budget:g}% over budget" if config.over_budget else name


def _plugin(kind: str, name: str) -> dict[str, str]:
    try:
        return registry.find(kind, name).record()
    except DDPluginsError:  # the set was made where it is installed
        return {"name": name}


def unscored_record(folder: RunFolder) -> dict[str, Any] | None:
    """The record, without scores, of a run that stored its set and was interrupted before its record was written.

    Returns:
        None if the set is not stored yet.
    """
    if not is_stored(folder):
        return None
    folder.check_stored()
    header, _ = read_stored(folder.synthetic)
    return new_record(read_config(folder.path / "config.yaml"), header.data, folder.path.name, folder)


def is_stored(folder: RunFolder) -> bool:
    """Whether a run has stored its set."""
    return "condense" in folder.stages() and folder.synthetic.exists()


def how_far(folder: RunFolder) -> str:
    """Where a run without a finished record stands, and what continues it."""
    hint = "; remove it, or run the command again"
    if (failure := read_checked(folder.failure, Failure, hint)) is not None:
        where = f"{failure['status']}: {failure['message']}"
    else:
        where = _scored_so_far(folder) if is_stored(folder) else _condensed_so_far(folder)
    return f"{where}; the command that began it continues it{_command(folder)}"


def _command(folder: RunFolder) -> str:
    """The command that continues a run, in brackets; empty for sets that were imported, or pruned by a command."""
    config = read_config(folder.path / "config.yaml")
    if (config.pruning and not config.over_budget) or "imported" in folder.stages().get("condense", {}):
        return ""
    out = "" if folder.path.parent == Path("runs") else f" --out {shlex.quote(str(folder.path.parent))}"
    return f" (dd-bench run --config {shlex.quote(str(folder.path / 'config.yaml'))}{out})"


def _scored_so_far(folder: RunFolder) -> str:
    protocol = read_config(folder.path / "config.yaml").protocol
    done = len(folder.known_trials(f"{protocol.hash}/{protocol.network.name}"))
    return f"not finished: the set is stored, and {min(done, protocol.trials)} of {protocol.trials} trials are scored"


def _condensed_so_far(folder: RunFolder) -> str:
    config = read_config(folder.path / "config.yaml")
    notes = folder.checkpoint_notes()
    if notes is not None:
        return f"not finished: condensed up to step {notes.step:,} of {config.steps:,} at its last checkpoint"
    if config.pruning is not None:
        return "not finished: the larger set that it is pruned from is condensed in a run of its own"
    return f"not finished: no checkpoint yet, of {config.steps:,} steps"


# ---- the code that made a record ------------------------------------------------------------------------------------


def code_check() -> Callable[[Mapping[str, Any]], list[str]]:
    """A function from a record to the differences between the code that made it and the code that is installed."""
    packages = cache(_installed_version)

    @cache
    def installed(kind: str, spec: str) -> dict[str, str] | None:
        try:
            info = registry.find(kind, spec)
        except DDPluginsError:
            return None
        return info.record() if info.source() else None

    def differences(record: Mapping[str, Any]) -> list[str]:
        then = record.get("versions", {})
        found = [_package_difference(package, then.get(package), packages(package)) for package in PACKAGES]
        for part, made in record.get("plugins", {}).items():
            now = installed(KINDS[part], _spec_of(made)) if part in KINDS else made
            found.append(_plugin_difference(f"{part} {made.get('name')}", made, now))
        return [line for line in found if line]

    return differences


def _spec_of(made: Mapping[str, str]) -> str:
    """The name by which the plugin of a record is found today."""
    name, distribution = str(made.get("name")), made.get("distribution")
    if distribution == registry.MODULE:
        return str(made.get("entry_point"))
    return name if distribution in (registry.OWN, None) else f"{distribution}/{name}"


def _installed_version(package: str) -> str:
    try:
        return version(package).partition("+")[0]  # without the build, such as cu130
    except PackageNotFoundError:
        return "none"


def _package_difference(package: str, made: str | None, now: str) -> str:
    then = None if made is None else made.partition("+")[0]
    return "" if then in (None, now) else f"{package} {then}, installed is {now}"


def _plugin_difference(who: str, made: Mapping[str, str], now: Mapping[str, str] | None) -> str:
    if now is None:
        return f"{who}, which is not installed"
    if made.get("version") not in (None, now.get("version")):
        return f"{who} of version {made['version']}, installed is {now.get('version')}"
    then, today = made.get("sha256"), now.get("sha256", "")
    if then in (None, today):
        return ""
    return f"{who} of another source (sha256 {then[:8]}, installed is {today[:8]})"
