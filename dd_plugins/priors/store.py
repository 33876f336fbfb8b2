"""Priors in files: weights as safetensors, and a JSON file that holds their sha256.

Nothing is unpickled. A folder in another project's format is a prior too, if a plugin reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, field_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes

from dd_plugins import registry
from dd_plugins.api import ArtifactFiles, DataError, DataSpec, FolderFiles, LayeredGenerator, PluginConfig, Prior
from dd_plugins.api.files import tensors_to_bytes
from dd_plugins.api.memory import shapes_only
from dd_plugins.api.reading import check_regular, validated
from dd_plugins.errors import UnknownPluginError, is_out_of_memory
from dd_plugins.priors.base import ForClasses, TrainablePrior
from dd_plugins.priors.gates import Gates

WEIGHTS, ABOUT = "prior.safetensors", "prior.json"
FORMAT = 1


class _MadeFrom(BaseModel):
    """The data set of a prior."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: str = ""
    fingerprint: str | None = None


class _About(BaseModel):
    """What is read of a prior's JSON file."""

    model_config = ConfigDict(strict=True, extra="allow")

    format: int
    kind: str
    config: dict[str, Any]
    sha256: str
    data: _MadeFrom = _MadeFrom()
    seconds: float = 0.0
    licence: str = "trained here"
    gates: dict[str, float] | None = None

    @field_validator("format")
    @classmethod
    def _is_known(cls, value: int) -> int:
        if value != FORMAT:
            raise ValueError(f"format {value} is not {FORMAT}, which this release reads")
        return value


@dataclass(frozen=True)
class StoredPrior:
    """A prior with what is known of it.

    Attributes:
        generator: Frozen, in evaluation mode, on the CPU.
        about: The content of the JSON file.
        place: Its folder, or what messages call it.
    """

    generator: LayeredGenerator
    about: dict[str, Any]
    place: str

    @property
    def gates(self) -> Gates | None:
        """Its figures; None if they, or one of them, were never measured."""
        return Gates.read(self.about.get("gates") or {})

    def prior(self) -> Prior:
        """For the column of priors in a record."""
        elements = sum(value.numel() for value in self.generator.state_dict().values())
        about = self.about
        return Prior(
            self.place, about["sha256"], elements, about.get("licence", "trained here"), about.get("seconds", 0.0)
        )


def save_prior(
    to: Path | ArtifactFiles, generator: LayeredGenerator, kind: str, config: PluginConfig, notes: Mapping[str, Any]
) -> None:
    """Writes a prior; the JSON file comes last, so that a prior is either whole or absent.

    Args:
        to: Its folder, or its files.
        generator: The generator.
        kind: The name of its plugin.
        config: Its sizes.
        notes: Data set, recipe, gates, training time.
    """
    files = FolderFiles(to) if isinstance(to, Path) else to
    content = tensors_to_bytes(generator.state_dict(), {})
    files.write(WEIGHTS, content)
    digest = hashlib.sha256(content).hexdigest()
    about = {"format": FORMAT, "kind": kind, "config": config.model_dump(mode="json"), "sha256": digest, **notes}
    files.write_json(ABOUT, about)


def load_prior(
    source: Path | ArtifactFiles,
    data: DataSpec | None = None,
    sha256: str | None = None,
    classes: Sequence[int] | None = None,
) -> StoredPrior:
    """Reads a prior.

    Args:
        source: Its folder, or its files.
        data: The data set whose images it is to make.
        sha256: What the weights must be, if that is known.
        classes: The generator's class for every class of the data set; None where they are the same.

    Raises:
        DataError: If it does not exist, is damaged, or is of other classes or of another size.
    """
    files = FolderFiles(source) if isinstance(source, Path) else source
    place = files.place()
    if not files.exists(ABOUT) and isinstance(source, Path) and (plugin := _foreign(source)):
        found = _load_foreign(source, *plugin, data, sha256)
    else:
        found = _load_own(files, data if classes is None else None, sha256)
    generator = found.generator
    if data is None:
        return found
    own = found.about.get("data", {}).get("fingerprint")
    if own is not None and own != data.fingerprint:
        raise DataError(
            f"{place}: a prior of {found.about['data'].get('name')} with fingerprint {own}, but {data.name} has "
            f"{data.fingerprint}: other images, or another space"
        )
    if own is None and not isinstance(generator, TrainablePrior) and data.whitened:
        raise DataError(f"{place}: this prior makes pixels, not whitened images (data.zca)")
    if classes is not None:
        if len(classes) != data.num_classes or not all(0 <= number < generator.num_classes for number in classes):
            raise DataError(
                f"{place}: expected one of its {generator.num_classes} classes for each of the {data.num_classes} "
                f"classes of {data.name}, but got {list(classes)}"
            )
        generator = ForClasses(generator, classes)
    _check_fit(place, generator.num_classes, generator.image_shape, data)
    return StoredPrior(generator.eval().requires_grad_(False), found.about, place)


