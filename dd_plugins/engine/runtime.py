"""Where and how the engine computes; nothing here has an influence on the result, but for the number of threads."""

from __future__ import annotations

from dataclasses import dataclass, field

from dd_plugins.api import ArtifactStore, MemoryArtifacts
from dd_plugins.engine.callbacks import Callback
from dd_plugins.engine.checkpoints import Checkpointer
from dd_plugins.execution import Execution


@dataclass(frozen=True)
class Runtime:
    """Where and how a computation runs.

    Attributes:
        execution: Device and threads.
        callback: Follows the computation, and can stop it.
        checkpointer: Keeps what an interrupted condensation goes on from; None: nothing is kept.
        checkpoint_seconds: Time between two checkpoints; 0: after every step.
        chunk_size: Images decoded with a graph at once; None: all. Less memory, more time.
        artifacts: Keeps costly results that several calls share, such as experts; in memory by default.
    """

    execution: Execution = field(default_factory=Execution)
    callback: Callback = field(default_factory=Callback)
    checkpointer: Checkpointer | None = None
    checkpoint_seconds: float = 30.0
    chunk_size: int | None = None
    artifacts: ArtifactStore = field(default_factory=MemoryArtifacts)
