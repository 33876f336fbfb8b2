"""The contract of a parameterization: how synthetic images are stored, decoded and pulled back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from torch import Generator, Tensor, nn

from dd_plugins.api.config import PluginConfig, parse_config
from dd_plugins.api.data import DataSource, DataSpec, RealData
from dd_plugins.api.files import describe_source
from dd_plugins.api.memory import require_memory, shapes_only
from dd_plugins.api.network import Network
from dd_plugins.api.objective import Context
from dd_plugins.api.progress import StartJob, silent_job
from dd_plugins.api.storage import StorageBudget, StorageLedger
from dd_plugins.api.stored import StoredHeader, check_tensors, read_stored, stored_to_bytes, write_stored
from dd_plugins.errors import BudgetTooSmall, DDPluginsError, PluginContractError, SyntheticFileError, UsageError

DECODE_CHUNK = 1024  # images decoded at once where no graph is needed and no chunk size is set


@dataclass(frozen=True)
class Stage:
    """One stage of the optimisation: its ``name`` and its ``share`` of all steps (the shares add up to 1)."""

    name: str
    share: float = 1.0


@dataclass(frozen=True)
class Prior:
    """Frozen pretrained weights that a container needs; reported in a column of their own, never in the budget."""

    where: str
    sha256: str
    elements: int
    licence: str
    seconds: float = 0.0  # of its training


class Parameterization(nn.Module, ABC):
    """Base of every container: stored tensors, and a decoder from an image's number to the image.

    Authors write :meth:`images_per_class`, :meth:`build`, :meth:`reset` and :meth:`_decode`, and :meth:`_keep` if
    single images can be dropped. Whatever ``state_dict()`` holds is stored and counts against the budget. Images are
    ordered by class, their labels follow from the order and cost nothing.

    Attributes:
        data: The data set's spec.
        budget: The storage budget that :meth:`images_per_class` fills.
        config: The validated ``Config``.
        counts: Images of each class, in the order of the classes.
        data_source: Which data set it is made from, and the names of its classes; kept in the file.
        labels: int64, ``(N,)``; derived from ``counts``, not stored.
        chunk_size: Images decoded with a graph at once; None for all.
        job: Shows how far a long :meth:`reset` is: ``with self.job("warm start", steps) as update: update(done)``.
    """

    api_version: ClassVar[int]  # declared by each plugin class itself: the release of this contract it is written for
    keeps_graph: ClassVar[bool] = True  # False: its decoder's graph is never held while images are matched
    check_settings: ClassVar[Mapping[str, Any]] = {}  # what conformance checks run with, where defaults take long

    class Config(PluginConfig):
        """Settings of the container; override with a subclass."""

    labels: Tensor

    def __init__(
        self,
        data: DataSpec,
        budget: StorageBudget,
        config: PluginConfig | Mapping[str, Any] | None = None,
        *,
        counts: Sequence[int] | None = None,
    ) -> None:
        """Allocates the container.

        Args:
            data: The data set's spec.
            budget: How much may be stored.
            config: A ``Config``, or a mapping to make one of.
            counts: Images of each class, for a container that was pruned; by default as many as fit.

        Raises:
            NotEnoughMemory: If the images it decodes would not fit into memory; before anything is allocated.
            BudgetTooSmall: If not one image per class fits.
            ConfigError: If ``config`` is not valid.
        """
        super().__init__()
        self.data, self.budget = data, budget
        self.config: PluginConfig = parse_config(type(self).Config, config, "parameterization")
        self.data_source = DataSource()
        self.chunk_size: int | None = None
        self.job: StartJob = silent_job
        self._graph: tuple[Tensor, Tensor] | None = None
        if counts is None:
            fitting = self.images_per_class()
            if fitting < 1:
                raise BudgetTooSmall(
                    f"{type(self).__name__} does not fit: not one image per class in {budget.elements} elements"
                )
            counts = [fitting] * data.num_classes
        if len(counts) != data.num_classes or min(counts) < 1:
            raise UsageError(f"Expected one positive count for each of {data.num_classes} classes, but got {counts}")
        if not torch.empty(0).is_meta:  # where only shapes are wanted, whoever wants them compares
            decoded = {f"{sum(counts):,} decoded images": sum(counts) * data.image_bytes}
            require_memory(decoded, None, "a smaller IPC makes fewer images")
        self._set_counts(counts)
        self.build(sum(self.counts))

    # ---- what an author writes ----------------------------------------------------------------------------------

    @abstractmethod
    def images_per_class(self) -> int:
        """How many decoded images per class fit into ``self.budget``: arithmetic alone."""

    @abstractmethod
    def build(self, num_images: int) -> None:
        """Allocates parameters and modules for ``num_images`` images; draws nothing and reads no data."""

    @abstractmethod
    def reset(self, generator: Generator, real: RealData | None) -> None:
        """Initialises the stored tensors, with randomness from ``generator`` (on the CPU) alone."""

    @abstractmethod
    def _decode(self, index: Tensor) -> Tensor:
        """Decodes images row by row: ``index`` (int64, ``(B,)``) to float ``(B, C, H, W)``, model space."""

    def _keep(self, index: Tensor) -> None:
        """Drops every image but those of ``index`` from the stored tensors; define it to make images prunable."""
        raise UsageError(f"{type(self).__name__} cannot drop single images")

    def check(self, network: Network) -> None:
        """Refuses before a run writes anything what it cannot work with; by default it works with every network.

        Args:
            network: One that the objective trains, on the CPU.
        """
        del network

    def working_bytes(self) -> int:
        """Bytes that :meth:`reset` holds at the least besides the stored tensors; 0 by default.

        For the estimate that refuses a run before it starts: arithmetic alone, and only what is certain.
        """
        return 0

    def prepare(self, real: RealData, context: Context) -> None:
        """One-off work before :meth:`reset`, and again before a run goes on: what is needed to learn, but not stored.

        Args:
            real: The data set.
            context: Makes networks, names the folder that all runs share, and shows the progress.
        """
        del real, context

    def working_state(self) -> dict[str, Tensor]:
        """What the next step depends on beside ``state_dict()``; goes into checkpoints, never into the stored file."""
        return {}

    def load_working_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`working_state` returned, in place: an optimizer already holds the tensors."""
        del state

    def finish(self) -> None:
        """Called behind the last step: ``state_dict()`` is stored next; nothing by default."""
        return

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for a torch optimizer; a group without ``lr`` gets the optimizer's."""
        return [{"params": list(self.parameters())}]

    def stages(self) -> Sequence[Stage]:
        """The stages of the optimisation; one by default."""
        return (Stage("main"),)

    def enter_stage(self, stage: Stage) -> None:
        """Called before the first step of each stage, also when a run resumes within it."""
        del stage

    def project(self) -> None:
        """Called after every step: maps the stored tensors back to where they are allowed to be; nothing by default."""
        return

    def regularize(self, images: Tensor, index: Tensor) -> Tensor | None:
        """An additive loss of the container's own on a chunk of decoded images; none by default."""
        del images, index
        return None

    def groups(self) -> Tensor | None:
        """Which of a few shared components made each image (int64, ``(N,)``); None if there is no such structure.

        An objective may take the images of one group as a batch, as HaBa does with those of one hallucinator.
        """
        return None

    def units(self) -> Tensor | None:
        """Images that can only be dropped together share a number (int64, ``(N,)``); None: each one alone."""
        return None

    @classmethod
    @final
    def prunable(cls) -> bool:
        """Whether single images, or units of them, can be dropped: whether there is a ``_keep``."""
        return cls._keep is not Parameterization._keep

    def oversize(self) -> float:
        """How many times its budget the container may take: 1, unless a paper's own way of counting was asked for.

        Whatever is above 1 is printed, recorded and shown in every table.
        """
        return 1.0

    def describe(self) -> str:
        """One line about the sizes that were chosen; empty by default."""
        return ""

    @classmethod
    def outside(cls, config: PluginConfig) -> Sequence[str]:
        """What tells the contents of all that a configuration names outside of itself: digests of files, say.

        A run's name depends on it, so that other weights in the same folder are another run; empty by default.
        """
        del config
        return ()

    def learned(self) -> dict[str, float]:
        """What was found besides the images, for the record: scores of candidates, say; nothing by default."""
        return {}

    def priors(self) -> Sequence[Prior]:
        """Frozen pretrained weights outside the file; none by default."""
        return ()

    # ---- what everybody calls -----------------------------------------------------------------------------------

    @final
    def decode(self, index: Tensor | None = None, *, for_backward: bool = False) -> Tensor:
        """Decodes images without a graph, in chunks of ``chunk_size``.

        Args:
            index: int64, ``(B,)``; all images by default.
            for_backward: Whether :meth:`backward` follows for the same images: if all fit into one chunk, the graph is
                kept for it, and nothing is decoded twice.

        Returns:
            Float, ``(B, C, H, W)``, model space, detached.
        """
        index = self._all() if index is None else index
        whole = max(len(index), 1) if for_backward else DECODE_CHUNK
        chunks = torch.split(index, self.chunk_size or whole)
        self._graph = None
        if len(chunks) == 1 and for_backward and self.keeps_graph:
            images = self._checked_decode(index)
            self._graph = (index, images)
            return images.detach()
        with torch.no_grad():
            return torch.cat([self._checked_decode(chunk) for chunk in chunks])

    @final
    def backward(self, index: Tensor, image_grad: Tensor) -> None:
        """Pulls d loss / d images back into the stored tensors, chunk by chunk; adds to their ``grad``.

        Exact, since images are decoded row by row: the decoder's graph never spans more than one chunk.

        Args:
            index: int64, ``(B,)``, as it was decoded.
            image_grad: Float, ``(B, C, H, W)``.
        """
        graph, self._graph = self._graph, None
        if graph is not None and torch.equal(graph[0], index):
            self._pull(graph[1], index, image_grad)
            return
        size = self.chunk_size or max(len(index), 1)
        for chunk, grad in zip(torch.split(index, size), torch.split(image_grad, size), strict=True):
            self._pull(self._checked_decode(chunk), chunk, grad)

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
        self._set_counts(counts)

    @final
    def storage(self) -> StorageLedger:
        """The ledger of what a saved file would hold."""
        return StorageLedger.of(sorted(self.state_dict().items()))

    @final
    def save(self, path: Path, plugin: str | None = None) -> StorageLedger:
        """Writes everything that is needed to decode the images to one safetensors file.

        Args:
            path: The file; written to a temporary neighbour first, then renamed.
            plugin: The spec by which the registry finds this class; ``module:Class`` by default.

        Returns:
            The ledger of the file.
        """
        write_stored(path, dict(self.state_dict()), self._header(plugin))
        return self.storage()

    @final
    def to_bytes(self, plugin: str | None = None) -> bytes:
        """The bytes of the file that :meth:`save` writes."""
        return stored_to_bytes(dict(self.state_dict()), self._header(plugin))

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
            if (sized := cls._sized(header)) is not None:  # before anything of the sizes in a header is allocated
                check_tensors(source, sized.state_dict(), tensors)
            made = cls(header.data, header.budget, header.config, counts=header.counts)
            if sized is None:
                check_tensors(source, made.state_dict(), tensors)
        except SyntheticFileError:
            raise
        except UsageError as error:
            raise SyntheticFileError(
                f"{describe_source(source)}: {header.plugin} is not stored as {cls.__name__} reads it: {error}"
            ) from None
        made.load_state_dict(tensors)
        made.data_source = header.source
        return made

    @classmethod
    def _sized(cls, header: StoredHeader) -> Self | None:
        """A container as a header describes it, without content; None where its class cannot be built so."""
        try:
            with shapes_only(cls.__name__):
                return cls(header.data, header.budget, header.config, counts=header.counts)
        except DDPluginsError:
            raise
        except Exception:  # the code of a third party may need contents
            return None

    # ---- helpers ------------------------------------------------------------------------------------------------

    def _set_counts(self, counts: Sequence[int]) -> None:
        self.counts = tuple(int(count) for count in counts)
        device = self.labels.device if hasattr(self, "labels") else None
        repeats, total = torch.tensor(self.counts), sum(self.counts)
        labels = torch.tensor(range(len(self.counts))).repeat_interleave(repeats, output_size=total)
        self.register_buffer("labels", labels.to(device), persistent=False)

    def _all(self) -> Tensor:
        return torch.arange(len(self.labels), device=self.labels.device)

    def _pull(self, images: Tensor, index: Tensor, image_grad: Tensor) -> None:
        penalty = self.regularize(images, index)
        if penalty is None:
            torch.autograd.backward([images], [image_grad])
        else:
            torch.autograd.backward([images, penalty], [image_grad, torch.ones_like(penalty)])

    def _checked_decode(self, index: Tensor) -> Tensor:
        images = self._decode(index)
        expected = (len(index), *self.data.image_shape)
        if tuple(images.shape) != expected or not images.is_floating_point():
            raise PluginContractError(
                f"{type(self).__name__}._decode: expected float images of shape {expected}, but got "
                f"{images.dtype} {tuple(images.shape)}"
            )
        return images
