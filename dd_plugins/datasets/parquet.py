"""Parquet files as the Hugging Face hub has them: one column of encoded images, one of labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field
from torch import Tensor

from dd_plugins.api import ArtifactStore, ConfigError, DataError, Dataset, PluginConfig, RawData
from dd_plugins.api.messages import first_of, shown
from dd_plugins.api.reading import parse_json
from dd_plugins.datasets.decode import EncodedSplit, ImageConfig, decode_raw
from dd_plugins.datasets.images import LFS_POINTER, EncodedImage
from dd_plugins.datasets.labels import Label, encode_labels
from dd_plugins.datasets.layout import VALIDATION_AS_TEST, local_path, missing_shards, parquet_splits

IMAGE_NAMES = ("image", "img", "images", "picture", "photo")
FIRST_LABELS = ("label", "fine_label")
LABEL_NAMES = (*FIRST_LABELS, "labels", "class", "class_id", "class_label", "target", "targets", "category", "y")
BATCH = 256  # images read at a time, fewer if they are large:
BUFFER = 2**20  # bytes of a file, and of images, read at a time


class ParquetConfig(PluginConfig):
    """Settings of every data set that can be read from parquet files."""

    config: str | None = Field(default=None, description="configuration (folder) of a hub data set; None: the only one")
    image_column: str | None = Field(default=None, description="column of images; None: found by name and type")
    label_column: str | None = Field(default=None, description="column of labels; None: found by name and type")


class Parquet(Dataset):
    """The data set ``parquet:PATH``: a clone of a Hugging Face data set, a folder of parquet files, or one such file.

    Files are called ``train*.parquet`` and ``test*.parquet``, in any number of shards; they may be in ``data`` or in
    one folder per configuration. Without a test split, ``valid*.parquet`` or ``validation*.parquet`` takes its place;
    without either, a stratified fifth of the training images is split off. Labels are integers or strings. Images
    become RGB unless all of them are grayscale, and must have one size or be brought to it by the setting ``size``.
    """

    api_version = 2
    takes_argument = True

    class Config(ImageConfig, ParquetConfig):
        """Files, columns, size and mirroring."""

    config: Config

    def read(self, root: Path, artifacts: ArtifactStore) -> RawData:
        """Reads and decodes all rows.

        Args:
            root: Not used; the path is the data set's argument.
            artifacts: Keeps decoded copies.

        Returns:
            uint8 images ``(N, C, H, W)`` and int64 labels.

        Raises:
            DataError: If a file is missing or damaged, or images do not decode; names files and rows.
        """
        return read_parquet(local_path(self.argument), artifacts, self.config, self.config)


class _NoLabels(DataError):
    """A file has no column of labels."""


class Shard(NamedTuple):
    """One file: its columns, its labels, and the names of its classes if it declares some."""

    path: Path
    image: str
    labels: list[Label | None]
    names: list[str]
    note: str = ""  # about the choice among several columns of labels


def read_parquet(
    folder: Path, artifacts: ArtifactStore, config: ImageConfig | None = None, parquet: ParquetConfig | None = None
) -> RawData:
    """Reads a folder of parquet files.

    Each file has a column of image files (bytes, or structs with ``bytes``) and a column of labels. The names of the
    classes come from the schema's ``huggingface`` metadata; otherwise they are the labels themselves.

    Args:
        folder: Holds the files, in a layout that `parquet_splits` knows.
        artifacts: Keeps decoded copies.
        config: Size and mirroring; by default the images are taken as they are.
        parquet: Configuration and columns; by default they are found.

    Returns:
        uint8 images ``(N, C, H, W)`` and int64 labels.

    Raises:
        DataError: If a file is missing or damaged, or images do not decode; names files and rows.
        ConfigError: If the configuration or a column cannot be found, or there are several to choose from.
    """
    parquet = parquet or ParquetConfig()
    splits = parquet_splits(folder, parquet.config)
    train = [_read_labels(path, parquet) for path in splits["train"]]
    _check_labels(train)
    test, notes = _test_split(splits, parquet)
    notes += [train[0].note] if train[0].note else []
    names = next((shard.names for shard in train if shard.names), [])
    classes = encode_labels(_labels(train), _labels(test) if test else None, names, shown(folder))
    for split, paths in splits.items():
        if missing := missing_shards(paths):
            notes.append(f"{missing} files of the split {split} are missing by their names")
    encoded = None if test is None or classes.test is None else _split(test, classes.test)
    notes += classes.notes
    return decode_raw(
        _split(train, classes.train), encoded, classes.names, artifacts, config or ImageConfig(), "parquet", notes
    )


def _test_split(splits: dict[str, list[Path]], parquet: ParquetConfig) -> tuple[list[Shard] | None, list[str]]:
    """The first split for testing that has labels; the hub's competitions hide those of ``test``."""
    notes: list[str] = []
    for split in ("test", "validation"):
        if split not in splits:
            continue
        try:
            shards = [_read_labels(path, parquet) for path in splits[split]]
        except _NoLabels:
            shards = []
        labels = _labels(shards)
        if not shards or (labels and all(label is None or label == -1 for label in labels)):
            notes.append(f"the split {split} has no labels; it is not used")
            continue
        _check_labels(shards)
        return shards, [*notes, VALIDATION_AS_TEST] if split == "validation" else notes
    return None, notes


