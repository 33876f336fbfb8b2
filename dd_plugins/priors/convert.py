"""Weights out of pickles that run code when they are loaded, without running any of it.

Generators of the StyleGAN family are published as pickles whose objects carry the source of their classes; loading one
the usual way executes that source. Here a pickle is read by an unpickler that knows a short list of harmless names:
tensors, arrays and containers are rebuilt, records of classes become inert, and everything else is an error. It runs in
a process of its own. What comes out is one safetensors file and one JSON file; nothing else here reads pickles.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle  # the one place; see `SafeUnpickler`
import resource
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy
import torch
from torch import Tensor

from dd_plugins.api import DataError, write_atomically, write_tensors
from dd_plugins.api.reading import read_json

MAX_BYTES = 4 * 2**30
WEIGHTS, ABOUT = "weights.safetensors", "weights.json"
RECONSTRUCT = ("torch_utils.persistence", "_reconstruct_persistent_obj")
INERT = (
    "torch.nn.",
    "torch_utils.",
    "dnnlib.",
    "training.",
    "pg_modules.",
    "timm.",
)  # classes whose records are kept, without their code
NOTED = {("torch", "Size"), ("torch", "device"), ("builtins", "set"), ("builtins", "frozenset")}  # kept as records
NUMBERS = "biuf"  # kinds of arrays
SAYS = "convert: "  # begins what the process says of a file
MEMORY = 2**33  # bytes that its process may take beside eight times the file


class Inert(dict[str, Any]):
    """Stands for an object of a class that is never built: what would have been its state."""

    source = ""  # of which class

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()
        if arguments and isinstance(arguments[0], Mapping):
            self.update(arguments[0])
        self.update(named)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, Mapping):
            self.update(state)


class SafeUnpickler(pickle.Unpickler):
    """Rebuilds tensors, arrays and containers; knows no other name, and so can call nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name.

        Raises:
            DataError: If it is not on the list.
        """
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in ("torch", "torch.storage") and name.endswith("Storage") and hasattr(torch, name):
            return getattr(torch, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if f"{module}.".startswith(INERT) or (module, name) in NOTED:
            return type(name, (Inert,), {"source": f"{module}.{name}"})
        raise DataError(f"the pickle asks for {module}.{name}, which is not on the list of what is harmless")

    def persistent_load(self, pid: Any) -> NoReturn:
        """There is none."""
        raise DataError(f"the pickle refers to something outside it ({str(pid)[:80]})")


def _reconstruct(meta: Mapping[str, Any]) -> Inert:
    """The record of a persistent object: its class's name, the hash of its source, its state."""
    source = str(meta.get("module_src", "")).encode()
    record = Inert(
        class_name=str(meta.get("class_name", "")),
        version=meta.get("version"),
        source_sha256=hashlib.sha256(source).hexdigest(),
        state=meta.get("state", {}),
    )
    record.source = "persistence"
    return record


def _load_storage(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    made: Tensor = torch._utils._rebuild_tensor(storage, offset, size, stride)
    return made


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


class _Dtype:
    """The record of a numpy dtype: its name, and the byte order of its state; numpy sees no state from a file."""

    def __init__(self, text: Any = "", *_: Any) -> None:
        self.text, self.order = str(text), "="

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1]) if isinstance(state, tuple) and len(state) > 1 else "?"

    def made(self) -> numpy.dtype[Any]:
        """A dtype of plain numbers.

        Raises:
            DataError: If it is anything else.
        """
        try:
            found = numpy.dtype(self.text)
        except TypeError:
            found = numpy.dtype(object)
        if found.kind not in NUMBERS or found.hasobject or self.order not in ("=", "<", ">", "|"):
            raise DataError(f"the pickle holds an array of {self.text[:40]}, which is not one of numbers")
        order: Any = self.order
        return found.newbyteorder(order) if order in ("<", ">") else found


def _numbers(dtype: Any, content: Any) -> numpy.ndarray[Any, Any]:
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
        raise DataError("the pickle holds an array that is none")
    found = dtype.made()
    if len(content) % found.itemsize:
        raise DataError("the pickle holds an array that is cut off")
    return numpy.frombuffer(content, dtype=found)


class _Array:
    """Takes the state of a numpy array."""

    def __init__(self, *_: Any) -> None:
        self.values = numpy.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.values = _numbers(dtype, content).reshape(shape, order="F" if fortran else "C")


def _scalar(dtype: Any, content: Any) -> float | int | bool:
    found: float | int | bool = _numbers(dtype, content)[0].item()
    return found


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    RECONSTRUCT: _reconstruct,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): lambda text, coding: str(text).encode(str(coding)),
}


