"""Checks of a data set."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from dd_plugins.api import (
    ArtifactStore,
    DataError,
    Dataset,
    FolderArtifacts,
    MemoryArtifacts,
    RawData,
    temporary_folder,
)
from dd_plugins.api.real_data import check_raw
from dd_plugins.datasets import HOME
from dd_plugins.testing.checks import NotApplicable, Subject
from dd_plugins.testing.common import check_declares_its_api_version, check_documented, check_settings_are_described
from dd_plugins.testing.subjects import global_generators_left_alone


def check_images_and_labels(subject: Subject) -> None:
    """Images are uint8 ``(N, C, H, W)``, labels int64 from 0 on, and every class has training images."""
    raw = _read(subject)
    try:
        check_raw(raw, subject.name)
    except DataError as error:
        raise AssertionError(str(error)) from None


def check_no_test_image_is_trained_on(subject: Subject) -> None:
    """No image of the test split is a training image, pixel by pixel."""
    raw = _read(subject)
    train = {image.numpy().tobytes() for image in raw.train_images}
    shared = sum(image.numpy().tobytes() in train for image in raw.test_images)
    assert not shared, f"{subject.name}: {shared} of {len(raw.test_images)} test images are training images too"


def check_reading_is_deterministic(subject: Subject) -> None:
    """Read twice, with the decoded copy and without, it is the same data, and global generators are left alone."""
    with global_generators_left_alone(f"{subject.name}.read"), temporary_folder() as cache:
        found = [_read(subject, FolderArtifacts(cache)) for _ in range(2)]
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        one, other = (getattr(raw, name) for raw in found)
        assert torch.equal(one, other), f"{subject.name}: other {name} the second time"


CHECKS: list[Callable[[Subject], None]] = [
    check_documented,
    check_declares_its_api_version,
    check_settings_are_described,
    check_images_and_labels,
    check_no_test_image_is_trained_on,
    check_reading_is_deterministic,
]


def _read(subject: Subject, artifacts: ArtifactStore | None = None) -> RawData:
    argument = subject.argument
    if subject.plugin.takes_argument and not argument:
        raise NotApplicable(f"it needs an argument: check {subject.spec}:PATH")
    plugin: Dataset = subject.plugin(argument, subject.config)
    root = Path(os.environ.get("DD_PLUGINS_DATA") or HOME / "data").expanduser()
    try:
        return plugin.read(root, artifacts or MemoryArtifacts())
    except DataError as error:
        if argument:  # its place was given: then it has to be read
            raise
        raise NotApplicable(f"its files are not there: {error}") from None
