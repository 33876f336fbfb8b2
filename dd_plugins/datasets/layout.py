"""Where the files of a data set are: names of splits, configurations of a hub data set, folders of classes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from dd_plugins.api import ConfigError, DataError
from dd_plugins.api.messages import first_of, shown

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("val", "valid", "validation", "dev"),
}
PREFIXES = {"train": "train", "test": "test", "val": "validation"}
SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-(?P<total>\d{5})(-[0-9a-f]+)?")
PARQUET = ("*.parquet", "*/*.parquet", "*/*/*.parquet")
UNNAMED = ""
VALIDATION_AS_TEST = "no test split; the validation split is used for testing"


def local_path(text: str | Path) -> Path:
    """The path that a user gave, with ``~`` expanded.

    Raises:
        DataError: If it cannot be a path on this machine.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (RuntimeError, ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{str(text)[:200]!r}: not a path on this machine ({reason})") from None
    return path


def split_of(name: str) -> str | None:
    """The split that the name of a file or folder stands for: ``train``, ``test``, ``validation`` or None.

    As on the Hugging Face hub, any word of the name counts (``my-test-00000-of-00001``); others than letters
    separate words.
    """
    lower = name.lower()
    for prefix, split in PREFIXES.items():
        if lower.startswith(prefix):
            return split
    words = re.split(r"[^a-z]+", lower)
    return next((split for word in words for split, names in SPLITS.items() if word in names), None)


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders of a data set that are splits, which means that they hold folders of classes."""
    found: dict[str, Path] = {}
    folders = {path.name.lower(): path for path in sorted(folder.iterdir(), reverse=True) if path.is_dir()}
    for split, names in SPLITS.items():
        for name in names:
            if name in folders and any(path.is_dir() for path in folders[name].iterdir()):
                found.setdefault(split, folders[name])
    return found


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files in a folder, up to two folders deep, except hidden ones."""
    found = [path for pattern in PARQUET for path in folder.glob(pattern) if path.is_file()]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def parquet_splits(folder: Path, config: str | None = None) -> dict[str, list[Path]]:
    """The parquet files of every split, in the layouts of the Hugging Face hub.

    ``train*.parquet``, ``data/train*.parquet``, ``CONFIG/train*.parquet`` and ``CONFIG/train/*.parquet``; the names of
    the splits as in `split_of`. Files that name no split are training data.

    Args:
        folder: The folder of a data set, or one parquet file.
        config: Which configuration to read where there are several; by default the only one, or ``default``.

    Raises:
        DataError: If there are no training files.
        ConfigError: If there are several configurations to choose from, or none of this name.
    """
    if not folder.exists():
        raise DataError(f"{folder}: no such file or folder")
    if folder.is_file():
        return {"train": [folder]}
    splits: dict[str, list[Path]] = defaultdict(list)
    for path in _configuration(folder, parquet_files(folder), config):
        splits[_split_of_file(path, folder)].append(path)
    if "train" not in splits and UNNAMED in splits:
        splits["train"] = splits[UNNAMED]
    if "train" not in splits:
        names = [shown(path.relative_to(folder)) for paths in splits.values() for path in paths]
        raise DataError(
            f"{folder}: expected train*.parquet, also under data/ or a folder per configuration, "
            f"but found {first_of(names, ', ') or 'none'}"
        )
    return dict(splits)


def missing_shards(paths: list[Path]) -> int:
    """How many files of a split are missing, by names such as ``train-00000-of-00003.parquet``."""
    totals = [int(match["total"]) for path in paths if (match := SHARD.fullmatch(path.stem))]
    return max(0, max(totals, default=0) - len(paths))


def _split_of_file(path: Path, folder: Path) -> str:
    if split := split_of(path.stem):
        return split
    if match := SHARD.fullmatch(path.stem):
        return match["split"]  # one of the other splits that a data set may have
    parent = path.parent if path.parent != folder else None
    return (parent and split_of(parent.name)) or UNNAMED


def _configuration(folder: Path, paths: list[Path], config: str | None) -> list[Path]:
    """The files of one configuration."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        groups[_configuration_of(path.relative_to(folder))].append(path)
    names = sorted(groups.keys() - {UNNAMED})
    if config is not None:
        if config not in groups:
            raise ConfigError(f"data.config = {config!r}: {folder} has {first_of(names, ', ') or 'no configurations'}")
        return groups[config]
    if own := groups.get(UNNAMED):
        return [path for path in own if path.parent == folder] or own
    if len(names) > 1 and "default" not in groups:
        raise ConfigError(
            f"{folder}: has several configurations, choose one with --set data.config=NAME: {first_of(names, ', ')}"
        )
    return groups["default"] if "default" in groups else groups[names[0]] if names else []


def _configuration_of(path: Path) -> str:
    folders = list(path.parts[:-1])
    if folders and folders[0] == "data":
        folders.pop(0)
    if folders and split_of(folders[-1]) and not split_of(path.stem):
        folders.pop()
    return "/".join(folders)