def convert(source: Path, to: Path, key: str = "G_ema", timeout: float = 600.0) -> dict[str, Any]:
    """Reads a pickle in a process of its own and writes what it holds as safetensors and JSON.

    Args:
        source: The pickle.
        to: Folder for ``weights.safetensors`` and ``weights.json``.
        key: Which of its networks.
        timeout: Seconds.

    Returns:
        What stands in the JSON file.

    Raises:
        DataError: If the file is no such pickle, asks for anything that is not harmless, or is too large.
    """
    if not source.is_file():
        raise DataError(f"{source}: no such file")
    if source.stat().st_size > MAX_BYTES:
        raise DataError(f"{source}: {source.stat().st_size} bytes are more than the {MAX_BYTES} that are read")
    # -P: what lies in the current folder, an unpacked download for instance, is not imported
    command = [sys.executable, "-P", "-m", "dd_plugins.priors.convert", str(source), str(to), key]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise DataError(f"{source}: not read within {timeout:.0f} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith(SAYS)]
        reason = lines[-1].removeprefix(SAYS) if lines else f"its process ended with code {done.returncode}"
        raise DataError(f"{source}: {reason}")
    found: dict[str, Any] = read_json(to / ABOUT, DataError)
    return found


def read(source: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by dotted names, and the tree of classes with the arguments they were made with."""
    content = source.read_bytes()
    try:
        found = SafeUnpickler(io.BytesIO(content)).load()
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"no pickle of a generator ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from None
    if not isinstance(found, Mapping) or key not in found:
        there = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise DataError(f"no {key} in it; there is {there}")
    tensors: dict[str, Tensor] = {}
    try:
        tree = _walk(found[key], "", tensors, [0, len(content)])
    except RecursionError:
        raise DataError(f"{key} is nested without end") from None
    if not tensors:
        raise DataError(f"{key} holds no tensors")
    about = {"source_sha256": hashlib.sha256(content).hexdigest(), "key": key, "classes": tree}
    return tensors, about


def _walk(record: Any, prefix: str, tensors: dict[str, Tensor], spent: list[int]) -> dict[str, Any]:
    """Collects parameters and buffers below a record; returns its class, arguments and children.

    ``spent`` counts bytes, up to those of the file, and a hundred for each record: a structure that repeats
    itself without end is an error.
    """
    spent[0] += 100
    state = record.get("state", record) if isinstance(record, Mapping) else {}
    for group in ("_parameters", "_buffers"):
        for name, value in dict(state.get(group) or {}).items():
            if isinstance(value, Tensor):
                spent[0] += value.numel() * value.element_size()
                if spent[0] > 2 * spent[1] + 100_000:
                    raise DataError("its tensors are larger than the file that holds them")
                tensors[f"{prefix}{name}"] = value.detach().contiguous().clone()  # two may share their memory
    children = {
        str(name): _walk(child, f"{prefix}{name}.", tensors, spent)
        for name, child in dict(state.get("_modules") or {}).items()
        if child is not None
    }
    name = record.get("class_name", "") if isinstance(record, Mapping) else ""
    if not name and isinstance(record, Inert):
        name = record.source.rpartition(".")[2]
    return {"class": name, "values": dict(_plain(state)), "children": children}


def _plain(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What JSON can hold of a state: numbers, words, and lists and dictionaries of them."""
    for key, value in state.items():
        if str(key).startswith("_parameters") or str(key) in ("_buffers", "_modules"):
            continue
        value = value.values.tolist() if isinstance(value, _Array) and value.values.size < 100 else value
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            continue
        if len(text) < 10_000:
            yield str(key), value


def main(arguments: list[str]) -> int:
    """The process of its own."""
    source, to, key = arguments
    most = MEMORY + 8 * Path(source).stat().st_size
    with suppress(ValueError, OSError):  # no such limit on this system
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        tensors, about = read(Path(source), key)
    except DataError as error:
        sys.stderr.write(f"{SAYS}{error}\n")
        return 1
    except MemoryError:
        sys.stderr.write(f"{SAYS}it asks for more memory than a file of its size can need\n")
        return 1
    Path(to).mkdir(parents=True, exist_ok=True)
    write_tensors(Path(to) / WEIGHTS, tensors, {})
    digest = hashlib.sha256((Path(to) / WEIGHTS).read_bytes()).hexdigest()
    text = json.dumps({**about, "sha256": digest, "elements": sum(t.numel() for t in tensors.values())}, indent=2)
    write_atomically(Path(to) / ABOUT, f"{text}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
