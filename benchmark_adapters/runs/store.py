"""The run folder: atomic writes, stage markers, a lock, and checkpoints without pickle."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import Tensor

from benchmark_adapters.lines import append_line, read_lines
from benchmark_adapters.runs.schema import Checkpoint, ScoredRecord, Scores, Stages, Trial
from dd_plugins.api import (
    PluginContractError,
    ResumeMismatch,
    RunLocked,
    SyntheticFileError,
    guarded,
    holder,
    locked,
    read_metadata,
    read_tensors,
    sweep,
    write_atomically,
    write_tensors,
)
from dd_plugins.api.faults import shortened
from dd_plugins.api.reading import check_regular, parse_json, read_json, validated
from dd_plugins.engine.checkpoints import CheckpointNotes
from dd_plugins.engine.pruning import CANDIDATE

CHECKPOINT = "dd_plugins.checkpoint"  # in the metadata of a checkpoint
DAMAGED = "; it is damaged; remove it to begin again"  # appended to what is wrong with a checkpoint


@dataclass(frozen=True)
class RunFolder:
    """The files of one run; every file is either whole or not there."""

    path: Path

    @property
    def synthetic(self) -> Path:
        """The stored set, the result of the run."""
        return self.path / "synthetic.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The state of an unfinished condensation."""
        return self.path / "condense.safetensors"

    @property
    def record(self) -> Path:
        """The run's record, JSON."""
        return self.path / "record.json"

    @property
    def failure(self) -> Path:
        """Why the last attempt failed, JSON; gone once the run is done."""
        return self.path / "failure.json"

    @property
    def trials(self) -> Path:
        """One line of JSON for each evaluation trial."""
        return self.path / "trials.jsonl"

    @contextmanager
    def locked(self, what: str | None = None) -> Iterator[None]:
        """Keeps other processes out, removes what ended ones left half written, and refuses to write if it is replaced.

        Args:
            what: What another process may be making here, to wait for it; None: raise instead of waiting.

        Raises:
            RunLocked: If another process holds it.
            FolderReplaced: From whatever writes within it, once the folder was removed or replaced.
        """
        lock = self.path / ".lock"
        with ExitStack() as held:
            try:
                held.enter_context(locked(lock, what))
            except BlockingIOError:
                raise RunLocked(f"{self.path} is in use by another process ({holder(lock)})") from None
            sweep(self.path)
            held.enter_context(guarded(lock))
            yield

    # ---- stages -------------------------------------------------------------------------------------------------

    def stages(self) -> dict[str, dict[str, Any]]:
        """The stages that are done, with what they noted."""
        return read_checked(self.path / "stages.json", Stages, "; remove it to condense again") or {}

    def mark(self, stage: str, **notes: Any) -> None:
        """Notes that a stage is done."""
        done = {**self.stages(), stage: {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **notes}}
        write_json(self.path / "stages.json", done)

    def digest(self) -> str:
        """sha256 of the stored set."""
        check_regular(self.synthetic, SyntheticFileError)
        with self.synthetic.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def check_stored(self) -> None:
        """Refuses a stored set that was exchanged behind the run's back: its scores belong to another one.

        Raises:
            SyntheticFileError: If the file is not the one that the condensation wrote.
        """
        noted = self.stages().get("condense", {}).get("sha256")
        if noted is not None and self.digest() != noted:
            raise SyntheticFileError(
                f"{self.synthetic} is not the set that this run stored; put that one back, or remove the file to "
                f"condense again"
            )

    def forget_scores(self) -> None:
        """Removes the record and all its trials, before the set that they belong to is made anew.

        Trials of candidates stay: they name the larger set that they were pruned from.
        """
        self.record.unlink(missing_ok=True)
        kept = [trial for trial in read_lines(self.trials, Trial) if trial.key.startswith(CANDIDATE)]
        if self.trials.exists():
            write_atomically(self.trials, "".join(f"{json.dumps(trial.model_dump())}\n" for trial in kept).encode())

    # ---- trials -------------------------------------------------------------------------------------------------

    def known_trials(self, key: str) -> dict[int, float]:
        """Scores of the trials that are done under a key (protocol hash and network)."""
        return {entry.trial: entry.score for entry in read_lines(self.trials, Trial) if entry.key == key}

    def add_trial(self, key: str, trial: int, score: float) -> None:
        """Appends a trial; a line that a crash cut short is ignored when reading."""
        append_line(self.trials, {"key": key, "trial": trial, "score": score})

    # ---- scores of images, for pruning ---------------------------------------------------------------------------

    @property
    def scores(self) -> Path:
        """The score of every image of the larger set that this one is pruned from."""
        return self.path / "scores.safetensors"

    def load_scores(self, digest: str) -> Tensor | None:
        """The scores of the set with that sha256; None if they are not there."""
        if not self.scores.exists():
            return None
        tensors, notes = read_tensors(self.scores)
        return tensors["score"] if notes.get("larger") == digest else None

    def save_scores(self, digest: str, score: Tensor) -> None:
        """Writes the scores of the set with that sha256."""
        write_tensors(self.scores, {"score": score}, {"larger": digest})

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def checkpoint_notes(self) -> Checkpoint | None:
        """What the last checkpoint notes, such as its ``step``; None if there is none, or if it is damaged."""
        with suppress(ResumeMismatch):
            return self._notes(read_metadata(self.checkpoint, ResumeMismatch))
        return None

    def checkpointer(self, run_id: str) -> FolderCheckpointer:
        """Keeps checkpoints of that run here."""
        return FolderCheckpointer(self, run_id)

    def _notes(self, metadata: dict[str, str]) -> Checkpoint:
        found = parse_json(metadata.get(CHECKPOINT, ""), self.checkpoint, ResumeMismatch, DAMAGED)
        return validated(Checkpoint, found, self.checkpoint, ResumeMismatch, DAMAGED)


