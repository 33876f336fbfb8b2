"""One ``.pt`` file of plain tensors: what most codebases read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from benchmark_adapters.formats.base import checked, load_tensors
from dd_plugins.api import DataError, RealData, staged
from dd_plugins.api.format import Exported, Format, Imported
from dd_plugins.api.reading import read_json
from dd_plugins.api.stored import spec_from

NAME = "set.pt"
ABOUT = "about.json"


class PtFormat(Format):
    """``set.pt``: ``images`` (model space), ``labels``, and what normalises pixels into that space; ``about.json``."""

    api_version = 2

    def write(self, exported: Exported, root: Path) -> list[Path]:
        """Writes the folder ``root``."""
        with staged(root) as folder:
            content = {
                "images": exported.images.cpu().contiguous(),
                "labels": exported.targets.cpu(),
                "mean": list(exported.data.mean),
                "std": list(exported.data.std),
                "dataset": exported.data.name,
                "classes": list(exported.class_names),
            }
            torch.save(content, folder / NAME)
            write_about(exported, folder, test_images=test_images(exported))
        return [root / NAME, root / ABOUT]

    def read(self, path: Path, real: RealData) -> Imported:
        """Reads the folder, or the file in it."""
        file = path if path.is_file() else path / NAME
        same_spec(file.parent, real)
        content = load_tensors(file)
        if not isinstance(content, dict) or not {"images", "labels"} <= set(content):
            raise DataError(f"{file}: expected a mapping with images and labels")
        return checked(content["images"], content["labels"], real.spec, real.class_names, file)


def write_about(exported: Exported, folder: Path, name: str = ABOUT, **more: Any) -> None:
    """Writes what the tensors do not hold: the data set's spec, the budget, the origin of the set, and ``more``."""
    about = {"data": exported.data.to_dict(), "ipc": exported.ipc, "classes": list(exported.class_names)}
    content = {**about, **exported.notes, **more}
    (folder / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def test_images(exported: Exported) -> str:
    """The transform of test images into the space of the exact numbers of a set."""
    data, notes = exported.data, exported.notes
    if not data.whitened:
        mean, std = ([round(value, 6) for value in values] for values in (data.mean, data.std))
        return f"(pixels / 255 - mean) / std per channel, with mean {mean} and std {std}"
    settings = {**notes.get("data_settings", {}), "zca": True}
    kind, colon, _ = str(notes.get("dataset", data.name)).partition(":")
    name = f"{kind}:PATH" if colon else kind  # no path of one's own machine in what others read
    return (
        "ZCA whitening: (pixels / 255 - mean) @ matrix on flattened C x H x W images, with kornia.enhance.zca_mean("
        "train, unbiased=True, eps=0.1) of the training images; dd_plugins.datasets.load_dataset("
        f"{name!r}, config={settings!r}).test.images() has them so"
    )


def read_about(folder: Path, name: str = ABOUT) -> dict[str, Any]:
    """What `write_about` wrote; empty where there is none.

    Raises:
        DataError: If it is damaged.
    """
    file = folder / name
    if not file.exists():
        return {}
    found = read_json(file, DataError, "; it is damaged")
    if not isinstance(found, dict) or "data" not in found:
        raise DataError(f"{file}: damaged: it does not say which data the set was made from")
    data = spec_from(found["data"], f"{file}: damaged: data", DataError)
    if not data.fingerprint:
        raise DataError(f"{file}: damaged: no fingerprint")
    return {**found, "data": data.to_dict()}


def same_spec(folder: Path, real: RealData) -> None:
    """Refuses a set that says it was made from other data, or in another space.

    Raises:
        DataError: With both fingerprints.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such file or folder")
    about = read_about(folder)
    if not about:
        raise DataError(f"{folder / ABOUT}: missing; without it nobody knows in which space the images are")
    if about["data"]["fingerprint"] != real.spec.fingerprint:
        made = about["data"]
        raise DataError(
            f"{folder}: made from {made['name']} ({made['origin'] or 'no origin'}) with fingerprint "
            f"{made['fingerprint']}, but {real.spec.name} ({real.spec.origin}) has {real.spec.fingerprint}"
        )
