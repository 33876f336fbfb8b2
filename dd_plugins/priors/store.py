"""Priors on disk: one safetensors file and one JSON file beside it, which holds the first one's sha256.

Nothing is ever unpickled here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes

from dd_plugins.api import DataError, DataSpec, Prior, write_atomically, write_tensors
from dd_plugins.priors.base import LayeredGenerator
from dd_plugins.priors.gates import Gates
from dd_plugins.priors.small import SmallConfig
from dd_plugins.priors.train import GENERATORS

WEIGHTS, ABOUT = "prior.safetensors", "prior.json"
FORMAT = 1


@dataclass(frozen=True)
class StoredPrior:
    """A prior with what is known of it.

    Attributes:
        generator: Frozen, in evaluation mode, on the CPU.
        about: What stands in the JSON file.
        path: Its folder.
    """

    generator: LayeredGenerator
    about: dict[str, Any]
    path: Path

    @property
    def gates(self) -> Gates:
        """Its figures."""
        return Gates(**self.about["gates"])

    def prior(self) -> Prior:
        """For the column of priors in a record."""
        elements = sum(p.numel() for p in self.generator.parameters())
        return Prior(str(self.path), self.about["sha256"], elements, "trained here")


def save_prior(path: Path, generator: LayeredGenerator, kind: str, config: SmallConfig, notes: dict[str, Any]) -> None:
    """Writes a prior; the JSON file comes last, so that a prior is either whole or not there.

    Args:
        path: Its folder.
        generator: The generator.
        kind: One of `GENERATORS`.
        config: Its sizes.
        notes: Data set, recipe, gates, training time.
    """
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / WEIGHTS, {name: value.cpu() for name, value in generator.state_dict().items()}, {})
    digest = hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()
    about = {"format": FORMAT, "kind": kind, "config": config.model_dump(mode="json"), "sha256": digest, **notes}
    write_atomically(path / ABOUT, (json.dumps(about, indent=2) + "\n").encode())


def load_prior(path: Path, data: DataSpec | None = None, sha256: str | None = None) -> StoredPrior:
    """Reads a prior.

    Args:
        path: Its folder.
        data: The data set that it shall make images of.
        sha256: What the weights must be, if that is known.

    Raises:
        DataError: If it is not there, damaged, of other classes or of another size.
    """
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        kind, config, digest = about["kind"], SmallConfig.model_validate(about["config"]), about["sha256"]
        made = GENERATORS[kind](config)
    except OSError as error:
        raise DataError(f"{path}: no prior there ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path / ABOUT} is no description of a prior ({' '.join(str(error).split())[:200]})") from None
    if data is not None and (config.num_classes, config.image_shape) != (data.num_classes, data.image_shape):
        raise DataError(
            f"{path}: a prior of {config.num_classes} classes and images of {config.image_shape}, but {data.name} has "
            f"{data.num_classes} classes and images of {data.image_shape}"
        )
    content = _read(path / WEIGHTS)
    found = hashlib.sha256(content).hexdigest()
    for expected in (digest, sha256):
        if expected is not None and found != expected:
            raise DataError(f"{path / WEIGHTS}: its sha256 is {found}, but {expected} was expected")
    try:
        tensors = load_bytes(content)
        made.load_state_dict(tensors)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise DataError(f"{path / WEIGHTS} does not hold this prior ({' '.join(str(error).split())[:200]})") from None
    if any(not bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise DataError(f"{path / WEIGHTS} holds NaN or infinite values")
    made.eval().requires_grad_(False)
    return StoredPrior(made, about, path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
