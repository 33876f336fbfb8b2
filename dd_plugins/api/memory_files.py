"""The files of artifacts in memory, up to a limit."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, BinaryIO

from torch import Tensor

from dd_plugins.api import files as safetensors
from dd_plugins.api.artifact_files import ArtifactFiles, Content
from dd_plugins.api.files import TensorsAndNotes
from dd_plugins.api.memory import in_units
from dd_plugins.api.reading import parse_json
from dd_plugins.errors import DataError, DDPluginsError, NotEnoughMemory


class HeldFiles:
    """All files of a store in memory, by folder and name.

    Args:
        limit: Bytes in all.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.content: dict[str, bytes | HeldTensors] = {}

    def require(self, nbytes: int, title: str, replaced: str = "") -> None:
        """Refuses so many bytes more, less those of a file that they replace.

        Raises:
            NotEnoughMemory: Names the limit.
        """
        held = sum(_nbytes(content) for name, content in list(self.content.items()) if name != replaced)
        if held + nbytes > self.limit:
            raise NotEnoughMemory(
                f"{title}: {in_units(nbytes)} in memory, with {in_units(held)} that are held already, exceed the limit "
                f"of {in_units(self.limit)}; store artifacts in a folder, or raise the limit"
            )


class HeldTensors:
    """Tensors and notes in memory, with the methods of the safetensors library's view of a file that are used here."""

    def __init__(self, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
        self.tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        self.notes = dict(notes)

    def keys(self) -> list[str]:
        """The names of the tensors."""
        return list(self.tensors)

    def metadata(self) -> dict[str, str]:
        """The notes."""
        return self.notes

    def get_tensor(self, name: str) -> Tensor:
        """A tensor."""
        return self.tensors[name]

    def get_slice(self, name: str) -> HeldSlice:
        """A tensor whose rows are read when they are indexed."""
        return HeldSlice(self.tensors[name])


class HeldSlice:
    """A tensor in memory, as the safetensors library's slices."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def get_shape(self) -> list[int]:
        """The shape."""
        return list(self.tensor.shape)

    def get_dtype(self) -> str:
        """Such as ``F32``."""
        kind = "F" if self.tensor.is_floating_point() else "I"
        return f"{kind}{8 * self.tensor.element_size()}"

    def __getitem__(self, rows: Any) -> Tensor:
        return self.tensor[rows].clone()


class MemoryFiles(ArtifactFiles):
    """Files in memory.

    Args:
        held: All files of the store.
        folder: The artifact's part of it.
        title: What messages call the artifact.
    """

    def __init__(self, held: HeldFiles, folder: str, title: str) -> None:
        self.held, self.folder, self.title = held, folder, title

    def place(self, name: str = "") -> str:
        """The name within the store."""
        return f"memory:{self.folder}/{name}".rstrip("/")

    def names(self, pattern: str = "*") -> set[str]:
        """Those in the artifact's part."""
        prefix = f"{self.folder}/"
        inside = (name.removeprefix(prefix) for name in list(self.held.content) if name.startswith(prefix))
        return {name for name in inside if "/" not in name and fnmatchcase(name, pattern)}

    def remove(self, name: str) -> None:
        """Forgets a file."""
        self.held.content.pop(f"{self.folder}/{name}", None)

    def require(self, nbytes: int) -> None:
        """Compares with the limit."""
        self.held.require(nbytes, self.title)

    def write(self, name: str, content: Content) -> None:
        """Holds bytes."""
        if callable(content):
            buffer = io.BytesIO()
            content(buffer)
            content = buffer.getvalue()
        self._hold(name, content)

    def read(self, name: str) -> bytes:
        """The bytes."""
        found = self._found(name)
        return found if isinstance(found, bytes) else safetensors.tensors_to_bytes(found.tensors, found.notes)

    def binary(self, name: str) -> BinaryIO:
        """The bytes, as a file."""
        return io.BytesIO(self.read(name))

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
        """Holds copies."""
        self.held.require(sum(t.numel() * t.element_size() for t in tensors.values()), self.title, self._full(name))
        self._hold(name, HeldTensors(tensors, notes))

    @contextmanager
    def opened(self, name: str, error: type[DDPluginsError] = DataError, hint: str = "") -> Iterator[Any]:
        """The tensors that are held."""
        del error, hint
        found = self._found(name)
        yield found if isinstance(found, HeldTensors) else HeldTensors(*safetensors.read_tensors(found))

    def read_tensors(self, name: str, error: type[DDPluginsError] = DataError, hint: str = "") -> TensorsAndNotes:
        """The tensors that are held."""
        with self.opened(name, error, hint) as found:
            return dict(found.tensors), dict(found.notes)

    def read_json(self, name: str, error: type[DDPluginsError] = DataError, hint: str = "") -> Any:
        """Parses the bytes."""
        return parse_json(self.read(name), self.place(name), error, hint)

    def _full(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def _hold(self, name: str, content: bytes | HeldTensors) -> None:
        self.held.require(_nbytes(content), self.title, self._full(name))
        self.held.content[self._full(name)] = content

    def _found(self, name: str) -> bytes | HeldTensors:
        try:
            return self.held.content[self._full(name)]
        except KeyError:
            raise DataError(f"{self.place(name)} does not exist") from None


def _nbytes(content: bytes | HeldTensors) -> int:
    if isinstance(content, bytes):
        return len(content)
    return sum(tensor.numel() * tensor.element_size() for tensor in content.tensors.values())
