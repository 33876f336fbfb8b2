"""A format that keeps its contract, and for every check of formats one that breaks exactly what it checks."""

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dd_plugins.api import DataError, PluginConfig, UsageError
from dd_plugins.api.format import Format, Imported


class OneFile(Format):
    """One safetensors file with images and targets."""

    api_version = 2

    def write(self, exported, root):
        if root.exists():
            raise UsageError(f"{root} exists")
        save_file({"images": exported.images, "targets": exported.targets}, root)
        return [root]

    def read(self, path, real):
        try:
            held = load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: {error}") from None
        return Imported(held["images"], held["targets"])


class MuteFormat(OneFile):
    api_version = 2


class UndeclaredFormat(OneFile):
    """Declares no API version of its own."""


class UnsettledFormat(OneFile):
    """Has a setting without a description."""

    api_version = 2

    class Config(PluginConfig):
        level: int = 3


class SaysItCannotExport(OneFile):
    """Writes, but declares that it is for import only."""

    api_version = 2
    import_only = True


class ShiftsImages(OneFile):
    """Reads other images than it wrote."""

    api_version = 2

    def read(self, path, real):
        found = super().read(path, real)
        return Imported(found.images + 1, found.targets)


class ScalesInPlace(OneFile):
    """Draws from the global generator while it writes."""

    api_version = 2

    def write(self, exported, root):
        torch.rand(1)
        return super().write(exported, root)


class Overwrites(OneFile):
    """Replaces a file that exists."""

    api_version = 2

    def write(self, exported, root):
        root.unlink(missing_ok=True)
        return super().write(exported, root)


class RaisesOSErrors(OneFile):
    """Raises what the operating system raises for a file that is missing."""

    api_version = 2

    def read(self, path, real):
        path.stat()
        return super().read(path, real)


class RaisesForeignErrors(OneFile):
    """Raises what its library raises for a damaged file."""

    api_version = 2

    def read(self, path, real):
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        held = load_file(path)
        return Imported(held["images"], held["targets"])


WRONG_FORMATS = {
    "documented": MuteFormat,
    "declares_its_api_version": UndeclaredFormat,
    "settings_are_described": UnsettledFormat,
    "declares_whether_it_exports": SaysItCannotExport,
    "export_is_read_back": ShiftsImages,
    "writing_changes_nothing": ScalesInPlace,
    "existing_files_are_kept": Overwrites,
    "missing_files_are_data_errors": RaisesOSErrors,
    "truncated_files_are_data_errors": RaisesForeignErrors,
}
