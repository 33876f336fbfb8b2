"""What the code relies on in the files of a run: models that check it when a file is read."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dd_plugins.engine.checkpoints import CheckpointNotes

Number = Annotated[float, Field(ge=-1e15, le=1e15)]  # sums and squares of such numbers are finite
Trials = Annotated[list[Number], Field(min_length=1)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Counts = Annotated[list[Count], Field(min_length=1)]


class Part(BaseModel):
    """Base of all models here: exact types and finite numbers; unknown keys are allowed."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Trial(Part):
    """A line of ``trials.jsonl``."""

    key: str
    trial: int = Field(ge=0)
    score: Number


class Failure(Part):
    """``failure.json``."""

    status: str
    message: str


class Checkpoint(CheckpointNotes):
    """The notes of an unfinished condensation in a run folder."""

    run_id: str


class Prior(Part):
    """A generator that a set needs, which its elements do not include."""

    elements: Count
    sha256: str
    seconds: Number


class Condensation(Part):
    """How a set was made; an imported set has none of these numbers."""

    sha256: str | None = None
    steps: Count | None = None
    seconds: Number | None = None
    cpu_seconds: Number | None = None
    prepare_seconds: Number | None = None
    threads: Count | None = None
    peak_memory_mib: Number | None = None
    priors: list[Prior] = []

    @model_validator(mode="after")
    def _steps_take_time(self) -> Self:
        if self.steps is not None and None in (self.seconds, self.peak_memory_mib):
            raise ValueError("steps without seconds or peak_memory_mib")
        return self


class Candidate(Part):
    """A pruning that was tried."""

    settings: dict[str, Any]
    trials: Trials


class Pruning(Part):
    """How a set was pruned."""

    strategy: str
    settings: dict[str, Any]
    images: list[int] = Field(min_length=2, max_length=2)
    kept: list[int]
    candidates: list[Candidate]
    prune_seconds: float
    larger: str = ""


class Stages(Part):
    """``stages.json``."""

    condense: Condensation | None = None
    prune: Pruning | None = None


class Score(Part):
    """The score of a set, or of a reference, under one protocol."""

    protocol: str
    protocol_hash: str
    network: str
    trials: Trials


class Reference(Score):
    """The score of real images that stand next to a set."""

    name: str
    elements: Count
    bytes: Count
    images_per_class: Counts
    seed: int | None = None


class BenchmarkScore(Score):
    """The score of a set by another benchmark."""

    name: str
    benchmark: str
    metric: str
    metrics: dict[str, Trials] = {}
    key: str | None = None


class Metric(Part):
    """A number about a set that is no score."""

    metric: str
    network: dict[str, Any]


class Named(Part):
    """A part by its name."""

    name: str


class ProtocolOf(Named):
    """What tables read of a protocol; `Protocol` checks all of it where it is followed."""

    network: Named


class Data(Part):
    """The data set of a record."""

    name: str
    origin: str
    fingerprint: str


class ScoredConfig(Part):
    """What every configuration says, also that of a reference."""

    dataset: str
    ipc: int = Field(ge=1)
    protocol: ProtocolOf
    seed: int = 0


class Versions(Part):
    """Of the packages that made a record."""

    torch: str | None = None
    own: str | None = Field(None, alias="dd-plugins")


class Scores(Part):
    """What all records have."""

    name: str
    data: Data
    scores: list[Score]
    yardsticks: list[Reference]
    benchmarks: list[BenchmarkScore] = []
    metrics: list[Metric] = []
    plugins: dict[str, dict[str, str]] = {}
    condensation: Condensation = Condensation()
    pruning: Pruning | None = None
    versions: Versions = Versions()


class ScoredRecord(Scores):
    """The record of anything that was scored, a file of its own included."""

    config: ScoredConfig | None = None


class TableRecord(Scores):
    """A record whose references can stand in a table."""

    config: ScoredConfig


class Taken(Part):
    """What a set takes, in all."""

    elements: Count
    bytes: Count
    budget: int = Field(ge=1, le=10**15)


class SetRecord(Scores):
    """The record of a stored set: of a run, or of a file that was scored, which has no configuration."""

    config: ScoredConfig | None = None
    container: str = ""
    storage: Taken
    images_per_class: Counts

    @field_validator("config")
    @classmethod
    def _missing_but_not_null(cls, value: ScoredConfig | None) -> ScoredConfig:
        if value is None:
            raise ValueError("expected a mapping")
        return value


class LedgerEntry(Part):
    """A stored tensor."""

    name: str
    shape: list[int]
    dtype: str
    elements: Count
    nbytes: Count


class Storage(Taken):
    """What a set takes, tensor by tensor."""

    ledger: list[LedgerEntry]
    priors: list[Prior] = []


class RunConfigOf(ScoredConfig):
    """What reports read of a run's configuration."""

    method: str
    seed: int
    parameterization: Named
    objective: Named
    data: dict[str, Any] = {}


class RunRecord(Scores):
    """The record of a run."""

    id: str
    status: str = "done"
    config: RunConfigOf
    storage: Storage
    images_per_class: Counts
    condensation: Condensation
