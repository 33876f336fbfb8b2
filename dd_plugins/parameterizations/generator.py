"""Containers whose images are learned through a pretrained generator: its settings, and how it is found."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from dd_plugins.api import (
    Artifact,
    Context,
    DataError,
    NeedsArtifacts,
    NeedsPrior,
    Parameterization,
    PluginConfig,
    Prior,
    RealData,
    UsageError,
)
from dd_plugins.api.prior import LayeredGenerator
from dd_plugins.priors.find import VERSION, MeasuredGates, TrainedPrior, admit
from dd_plugins.priors.store import StoredPrior, load_prior, stored_sha256
from dd_plugins.priors.train import PriorRecipe


class GeneratorConfig(PluginConfig):
    """Settings of the generator."""

    prior: str | None = Field(
        None, min_length=1, description="folder of a prior; None: the recipe's, trained if need be"
    )
    classes: tuple[int, ...] | None = Field(
        None, description="the prior's class for each class of the data set; None: they are the same"
    )
    recipe: PriorRecipe = Field(PriorRecipe(), description="how a prior is trained")
    allow_weak_prior: bool = Field(False, description="take a prior that fails its gates")
    prior_sha256: str = Field("", description="of the prior's weights; noted when a set is stored")
    prior_elements: int = Field(0, ge=0, description="of the prior; noted when a set is stored")
    prior_licence: str = Field("", description="of the prior; noted when a set is stored")


SettingsT = TypeVar("SettingsT", bound=GeneratorConfig)


class FromGenerator(NeedsPrior, NeedsArtifacts, Parameterization[SettingsT]):
    """A container that needs a generator to be learned, and not to be decoded."""

    _prior: tuple[LayeredGenerator, ...] = ()  # no submodule: it is not stored
    _prior_seconds = 0.0  # not stored either: the file of a set depends on no clock

    @abstractmethod
    def _accept(self, generator: LayeredGenerator) -> None:
        """Refuses a generator that does not go with the settings; called before its gates are measured."""

    def artifacts(self, real: RealData, context: Context) -> Iterator[Artifact[Any]]:
        """The prior that a recipe trains, and the gates of the prior."""
        config, network = self.config, (context.network, context.make_network)
        trained = None if config.prior is not None else TrainedPrior(real, config.recipe, *network)
        if trained is not None:
            yield trained
        if trained is None or context.artifacts.has(trained):
            gates = MeasuredGates(self._load_prior(real, context), real, *network, config.allow_weak_prior)
            if not config.allow_weak_prior or context.artifacts.has(gates):
                yield gates

    def _load_prior(self, real: RealData, context: Context) -> StoredPrior:
        """The prior that is named, or that a recipe trains."""
        config = self.config
        if config.prior is not None:
            return load_prior(Path(config.prior), real.spec, config.prior_sha256 or None, config.classes)
        trained = TrainedPrior(real, config.recipe, context.network, context.make_network)
        return context.artifacts.get(trained, context.job)

    def prepare(self, real: RealData, context: Context) -> None:
        """Finds the prior, or trains it."""
        config, network = self.config, (context.network, context.make_network)
        stored = self._load_prior(real, context)
        found = stored.prior()
        if config.prior_sha256 not in ("", found.sha256):
            raise DataError(
                f"{stored.place}: its sha256 is {found.sha256}, but {config.prior_sha256} was expected "
                f"(parameterization.prior_sha256)"
            )
        self._prior = (stored.generator.to(self.labels.device),)
        self._accept(self.prior)
        if not config.allow_weak_prior:
            admit(stored, real, *network, context.artifacts, context.job)
        noted = {"prior_sha256": found.sha256, "prior_elements": found.elements, "prior_licence": found.licence}
        self.layout = replace(self.layout, config=config.model_copy(update=noted))  # the file says which prior it was
        self._prior_seconds = found.seconds

    @classmethod
    def external_fingerprints(cls, config: GeneratorConfig) -> Sequence[str]:
        """The sha256 of the weights that are named, or the version of the training of priors."""
        return (f"recipe {VERSION}" if config.prior is None else stored_sha256(Path(config.prior)),)

    @property
    def prior(self) -> LayeredGenerator:
        """The generator."""
        if not self._prior:
            raise UsageError("there is no prior yet; prepare() finds it")
        return self._prior[0]

    def priors(self) -> Sequence[Prior]:
        """The generator: needed to learn the images, not to decode them."""
        if not self.config.prior_sha256:
            return ()
        where = self.config.prior or f"trained here ({self.config.recipe.kind})"
        config = self.config
        return (Prior(where, config.prior_sha256, config.prior_elements, config.prior_licence, self._prior_seconds),)
