"""Parquet files in the layout of Hugging Face: one column of encoded images, one of labels."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dd_plugins.api import DataError, Dataset, RawData
from dd_plugins.datasets.decode import EncodedImage, EncodedSplit, ImageConfig, decode_raw

TEST_PATTERNS = ("test*.parquet", "val*.parquet")


class Parquet(Dataset):
    """The data set ``parquet:PATH``: a folder of ``train*.parquet`` and ``test*.parquet``, in any number of shards.

    Where there is no ``test*.parquet``, ``valid*.parquet`` or ``validation*.parquet`` takes its place. Images become
    RGB unless all of them are grey, and must have one size or be brought to it by the setting ``size``.
    """

    api_version = 1
    takes_argument = True

    class Config(ImageConfig):
        """Size and mirroring."""

    config: Config

    def read(self, root: Path, cache: Path) -> RawData:
        """Reads and decodes all rows.

        Args:
            root: Not used; the path is the data set's argument.
            cache: Folder for decoded copies.

        Returns:
            uint8 images ``(N, C, H, W)`` and int64 labels.

        Raises:
            DataError: If a file is missing or damaged, or an image does not decode; names file and row.
        """
        return read_parquet(Path(self.argument).expanduser(), cache, self.config)


def read_parquet(folder: Path, cache: Path, config: ImageConfig | None = None) -> RawData:
    """Reads a folder of parquet files.

    The images are the struct column with ``bytes``, else a plain binary column; the labels are the integer column
    ``label``, else ``fine_label``, else the only integer column. Class names come from the schema's ``huggingface``
    metadata, else they are the numbers.

    Args:
        folder: Holds ``train*.parquet``, and ``test*.parquet`` or ``val*.parquet``.
        cache: Folder for decoded copies.
        config: Size and mirroring; by default the images are taken as they are.

    Returns:
        uint8 images ``(N, C, H, W)`` and int64 labels.

    Raises:
        DataError: If a file is missing or damaged, or an image does not decode; names file and row.
    """
    shards = sorted(folder.glob("train*.parquet"))
    tests = next((found for pattern in TEST_PATTERNS if (found := sorted(folder.glob(pattern)))), [])
    if not shards or not tests:
        names = ", ".join(sorted(path.name for path in folder.glob("*.parquet")))
        raise DataError(
            f"{folder}: expected train*.parquet and {' or '.join(TEST_PATTERNS)}, but found {names or 'none'}"
        )
    train, class_names = _read_split(shards)
    test, _ = _read_split(tests)
    class_names = class_names or [str(label) for label in range(max(train.labels) + 1)]
    return decode_raw(train, test, class_names, cache, config or ImageConfig(), "parquet")


def _read_split(shards: list[Path]) -> tuple[EncodedSplit, list[str]]:
    split = EncodedSplit()
    names: list[str] = []
    for path in shards:
        try:
            with pq.ParquetFile(path) as file:
                image, label = _columns(file.schema_arrow, path)
                names = names or _class_names(file.schema_arrow, label)
                table = file.read([image, label])
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path}: truncated, or not a parquet file ({_one_line(error)})") from None
        if table[label].null_count:
            raise DataError(f"{path}: expected a label in every row, but {table[label].null_count} are empty")
        column = table[image]
        contents = (pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column).to_pylist()
        split.images.extend(EncodedImage(f"{path}: row {row}", content or b"") for row, content in enumerate(contents))
        split.labels.extend(table[label].to_pylist())
    if not split.images:
        raise DataError(f"{shards[0]}: expected images, but it has no rows")
    return split, names


def _columns(schema: pa.Schema, path: Path) -> tuple[str, str]:
    """The names of the image column and of the label column."""
    structs = [f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    binaries = [f.name for f in schema if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)]
    integers = [f.name for f in schema if pa.types.is_integer(f.type)]
    labels = [name for name in ("label", "fine_label") if name in integers] or integers
    images = structs or binaries
    named = labels and (labels[0] in ("label", "fine_label") or len(integers) == 1)
    if not images or not named:
        columns = ", ".join(f"{f.name} ({f.type})" for f in schema)
        raise DataError(f"{path}: expected a column of image bytes and an integer column label, but found {columns}")
    return images[0], labels[0]


def _class_names(schema: pa.Schema, label: str) -> list[str]:
    values = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    for key in ("info", "features", label, "names"):
        values = values.get(key) if isinstance(values, dict) else None
    return [str(name) for name in values or []]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
