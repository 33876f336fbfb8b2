"""The file of a synthetic set: safetensors, with all that is no tensor as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from dd_plugins.api.data import MAX_NAME, MAX_TEXT, DataSource, DataSpec
from dd_plugins.api.files import describe_source, read_tensors, tensors_to_bytes, write_tensors
from dd_plugins.api.plan import Shapes
from dd_plugins.api.reading import parse_json, validated
from dd_plugins.api.storage import StorageBudget
from dd_plugins.errors import DataError, DDPluginsError, SyntheticFileError, UsageError

FORMAT = 1
KEY = "dd_plugins"
MAX_CONFIG_BYTES = 4096  # a configuration is no place to store images


@dataclass(frozen=True)
class StoredHeader:
    """What a stored set says about itself besides its tensors.

    Attributes:
        plugin: The spec by which the registry finds the container's class.
        config: Its settings.
        data: The spec of the data set.
        budget: The storage budget.
        counts: Images of each class.
        source: Which data set that was, with the names of its classes; empty in files of earlier releases.
    """

    plugin: str
    config: dict[str, Any]
    data: DataSpec
    budget: StorageBudget
    counts: tuple[int, ...]
    source: DataSource = field(default_factory=DataSource)


class _Part(BaseModel):
    """Base of what is read from a header: exact types, finite numbers; keys of later releases are ignored."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Spec(_Part):
    name: str = Field(max_length=MAX_TEXT)
    num_classes: int = Field(ge=1)
    image_shape: list[Annotated[int, Field(ge=1)]] = Field(min_length=3, max_length=3)
    mean: list[float]
    std: list[float]
    mirror: bool = True
    fingerprint: str = Field("", max_length=MAX_TEXT)
    origin: str = Field("", max_length=MAX_TEXT)


class _Budget(_Part):
    elements: int = Field(ge=0)


class _Source(_Part):
    dataset: str = Field("", max_length=MAX_TEXT)
    settings: dict[str, Any] = {}
    class_names: list[Annotated[str, Field(max_length=MAX_NAME)]] = []


class _Header(_Part):
    """The JSON of a header."""

    format: int
    plugin: str = Field(max_length=MAX_TEXT)
    config: dict[str, Any]
    data: _Spec
    budget: _Budget
    counts: list[Annotated[int, Field(ge=1)]]
    source: _Source = _Source()

    @model_validator(mode="after")
    def _one_for_each_class(self) -> Self:
        classes, names = self.data.num_classes, len(self.source.class_names)
        if len(self.counts) != classes or names not in (0, classes):
            raise ValueError(f"{len(self.counts)} counts and {names} names for {classes} classes")
        return self

    def header(self) -> StoredHeader:
        """The header that these values stand for."""
        names = tuple(self.source.class_names)
        return StoredHeader(
            plugin=self.plugin,
            config=self.config,
            data=DataSpec.from_dict(self.data.model_dump()),
            budget=StorageBudget(self.budget.elements),
            counts=tuple(self.counts),
            source=DataSource(self.source.dataset, self.source.settings, names),
        )


def spec_from(values: Any, where: str | Path, error: type[DDPluginsError]) -> DataSpec:
    """The spec of a data set from untrusted values.

    Args:
        values: As `DataSpec.to_dict` gives them, read from a file.
        where: The file, for messages.
        error: Class of the error.

    Raises:
        DDPluginsError: The class given, if the values are not those of a data set.
    """
    found = validated(_Spec, values, where, error)
    try:
        return DataSpec.from_dict(found.model_dump())
    except DataError as fault:  # of the values together
        raise error(f"{where}: {fault}") from None


def stored_to_bytes(tensors: Mapping[str, Tensor], header: StoredHeader) -> bytes:
    """The bytes of the file of a synthetic set.

    Raises:
        UsageError: If the settings of the container or of the data set take more than 4096 bytes.
    """
    return tensors_to_bytes(tensors, {KEY: _header_text(header)})


def write_stored(path: Path, tensors: Mapping[str, Tensor], header: StoredHeader) -> None:
    """Writes the file of a synthetic set; raises as `stored_to_bytes` does."""
    write_tensors(path, tensors, {KEY: _header_text(header)})


def _header_text(header: StoredHeader) -> str:
    for who, settings in ((header.plugin, header.config), (header.source.dataset, header.source.settings)):
        nbytes = len(json.dumps(dict(settings), sort_keys=True).encode())
        if nbytes > MAX_CONFIG_BYTES:
            raise UsageError(f"{who}: its configuration takes {nbytes} bytes, more than {MAX_CONFIG_BYTES}")
    return json.dumps({"format": FORMAT, **asdict(header)}, sort_keys=True)


def read_stored(source: Path | bytes) -> tuple[StoredHeader, dict[str, Tensor]]:
    """Reads a synthetic set from its file, or from the bytes of it; files without a ``source`` are read too.

    Raises:
        SyntheticFileError: If the file is missing, truncated, foreign, or of a newer format.
    """
    tensors, metadata = read_tensors(source)
    where = describe_source(source)
    if KEY not in metadata:
        raise SyntheticFileError(f"{where}: a safetensors file, but not a synthetic set written by dd-plugins")
    values = parse_json(metadata[KEY], f"{where}: its header", SyntheticFileError)
    form = values.get("format") if isinstance(values, dict) else None
    if isinstance(form, int) and form > FORMAT:
        raise SyntheticFileError(f"{where}: format {form} is newer than this release reads ({FORMAT})")
    try:
        header = validated(_Header, values, f"{where}: its header is damaged", SyntheticFileError).header()
    except DataError as error:  # of the values together
        raise SyntheticFileError(f"{where}: its header is damaged ({error})") from None
    return header, tensors


def check_tensors(source: Path | bytes, expected: Shapes, tensors: Mapping[str, Tensor]) -> None:
    """Checks names, types, shapes and finite values of what a file holds against what a container expects.

    Args:
        source: The file or its bytes, for messages.
        expected: Shape and type of the container's tensors, by name.
        tensors: Those of the file.

    Raises:
        SyntheticFileError: If they differ; names the first that does.
    """
    where = describe_source(source)
    for name in sorted({*expected, *tensors}):
        want, got = (f"{x.dtype} {tuple(x.shape)}" if x is not None else "nothing"
                     for x in (expected.get(name), tensors.get(name)))  # fmt: skip
        if want != got:
            raise SyntheticFileError(f"{where}: tensor {name} should be {want}, but the file holds {got}")
        if not torch.isfinite(tensors[name]).all():
            raise SyntheticFileError(f"{where}: tensor {name} holds NaN or infinite values")
