"""The folders that DC-BENCH's evaluator reads, below ``distilled_results``.

``bundle.json`` next to these files describes the set and lists the sha256 of each file.

Source:
    justincui03/dc_benchmark at 2a57711: ``evaluator/evaluator.py`` and ``data_loader``; its constants for CIFAR-100.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from benchmark_adapters.formats.base import load_tensors, rescaled
from benchmark_adapters.formats.pt import read_about, write_about
from benchmark_adapters.formats.published import OF_DC, Constants, into_model_space, last_experiment
from dd_plugins import __version__
from dd_plugins.api import DataError, DataSpec, PluginConfig, RealData, UsageError, staged
from dd_plugins.api.format import Exported, Format, Imported

RESULTS = "distilled_results"
NAMES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny-imagenet": "tinyimagenet"}
CONSTANTS = {name: OF_DC[name] for name in NAMES}
KINDS = {"cifar10": (10, 32), "cifar100": (100, 32), "tiny-imagenet": (200, 64)}  # classes, pixels a side
MATCHED = {"dc": "DC", "dsa": "DSA", "dm": "DM"}  # one file, with a list of experiments
PAIRS = {  # two files: folder, and the pattern of their names
    "tm": ("TM", "{part}_best.pt"),
    "random": ("random", "{ds}_IPC{ipc}_normalize_{part}.pt"),
    "kmeans": ("Kmeans", "{ds}_IPC{ipc}_{part}.pt"),
}
LAYOUTS = (*MATCHED, *PAIRS)
SHARDED, SHARDS = ("tm", "tinyimagenet", 50), 5  # the one set that lies in images_best_0.pt, images_best_1.pt, ...
BUNDLE = "bundle.json"


class DCBenchFormat(Format):
    """The folders of DC-BENCH's evaluator, in the place of one of the methods that it knows."""

    api_version = 2

    class Config(PluginConfig):
        """Settings of DC-BENCH's folders."""

        layout: Literal["dc", "dsa", "dm", "tm", "random", "kmeans"] = Field(
            "dm", description="the method whose place the set takes"
        )

    config: Config

    def write(self, exported: Exported, root: Path) -> list[Path]:
        """Writes ``root/distilled_results/METHOD/DATASET/IPCn``; images are normalised with DC-BENCH's constants.

        Returns:
            The files that DC-BENCH reads, and ``bundle.json``.
        """
        data = exported.data
        target = self.place(root, data.name, exported.ipc)
        whitened = data.whitened
        if whitened and self.config.layout != "tm":
            raise UsageError("a whitened set goes into the layout tm alone; DC-BENCH tests it on images not whitened")
        # Whitened values go out as they are, in the one place where such sets are usual.
        constants = None if whitened else CONSTANTS[data.name]
        images = exported.images.detach().cpu()
        images = images if constants is None else _out(images, constants, exported)
        contents = self._files(NAMES[data.name], exported.ipc, images, exported.targets.cpu().long())
        with staged(target) as folder:
            for name, content in contents.items():
                torch.save(content, folder / name)
            digests = {name: _digest(folder / name) for name in contents}
            write_about(exported, folder, BUNDLE, **_provenance(exported, constants), sha256=digests)
        return [target / name for name in (*contents, BUNDLE)]

    def read(self, path: Path, real: RealData) -> Imported:
        """Reads the one set of the data set below ``path``: a file, its folder, or any folder above."""
        return self.read_as(path, real.spec, real.class_names)

    def read_as(self, path: Path, spec: DataSpec, class_names: Sequence[str]) -> Imported:
        """The same without the real data, with their spec alone.

        Raises:
            DataError: As `read`; also if the files are not those listed in a ``bundle.json`` next to them.
        """
        file = _found(path, spec.name)
        files = _files_of(file)
        images, targets = _tensors(files)
        whitens = file.name.startswith("images_best")
        found = into_model_space(images, targets, CONSTANTS, spec, class_names, path, whitens)
        _check_bundle(files, spec)
        return found

    def place(self, root: Path, dataset: str, ipc: int) -> Path:
        """The folder in which DC-BENCH looks for a set, below its checkout.

        Raises:
            UsageError: If it knows no such data set.
        """
        layout = self.config.layout
        if dataset not in NAMES:
            raise UsageError(f"DC-BENCH does not know the data set {dataset}; it knows {', '.join(NAMES)}")
        method = MATCHED[layout] if layout in MATCHED else PAIRS[layout][0]
        return root / RESULTS / method / NAMES[dataset] / f"IPC{ipc}"

    def _files(self, dataset: str, ipc: int, images: Tensor, targets: Tensor) -> Mapping[str, Any]:
        layout = self.config.layout
        if layout in MATCHED:
            network = "ConvNetD4" if dataset == "tinyimagenet" else "ConvNet"
            name = f"res_{MATCHED[layout]}_{dataset}_{network}_{ipc}ipc.pt"
            return {name: {"data": [[images, targets]]}}
        pattern = PAIRS[layout][1]
        both = {"images": images, "labels": targets}
        if (layout, dataset, ipc) == SHARDED:  # cloned, for a view would be saved with all that it is a view of
            return {
                name: shard.clone()
                for part, tensor in both.items()
                for name, shard in zip(_shards(part), tensor.tensor_split(SHARDS), strict=True)
            }
        return {pattern.format(ds=dataset, ipc=ipc, part=part): tensor for part, tensor in both.items()}


