"""Storage: budgets in elements and bytes, and the ledger of what a file holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import floor, prod

from torch import Tensor

from dd_plugins.api.data import DataSpec
from dd_plugins.errors import StorageBudgetExceeded, UsageError

BYTES_PER_ELEMENT = 4  # budgets count float32, as the papers do


@dataclass(frozen=True)
class StorageBudget:
    """How much a synthetic set may store: ``elements`` numbers, and four bytes for each.

    Example:
        >>> from dd_plugins.api import DataSpec, StorageBudget
        >>> StorageBudget.ipc(DataSpec.example(), ipc=1).elements
        128
    """

    elements: int

    @classmethod
    def ipc(cls, data: DataSpec, ipc: int) -> StorageBudget:
        """The budget of ``ipc`` uncompressed images per class: IPC x classes x C x H x W elements."""
        if ipc < 1:
            raise UsageError(f"Expected ipc (images per class) to be at least 1, but got {ipc}")
        return cls(ipc * data.num_classes * prod(data.image_shape))

    @property
    def nbytes(self) -> int:
        """The budget in bytes."""
        return self.elements * BYTES_PER_ELEMENT

    @property
    def bits(self) -> int:
        """The budget in bits."""
        return self.nbytes * 8

    def scaled(self, factor: float) -> StorageBudget:
        """A budget of ``factor`` times the elements, rounded down (over-budget condensation)."""
        if not factor > 0:
            raise UsageError(f"Expected the budget's factor to be above 0, but got {factor}")
        return StorageBudget(floor(self.elements * factor))


@dataclass(frozen=True)
class LedgerEntry:
    """One stored tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    elements: int
    nbytes: int


@dataclass(frozen=True)
class StorageLedger:
    """Every tensor that a stored set holds; what stands here is what counts."""

    entries: tuple[LedgerEntry, ...]

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, Tensor]]) -> StorageLedger:
        """Lists named tensors in the order given."""
        return cls(
            tuple(
                LedgerEntry(name, tuple(t.shape), str(t.dtype).removeprefix("torch."), t.numel(), t.nbytes)
                for name, t in tensors
            )
        )

    @property
    def elements(self) -> int:
        """Stored numbers in all."""
        return sum(entry.elements for entry in self.entries)

    @property
    def nbytes(self) -> int:
        """Stored bytes in all, headers apart."""
        return sum(entry.nbytes for entry in self.entries)

    def enforce(self, budget: StorageBudget, who: str) -> None:
        """Refuses a set that is over its budget in elements or in bytes.

        Raises:
            StorageBudgetExceeded: With both counts, the difference and the largest tensors.
        """
        if self.elements <= budget.elements and self.nbytes <= budget.nbytes:
            return
        largest = sorted(self.entries, key=lambda entry: -entry.nbytes)[:3]
        listed = ", ".join(f"{entry.name} {entry.elements}" for entry in largest)
        raise StorageBudgetExceeded(
            f"{who} stores {self.elements} elements in {self.nbytes} bytes, but the budget is {budget.elements} "
            f"elements in {budget.nbytes} bytes ({self.elements - budget.elements:+d} elements); largest: {listed}"
        )
