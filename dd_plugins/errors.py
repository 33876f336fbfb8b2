"""The one tree of errors; the command line turns each into a line of text and an exit code."""

from __future__ import annotations

from collections.abc import Sequence


class DDPluginsError(Exception):
    """Base of every error that this project raises on purpose.

    Attributes:
        summary: What is wrong, in one line.
        details: Single faults, one line each; the command prints them below the summary.
    """

    exit_code = 1

    def __init__(self, summary: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(summary)
        self.summary, self.details = summary, tuple(details)

    def __str__(self) -> str:
        return "\n  ".join([self.summary, *self.details])


class UsageError(DDPluginsError):
    """Something that was asked for cannot be done as asked."""

    exit_code = 2


class UnknownPluginError(UsageError):
    """No installed plugin has this name."""


class AmbiguousPluginError(UsageError):
    """Two distributions offer a plugin of this name."""


class PluginLoadError(UsageError):
    """A plugin is listed, but could not be imported or is not what it claims to be."""


class UntrustedPluginError(UsageError):
    """A file names code to import that the user has not named."""


class ConfigError(UsageError):
    """A configuration key is unknown, or its value is not allowed."""


class IncompatibleError(UsageError):
    """Two parts were combined that cannot work together; the message is the reason."""


class DataError(UsageError):
    """Real data is missing, damaged, or breaks its contract."""


class SyntheticFileError(UsageError):
    """A stored synthetic set is missing, truncated, or not one of ours."""


class MissingExtraError(UsageError):
    """Something needs a package that comes with an extra only."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra {extra}: pip install 'dd-plugins[{extra}]'")


class NotEnoughMemory(UsageError):
    """What was asked for needs more memory than the machine has."""


class BudgetTooSmall(UsageError):
    """Not one image per class of this parameterization fits into the storage budget."""


class ResumeMismatch(UsageError):
    """A run folder holds the state of another configuration."""


class RunLocked(UsageError):
    """Another process is working in this run folder."""


class FolderReplaced(DDPluginsError):
    """A run folder was removed or replaced while a command was writing to it."""


class StorageBudgetExceeded(DDPluginsError):
    """A stored set is larger than its budget."""


class DivergedError(DDPluginsError):
    """A loss, a gradient or an image became NaN or infinite."""


class PluginContractError(DDPluginsError):
    """A plugin's own code returned something that its contract forbids."""


OUT_OF_MEMORY = "the device ran out of memory; --chunk and smaller batches (--set) need less"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up: Python's, numpy's, or torch's on the CPU or on a GPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's; naming the class would import torch
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )
