"""Results of one-off work that runs share: experts, priors, reference classifiers, whitening, decoded images.

An `Artifact` says what its files are called, how they are made and how they are read. An `ArtifactStore` makes each of
them once, for the first plugin that needs it: in a folder, or in memory where there is no disk.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from dd_plugins.api.artifact_files import ArtifactFiles, FolderFiles
from dd_plugins.api.atomic import sweep
from dd_plugins.api.locks import POLL_SECONDS, locked
from dd_plugins.api.memory_files import HeldFiles, MemoryFiles
from dd_plugins.api.progress import StartJob, silent_job

if TYPE_CHECKING:
    from dd_plugins.api.objective import Context
    from dd_plugins.api.real_data import RealData

T = TypeVar("T")
MEMORY_LIMIT = 2**31  # bytes that a store in memory holds by default


class Artifact(ABC, Generic[T]):
    """A result of costly work that runs share.

    Subclasses hold what is needed to make it. Equal ``kind`` and ``key`` mean equal content: everything that decides
    the content is part of the key.

    Attributes:
        kind: What it is, which names a folder: ``experts``.
        own_folder: Whether its files have a folder of their own, ``KIND/KEY``; else they are ``KIND/KEY.SUFFIX``.
    """

    kind: ClassVar[str]
    own_folder: ClassVar[bool] = False

    @property
    @abstractmethod
    def key(self) -> str:
        """Its name within its kind, such as ``digits-convnet-0123456789``; a file name."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What messages call it: ``expert trajectories of digits``."""

    def check(self) -> None:
        """Refuses what cannot be made, before anything is written or hours are spent; accepts everything by default.

        Raises:
            DDPluginsError: In one line, why.
        """
        return

    @abstractmethod
    def load(self, files: ArtifactFiles) -> T | None:
        """Reads and verifies it.

        Returns:
            None if it does not exist, or not all of it: it is built then.

        Raises:
            DataError: If it is damaged and costly to make: names the file to remove.
        """

    @abstractmethod
    def build(self, files: ArtifactFiles, job: StartJob) -> T:
        """Makes it, or the part that is missing; called by one process and thread at a time.

        What an interrupted call has written to ``files`` exists in the next one.

        Args:
            files: Where it is written to; every file is whole or absent.
            job: Shows the progress; may raise KeyboardInterrupt between two steps.
        """

    def state(self, files: ArtifactFiles) -> str:
        """How much of an incomplete one exists, for a listing: ``3 of 100 experts``; empty if nothing is to be said."""
        del files
        return ""

    def about(self, made: T) -> list[str]:
        """Figures to show, one line each."""
        del made
        return []

    def problem(self, made: T) -> str:
        """Why a run would refuse it; empty if it would not."""
        del made
        return ""

    @property
    def folder(self) -> str:
        """The folder of its files within the store."""
        return f"{self.kind}/{self.key}" if self.own_folder else self.kind

    @property
    def lock(self) -> str:
        """The name of its lock file in that folder."""
        return ".lock" if self.own_folder else f"{self.key}.lock"


@dataclass(frozen=True)
class Provided:
    """What `ArtifactStore.get` has done.

    Attributes:
        kind: Kind of the artifact, with its ``key`` and ``title``.
        place: Where it is.
        made: Whether it had to be made.
        seconds: How long that, or reading it, took.
    """

    kind: str
    key: str
    title: str
    place: str
    made: bool
    seconds: float


