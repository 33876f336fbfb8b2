"""The configuration of a run: built-in defaults < method < ``--config`` file < flags and ``--set``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from dd_plugins import registry
from dd_plugins.api import ConfigError, PluginConfig, parse_config
from dd_plugins.api.faults import shortened
from dd_plugins.api.reading import dump_yaml, parse_yaml, read_json, read_yaml, validated
from dd_plugins.datasets import settings_model, split_spec
from dd_plugins.engine.files import canonical_names
from dd_plugins.engine.keys import PARTS, SECTIONS, flag_key, flatten, nest
from dd_plugins.engine.methods import choose_method, exchanged_container
from dd_plugins.engine.protocols import PartConfig, Protocol, default_protocol, protocol_with
from dd_plugins.engine.suggestions import unknown_keys
from dd_plugins.names import near, quoted

CHOICES = ("pruning.score", "pruning.selector")  # the name of a plugin, alone or with settings
PRUNING_KEYS = ("pruning", "pruning_trials", "over_budget")
OVER_BUDGET = 0.10  # of a pruned run, as in HMN's paper


Rate = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(PluginConfig):
    """The optimizer of the stored tensors; a container may set learning rates of its own."""

    name: Literal["adam", "sgd"] = Field("adam", description="Adam, or SGD with momentum")
    lr: float = Field(0.01, gt=0, le=1e9, description="learning rate")
    momentum: float = Field(0.5, ge=0, lt=1, description="momentum of SGD")
    betas: tuple[Rate, Rate] = Field((0.9, 0.99), description="decay rates of Adam")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of all gradients together")
    schedule: Literal["constant", "cosine", "multistep"] = Field(
        "constant", description="learning rate over all steps; multistep: times decay at each of the milestones"
    )
    milestones: tuple[Rate, ...] = Field((), description="shares of all steps behind which the rate drops")
    decay: float = Field(0.5, gt=0, le=1, description="factor of each drop")


class RunConfig(PluginConfig):
    """All that decides the result of a run; where it runs and what it logs stands elsewhere."""

    method: str
    parameterization: PartConfig
    objective: PartConfig
    network: PartConfig = Field(default_factory=lambda: PartConfig(name="convnet"))
    dataset: str = "digits"
    data: dict[str, Any] = Field({}, description="settings of the data set, such as data.size for folders")
    ipc: int = Field(1, ge=1, description="budget in images per class")
    steps: int = Field(1000, ge=0, description="matching steps; 0: the set as it begins")
    minutes: float | None = Field(
        None, gt=0, description="condensation ends after so many minutes, if the steps are not done before"
    )
    seed: int = Field(0, ge=0, description="seed of the condensation; evaluation has its own")
    optimizer: OptimizerConfig = OptimizerConfig()
    over_budget: float = Field(
        0.0, ge=0, le=1, description="condense a set that is larger than the budget by this share"
    )
    pruning: PartConfig | None = Field(None, description="how a set is brought back into its budget; None: it is not")
    pruning_trials: int = Field(
        3, ge=1, le=1_000_000, description="networks trained to choose a pruning on the validation split"
    )
    protocol: Protocol

    @property
    def known_as(self) -> str:
        """The data set whose settings of methods and published results apply."""
        return known_name(self.dataset, self.data)

    @property
    def unpruned(self) -> RunConfig:
        """The condensation that a pruned run begins with; runs that differ in the pruning alone share it."""
        return self.model_copy(update={"pruning": None, "pruning_trials": 3})

    @property
    def choosing(self) -> Protocol:
        """How a pruning is chosen: as the set is scored, but on the validation split."""
        return self.protocol.model_copy(update={"split": "validation", "trials": self.pruning_trials})

    @property
    def chosen_by(self) -> str | None:
        """The hash of the protocol that chooses among prunings; None where there is nothing to choose."""
        if self.pruning is None:
            return None
        strategy = registry.create("pruning", self.pruning.name, self.pruning.settings)
        return self.choosing.hash if len(strategy.candidates()) > 1 else None

    def to_yaml(self) -> str:
        """The resolved configuration, as ``--config`` reads it."""
        return dump_yaml(self.model_dump(mode="json"))


def resolve(
    flags: Mapping[str, Any],
    assignments: Sequence[str] = (),
    config_file: Path | None = None,
    base: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Builds the configuration of a run.

    Args:
        flags: ``method``, ``parameterization``, ``objective``, ``dataset``, ``ipc``, ``protocol``, ``seed``, ``steps``;
            None for what was not given.
        assignments: ``a.b=c`` as given to ``--set``; c is read as YAML.
        config_file: A YAML file, for instance the ``config.yaml`` of another run; or the record of a run.
        base: Dotted keys in the place of such a file.

    Raises:
        ConfigError: Names the dotted path, the value, and what is allowed.
    """
    file_values = flatten(_config_in(config_file)) if config_file else dict(base or {})
    if file_values.get("pruning.name", "") is None:  # a run that was not pruned; the next one may be
        del file_values["pruning.name"]
        if not file_values.get("over_budget"):
            file_values.pop("over_budget", None)
    given = {flag_key(name): value for name, value in flags.items() if value is not None}
    for text in assignments:
        given.update(flatten(dict([_parse_assignment(text)])))
    try:
        return _resolve(file_values, given)
    except ConfigError:
        if config_file is not None:
            _check_alone(file_values, config_file)
        raise


