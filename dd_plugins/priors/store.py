"""Priors on disk: one safetensors file and one JSON file beside it, which holds the first one's sha256.

Nothing is ever unpickled here. A folder of diffusers with an ``AutoencoderKL`` is a prior too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, field_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes

from dd_plugins.api import DataError, DataSpec, PluginConfig, Prior, locked, write_atomically, write_tensors
from dd_plugins.api.memory import shapes_only
from dd_plugins.api.progress import StartJob
from dd_plugins.api.reading import check_regular, read_json, validated
from dd_plugins.errors import is_out_of_memory
from dd_plugins.priors import autoencoder_kl
from dd_plugins.priors.base import ForClasses, LayeredGenerator
from dd_plugins.priors.gates import Gates
from dd_plugins.priors.small import SmallConfig
from dd_plugins.priors.stylegan import StyleGan, StyleGanConfig
from dd_plugins.priors.train import GENERATORS

WEIGHTS, ABOUT = "prior.safetensors", "prior.json"
FORMAT = 1
KINDS: Mapping[str, tuple[type[SmallConfig] | type[StyleGanConfig], Any]] = {
    **{kind: (SmallConfig, made) for kind, made in GENERATORS.items()},
    "stylegan-xl": (StyleGanConfig, StyleGan),
}


class _MadeFrom(BaseModel):
    """The data set of a prior."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: str = ""
    fingerprint: str | None = None


class _About(BaseModel):
    """What is read of a prior's JSON file."""

    model_config = ConfigDict(strict=True, extra="allow")

    format: int
    kind: str
    config: dict[str, Any]
    sha256: str
    data: _MadeFrom = _MadeFrom()
    seconds: float = 0.0
    licence: str = "trained here"
    gates: dict[str, float] | None = None

    @field_validator("format")
    @classmethod
    def _is_known(cls, value: int) -> int:
        if value != FORMAT:
            raise ValueError(f"format {value} is not {FORMAT}, which this release reads")
        return value

    @field_validator("kind")
    @classmethod
    def _is_one_of_ours(cls, value: str) -> str:
        if value not in KINDS:
            raise ValueError(f"expected one of {', '.join(KINDS)}")
        return value


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
    def gates(self) -> Gates | None:
        """Its figures; None if they, or one of them, were never measured."""
        return Gates.read(self.about.get("gates") or {})

    def prior(self) -> Prior:
        """For the column of priors in a record."""
        elements = sum(value.numel() for value in self.generator.state_dict().values())
        about = self.about
        return Prior(
            str(self.path), about["sha256"], elements, about.get("licence", "trained here"), about.get("seconds", 0.0)
        )


def save_prior(path: Path, generator: LayeredGenerator, kind: str, config: PluginConfig, notes: dict[str, Any]) -> None:
    """Writes a prior; the JSON file comes last, so that a prior is either whole or not there.

    Args:
        path: Its folder.
        generator: The generator.
        kind: One of `KINDS`.
        config: Its sizes.
        notes: Data set, recipe, gates, training time.
    """
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / WEIGHTS, {name: value.cpu() for name, value in generator.state_dict().items()}, {})
    digest = hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()
    about = {"format": FORMAT, "kind": kind, "config": config.model_dump(mode="json"), "sha256": digest, **notes}
    write_atomically(path / ABOUT, (json.dumps(about, indent=2) + "\n").encode())


def load_prior(
    path: Path, data: DataSpec | None = None, sha256: str | None = None, classes: Sequence[int] | None = None
) -> StoredPrior:
    """Reads a prior.

    Args:
        path: Its folder.
        data: The data set that it shall make images of.
        sha256: What the weights must be, if that is known.
        classes: The generator's class for every class of the data set; None where they are the same.

    Raises:
        DataError: If it is not there, damaged, of other classes or of another size.
    """
    if not (path / ABOUT).exists() and (path / autoencoder_kl.CONFIG).exists():
        found = _load_diffusers(path, data, sha256)
    else:
        found = _load_own(path, data if classes is None else None, sha256)
    generator = found.generator
    if data is None:
        return found
    own = found.about.get("data", {}).get("fingerprint")
    if own is not None and own != data.fingerprint:
        raise DataError(
            f"{path}: a prior of {found.about['data'].get('name')} with fingerprint {own}, but {data.name} has "
            f"{data.fingerprint}: other images, or another space"
        )
    if own is None and found.about["kind"] not in GENERATORS and data.whitened:
        raise DataError(f"{path}: this prior makes pixels, not whitened images (data.zca)")
    if classes is not None:
        if len(classes) != data.num_classes or not all(0 <= number < generator.num_classes for number in classes):
            raise DataError(
                f"{path}: expected one of its {generator.num_classes} classes for each of the {data.num_classes} "
                f"classes of {data.name}, but got {list(classes)}"
            )
        generator = ForClasses(generator, classes)
    _check_fit(path, generator.num_classes, generator.image_shape, data)
    return StoredPrior(generator.eval().requires_grad_(False), found.about, path)


