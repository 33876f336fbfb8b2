"""The contracts of pruning: scores of single images, selectors, and strategies made of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Generator, Tensor

from dd_plugins.api.config import PluginConfig, parse_config
from dd_plugins.api.network import Network
from dd_plugins.api.objective import Context
from dd_plugins.api.synthetic import SyntheticSet


class Score(ABC):
    """Base of every score: one number for each image, measured while networks are trained on all of them.

    :meth:`start` is called once, :meth:`update` after every epoch of every network, :meth:`compute` at the end.

    Attributes:
        easy_is_high: Whether a large score means an easy image.
        epochs: How many epochs are observed: None all of them, 0 none, which needs no network.
        from_logits: Whether :meth:`update` sees all that the score depends on.
    """

    api_version: ClassVar[int]  # declared by each plugin class itself: the release of this contract it is written for
    easy_is_high: ClassVar[bool] = True
    epochs: ClassVar[int | None] = None
    from_logits: ClassVar[bool] = False
    check_settings: ClassVar[Mapping[str, Any]] = {}  # settings for conformance checks, if the defaults are slow

    class Config(PluginConfig):
        """Settings of the score; override with a subclass."""

    def __init__(self, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        self.config: PluginConfig = parse_config(type(self).Config, config, "pruning.score")

    def start(self, networks: Sequence[Network], images: Tensor, targets: Tensor, generator: Generator) -> None:
        """Begins a training; a score can be started again.

        Args:
            networks: Of one architecture, not trained yet; none if ``epochs`` is 0.
            images: Float, ``(N, C, H, W)``, model space.
            targets: int64, ``(N,)``.
            generator: For scores that draw, on the CPU.

        Raises:
            IncompatibleError: If the networks have no features and the score needs them.
        """
        self.networks, self.images, self.targets, self.generator = networks, images, targets, generator

    def update(self, number: int, logits: Tensor) -> None:
        """Called after an epoch of one network, possibly in a thread of that network.

        Args:
            number: Of the network in the sequence given to :meth:`start`.
            logits: Of all images in evaluation mode: float, ``(N, classes)``.
        """
        del number, logits

    @abstractmethod
    def compute(self) -> Tensor:
        """The score of every image: float, ``(N,)``. The networks are trained, and must not be changed."""


class Selector(ABC):
    """Base of every selector: which images of one class are kept.

    Attributes:
        uses_beta: Whether the share ``beta`` matters, which is chosen on the validation split unless it is given.
        takes_ease: Whether large values given to :meth:`select` mean easy images; otherwise it gets the score as it is.
    """

    api_version: ClassVar[int]  # declared by each plugin class itself: the release of this contract it is written for
    uses_beta: ClassVar[bool] = False
    takes_ease: ClassVar[bool] = True
    check_settings: ClassVar[Mapping[str, Any]] = {}  # settings for conformance checks

    class Config(PluginConfig):
        """Settings of the selector; override with a subclass."""

    def __init__(self, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        self.config: PluginConfig = parse_config(type(self).Config, config, "pruning.selector")

    @abstractmethod
    def select(self, ease: Tensor, keep: int, beta: float, generator: Generator) -> Tensor:
        """The rows to keep: int64, ``(keep,)``, each at most once, in any order.

        Args:
            ease: Float, ``(n,)``, of the images of one class.
            keep: How many of them, 1 to n.
            beta: The share of the removed images that are removed at the hard end, 0 to 1.
            generator: For selectors that draw, on the CPU.
        """


class PruningStrategy(ABC):
    """Base of every pruning strategy.

    Authors write :meth:`score` and :meth:`select`; :meth:`candidates` if a setting is chosen by the accuracy that the
    kept images reach on the validation split.
    """

    api_version: ClassVar[int]  # declared by each plugin class itself: the release of this contract it is written for
    check_settings: ClassVar[Mapping[str, Any]] = {}  # settings for conformance checks, if the defaults are slow

    class Config(PluginConfig):
        """Settings of the strategy; override with a subclass."""

    def __init__(self, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        self.config: PluginConfig = parse_config(type(self).Config, config, "pruning")

    def working_bytes(self, network_bytes: int) -> int:
        """A lower bound of the bytes that :meth:`score` needs besides the images; 0 by default.

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
            context: Makes networks, draws seeds, and reports the progress.
        """

    @abstractmethod
    def select(self, score: Tensor, targets: Tensor, num_keep: int) -> Tensor:
        """The images to keep: int64, ``(num_keep,)``, sorted and unique; every class keeps its share.

        Args:
            score: As :meth:`score` returned it.
            targets: int64, ``(N,)``.
            num_keep: How many in all.
        """

    def plugins(self) -> Mapping[str, str]:
        """The plugins of other kinds that it is made of: for each kind the canonical name; none by default."""
        return {}

    def candidates(self) -> Sequence[PruningStrategy]:
        """Strategies that differ in a setting still to be chosen, for the same scores; by default this one alone.

        The one whose kept images reach the highest accuracy on the validation split is chosen, the first of equals.
        """
        return (self,)
