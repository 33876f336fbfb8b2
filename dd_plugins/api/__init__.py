"""All that a third party imports: the contracts, the data they pass, and the errors they raise."""

from dd_plugins.api.artifact_files import ArtifactFiles, FolderFiles
from dd_plugins.api.artifacts import (
    Artifact,
    ArtifactStore,
    FolderArtifacts,
    MemoryArtifacts,
    NeedsArtifacts,
)
from dd_plugins.api.atomic import check_guarded, guarded, staged, sweep, temporary_folder, write_atomically
from dd_plugins.api.benchmark import Benchmark, BenchmarkFailed, Cell, ScoreContext, Scores
from dd_plugins.api.capabilities import Grouped, NeedsPrior, Prior, PruningUnits, Stage, Staged
from dd_plugins.api.config import PluginConfig, parse_config
from dd_plugins.api.data import Conventions, Dataset, DataSource, DataSpec, RawData, Split
from dd_plugins.api.files import read_metadata, read_tensors, write_tensors
from dd_plugins.api.initialization import random_real_images, random_real_rows
from dd_plugins.api.locks import holder, locked
from dd_plugins.api.network import Network
from dd_plugins.api.objective import Context, DifferentiableObjective, Match, MatchingObjective, checked_match
from dd_plugins.api.parameterization import Parameterization
from dd_plugins.api.plan import (
    Cost,
    Plan,
    Shapes,
    TensorSpec,
    float32_cost,
    largest,
    parts_of_images,
)
from dd_plugins.api.prior import LayeredGenerator, Styles
from dd_plugins.api.pruning import PruningStrategy
from dd_plugins.api.real_data import RealData
from dd_plugins.api.storage import LedgerEntry, StorageBudget, StorageLedger
from dd_plugins.api.stored import StoredHeader, read_stored
from dd_plugins.api.synthetic import SyntheticSet
from dd_plugins.errors import (
    AmbiguousPluginError,
    BudgetTooSmall,
    ConfigError,
    DataError,
    DDPluginsError,
    DivergedError,
    FolderReplaced,
    IncompatibleError,
    MissingExtraError,
    NotEnoughMemory,
    OutOfMemory,
    PluginContractError,
    PluginLoadError,
    ResumeMismatch,
    RunLocked,
    StorageBudgetExceeded,
    SyntheticFileError,
    UnknownPluginError,
    UntrustedPluginError,
    UsageError,
)

__all__ = [
    "AmbiguousPluginError",
    "Artifact",
    "ArtifactFiles",
    "ArtifactStore",
    "Benchmark",
    "BenchmarkFailed",
    "BudgetTooSmall",
    "Cell",
    "ConfigError",
    "Context",
    "Conventions",
    "Cost",
    "DDPluginsError",
    "DataError",
    "DataSource",
    "DataSpec",
    "Dataset",
    "DifferentiableObjective",
    "DivergedError",
    "FolderArtifacts",
    "FolderFiles",
    "FolderReplaced",
    "Grouped",
    "IncompatibleError",
    "LayeredGenerator",
    "LedgerEntry",
    "Match",
    "MatchingObjective",
    "MemoryArtifacts",
    "MissingExtraError",
    "NeedsArtifacts",
    "NeedsPrior",
    "Network",
    "NotEnoughMemory",
    "OutOfMemory",
    "Parameterization",
    "Plan",
    "PluginConfig",
    "PluginContractError",
    "PluginLoadError",
    "Prior",
    "PruningStrategy",
    "PruningUnits",
    "RawData",
    "RealData",
    "ResumeMismatch",
    "RunLocked",
    "ScoreContext",
    "Scores",
    "Shapes",
    "Split",
    "Stage",
    "Staged",
    "StorageBudget",
    "StorageBudgetExceeded",
    "StorageLedger",
    "StoredHeader",
    "Styles",
    "SyntheticFileError",
    "SyntheticSet",
    "TensorSpec",
    "UnknownPluginError",
    "UntrustedPluginError",
    "UsageError",
    "check_guarded",
    "checked_match",
    "float32_cost",
    "guarded",
    "holder",
    "largest",
    "locked",
    "parse_config",
    "parts_of_images",
    "random_real_images",
    "random_real_rows",
    "read_metadata",
    "read_stored",
    "read_tensors",
    "staged",
    "sweep",
    "temporary_folder",
    "write_atomically",
    "write_tensors",
]
