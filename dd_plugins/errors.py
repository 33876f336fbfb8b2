"""The one tree of errors; the command line turns each into a line of text and an exit code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def one_line(text: object) -> str:
    """The text with control characters, line breaks and ANSI codes escaped as ``repr`` escapes them."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text))


class DDPluginsError(Exception):
    """Base of every error that this project raises on purpose.

    Attributes:
        summary: What is wrong, in one line; control characters and line breaks in names are escaped.
        details: Single faults, one line each; the command prints them below the summary.
    """

    exit_code = 1

    def __init__(self, summary: str = "", details: Sequence[str] = ()) -> None:
        self.summary, self.details = one_line(summary), tuple(map(one_line, details))
        super().__init__(self.summary)

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


class EmptyClassError(UsageError):
    """A pruning would leave a class without an image.

    Attributes:
        label: The class.
    """

    def __init__(self, keep: int, total: int, label: int, name: str = "") -> None:
        self.label = label
        self._counts = keep, total
        super().__init__(f"{keep} of {total} images to keep would leave class {name or label} with none")

    def named(self, class_names: Sequence[str]) -> EmptyClassError:
        """The same error with the name of the class."""
        return EmptyClassError(*self._counts, self.label, class_names[self.label])


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


class Stopped(DDPluginsError):
    """A callback asked to stop; what was done so far is kept where the caller keeps checkpoints."""


class PluginContractError(DDPluginsError):
    """A plugin's own code returned something that its contract forbids."""


class OutOfMemory(DDPluginsError):
    """An allocator gave up while running."""


OUT_OF_MEMORY = (
    "the device ran out of memory; what was saved is kept; a smaller IPC, --chunk, smaller batches and smaller "
    "networks (--set) need less"
)
# Words of torch, of C++ and of Python (no memory for the stack of a thread) in a RuntimeError.
_OF_ALLOCATORS = ("DefaultCPUAllocator", "can't allocate memory", "std::bad_alloc", "can't start new thread")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up: that of Python, numpy, pyarrow, or torch, on the CPU or on a GPU."""
    return (
        isinstance(error, MemoryError | OutOfMemory)
        or type(error).__name__ == "OutOfMemoryError"  # torch's; naming the class would import torch
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in _OF_ALLOCATORS))
    )


@contextmanager
def allocator_errors() -> Iterator[None]:
    """Within it the errors of all allocators become one.

    Raises:
        OutOfMemory: Instead of an allocator's own error.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) and not isinstance(error, OutOfMemory):
            where = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
            raise OutOfMemory(f"{OUT_OF_MEMORY}{where}") from error
        raise