def _check_alone(file_values: Mapping[str, Any], config_file: Path) -> None:
    """Raises an error that names the file, if the file without any flag is wrong."""
    try:
        _resolve(file_values, {})
    except ConfigError as error:
        raise ConfigError(f"{config_file}: {error}") from None


def _resolve(file_values: Mapping[str, Any], given: Mapping[str, Any]) -> RunConfig:
    file_values, given = canonical_names(file_values), canonical_names(given)
    asked = {**file_values, **given}
    _check_names(asked)
    cell = parse_config(_Cell, {k: asked[k] for k in ("dataset", "ipc") if k in asked}, "")
    method = choose_method(asked.get("method"), asked.get("parameterization.name"), asked.get("objective.name"))
    known = known_name(cell.dataset, {"as": asked.get("data.as")})
    exchanged = exchanged_container(method, asked.get("parameterization.name"), known, cell.ipc)
    layers = [{"network.name": "convnet"}, method.values(known, cell.ipc), exchanged, file_values, given]
    values: dict[str, Any] = {}
    for layer in layers:
        _overlay(values, layer)
    if values.get("pruning.name") is not None:
        values.setdefault("over_budget", OVER_BUDGET)
    elif "pruning.name" in values:  # --set pruning=null: a pruned run's configuration without its pruning
        values = {key: value for key, value in values.items() if key.partition(".")[0] not in PRUNING_KEYS}
    protocol = str(values.pop("protocol.name", None) or default_protocol(known))
    changed = {key.removeprefix("protocol."): values.pop(key) for key in list(values) if key.startswith("protocol.")}
    values["protocol"] = protocol_with(protocol, changed)
    nested = nest({**_with_choices(values), "method": method.name})
    _refuse_unknown(values, nested)
    return _complete(parse_config(RunConfig, nested, ""))


def _check_names(asked: Mapping[str, Any]) -> None:
    """Refuses what is no name where one is expected; an empty one would stand for the default."""
    for key in ("method", "protocol.name", "dataset"):
        if key in asked and not (isinstance(asked[key], str) and asked[key].strip()):
            raise ConfigError(f"{key.removesuffix('.name')} = {quoted(asked[key])}: expected a name")


def known_name(dataset: str, data: Mapping[str, Any]) -> str:
    """The name by which settings of methods and published results are looked up: ``data.as``, else the data set's."""
    return str(data.get("as") or dataset)


class _Cell(PluginConfig):
    dataset: str = "digits"
    ipc: int = Field(1, ge=1)


def _refuse_unknown(values: Mapping[str, Any], nested: Mapping[str, Any]) -> None:
    """Refuses keys whose section does not exist, with the sections that have such a setting."""
    for section, dot, _ in (key.partition(".") for key in values):
        if dot and section in RunConfig.model_fields and section not in SECTIONS:
            raise ConfigError(f"{section} is a single value: write {section}=VALUE")
    unknown = [key for key in values if key.partition(".")[0] not in RunConfig.model_fields]
    if not unknown:
        return
    models: dict[str, type[BaseModel]] = {"": RunConfig}
    for part, kind in {**PARTS, "pruning": "pruning"}.items():
        name = (nested.get(part) or {}).get("name")
        if isinstance(name, str):
            models[part] = registry.load(kind, name).Config
    dataset = split_spec(str(nested.get("dataset", "digits")))[0]
    models["data"] = settings_model(registry.load("dataset", dataset).Config)
    raise ConfigError(unknown_keys(unknown, models))


