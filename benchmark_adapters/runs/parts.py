"""Where and how a run is made, and the data set of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dd_plugins.api import DataError, DataSpec, FolderArtifacts, RealData
from dd_plugins.datasets import load_dataset
from dd_plugins.engine.callbacks import Callback
from dd_plugins.engine.checkpoints import Checkpointer
from dd_plugins.engine.config import RunConfig
from dd_plugins.engine.runtime import Runtime
from dd_plugins.execution import Execution


@dataclass(frozen=True)
class Options:
    """Where and how a run is made; nothing here has an influence on its result."""

    out: Path
    device: torch.device
    data_root: Path | None = None
    full_data: bool | None = None  # whether the whole training set is scored too; None: if it is small
    chunk_size: int | None = None
    checkpoint_seconds: float = 30.0
    threads: int | None = None

    def runtime(self, callback: Callback, checkpointer: Checkpointer | None = None) -> Runtime:
        """The same for the engine.

        Args:
            callback: Follows the run.
            checkpointer: Keeps what an interrupted condensation goes on from.
        """
        execution = Execution(self.device, self.threads)
        artifacts = FolderArtifacts(self.out)
        return Runtime(execution, callback, checkpointer, self.checkpoint_seconds, self.chunk_size, artifacts)


def load_real(config: RunConfig, options: Options) -> RealData:
    """The data set of a run, on its device."""
    return load_dataset(config.dataset, options.data_root, options.device, config=config.data)


def same_data(real: RealData, made: DataSpec, spec: str) -> RealData:
    """Refuses other data than a set was made from.

    Args:
        real: The data.
        made: The spec that the set keeps.
        spec: The data as the user names it, for messages.
    """
    found = real.spec
    if (made.image_shape, made.num_classes) != (found.image_shape, found.num_classes):
        raise DataError(
            f"the set was made from {made.name} ({made.num_classes} classes of {made.image_shape}), but {spec} has "
            f"{found.num_classes} classes of {found.image_shape}"
        )
    if made.fingerprint != found.fingerprint:
        raise DataError(
            f"the set was made from {made.name} with fingerprint {made.fingerprint}, {spec} has {found.fingerprint}: "
            f"other pixels, labels, splits, or another mean and standard deviation (data.as)"
        )
    return real