class ArtifactStore(ABC):
    """Makes artifacts once, and keeps them.

    Args:
        on_get: Called at the end of every :meth:`get`.
    """

    def __init__(self, on_get: Callable[[Provided], None] = lambda provided: None) -> None:
        self.on_get = on_get

    def get(self, artifact: Artifact[T], job: StartJob = silent_job) -> T:
        """An artifact: read if it exists, else made now, by one process and thread while others wait for it.

        Args:
            artifact: What is needed.
            job: Shows the progress of making it, or that another process is waited for.

        Raises:
            DataError: If what exists is damaged.
            NotEnoughMemory: If it exceeds the limit of a store in memory.
        """
        begun, files = time.perf_counter(), self.files(artifact)
        made = (found := artifact.load(files)) is None
        if found is None:
            artifact.check()
            with self._alone(artifact, job):
                if (found := artifact.load(files)) is None:  # another process may have made it
                    found = artifact.build(files, job)
        seconds = time.perf_counter() - begun
        self.on_get(Provided(artifact.kind, artifact.key, artifact.title, files.place(), made, seconds))
        return found

    def has(self, artifact: Artifact[Any]) -> bool:
        """Whether an artifact exists and is whole."""
        return artifact.load(self.files(artifact)) is not None

    @abstractmethod
    def files(self, artifact: Artifact[Any]) -> ArtifactFiles:
        """The files of an artifact."""

    @abstractmethod
    def _locked(
        self, artifact: Artifact[Any], wait: bool, poll: Callable[[], None] = lambda: None
    ) -> AbstractContextManager[None]:
        """Excludes all others from making it; raises BlockingIOError if another one does and ``wait`` is False."""

    @contextmanager
    def _alone(self, artifact: Artifact[Any], job: StartJob) -> Iterator[None]:
        """Excludes all others from making it; waiting for them is a job, which may be interrupted."""
        held = self._locked(artifact, wait=False)
        try:
            held.__enter__()
        except BlockingIOError:
            with job(f"wait for {artifact.title}", 1) as update:
                held = self._locked(artifact, wait=True, poll=lambda: update(0))
                held.__enter__()
        try:
            yield
        finally:
            held.__exit__(None, None, None)


class FolderArtifacts(ArtifactStore):
    """Artifacts in a folder that runs share, also those of other processes.

    Args:
        path: The folder; created when something is written.
        on_get: Called at the end of every :meth:`get`.
    """

    def __init__(self, path: Path, on_get: Callable[[Provided], None] = lambda provided: None) -> None:
        super().__init__(on_get)
        self.path = path

    def files(self, artifact: Artifact[Any]) -> ArtifactFiles:
        """The files of an artifact; removes what ended processes left half written."""
        folder = self.path / artifact.folder
        sweep(folder)
        return FolderFiles(folder)

    def _locked(
        self, artifact: Artifact[Any], wait: bool, poll: Callable[[], None] = lambda: None
    ) -> AbstractContextManager[None]:
        return locked(self.path / artifact.folder / artifact.lock, artifact.title if wait else None, poll)


class MemoryArtifacts(ArtifactStore):
    """Artifacts in the memory of this process: the same content as in a folder, up to a limit.

    Args:
        limit: Bytes that it holds in all.
        on_get: Called at the end of every :meth:`get`.
    """

    def __init__(self, limit: int = MEMORY_LIMIT, on_get: Callable[[Provided], None] = lambda provided: None) -> None:
        super().__init__(on_get)
        self._held = HeldFiles(limit)
        self._locks: dict[str, threading.Lock] = {}

    def files(self, artifact: Artifact[Any]) -> ArtifactFiles:
        """The files of an artifact."""
        return MemoryFiles(self._held, artifact.folder, artifact.title)

    @contextmanager
    def _locked(self, artifact: Artifact[Any], wait: bool, poll: Callable[[], None] = lambda: None) -> Iterator[None]:
        lock = self._locks.setdefault(f"{artifact.folder}/{artifact.lock}", threading.Lock())
        while not lock.acquire(timeout=POLL_SECONDS if wait else 0):
            if not wait:
                raise BlockingIOError(f"{artifact.title}: another thread makes it")
            poll()
        try:
            yield
        finally:
            lock.release()


class NeedsArtifacts(ABC):
    """Capability of a plugin that needs artifacts: they can be listed, and made ahead of a run."""

    @abstractmethod
    def artifacts(self, real: RealData, context: Context) -> Iterator[Artifact[Any]]:
        """What :meth:`prepare` will need, in order.

        A later artifact may depend on an earlier one: it is yielded only if the earlier one exists by then.

        Args:
            real: The data set.
            context: As for :meth:`prepare`.
        """