def _labels(shards: Sequence[Shard]) -> list[Any]:
    return [label for shard in shards for label in shard.labels]


def _check_labels(shards: list[Shard]) -> None:
    empty = [f"{shown(s.path)} ({s.labels.count(None)} of {len(s.labels)} rows)" for s in shards if None in s.labels]
    if empty:
        raise DataError(f"expected a label in every row, but some are empty: {first_of(empty, ', ')}")
    if not any(shard.labels for shard in shards):
        raise DataError(f"{shown(shards[0].path)}: expected images, but it has no rows")


def _split(shards: list[Shard], labels: Tensor) -> EncodedSplit:
    def images() -> Iterator[EncodedImage]:
        for shard in shards:
            yield from _read_images(shard)

    return EncodedSplit(labels, images)


def _read_images(shard: Shard) -> Iterator[EncodedImage]:
    row, where = 0, shown(shard.path)
    with _opened(shard.path) as file:
        for batch in file.iter_batches(_batch_size(file), columns=[shard.image], use_threads=False):
            column = batch.column(0)
            contents = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
            for content in contents.to_pylist():
                yield EncodedImage(f"{where}: row {row}", partial(_content, content))
                row += 1


def _batch_size(file: pq.ParquetFile) -> int:
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
    return int(min(BATCH, max(1, BUFFER / max(1, largest))))


def _content(content: bytes | None) -> bytes:
    if not content:
        raise DataError("cannot be decoded (the row has no image bytes)")
    return content


def _read_labels(path: Path, parquet: ParquetConfig) -> Shard:
    with _opened(path) as file:
        schema = file.schema_arrow
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise DataError(f"{shown(path)}: expected different names of columns, but found twice: {', '.join(twice)}")
        features = _features(schema)
        image = _image_column(schema, parquet.image_column, path)
        label = _label_column(schema, features, parquet.label_column, path)
        note = "" if parquet.label_column else _label_note(schema, features, label)
        return Shard(path, image, _label_values(file.read([label])[label], path), _class_names(features, label), note)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """The file, with everything that pyarrow raises on a damaged one as one line."""
    try:
        with path.open("rb") as raw:
            if raw.read(len(LFS_POINTER)) == LFS_POINTER:
                raise DataError(f"{shown(path)}: is a Git LFS pointer, not the data; run `git lfs pull` in its folder")
        with pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            yield file
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{shown(path)}: truncated, or not a parquet file ({reason})") from None


def _label_values(column: pa.ChunkedArray, path: Path) -> list[Label | None]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type) or pa.types.is_unsigned_integer(column.type):
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise DataError(f"{shown(path)}: expected labels that are whole numbers of 64 bits ({error})") from None
    values: list[Label | None] = column.to_pylist()
    return values


