"""The contract of a format: a layout of files in which sets of images are exported and imported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from dd_plugins.api.config import PluginConfig, parse_config
from dd_plugins.api.data import DataSpec
from dd_plugins.api.real_data import RealData
from dd_plugins.errors import UsageError


@dataclass(frozen=True)
class Exported:
    """A decoded set to be written.

    Attributes:
        images: Float, ``(N, C, H, W)``, model space, ordered by class.
        targets: int64, ``(N,)``.
        data: The spec of the data set.
        class_names: One name for each class.
        ipc: The budget of the run, in images per class.
        notes: Where the set comes from: run, method, data settings.
    """

    images: Tensor
    targets: Tensor
    data: DataSpec
    class_names: tuple[str, ...]
    ipc: int
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Imported:
    """A set as it was read: images (float, ``(N, C, H, W)``, model space) and targets (int64, ``(N,)``)."""

    images: Tensor
    targets: Tensor


class Format(ABC):
    """Base of every format.

    Authors write :meth:`read`, and :meth:`write` unless sets can only be imported. Nothing that a file contains is
    executed.

    Attributes:
        holds_pictures: Whether images are also written for viewing, in the colours of the data set.
        import_only: Whether :meth:`write` is missing; a literal, since lists read it from the source.
    """

    api_version: ClassVar[int]  # declared by each plugin class itself: the release of this contract it is written for
    holds_pictures: ClassVar[bool] = False
    import_only: ClassVar[bool] = False
    check_settings: ClassVar[Mapping[str, Any]] = {}  # settings for conformance checks, if the defaults are slow

    class Config(PluginConfig):
        """Settings of the format; override with a subclass."""

    def __init__(self, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        self.config: PluginConfig = parse_config(type(self).Config, config, "format")

    def write(self, exported: Exported, root: Path) -> list[Path]:
        """Writes a set below ``root``; existing files are never changed.

        Returns:
            The files and folders that were written.

        Raises:
            UsageError: If this format cannot hold the set, or a file exists already.
        """
        raise UsageError(f"{type(self).__name__} is for import only")

    @abstractmethod
    def read(self, path: Path, real: RealData) -> Imported:
        """Reads a set and converts it to the model space of ``real``.

        Args:
            path: A file or a folder.
            real: The data set that the set was made from.

        Raises:
            DataError: If a file is missing, damaged, contains code, or holds a set of other data.
        """
