"""Checks of a format."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from dd_plugins.api import DataError, RealData, UsageError, temporary_folder
from dd_plugins.api.format import Exported, Format
from dd_plugins.testing.checks import NotApplicable, Subject
from dd_plugins.testing.common import check_declares_its_api_version, check_documented, check_settings_are_described
from dd_plugins.testing.subjects import global_generators_left_alone, made_up_data

COUNTS = (2, 1, 3, 2)  # images of each class
DATASETS = ("made-up", "cifar10")  # tried one after the other: some formats accept the data sets of a benchmark alone


def check_declares_whether_it_exports(subject: Subject) -> None:
    """``import_only`` is set exactly where ``write`` is missing."""
    writes = subject.plugin.write is not Format.write
    assert writes != subject.plugin.import_only, (
        f"{subject.name}: import_only = {subject.plugin.import_only}, but write is {'' if writes else 'not '}defined"
    )


def check_export_is_read_back(subject: Subject) -> None:
    """An exported set is read as the same images with the same targets."""
    with temporary_folder() as folder:
        exported, written, real = _export(subject, folder / "set")
        missing = [path for path in written if not path.exists()]
        assert written, f"{subject.name}.write returns no path"
        assert not missing, f"{subject.name}.write returns {missing[0].name}, which does not exist"
        found = _made(subject).read(folder / "set", real)
    order = torch.argsort(found.targets, stable=True)
    assert torch.equal(found.targets[order], exported.targets), f"{subject.name}: other targets after an export"
    apart = float((found.images[order] - exported.images).abs().max())
    assert apart < 1e-5, f"{subject.name}: other images after an export (largest difference {apart:.3g})"


def check_writing_changes_nothing(subject: Subject) -> None:
    """Writing changes neither the images nor the global generators."""
    with temporary_folder() as folder, global_generators_left_alone(f"{subject.name}.write"):
        exported, _, _ = _export(subject, folder / "set")
    assert torch.equal(exported.images, _images(made_up_data())), f"{subject.name}.write changes the images"


def check_existing_files_are_kept(subject: Subject) -> None:
    """A second export to the same place is refused with a UsageError, and all files stay as they are."""
    with temporary_folder() as folder:
        exported, _, _ = _export(subject, folder / "set")
        before = _contents(folder)
        try:
            _made(subject).write(replace(exported, images=exported.images + 1), folder / "set")
        except UsageError:
            refused = True
        else:
            refused = False
        assert _contents(folder) == before, f"{subject.name}.write changes existing files"
    assert refused, f"{subject.name}.write does not refuse a place where a set exists"


def check_missing_files_are_data_errors(subject: Subject) -> None:
    """Reading a path that does not exist, or an empty folder, raises a DataError."""
    with temporary_folder() as folder:
        (folder / "empty").mkdir()
        for name in ("nothing", "empty"):
            _check_data_error(subject, folder / name, made_up_data(), f"reading {name}")


def check_truncated_files_are_data_errors(subject: Subject) -> None:
    """If the largest file of an export is cut in half, reading the set raises a DataError."""
    with temporary_folder() as folder:
        _, _, real = _export(subject, folder / "set")
        largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
        _check_data_error(subject, folder / "set", real, f"reading half of {largest.name}")


CHECKS: list[Callable[[Subject], None]] = [
    check_documented,
    check_declares_its_api_version,
    check_settings_are_described,
    check_declares_whether_it_exports,
    check_export_is_read_back,
    check_writing_changes_nothing,
    check_existing_files_are_kept,
    check_missing_files_are_data_errors,
    check_truncated_files_are_data_errors,
]


def _made(subject: Subject) -> Format:
    made: Format = subject.plugin(subject.config)
    return made


def _images(real: RealData) -> torch.Tensor:
    rows = [own[:count] for own, count in zip(real.train.class_rows(), COUNTS, strict=True)]
    return real.train.images(torch.cat(rows))


def _export(subject: Subject, root: Path) -> tuple[Exported, list[Path], RealData]:
    """A made-up set, the paths that were written for it, and the data set that it is of."""
    if subject.plugin.import_only:
        raise NotApplicable("it is for import only")
    made_up = made_up_data()
    for name in DATASETS:
        real = replace(made_up, spec=replace(made_up.spec, name=name))
        targets = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
        exported = Exported(_images(made_up), targets, real.spec, real.class_names, max(COUNTS), {"name": "made-up"})
        with suppress(UsageError):
            return exported, _made(subject).write(exported, root), real
    raise NotApplicable(f"it refuses sets of {' and '.join(DATASETS)}")


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _check_data_error(subject: Subject, path: Path, real: RealData, what: str) -> None:
    try:
        _made(subject).read(path, real)
    except DataError:
        return
    except Exception as error:
        raise AssertionError(f"{subject.name}: {what} raises {type(error).__name__}, not a DataError") from error
    raise AssertionError(f"{subject.name}: {what} raises no DataError")