def described(folder: Path, dataset: str) -> tuple[DataSpec, str]:
    """The spec of the data and the name of the method in ``bundle.json``; without it DC-BENCH's own space and no name.

    Raises:
        DataError: If the file is damaged.
    """
    about = read_about(folder, BUNDLE)
    if about:
        return DataSpec.from_dict(about["data"]), str(about.get("name", ""))
    (classes, side), (mean, std) = KINDS[dataset], CONSTANTS[dataset]
    return DataSpec(dataset, classes, (3, side, side), mean, std), ""


def _provenance(exported: Exported, constants: Constants | None) -> dict[str, Any]:
    """What DC-BENCH's files do not say: the number of images, their space, and the version that wrote them."""
    counts = torch.bincount(exported.targets.cpu(), minlength=exported.data.num_classes)
    return {
        "images_per_class": counts.tolist(),
        "normalised_with": None if constants is None else {"mean": constants[0], "std": constants[1]},
        "whitened": constants is None,
        "dd_plugins": __version__,
    }


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _check_bundle(files: Sequence[Path], spec: DataSpec) -> None:
    """Refuses files that do not match a ``bundle.json`` next to them; there need not be one.

    Raises:
        DataError: If their sha256 or their space is another.
    """
    folder = files[0].parent
    about = read_about(folder, BUNDLE)
    if not about:
        return
    listed = about.get("sha256")
    digests = listed if isinstance(listed, dict) else {}
    others = [file.name for file in files if digests.get(file.name) != _digest(file)]
    if others:
        raise DataError(
            f"{folder}: {', '.join(others)} changed after the export, for the sha256 in {BUNDLE} is another; "
            f"without {BUNDLE} the set is read as it is"
        )
    whitened = DataSpec.from_dict(about["data"]).whitened
    if whitened != spec.whitened:
        how = "is whitened: import it with data.zca=true" if whitened else "is not whitened: import it without data.zca"
        raise DataError(f"{folder}: the set {how}")


def _out(images: Tensor, constants: Constants, exported: Exported) -> Tensor:
    there = replace(exported.data, mean=constants[0], std=constants[1])
    return rescaled(images, exported.data.mean, exported.data.std, there)


def _found(path: Path, dataset: str) -> Path:
    """The file of the set, or the one with its images.

    Raises:
        DataError: If there is none, or more than one.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    patterns = ("res_*ipc.pt", "images_best.pt", "images_best_0.pt", "*_images.pt")
    found = sorted({file for pattern in patterns for file in path.rglob(pattern)})
    name = NAMES.get(dataset, "")
    whole = [file for file in found if not any(part.endswith(".tmp") for part in file.relative_to(path).parts)]
    own = [file for file in whole if name in (*file.resolve().parts, "")]
    if len(own) != 1:
        found_here = ", ".join(str(file) for file in own[:5]) or "none"
        folder = f" below a folder {name}" if name else ""
        raise DataError(f"{path}: expected one set of {dataset}{folder}, but found {found_here}; name its file")
    return own[0]


def _shards(part: str) -> list[str]:
    return [f"{part}_best_{number}.pt" for number in range(SHARDS)]


def _files_of(file: Path) -> list[Path]:
    """The set that a file belongs to: itself alone, or those with images and then as many with labels."""
    if file.name.startswith("res_"):
        return [file]
    if "images" not in file.name:
        raise DataError(f"{file}: no file of DC-BENCH's; expected res_*.pt, images_best.pt or *_images.pt")
    names = _shards("images") if file.name in _shards("images") else [file.name]
    return [file.with_name(name) for name in (*names, *(name.replace("images", "labels") for name in names))]


def _tensors(files: Sequence[Path]) -> tuple[Any, Any]:
    if len(files) == 1:
        return last_experiment(files[0])
    half = len(files) // 2
    return _joined(files[:half]), _joined(files[half:])


def _joined(files: Sequence[Path]) -> Any:
    parts = [load_tensors(file) for file in files]
    if len(parts) == 1:
        return parts[0]
    try:
        return torch.cat(parts)
    except (TypeError, RuntimeError):
        raise DataError(f"{files[0]} and its {len(files) - 1} other shards are no parts of one tensor") from None
