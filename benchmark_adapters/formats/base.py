"""What a format is, and what all formats share: tensors without code, files that are whole or not there."""

from __future__ import annotations

import pickle  # for the name of its error alone
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dd_plugins.api import DataError, DataSpec, RealData, UsageError


@dataclass(frozen=True)
class Exported:
    """A decoded set on its way out.

    Attributes:
        images: Float, ``(N, C, H, W)``, model space, ordered by class.
        targets: int64, ``(N,)``.
        data: The spec of the data set.
        class_names: One name a class.
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
    """A set on its way in: images (float, ``(N, C, H, W)``, model space) and targets (int64, ``(N,)``), as they lie."""

    images: Tensor
    targets: Tensor


class Format(ABC):
    """A layout of files.

    Attributes:
        holds_pictures: Whether images are written for viewing too, in the colours of the data set.
    """

    holds_pictures: ClassVar[bool] = False

    def write(self, exported: Exported, root: Path) -> list[Path]:
        """Writes a set below ``root``; what is there already is never touched.

        Raises:
            UsageError: If this format cannot hold the set, or something is in its place.
        """
        raise UsageError(f"{type(self).__name__} is read, not written; export as dc-bench, pt, imagefolder or parquet")

    @abstractmethod
    def read(self, path: Path, real: RealData) -> Imported:
        """Reads a set and brings it into the model space of ``real``.

        Raises:
            DataError: If a file is missing, damaged, holds code, or holds a set of other data.
        """


def load_tensors(path: Path) -> Any:
    """Reads a ``.pt`` file of tensors, numbers and containers; numpy's numbers are let through, code is not.

    Raises:
        DataError: If it is missing, damaged, or holds anything else.
    """
    scalar: Any = np.float64(0).__reduce__()[0]  # data, not code: how numpy pickles a single number
    dtypes = [type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8")]
    allowed = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes]  # numpy 1 had it elsewhere
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        told = re.search(r"GLOBAL ([\w.]+)", str(error))
        asked = f"it asks for {told[1]}" if told else "it is no file of tensors"
        raise DataError(f"{path} holds more than tensors, and nothing in it was run: {asked}") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; name its file") from None
    except Exception as error:  # whatever a reader makes of bytes that are no pickle
        raise DataError(f"{path}: damaged, or no file of tensors ({type(error).__name__})") from None


def checked(images: Any, targets: Any, spec: DataSpec, class_names: Sequence[str], where: Path) -> Imported:
    """Images and hard labels that go with a data set.

    Raises:
        DataError: If shapes, types or labels are not those of the data set.
    """
    if not isinstance(images, Tensor) or not isinstance(targets, Tensor):
        raise DataError(f"{where}: expected two tensors, but got {type(images).__name__} and {type(targets).__name__}")
    if images.layout != torch.strided or targets.layout != torch.strided or not len(images):
        raise DataError(f"{where}: no image, or sparse tensors")
    if images.dim() != 4 or tuple(images.shape[1:]) != spec.image_shape:
        raise DataError(
            f"{where}: images of shape {tuple(images.shape)}, but those of {spec.name} are {spec.image_shape}"
        )
    if not images.is_floating_point() or not bool(images.isfinite().all()):
        raise DataError(f"{where}: expected finite floats, but got {images.dtype}, or NaN")
    if targets.dim() == 2:
        raise DataError(f"{where}: soft labels of shape {tuple(targets.shape)}; only hard labels can be scored")
    if targets.shape != (len(images),):
        raise DataError(f"{where}: {len(images)} images, but labels of shape {tuple(targets.shape)}")
    whole = targets.long()
    if not torch.equal(whole.to(targets.dtype), targets):
        raise DataError(f"{where}: labels are no whole numbers")
    if int(whole.min()) < 0 or int(whole.max()) >= spec.num_classes:
        raise DataError(f"{where}: labels from {int(whole.min())} to {int(whole.max())} for {spec.num_classes} classes")
    held = torch.bincount(whole, minlength=spec.num_classes)
    if int(held.min()) < 1:
        empty = int(held.argmin())
        raise DataError(f"{where}: no image of class {empty} ({class_names[empty]})")
    return Imported(images.detach().float(), whole)


def rescaled(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], to: DataSpec) -> Tensor:
    """Images normalised with one mean and deviation, in the model space of ``to``; equal ones change nothing."""
    if (tuple(mean), tuple(std)) == (tuple(to.mean), tuple(to.std)):
        return images
    values = torch.tensor([mean, std], dtype=torch.float64).view(2, 1, -1, 1, 1)
    own = torch.tensor([to.mean, to.std], dtype=torch.float64).view(2, 1, -1, 1, 1)
    return ((images.double() * values[1] + values[0] - own[0]) / own[1]).to(images.dtype)
