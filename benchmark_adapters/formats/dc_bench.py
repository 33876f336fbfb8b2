"""The folders that DC-BENCH's evaluator reads, below ``distilled_results``.

Source:
    justincui03/dc_benchmark at 2a57711: ``evaluator/evaluator.py`` and ``data_loader``; its constants for CIFAR-100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark_adapters.formats.base import Exported, Format, Imported, load_tensors, rescaled
from benchmark_adapters.formats.published import OF_DC, into_model_space, last_experiment
from dd_plugins.api import DataError, RealData, UsageError, staged

RESULTS = "distilled_results"
NAMES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny-imagenet": "tinyimagenet"}
CONSTANTS = {name: OF_DC[name] for name in NAMES}
MATCHED = {"dc": "DC", "dsa": "DSA", "dm": "DM"}  # one file, with a list of experiments
PAIRS = {  # two files: folder, and names before _images or _labels and behind
    "tm": ("TM", "{part}_best.pt"),
    "random": ("random", "{ds}_IPC{ipc}_normalize_{part}.pt"),
    "kmeans": ("Kmeans", "{ds}_IPC{ipc}_{part}.pt"),
}
LAYOUTS = (*MATCHED, *PAIRS)


@dataclass(frozen=True)
class DCBenchFormat(Format):
    """A set in the place of one of the methods that DC-BENCH knows.

    Attributes:
        layout: The method whose place it takes: ``dc``, ``dsa``, ``dm``, ``tm``, ``random`` or ``kmeans``.
    """

    layout: str = "dm"

    def write(self, exported: Exported, root: Path) -> list[Path]:
        """Writes ``root/distilled_results/METHOD/DATASET/IPCn``; images are normalised with DC-BENCH's constants."""
        if self.layout not in LAYOUTS:
            raise UsageError(f"DC-BENCH has no layout {self.layout!r}; there are {', '.join(LAYOUTS)}")
        data = exported.data
        if data.name not in NAMES:
            raise UsageError(f"DC-BENCH does not know the data set {data.name}; it knows {', '.join(NAMES)}")
        images = exported.images.cpu()
        if "ZCA" not in data.origin:  # whitened values go out as they are, in the one place where such sets are usual
            images = _out(images, CONSTANTS[data.name], exported)
        elif self.layout != "tm":
            raise UsageError("a whitened set goes into the layout tm alone; DC-BENCH tests it on images not whitened")
        targets = exported.targets.cpu().long()
        target = root / RESULTS / self._folder(NAMES[data.name], exported.ipc)
        with staged(target) as folder:
            for name, content in self._files(NAMES[data.name], exported.ipc, images, targets).items():
                torch.save(content, folder / name)
        return sorted(path for path in target.iterdir())

    def read(self, path: Path, real: RealData) -> Imported:
        """Reads the one set of the data set below ``path``: a file, its folder, or any folder above."""
        file = _found(path, real)
        images, targets = _tensors(file)
        return into_model_space(images, targets, CONSTANTS, real, path, whitens=file.name == "images_best.pt")

    def _folder(self, dataset: str, ipc: int) -> Path:
        method = MATCHED[self.layout] if self.layout in MATCHED else PAIRS[self.layout][0]
        return Path(method) / dataset / f"IPC{ipc}"

    def _files(self, dataset: str, ipc: int, images: Tensor, targets: Tensor) -> Mapping[str, Any]:
        if self.layout in MATCHED:
            network = "ConvNetD4" if dataset == "tinyimagenet" else "ConvNet"
            name = f"res_{MATCHED[self.layout]}_{dataset}_{network}_{ipc}ipc.pt"
            return {name: {"data": [[images, targets]]}}
        pattern = PAIRS[self.layout][1]
        both = {"images": images, "labels": targets}
        return {pattern.format(ds=dataset, ipc=ipc, part=part): tensor for part, tensor in both.items()}


def _out(images: Tensor, constants: tuple[tuple[float, ...], tuple[float, ...]], exported: Exported) -> Tensor:
    there = replace(exported.data, mean=constants[0], std=constants[1])
    return rescaled(images, exported.data.mean, exported.data.std, there)


def _found(path: Path, real: RealData) -> Path:
    """The file of the set, or the one with its images.

    Raises:
        DataError: If there is none, or more than one.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    found = sorted({*path.rglob("res_*ipc.pt"), *path.rglob("images_best.pt"), *path.rglob("*_images.pt")})
    name = NAMES.get(real.spec.name, "")
    whole = [file for file in found if not any(part.endswith(".tmp") for part in file.relative_to(path).parts)]
    own = [file for file in whole if name in (*file.resolve().parts, "")]
    if len(own) != 1:
        told = ", ".join(str(file) for file in own[:5]) or "none"
        raise DataError(f"{path}: expected one set of {real.spec.name}, but found {told}; name its file")
    return own[0]


def _tensors(file: Path) -> tuple[Any, Any]:
    if file.name.startswith("res_"):
        return last_experiment(file)
    if "images" not in file.name:
        raise DataError(f"{file}: no file of DC-BENCH's; expected res_*.pt, images_best.pt or *_images.pt")
    return load_tensors(file), load_tensors(file.with_name(file.name.replace("images", "labels")))
