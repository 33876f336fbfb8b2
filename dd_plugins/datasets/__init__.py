"""Real images: `load_dataset` turns a name such as ``cifar10`` or ``folder:PATH`` into `RealData`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import create_model
from torch import Tensor

from dd_plugins import names, registry
from dd_plugins.api import (
    ArtifactStore,
    ConfigError,
    Conventions,
    DataError,
    DataSource,
    DataSpec,
    DDPluginsError,
    FolderArtifacts,
    PluginConfig,
    RawData,
    RealData,
    UnknownPluginError,
    UsageError,
    parse_config,
)
from dd_plugins.api.faults import shortened
from dd_plugins.api.real_data import build_real_data, check_raw
from dd_plugins.datasets.layout import local_path
from dd_plugins.datasets.zca import find_whitening, whitened

__all__ = [
    "build_real_data",
    "data_artifacts",
    "find_conventions",
    "has_colours",
    "load_dataset",
    "pixel_values",
    "settings_model",
    "split_spec",
]

# The settings of every data set, apart from those of its plugin: default and description.
COMMON_SETTINGS: Mapping[str, tuple[object, str]] = {
    "as": (
        None,
        "the data set that this is, such as cifar10: its method settings, published results, mean, std, mirror",
    ),
    "zca": (False, "whiten the images, as trajectory matching does"),
}
HOME = Path("~/.cache/dd-plugins")


def load_dataset(
    spec: str,
    root: Path | None = None,
    device: str | torch.device = "cpu",
    cache: Path | ArtifactStore | None = None,
    config: Mapping[str, Any] | PluginConfig | None = None,
) -> RealData:
    """Loads a data set, checks it, and splits it into train, validation and test.

    Nothing is random: the same files give the same splits and the same fingerprint on every machine.

    Args:
        spec: ``name``, ``name:ARGUMENT`` (``folder:PATH``, ``parquet:PATH``), ``distribution/name`` or
            ``module:Class``. With an argument, the data set is called after the argument's last part.
        root: Folder under which data sets are kept; by default the environment variable ``DD_PLUGINS_DATA``, else
            ``~/.cache/dd-plugins/data``.
        device: Where the images (uint8, ``(N, C, H, W)``) and labels (int64, ``(N,)``) shall live.
        cache: Keeps decoded images and whitening matrices: a store of artifacts, or a folder, safe to delete; by
            default the environment variable ``DD_PLUGINS_CACHE``, else ``~/.cache/dd-plugins``.
        config: Settings of the plugin, and two that every data set has: ``zca: true`` whitens the images; ``as: NAME``
            declares that they are those of a named data set, and applies its mean, standard deviation and mirroring.

    Returns:
        The data set with its three splits; the splits share one uint8 tensor.

    Raises:
        UnknownPluginError: If no data set of this name is installed.
        UsageError: If the data set needs an argument and has none, or the other way round; if a setting is not
            allowed, or the data has other classes or another image shape than the data set named by ``as``.
        DataError: If files are missing or damaged, or the plugin broke its contract.
    """
    plugin_spec, argument = split_spec(spec)
    _refuse_bare_path(spec)
    info = registry.find("dataset", plugin_spec)
    plugin_class = registry.load("dataset", plugin_spec)
    if plugin_class.takes_argument and not argument:
        raise UsageError(f"data set {spec!r} needs an argument: write {plugin_spec}:PATH")
    if argument and not plugin_class.takes_argument:
        raise UsageError(f"data set {plugin_spec!r} takes no argument, but got {argument!r}")
    settings = config.model_dump() if isinstance(config, PluginConfig) else dict(config or {})
    parse_config(settings_model(plugin_class.Config), settings, "data")
    given = dict(settings)
    zca = settings.pop("zca", False)
    if not isinstance(zca, bool):
        raise ConfigError(f"data.zca = {zca!r}: expected true or false")
    known = settings.pop("as", None)
    conventions = None if known is None else find_conventions(known, settings)
    plugin = registry.create("dataset", plugin_spec, argument, settings)
    root = local_path(root or os.environ.get("DD_PLUGINS_DATA") or HOME / "data")
    artifacts = data_artifacts(cache)
    try:
        raw = plugin.read(root, artifacts)
    except DDPluginsError:
        raise
    except Exception as error:  # a fault of the plugin's own code keeps its traceback
        error.add_note(f"raised by the data set plugin {info.spec} ({info.distribution} {info.version}, {info.value})")
        raise
    name = _short_name(argument) or info.name
    if conventions is not None:
        raw = _follow(conventions, raw, known, name, spec, settings)
        name = _short_name(split_spec(known)[1]) or split_spec(known)[0]
    real = build_real_data(name, raw, device, who=spec)
    real = whitened(real, artifacts) if zca else real
    return replace(real, source=DataSource(spec, given, real.class_names))


def settings_model(config: type[PluginConfig]) -> type[PluginConfig]:
    """The model of all settings of a data set: those of its plugin, and the common ones, whose values are not checked.

    Args:
        config: The ``Config`` of the plugin.
    """
    common: dict[str, Any] = {key: (Any, value) for key, (value, _) in COMMON_SETTINGS.items()}
    return create_model("Data", __base__=config, **common)


def find_conventions(known: object, settings: Mapping[str, Any]) -> Conventions:
    """The conventions of a data set that is known by name.

    Args:
        known: Its name, the value of ``data.as``.
        settings: Of the data set that shall follow them; those that both data sets have are applied.

    Raises:
        UnknownPluginError: If no data set of this name is installed.
        ConfigError: If it is no name, or the data set has no conventions.
    """
    if not isinstance(known, str) or not known:
        raise ConfigError(f"data.as = {names.quoted(known)}: expected the name of a data set, such as cifar10")
    head, argument = split_spec(known)
    allowed = registry.load("dataset", head).Config.model_fields
    shared = {key: value for key, value in settings.items() if key in allowed}
    found: Conventions | None = registry.create("dataset", head, argument, shared).conventions()
    if found is None:
        raise ConfigError(f"data.as = {names.quoted(known)}: expected a data set with fixed classes, such as cifar10")
    return found


def _follow(
    conventions: Conventions, raw: RawData, known: str, name: str, spec: str, settings: Mapping[str, Any]
) -> RawData:
    """The raw data with the conventions of another data set; its origin says which data it is."""
    expected = (conventions.num_classes, conventions.image_shape)
    found = (check_raw(raw, spec), tuple(raw.train_images.shape[1:]))
    if found != expected:
        raise ConfigError(
            f"data.as = {known}: expected {expected[0]} classes of images {expected[1]}, but {spec} has {found[0]} "
            f"classes of images {found[1]}"
        )
    origin = f"{raw.origin}:{name}, as {known}" if raw.origin else f"{name}, as {known}"
    mirror = raw.mirror if "mirror" in settings else conventions.mirror
    return replace(raw, mean=conventions.mean, std=conventions.std, mirror=mirror, origin=origin)


def _short_name(argument: str) -> str:
    """The last part of a path, or the argument itself if it is none; empty if there is no argument."""
    return local_path(argument).resolve().name if argument else ""


def pixel_values(images: Tensor, data: DataSpec, cache: Path | ArtifactStore | None = None) -> Tensor:
    """Maps images from model space to pixel values in the colours of the data set; whitening is undone.

    Args:
        images: Float, ``(N, C, H, W)``, model space, on the CPU.
        data: The spec of the data set.
        cache: Keeps the whitening matrices, as for `load_dataset`.

    Returns:
        Float, ``(N, C, H, W)``, unclipped: 0 is black, 1 is white.

    Raises:
        DataError: If the data set is whitened and its matrix is not in the cache.
    """
    if not data.whitened:
        return data.denormalize(images)
    whitening = find_whitening(data, data_artifacts(cache))
    if whitening is None:
        raise DataError(
            f"the images are whitened, and the matrix that gives their colours is not cached: it is computed from "
            f"the data set {data.name}"
        )
    return whitening.invert(images)


def has_colours(data: DataSpec, cache: Path | ArtifactStore | None = None) -> bool:
    """Whether `pixel_values` can be computed: always, unless a whitening matrix is needed that is not cached."""
    return not data.whitened or find_whitening(data, data_artifacts(cache)) is not None


def data_artifacts(cache: Path | ArtifactStore | None = None) -> ArtifactStore:
    """The store of decoded images and whitening matrices, as `load_dataset` finds it."""
    if isinstance(cache, ArtifactStore):
        return cache
    return FolderArtifacts(local_path(cache or os.environ.get("DD_PLUGINS_CACHE") or HOME))


def split_spec(spec: str) -> tuple[str, str]:
    """``folder:PATH`` -> ``("folder", "PATH")``, but ``module:Class`` stays whole: an installed name goes first."""
    head, _, rest = spec.partition(":")
    if registry.is_installed("dataset", head):
        return head, rest
    name, _, argument = rest.partition(":")
    if all(part.isidentifier() for part in name.split(".")) and not _is_misspelt(head):
        return f"{head}:{name}", argument
    return head, rest  # a misspelt name before a path: the registry suggests similar names


def _is_misspelt(head: str) -> bool:
    """Whether ``head`` resembles an installed name and is no module."""
    known = [info.name for info in registry.list_plugins("dataset")]
    return bool(names.near(head, known)) and not find_spec(head.partition(".")[0])


def _refuse_bare_path(spec: str) -> None:
    """A path without ``folder:`` or ``parquet:`` before it: the error suggests the one that fits what lies there."""
    head = spec.partition(":")[0]
    if not spec or registry.is_installed("dataset", head):
        return
    path = Path(spec if "~" not in spec else os.path.expanduser(spec))
    there = os.path.exists(path)  # False also for a name that is too long, where pathlib raises
    if not (spec.startswith((".", "/", "~")) or there):
        return
    folder = shortened(str(Path(spec).parent) if os.path.isfile(path) else spec, 1000)
    kind = "parquet" if path.suffix == ".parquet" or _holds_parquet(path) else "folder"
    missing = "" if there else ", where nothing is"
    raise UnknownPluginError(f"unknown dataset {names.quoted(spec)}{missing}; did you mean {kind}:{folder}?")


def _holds_parquet(path: Path) -> bool:
    """Whether the folder, or one of its first few, holds a parquet file; thousands of class folders are not read."""
    if not os.path.isdir(path):
        return False
    inner = islice((each for each in path.iterdir() if each.is_dir()), 10)
    return any(next(folder.glob("*.parquet"), None) for folder in (path, *inner))