def stored_sha256(path: Path) -> str:
    """The sha256 of a prior's weights, as far as it is known without reading the prior; else empty."""
    with suppress(OSError, DataError):
        files = FolderFiles(path)
        if files.exists(ABOUT):
            return str(_read_about(files)["sha256"])
        if plugin := _foreign(path):
            weights = path / plugin[1].weights_file
            check_regular(weights, DataError)
            with weights.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def _check_fit(place: str, classes: int, image_shape: tuple[int, int, int], data: DataSpec) -> None:
    if classes not in (0, data.num_classes) or image_shape != data.image_shape:
        hint = "; parameterization.classes says which of its classes are meant" * (
            classes > data.num_classes and image_shape == data.image_shape
        )
        raise DataError(
            f"{place}: a prior of {classes} classes and images of {image_shape}, but {data.name} has "
            f"{data.num_classes} classes and images of {data.image_shape}{hint}"
        )


def _load_own(files: ArtifactFiles, data: DataSpec | None, sha256: str | None) -> StoredPrior:
    about, weights = _read_about(files), files.place(WEIGHTS)
    plugin = _plugin(about["kind"], files.place(ABOUT))
    what = f"{files.place(ABOUT)} is no description of a prior: config"
    config: Any = validated(plugin.Config, about["config"], what, DataError)
    if data is not None and hasattr(config, "image_shape"):  # before anything is read
        _check_fit(files.place(), config.num_classes, config.image_shape, data)
    content = files.read(WEIGHTS)
    _check_digest(weights, content, about["sha256"], sha256)
    try:
        tensors = load_bytes(content)
        with shapes_only("the prior"):  # a generator of sizes that the file does not hold is not allocated
            plugin(config).load_state_dict(tensors, assign=True)
        made: LayeredGenerator = plugin(config)
        made.load_state_dict(tensors)
    except (SafetensorError, RuntimeError, ValueError, LookupError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise DataError(f"{weights} does not hold this prior ({' '.join(str(error).split())[:200]})") from None
    if any(not bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise DataError(f"{weights} holds NaN or infinite values")
    return StoredPrior(made.eval().requires_grad_(False), about, files.place())


def _plugin(kind: str, place: str) -> Any:
    """The class that a file names; only an installed or trusted one is imported.

    Raises:
        DataError: If there is none that files can hold.
    """
    try:
        found = registry.load("prior", kind)
    except UnknownPluginError as error:
        raise DataError(f"{place} is no description of a prior: kind: {error}") from None
    if found.marker:
        raise DataError(f"{place} is no description of a prior: kind: {kind} is read from its own format")
    return found


def _read_about(files: ArtifactFiles) -> dict[str, Any]:
    if not files.exists(ABOUT):
        raise DataError(f"{files.place()}: no prior there")
    found = files.read_json(ABOUT, DataError, "; this is no description of a prior")
    validated(_About, found, f"{files.place(ABOUT)} is no description of a prior", DataError)
    return dict(found)


def _foreign(folder: Path) -> tuple[str, type[LayeredGenerator]] | None:
    """The plugin that reads a folder in another project's format, with its name; None if there is none."""
    for info in registry.list_plugins("prior"):
        if info.status()[0] == "broken":
            continue
        plugin = registry.load("prior", info.spec)
        if plugin.marker and (folder / plugin.marker).exists():
            return info.spec, plugin
    return None


def _load_foreign(
    folder: Path, kind: str, plugin: type[LayeredGenerator], data: DataSpec | None, sha256: str | None
) -> StoredPrior:
    if data is None:
        raise DataError(f"{folder}: how large its images are is not known without a data set")
    weights = folder / plugin.weights_file
    content = FolderFiles(folder).read(plugin.weights_file)
    _check_digest(str(weights), content, sha256)
    generator = plugin.from_folder(folder, data.image_shape)
    if any(not bool(torch.isfinite(value).all()) for value in generator.state_dict().values()):
        raise DataError(f"{weights} holds NaN or infinite values")
    about = {"kind": kind, "sha256": hashlib.sha256(content).hexdigest(), "licence": "that of its source"}
    return StoredPrior(generator, about, str(folder))


def _check_digest(place: str, content: bytes, *expected: str | None) -> None:
    found = hashlib.sha256(content).hexdigest()
    for digest in expected:
        if digest is not None and found != digest:
            raise DataError(f"{place}: its sha256 is {found}, but {digest} was expected: damaged, or another's weights")
