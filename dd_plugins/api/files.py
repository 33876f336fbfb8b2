"""Tensors and string metadata as safetensors: in a file, or as bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from dd_plugins.api.atomic import write_atomically
from dd_plugins.api.faults import shortened, shown
from dd_plugins.api.reading import MAX_JSON_BYTES, check_regular, parse_json
from dd_plugins.errors import DDPluginsError, SyntheticFileError, UsageError, is_out_of_memory

TensorsAndNotes = tuple[dict[str, Tensor], dict[str, str]]
DTYPES = frozenset({
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
})  # fmt: skip


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors and string metadata as one safetensors file, atomically.

    Raises:
        UsageError: If the path is not UTF-8: safetensors could not read the file.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{path}: not a path in UTF-8, which safetensors needs; choose another folder") from None
    write_atomically(path, tensors_to_bytes(tensors, metadata))


def tensors_to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of the file that `write_tensors` writes."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(metadata))


def describe_source(source: Path | bytes) -> str:
    """What a message calls a source: the path of a file, or the number of bytes."""
    return f"{len(source):,} bytes" if isinstance(source, bytes) else str(source)


def read_tensors(
    source: Path | bytes, error: type[DDPluginsError] = SyntheticFileError, hint: str = ""
) -> TensorsAndNotes:
    """Reads safetensors: the tensors (on the CPU) and the metadata.

    Args:
        source: A file, or its bytes.
        error: Class of the error.
        hint: What the user can do, appended to the message.

    Raises:
        SyntheticFileError: Or the class given, if the file is missing, truncated, or no safetensors file of numbers
            that torch computes with.
    """
    if isinstance(source, bytes):
        tensors, metadata = _from_bytes(source, error, hint)
    else:
        with opened(source, error, hint) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            where = describe_source(source)
            raise error(f"{where}: {shown(name)} is of type {tensor.dtype}, which is not supported{hint}")
    return tensors, metadata


def _from_bytes(content: bytes, error: type[DDPluginsError], hint: str) -> TensorsAndNotes:
    where = f"{describe_source(content)}: truncated, or not safetensors"
    length = int.from_bytes(content[:8], "little")
    header = parse_json(content[8 : 8 + min(length, MAX_JSON_BYTES)], f"{where}: the header", error, hint)
    try:
        return load(content), dict(header.get("__metadata__", {}))
    except (SafetensorError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as fault:
        if is_out_of_memory(fault):
            raise
        raise error(f"{where} ({shortened(str(fault), 200)}){hint}") from None


def read_metadata(path: Path, error: type[DDPluginsError] = SyntheticFileError, hint: str = "") -> dict[str, str]:
    """Reads the metadata of a safetensors file, without its tensors.

    Raises:
        SyntheticFileError: Or the class given, as `read_tensors`.
    """
    with opened(path, error, hint) as file:
        return file.metadata() or {}


@contextmanager
def opened(path: Path, error: type[DDPluginsError] = SyntheticFileError, hint: str = "") -> Iterator[Any]:
    """The safetensors library's view of a file, which reads tensors when they are asked for.

    Raises:
        SyntheticFileError: Or the class given, also for what goes wrong in the ``with`` block while reading.
    """
    _check_header(path, error, hint)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, RuntimeError) as fault:
        if is_out_of_memory(fault):
            raise
        why = shortened(str(fault), 200)
        raise error(f"{path}: truncated, or not a safetensors file ({why}){hint}") from None


def _check_header(path: Path, error: type[DDPluginsError], hint: str) -> None:
    """Checks what the library does not: a regular file, and no name twice."""
    check_regular(path, error, hint)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if length <= MAX_JSON_BYTES else b"{}"  # the library refuses larger ones
    except OSError as fault:
        raise error(f"{path}: {fault.strerror}{hint}") from None
    parse_json(header, f"{path}: truncated, or not a safetensors file: its header", error, hint)