def _image_column(schema: pa.Schema, name: str | None, path: Path) -> str:
    structs = [field.name for field in schema if pa.types.is_struct(field.type) and _has_bytes(field.type)]
    binaries = [field.name for field in schema if _is_binary(field.type)]
    if name is not None:
        return _given("image_column", name, structs + binaries, schema, path)
    for found in (structs, binaries):
        named = [each for each in IMAGE_NAMES if each in found]
        if named or len(found) == 1:
            return (named or found)[0]
        if found:
            raise ConfigError(
                f"{shown(path)}: several columns may be the images, choose one with --set data.image_column=NAME: "
                f"{', '.join(found)}"
            )
    raise DataError(f"{shown(path)}: expected a column of image bytes, but found {_columns(schema)}")


def _label_column(schema: pa.Schema, features: dict[str, Any], name: str | None, path: Path) -> str:
    integers = [field.name for field in schema if _is_integer(field.type)]
    others = [field.name for field in schema if _is_string(field.type) or pa.types.is_floating(field.type)]
    if name is not None:
        return _given("label_column", name, integers + others, schema, path)
    declared = [each for each in integers if _feature(features, each).get("_type") == "ClassLabel"]
    words = [each for each in others if not pa.types.is_floating(schema.field(each).type)]
    candidates: list[Sequence[str]] = [
        [each for each in FIRST_LABELS if each in integers][:1],
        declared,
        [each for each in LABEL_NAMES if each in integers][:1],
        [each for each in LABEL_NAMES if each in others][:1],
        integers,
        words,
    ]
    for found in candidates:
        if len(found) == 1:
            return found[0]
    if integers or words:
        raise ConfigError(
            f"{shown(path)}: several columns may be the labels, choose one with --set data.label_column=NAME: "
            f"{first_of(integers or words, ', ')}; found {_columns(schema)}"
        )
    raise _NoLabels(f"{shown(path)}: expected a column of labels (integers or strings), but found {_columns(schema)}")


def _label_note(schema: pa.Schema, features: dict[str, Any], chosen: str) -> str:
    """Which column is the label, where others look like labels too by their name or declared type; else empty."""
    others = [
        field.name
        for field in schema
        if field.name != chosen
        and (_is_integer(field.type) or _is_string(field.type))
        and (field.name in LABEL_NAMES or "label" in field.name or "names" in _feature(features, field.name))
    ]
    if not others:
        return ""
    return f"the labels are the column {chosen}; --set data.label_column=NAME takes another ({first_of(others, ', ')})"


def _given(key: str, name: str, possible: list[str], schema: pa.Schema, path: Path) -> str:
    if name not in possible:
        raise ConfigError(
            f"data.{key} = {name!r}: expected one of {possible} of {shown(path)}, which has {_columns(schema)}"
        )
    return name


def _columns(schema: pa.Schema) -> str:
    return first_of([f"{field.name} ({field.type})"[:80] for field in schema], ", ")


def _has_bytes(kind: pa.StructType) -> bool:
    position = kind.get_field_index("bytes")
    return position >= 0 and _is_binary(kind.field(position).type)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_integer(kind: pa.DataType) -> bool:
    return _holds(kind, lambda each: pa.types.is_integer(each) or pa.types.is_boolean(each))


def _is_string(kind: pa.DataType) -> bool:
    types = pa.types
    return _holds(kind, lambda each: types.is_string(each) or types.is_large_string(each) or types.is_string_view(each))


def _holds(kind: pa.DataType, test: Callable[[pa.DataType], bool]) -> bool:
    return test(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The features that the ``datasets`` library declared; empty if there are none or they are damaged."""
    try:
        values = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"), "metadata", DataError)
    except DataError:
        return {}
    for key in ("info", "features"):
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def _feature(features: dict[str, Any], name: str) -> dict[str, Any]:
    feature = features.get(name)
    return feature if isinstance(feature, dict) else {}


def _class_names(features: dict[str, Any], label: str) -> list[str]:
    names = _feature(features, label).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        return []
    return [str(name) for name in names]