def _complete(config: RunConfig) -> RunConfig:
    """Fills in every default of every part, so that the record and the run id hold them."""
    parts = {}
    for part, kind in {**PARTS, "pruning": "pruning"}.items():
        given: PartConfig | None = getattr(config, part)
        if given is None:
            continue
        cls = registry.load(kind, given.name)
        settings = parse_config(cls.Config, given.settings, part).model_dump(mode="json")
        parts[part] = PartConfig(name=registry.find(kind, given.name).spec, **settings)
    scored_on = config.protocol.network  # a mistake in it must not wait for the end of the condensation
    parse_config(registry.load("network", scored_on.name).Config, scored_on.settings, "protocol.network")
    return config.model_copy(update=parts)


def _overlay(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Puts a layer on top; a part that is exchanged loses the settings of the one before."""
    for part in (*PARTS, "pruning", "protocol", "protocol.network"):
        name, former = layer.get(f"{part}.name"), values.get(f"{part}.name")
        if None not in (name, former) and name != former:
            _drop(values, part)
    for choice in CHOICES:
        if choice in layer or f"{choice}.name" in layer:
            values.pop(choice, None)
            _drop(values, choice)
    values.update(layer)


def _drop(values: dict[str, Any], section: str) -> None:
    for key in [key for key in values if key.startswith(f"{section}.")]:
        del values[key]


def _with_choices(values: dict[str, Any]) -> dict[str, Any]:
    """A choice that has settings as a section: ``pruning.score=a`` and ``pruning.score.k=1`` belong together."""
    for choice in CHOICES:
        if choice in values and any(key.startswith(f"{choice}.") for key in values):
            values[f"{choice}.name"] = values.pop(choice)
    return values


def _parse_assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {shortened(text)}: expected KEY=VALUE, for example --set optimizer.lr=0.01")
    if not value.strip():
        raise ConfigError(f"--set {shortened(text)}: no value; write null for none, or '' for an empty text")
    return key.strip(), parse_yaml(value, f"--set {shortened(text)}", ConfigError)


def _read_yaml(path: Path) -> dict[str, Any]:
    values = read_json(path, ConfigError) if path.suffix == ".json" else read_yaml(path, ConfigError)
    if values is None:
        raise ConfigError(f"{path}: expected a mapping at the top, but the file is empty")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, but got {type(values).__name__}")
    return values


def _config_in(path: Path) -> dict[str, Any]:
    """The settings in a file given by ``--config``.

    Raises:
        ConfigError: If it is a folder, is empty, or holds nothing that is a setting of a run.
    """
    if path.is_dir():
        hint = f"; did you mean {path / 'config.yaml'}?" if (path / "config.yaml").is_file() else ""
        raise ConfigError(f"--config {path}: expected a YAML file, but this is a folder{hint}")
    values = _config_of(_read_yaml(path), path)
    keys = [str(key).partition(".")[0] for key in values]
    known = list(RunConfig.model_fields)
    if keys and not set(keys) & set(known) and not all(near(key, known) for key in keys):
        found, expected = shortened(", ".join(keys), 200), ", ".join(known)
        raise ConfigError(
            f"--config {path}: no settings of a run; it has the keys {found}, expected some of {expected}"
        )
    return values


def read_config(path: Path) -> RunConfig:
    """The configuration in the ``config.yaml`` of a run, as it is written; no plugin is imported for it.

    Raises:
        ConfigError: If it is not valid.
    """
    return validated(RunConfig, _read_yaml(path), path, ConfigError)


def _config_of(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The configuration in a file: the file itself, or what a record says about the run that made it.

    Raises:
        ConfigError: If it is the record of a set that no run condenses.
    """
    config = values.get("config")
    if not isinstance(config, dict) or "scores" not in values:
        return values
    objective = config.get("objective")
    if "imported" in values or not isinstance(objective, dict) or objective.get("name") == "none":
        raise ConfigError(f"--config {path}: the record of {values.get('name')!r}, which is not condensed by a run")
    return config


def settings_of(assignments: Sequence[str]) -> dict[str, Any]:
    """Assignments ``a.b=c`` alone, as nested settings."""
    return nest(dict(_parse_assignment(text) for text in assignments))