@dataclass(frozen=True)
class FolderCheckpointer:
    """Keeps the last checkpoint of a run in its folder.

    Attributes:
        folder: The run's folder.
        run_id: Written into the checkpoint; one of another run is refused.
    """

    folder: RunFolder
    run_id: str

    def save(self, tensors: Mapping[str, Tensor], notes: CheckpointNotes) -> None:
        """Replaces the file of the last checkpoint."""
        about = {"run_id": self.run_id, **notes.model_dump()}
        write_tensors(self.folder.checkpoint, dict(tensors), {CHECKPOINT: json.dumps(about, allow_nan=False)})

    def load(self) -> tuple[dict[str, Tensor], CheckpointNotes] | None:
        """Reads the file of the last checkpoint; None if there is none.

        Raises:
            ResumeMismatch: If it belongs to another run, or is damaged.
        """
        if not self.folder.checkpoint.exists():
            return None
        tensors, metadata = read_tensors(self.folder.checkpoint, ResumeMismatch, DAMAGED)
        notes = self.folder._notes(metadata)
        if notes.run_id != self.run_id:
            found = shortened(notes.run_id)
            raise ResumeMismatch(f"{self.folder.checkpoint} belongs to run {found}, not to {self.run_id}")
        return tensors, notes

    def place(self) -> str:
        """The file, if it is there."""
        return str(self.folder.checkpoint) if self.folder.checkpoint.exists() else ""


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically.

    Raises:
        PluginContractError: If it holds NaN or an infinite number, such as a metric of a plugin; nothing is written.
    """
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except ValueError as error:
        raise PluginContractError(f"{path}: not written, since a value in it is NaN or infinite ({error})") from None
    write_atomically(path, f"{text}\n".encode())


def read_checked(path: Path, model: type[BaseModel], hint: str, what: str = "") -> dict[str, Any] | None:
    """The values of a JSON file that a model describes; None if there is no such file.

    Args:
        path: The file.
        model: What it must hold.
        hint: What the user can do about a damaged one, for the message.
        what: What is wrong with a file of other values, for the message.

    Raises:
        ResumeMismatch: If it is no valid JSON, or holds other values.
    """
    if not path.exists():
        return None
    values = read_json(path, ResumeMismatch, hint)
    validated(model, values, f"{path}{what}", ResumeMismatch, hint)
    return dict(values)


def read_record_file(path: Path, model: type[Scores] = ScoredRecord) -> dict[str, Any] | None:
    """Reads a record; None if there is no such file.

    Args:
        path: The file.
        model: What it must hold.

    Raises:
        ResumeMismatch: If it is no record.
    """
    return read_checked(path, model, "; remove it to make it anew", " is no record")
