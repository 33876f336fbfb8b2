"""What formats share: reading tensors without executing code, and checks of what was read."""

from __future__ import annotations

import pickle  # for the name of its error alone
import re
import resource
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from dd_plugins.api import DataError, DataSpec
from dd_plugins.api.faults import shown
from dd_plugins.api.format import Imported
from dd_plugins.api.memory import in_units
from dd_plugins.api.reading import check_regular
from dd_plugins.errors import is_out_of_memory

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
LOADING = 2**30  # bytes that torch may take to load a file, besides those of its tensors
INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool})


def load_tensors(path: Path) -> Any:
    """Reads a ``.pt`` file of tensors, numbers and containers; numpy's numbers are let through, code is not.

    Raises:
        DataError: If it is missing, damaged, or holds anything else.
    """
    scalar: Any = np.float64(0).__reduce__()[0]  # data, not code: how numpy pickles a single number
    dtypes = [type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8")]
    allowed = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes]  # numpy 1 had it elsewhere
    if path.is_dir():
        raise DataError(f"{path} is a folder; name its file")
    check_regular(path, DataError)
    _check_packed(path)
    allowance = LOADING + 4 * path.stat().st_size
    try:
        with (
            torch.serialization.safe_globals(allowed),
            warnings.catch_warnings(),
            _at_most(allowance),
        ):
            warnings.simplefilter("ignore")  # of pickle protocols
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        called = re.search(r"GLOBAL ([\w.]+)", str(error))
        asked = f"it asks for {called[1]}" if called else "it is no file of tensors"
        raise DataError(f"{path} holds more than tensors, and nothing in it was run: {asked}") from None
    except Exception as error:  # whatever a reader makes of bytes that are no pickle
        if is_out_of_memory(error):
            raise DataError(f"{path}: loading it would take more than {in_units(allowance)} of memory") from None
        raise DataError(f"{path}: damaged, or no file of tensors ({type(error).__name__})") from None
    _check_tensors(found, path)
    return found


@contextmanager
def _at_most(nbytes: int) -> Iterator[None]:
    """Limits this process to so many more bytes of address space; larger allocations fail at once.

    A pickle of a few hundred bytes can ask for any amount of memory, ``bytearray(10**12)`` for example.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = psutil.Process().memory_info().vms + nbytes
    limits = [limit for limit in (soft, hard, wanted) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _check_packed(path: Path) -> None:
    """Refuses a file that is compressed: torch does not compress, and a small file could unpack to any size."""
    try:
        with zipfile.ZipFile(path) as packed:
            unpacked = sum(entry.file_size for entry in packed.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # of torch's older format, or damaged, which reading it reports
    if unpacked > path.stat().st_size:
        raise DataError(f"{path}: a compressed file, which would unpack to {unpacked:,} bytes; torch.save writes none")


def _check_tensors(content: Any, path: Path) -> None:
    """Refuses tensors that are not numbers in the file: without content, sparse, quantized, nested or expanded."""
    left, seen = [content], set()
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            if kind := _unusual(value):
                raise DataError(f"{path}: {kind} tensors are not read; save contiguous tensors on the CPU")
        elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            left += [*value, *value.values()] if isinstance(value, dict) else [*value]


def _unusual(tensor: Tensor) -> str:
    """The kind of a tensor that is not read; empty for ordinary tensors."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.device.type != "cpu":
        return f"{tensor.device.type}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "expanded"
    return ""


def checked(images: Any, targets: Any, spec: DataSpec, class_names: Sequence[str], where: Path) -> Imported:
    """Images and hard labels that go with a data set.

    Raises:
        DataError: If shapes, types or labels are not those of the data set.
    """
    if not isinstance(images, Tensor) or not isinstance(targets, Tensor):
        raise DataError(f"{where}: expected two tensors, but got {type(images).__name__} and {type(targets).__name__}")
    if images.dim() != 4 or tuple(images.shape[1:]) != spec.image_shape:
        shape = shown(tuple(images.shape))
        raise DataError(f"{where}: images of shape {shape}, but those of {spec.name} are {spec.image_shape}")
    if not len(images):
        raise DataError(f"{where}: no image")
    if images.dtype not in FLOATS:
        raise DataError(f"{where}: expected images of floats, but got {images.dtype}")
    if bad := int((~images.isfinite()).sum()):
        raise DataError(f"{where}: {bad:,} of {images.numel():,} pixel values are NaN or infinite")
    if targets.dtype not in FLOATS | INTEGERS:
        raise DataError(f"{where}: expected labels that are whole numbers, but got {targets.dtype}")
    if targets.dim() == 2:
        raise DataError(f"{where}: soft labels of shape {tuple(targets.shape)}; only hard labels can be scored")
    if targets.shape != (len(images),):
        raise DataError(f"{where}: {len(images)} images, but labels of shape {shown(tuple(targets.shape))}")
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
    found = ((images.double() * values[1] + values[0] - own[0]) / own[1]).to(images.dtype)
    if not bool(found.isfinite().all()):
        raise DataError(f"pixel values up to {float(images.abs().max()):.3g} are too large for {to.name}")
    return found
