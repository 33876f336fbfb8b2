"""The files of one artifact, in a folder; `dd_plugins.api.memory_files` has them in memory, under the same names."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from dd_plugins.api import files as safetensors
from dd_plugins.api.atomic import write_atomically
from dd_plugins.api.files import TensorsAndNotes
from dd_plugins.api.reading import check_regular, read_json
from dd_plugins.errors import DataError, DDPluginsError

Content = bytes | Callable[[BinaryIO], None]  # or a function that writes it to an open file


class ArtifactFiles(ABC):
    """Files of one artifact by their names; every one is whole or absent."""

    @abstractmethod
    def place(self, name: str = "") -> str:
        """What messages call a file, or all of them."""

    @abstractmethod
    def names(self, pattern: str = "*") -> set[str]:
        """The names of the files that exist and match a pattern such as ``expert-*``."""

    def exists(self, name: str) -> bool:
        """Whether a file exists."""
        return name in self.names()

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file, if it exists."""

    @abstractmethod
    def require(self, nbytes: int) -> None:
        """Refuses what cannot be stored, before hours are spent on making it.

        Raises:
            NotEnoughMemory: If so many bytes more exceed the limit of a store in memory.
        """

    @abstractmethod
    def write(self, name: str, content: Content) -> None:
        """Writes a file."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Reads a file.

        Raises:
            DataError: If it cannot be read.
        """

    @abstractmethod
    def binary(self, name: str) -> BinaryIO:
        """A file, open for reading."""

    @abstractmethod
    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
        """Writes tensors and string metadata, as safetensors."""

    @abstractmethod
    def opened(self, name: str, error: type[DDPluginsError] = DataError, hint: str = "") -> AbstractContextManager[Any]:
        """The safetensors library's view of such a file, which reads tensors, or rows, when they are asked for.

        Args:
            name: The file.
            error: Class of the error.
            hint: What the user can do, appended to the message.

        Raises:
            DataError: Or the class given, also for what goes wrong in the ``with`` block while reading.
        """

    @abstractmethod
    def read_tensors(self, name: str, error: type[DDPluginsError] = DataError, hint: str = "") -> TensorsAndNotes:
        """Reads tensors (on the CPU, not to be changed) and string metadata.

        Raises:
            DataError: Or the class given, if the file is damaged.
        """

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file."""
        self.write(name, (json.dumps(content, indent=2) + "\n").encode())

    @abstractmethod
    def read_json(self, name: str, error: type[DDPluginsError] = DataError, hint: str = "") -> Any:
        """Reads JSON.

        Raises:
            DataError: Or the class given, if the file is damaged.
        """


class FolderFiles(ArtifactFiles):
    """Files in a folder.

    Args:
        path: The folder; created with the first file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def place(self, name: str = "") -> str:
        """The path."""
        return str(self.path / name if name else self.path)

    def names(self, pattern: str = "*") -> set[str]:
        """Those in the folder; none if it does not exist."""
        return {path.name for path in self.path.glob(pattern)}

    def exists(self, name: str) -> bool:
        """Whether there is such a path."""
        return (self.path / name).exists()

    def remove(self, name: str) -> None:
        """Removes a file."""
        (self.path / name).unlink(missing_ok=True)

    def require(self, nbytes: int) -> None:
        """A disk has no limit here."""

    def write(self, name: str, content: Content) -> None:
        """Writes a file atomically."""
        write_atomically(self.path / name, content)

    def read(self, name: str) -> bytes:
        """Reads a regular file."""
        check_regular(self.path / name, DataError)
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.path / name}: {error.strerror}") from None

    def binary(self, name: str) -> BinaryIO:
        """An open file."""
        return (self.path / name).open("rb")

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
        """Writes a safetensors file atomically."""
        safetensors.write_tensors(self.path / name, tensors, notes)

    def opened(self, name: str, error: type[DDPluginsError] = DataError, hint: str = "") -> AbstractContextManager[Any]:
        """The library's own view of the file."""
        return safetensors.opened(self.path / name, error, hint)

    def read_tensors(self, name: str, error: type[DDPluginsError] = DataError, hint: str = "") -> TensorsAndNotes:
        """Reads a safetensors file."""
        return safetensors.read_tensors(self.path / name, error, hint)

    def read_json(self, name: str, error: type[DDPluginsError] = DataError, hint: str = "") -> Any:
        """Reads a JSON file."""
        return read_json(self.path / name, error, hint)
