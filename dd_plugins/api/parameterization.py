"""The contract of a parameterization: how synthetic images are stored, decoded and pulled back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast, final

import torch
from torch import Generator, Tensor, nn

from dd_plugins.api.config import ConfigT, PluginConfig, parse_config
from dd_plugins.api.data import DataSource, DataSpec
from dd_plugins.api.decoding import Decoder
from dd_plugins.api.files import describe_source
from dd_plugins.api.memory import require_memory
from dd_plugins.api.plan import Plan, Planned, float32_cost
from dd_plugins.api.progress import StartJob, silent_job
from dd_plugins.api.real_data import RealData
from dd_plugins.api.storage import StorageBudget, StorageLedger
from dd_plugins.api.stored import StoredHeader, check_tensors, read_stored, stored_to_bytes, write_stored
from dd_plugins.errors import PluginContractError, SyntheticFileError, UsageError


class Parameterization(Planned[ConfigT], Decoder):
    """Base of every container: stored tensors, and a decoder from the number of an image to the image.

    Authors write :meth:`shapes`, :meth:`reset` and :meth:`_decode`, and :meth:`_keep` if single images can be dropped.
    Whatever :meth:`stored` returns counts against the budget. Images are ordered by class; their labels follow from the
    order and cost nothing. What only some containers can do is a base class of its own: ``Staged``, ``NeedsPrior``,
    ``Grouped``, ``PruningUnits``.

    ``class Mine(Parameterization["Mine.Config"])`` gives ``self.config`` its type; without it the type is ``Any``.

    Attributes:
        data: The data set's spec.
        budget: The storage budget.
        layout: The plan that the container is built for: images of each class, and the settings with all sizes.
        data_source: Which data set it is made from, and the names of its classes; kept in the file.
        labels: int64, ``(N,)``; derived from ``counts``, not stored.
        chunk_size: Images decoded with a graph at once; None for all.
        job: Reports the progress of a long :meth:`reset`:
            ``with self.job("warm start", steps) as update: update(done)``.
    """

    api_version: ClassVar[int]  # declared by each plugin class itself: the release of this contract it is written for
    check_settings: ClassVar[Mapping[str, Any]] = {}  # what conformance checks run with, where defaults take long

    class Config(PluginConfig):
        """Settings of the container; override with a subclass of `PluginConfig`."""

    def __init__(
        self,
        data: DataSpec,
        budget: StorageBudget,
        config: ConfigT | Mapping[str, Any] | None = None,
        *,
        plan: Plan[ConfigT] | None = None,
        counts: Sequence[int] | None = None,
    ) -> None:
        """Allocates the container.

        Args:
            data: The data set's spec.
            budget: How much may be stored.
            config: A ``Config``, or a mapping to make one of; ignored if there is a ``plan``.
            plan: What it will hold; by default what :meth:`plan` returns for float32.
            counts: Images of each class, instead of as many as fit: for a set that was pruned.

        Raises:
            NotEnoughMemory: If the images it decodes would not fit into memory; before anything is allocated.
            BudgetTooSmall: If not one image per class fits.
            ConfigError: If ``config`` is not valid.
        """
        super().__init__()
        self.data, self.budget = data, budget
        self.data_source = DataSource()
        self.job: StartJob = silent_job
        plan = plan or self._plan_for(data, budget, config, counts)
        unit = self.images_per_unit(plan.config)
        if len(plan.counts) != data.num_classes or min(plan.counts) < 1:
            raise UsageError(f"Expected one positive count for each of {data.num_classes} classes: {plan.counts}")
        if any(count % unit for count in plan.counts):
            raise UsageError(
                f"{type(self).__name__}: expected multiples of {unit} images in every class, but got {plan.counts}"
            )
        if not torch.empty(0).is_meta:  # where only shapes are needed, the caller compares
            total = sum(plan.counts)
            decoded = {f"{total:,} decoded images": total * data.image_bytes}
            require_memory(decoded, None, "a smaller IPC makes fewer images")
        self._set_layout(plan)
        self.build()
        self._check_stored()

    @property
    def counts(self) -> tuple[int, ...]:
        """Images of each class, in the order of the classes."""
        return self.layout.counts

    @property
    def config(self) -> ConfigT:
        """The settings, with every size filled in."""
        return self.layout.config

    # ---- what an author writes, besides what the base classes name ------------------------------------------------

    def build(self) -> None:
        """Allocates what ``self.layout`` asks for; draws nothing and reads no data.

        By default everything in :meth:`shapes`: floating-point tensors as parameters, others as buffers, all zero.
        """
        for name, spec in self.shapes(self.data, self.counts, self.config).items():
            zeros = torch.zeros(spec.shape, dtype=spec.dtype)
            if spec.dtype.is_floating_point:
                self.register_parameter(name, nn.Parameter(zeros))
            else:
                self.register_buffer(name, zeros)

    @abstractmethod
    def reset(self, generator: Generator, real: RealData | None) -> None:
        """Initialises the learned tensors, with randomness from ``generator`` (on the CPU) alone."""

    def _keep(self, index: Tensor) -> None:
        """Drops every image but those of ``index`` from the tensors; define it to make images prunable."""
        raise UsageError(f"{type(self).__name__} cannot drop single images")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for a torch optimizer; a group without ``lr`` gets the optimizer's.

        By default one group of all parameters, whose rate is the setting ``lr`` if there is one that is set.
        """
        group: dict[str, Any] = {"params": list(self.parameters())}
        lr = getattr(self.config, "lr", None)
        return [group if lr is None else {**group, "lr": lr}]

    def project(self) -> None:
        """Called after every step: maps the tensors back to where they are allowed to be; nothing by default."""
        return

    def stored(self) -> dict[str, Tensor]:
        """What the file holds, by name, as :meth:`shapes` declares it; by default the state, all that is learned."""
        return dict(self.state_dict())

    def load_stored(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores the container from what :meth:`stored` returned."""
        self.load_state_dict(dict(tensors))

    def budget_ratio(self) -> float:
        """How many times its budget the container may take: 1, unless the user chose a paper's way of counting.

        A ratio above 1 is printed, recorded and shown in every table.
        """
        return 1.0

    def describe(self) -> str:
        """One line about the sizes that were chosen; empty by default."""
        return ""

    def working_bytes(self) -> int:
        """Bytes that :meth:`reset` certainly holds besides the stored tensors, for the estimate before a run."""
        return 0

    # ---- what callers use -------------------------------------------------------------------------------------------

    @classmethod
    @final
    def prunable(cls) -> bool:
        """Whether single images, or units of them, can be dropped: whether there is a ``_keep``."""
        return cls._keep is not Parameterization._keep

    @final
    def keep(self, index: Tensor) -> None:
        """Prunes: keeps the images of ``index`` alone.

        Args:
            index: int64, ``(K,)``, strictly ascending; every class must keep one image at least.
        """
        if not len(index) or (index.diff() <= 0).any() or index[0] < 0 or index[-1] >= len(self.labels):
            raise UsageError(
                f"Expected the images to keep as a non-empty, strictly ascending index from 0 to {len(self.labels) - 1}"
            )
        counts = torch.bincount(self.labels[index], minlength=self.data.num_classes).tolist()
        if min(counts) < 1:
            raise UsageError(f"Class {counts.index(0)} would be left with no image")
        self._graph = None  # it would lead to the tensors from before
        with torch.no_grad():
            self._keep(index)
        self._set_layout(Plan(tuple(counts), self.config))
        self._check_stored()

    @final
    def storage(self) -> StorageLedger:
        """The ledger of what a saved file would hold."""
        return StorageLedger.of(sorted(self.stored().items()))

    @final
    def save(self, path: Path, plugin: str | None = None) -> StorageLedger:
        """Writes everything that is needed to decode the images to one safetensors file.

        Args:
            path: The file; written to a temporary neighbour first, then renamed.
            plugin: The spec by which the registry finds this class; ``module:Class`` by default.

        Returns:
            The ledger of the file.
        """
        write_stored(path, self.stored(), self._header(plugin))
        return self.storage()

    @final
    def to_bytes(self, plugin: str | None = None) -> bytes:
        """The bytes of the file that :meth:`save` writes."""
        return stored_to_bytes(self.stored(), self._header(plugin))

    def _header(self, plugin: str | None) -> StoredHeader:
        return StoredHeader(
            plugin=plugin or f"{type(self).__module__}:{type(self).__qualname__}",
            config=self.config.model_dump(mode="json"),
            data=self.data,
            budget=self.budget,
            counts=self.counts,
            source=self.data_source,
        )

    @classmethod
    @final
    def load(cls, source: Path | bytes) -> Self:
        """Rebuilds a container from its file alone, or from the bytes of the file.

        Raises:
            SyntheticFileError: If the file is truncated, foreign, or its tensors are not those of this class.
        """
        header, tensors = read_stored(source)
        try:
            plan = cls._plan_for(header.data, header.budget, header.config, header.counts)
            # Before anything of the sizes in a header is allocated.
            check_tensors(source, cls.shapes(header.data, plan.counts, plan.config), tensors)
            made = cls(header.data, header.budget, plan=plan)
        except SyntheticFileError:
            raise
        except UsageError as error:
            raise SyntheticFileError(
                f"{describe_source(source)}: {header.plugin} is not stored as {cls.__name__} reads it: {error}"
            ) from None
        made.load_stored(tensors)
        made.data_source = header.source
        return made

    # ---- helpers ------------------------------------------------------------------------------------------------

    @classmethod
    def _plan_for(
        cls,
        data: DataSpec,
        budget: StorageBudget,
        config: ConfigT | Mapping[str, Any] | None,
        counts: Sequence[int] | None,
    ) -> Plan[ConfigT]:
        parsed = cast(ConfigT, parse_config(cls.Config, config, "parameterization"))
        if counts is None:
            return cls.plan(data, budget, parsed, float32_cost)
        return Plan(tuple(map(int, counts)), cls.resolve(data, budget, parsed, float32_cost))

    def _set_layout(self, plan: Plan[ConfigT]) -> None:
        self.layout = plan
        device = self.labels.device if "labels" in self._buffers else None
        counts = torch.tensor(plan.counts)
        labels = torch.arange(len(counts)).repeat_interleave(counts, output_size=sum(plan.counts))
        self.register_buffer("labels", labels.to(device), persistent=False)

    def _check_stored(self) -> None:
        """Compares what is stored with what :meth:`shapes` declares, which is what is paid for.

        Raises:
            PluginContractError: If they differ.
        """
        declared = {name: tuple(spec.shape) for name, spec in self.shapes(self.data, self.counts, self.config).items()}
        found = {name: tuple(tensor.shape) for name, tensor in self.stored().items()}
        for name in sorted({*declared, *found}):
            if found.get(name) != declared.get(name):
                raise PluginContractError(
                    f"{type(self).__name__}: shapes() declares {declared.get(name, 'no tensor')} for {name}, but "
                    f"{found.get(name, 'no tensor')} is stored"
                )