@contextmanager
def one_at_a_time(file: Path, what: str, job: StartJob) -> Iterator[None]:
    """Keeps a training to one process; waits for another one's, with a job whose watcher may end the wait."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(file))
        except BlockingIOError:
            with job(f"wait for {what}", 1) as update:
                held.enter_context(locked(file, what, lambda: update(0)))
        yield


def stored_sha256(path: Path) -> str:
    """The sha256 of a prior's weights, as far as it can be told without reading the prior; else empty."""
    with suppress(OSError, DataError):
        if (path / ABOUT).exists():
            return str(_read_about(path)["sha256"])
        check_regular(path / autoencoder_kl.WEIGHTS, DataError)
        with (path / autoencoder_kl.WEIGHTS).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def _check_fit(path: Path, classes: int, image_shape: tuple[int, int, int], data: DataSpec) -> None:
    if classes not in (0, data.num_classes) or image_shape != data.image_shape:
        hint = "; parameterization.classes says which of its classes are meant" * (
            classes > data.num_classes and image_shape == data.image_shape
        )
        raise DataError(
            f"{path}: a prior of {classes} classes and images of {image_shape}, but {data.name} has "
            f"{data.num_classes} classes and images of {data.image_shape}{hint}"
        )


def _load_own(path: Path, data: DataSpec | None, sha256: str | None) -> StoredPrior:
    about = _read_about(path)
    config_of, made_by = KINDS[about["kind"]]
    config = validated(config_of, about["config"], f"{path / ABOUT} is no description of a prior: config", DataError)
    if data is not None:
        _check_fit(path, config.num_classes, config.image_shape, data)
    content = _read(path / WEIGHTS)
    _check_digest(path / WEIGHTS, content, about["sha256"], sha256)
    try:
        tensors = load_bytes(content)
        with shapes_only("the prior"):  # a generator of sizes that the file does not hold is not allocated
            made_by(config).load_state_dict(tensors, assign=True)
        made: LayeredGenerator = made_by(config)
        made.load_state_dict(tensors)
    except (SafetensorError, RuntimeError, ValueError, LookupError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise DataError(f"{path / WEIGHTS} does not hold this prior ({' '.join(str(error).split())[:200]})") from None
    if any(not bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise DataError(f"{path / WEIGHTS} holds NaN or infinite values")
    return StoredPrior(made.eval().requires_grad_(False), about, path)


def _read_about(path: Path) -> dict[str, Any]:
    if not (path / ABOUT).exists():
        raise DataError(f"{path}: no prior there")
    found = read_json(path / ABOUT, DataError, "; this is no description of a prior")
    validated(_About, found, f"{path / ABOUT} is no description of a prior", DataError)
    return dict(found)


def _load_diffusers(path: Path, data: DataSpec | None, sha256: str | None) -> StoredPrior:
    if data is None:
        raise DataError(f"{path}: how large its images are is not known without a data set")
    content = _read(path / autoencoder_kl.WEIGHTS)
    _check_digest(path / autoencoder_kl.WEIGHTS, content, sha256)
    if list(path.glob("*.index.json")):
        raise DataError(f"{path}: weights in several files are not read, for one sha256 must stand for all")
    generator = autoencoder_kl.AutoencoderKLDecoder(path, data.image_shape)
    if any(not bool(torch.isfinite(value).all()) for value in generator.state_dict().values()):
        raise DataError(f"{path / autoencoder_kl.WEIGHTS} holds NaN or infinite values")
    about = {
        "kind": autoencoder_kl.NAME,
        "sha256": hashlib.sha256(content).hexdigest(),
        "licence": "that of its source",
    }
    return StoredPrior(generator, about, path)


def _check_digest(path: Path, content: bytes, *expected: str | None) -> None:
    found = hashlib.sha256(content).hexdigest()
    for digest in expected:
        if digest is not None and found != digest:
            raise DataError(f"{path}: its sha256 is {found}, but {digest} was expected: damaged, or another's weights")


def _read(path: Path) -> bytes:
    check_regular(path, DataError)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
