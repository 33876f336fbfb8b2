"""The contract of a pruning strategy: a score for every image, and a choice of those to keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from dd_plugins.api.config import PluginConfig, parse_config
from dd_plugins.api.objective import Context
from dd_plugins.api.synthetic import SyntheticSet


class PruningStrategy(ABC):
    """Base of every pruning strategy.

    Authors write :meth:`score` and :meth:`select`; :meth:`candidates` if a setting shall be chosen by what the kept
    images are worth on the validation split.
    """

    api_version: ClassVar[int]  # declared by each plugin class itself: the release of this contract it is written for
    check_settings: ClassVar[Mapping[str, Any]] = {}  # what conformance checks run with, where defaults take long

    class Config(PluginConfig):
        """Settings of the strategy; override with a subclass."""

    def __init__(self, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        self.config: PluginConfig = parse_config(type(self).Config, config, "pruning")

    def working_bytes(self, network_bytes: int) -> int:
        """Bytes that :meth:`score` holds at the least besides the images; 0 by default.

        Args:
            network_bytes: Bytes of one network.
        """
        del network_bytes
        return 0

    @abstractmethod
    def score(self, images: SyntheticSet, context: Context) -> Tensor:
        """A score for every image: float, ``(N,)``.

        Args:
            images: The set, decoded.
            context: Makes networks, draws seeds, and shows the progress.
        """

    @abstractmethod
    def select(self, score: Tensor, targets: Tensor, num_keep: int) -> Tensor:
        """The images to keep: int64, ``(num_keep,)``, sorted and unique; every class keeps its share.

        Args:
            score: As :meth:`score` returned it.
            targets: int64, ``(N,)``.
            num_keep: How many in all.
        """

    def candidates(self) -> Sequence[PruningStrategy]:
        """Strategies that differ in a setting still to be chosen, for the same scores; itself alone if none.

        The one whose kept images train networks best on the validation split wins, the first of equals.
        """
        return (self,)
