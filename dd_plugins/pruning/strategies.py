"""Pruning strategies: a score and a selector. All built-in ones are the same class with other defaults."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator
from torch import Generator, Tensor

from dd_plugins import registry
from dd_plugins.api import (
    Artifact,
    ArtifactFiles,
    Context,
    DataError,
    DDPluginsError,
    PluginConfig,
    PruningStrategy,
    SyntheticSet,
    UsageError,
    parse_config,
)
from dd_plugins.api.progress import StartJob
from dd_plugins.api.pruning import Score
from dd_plugins.augmentation import Augmentation
from dd_plugins.dynamics import observe_training
from dd_plugins.pruning.selectors import select
from dd_plugins.seeds import make_generator, seed_for
from dd_plugins.training import Plan, TrainConfig

GRID = tuple(tenth / 10 for tenth in range(11))
Part = str | dict[str, Any]  # the name of a plugin, or a mapping with its name and its settings
SCORE = "what is measured of every image: a score (dd-bench list score)"
SELECTOR = "which images of a class are kept: a selector (dd-bench list selector)"


class ObservedTraining(PluginConfig):
    """How the networks are trained that scores are measured with."""

    networks: int = Field(3, ge=1, description="networks from different seeds, over which scores are averaged")
    epochs: int = Field(200, ge=1, description="epochs of the training")
    batch_size: int = Field(256, ge=1, description="images a step")
    lr: float = Field(0.01, gt=0, description="learning rate of SGD with momentum 0.9 and weight decay 5e-4")
    schedule: Literal["constant", "half", "cosine"] = Field("half", description="learning rate over the epochs")
    strategy: str = Field("auto", description="DSA of the training; auto: the field's for the data set; none: off")

    @field_validator("strategy")
    @classmethod
    def _known_operations(cls, strategy: str) -> str:
        if strategy not in ("auto", "none"):
            Augmentation.dsa(strategy)
        return strategy

    def recipe(self) -> TrainConfig:
        """The settings of the training loop."""
        return TrainConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            schedule=self.schedule,
            augmentation="none" if self.strategy == "none" else "dsa",
            strategy="auto" if self.strategy == "none" else self.strategy,
        )


class ScoreAndSelect(PruningStrategy):
    """Scores images in a training of several networks, and selects class by class."""

    check_settings: ClassVar[Mapping[str, Any]] = {"networks": 2, "epochs": 3}

    class Config(ObservedTraining):
        """Settings of a score and a selector."""

        score: Part = Field("aum", description=SCORE)
        selector: Part = Field("double-end", description=SELECTOR)
        beta: float | None = Field(
            None, ge=0, le=1, description="share removed at the hard end; None: chosen on the validation split"
        )
        grid: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
            GRID, min_length=1, description="the shares that are tried"
        )
        seed: int | None = Field(None, ge=0, description="of random scores and of strata; None: the run's")

        @field_validator("score", "selector")
        @classmethod
        def _canonical(cls, value: Part, info: ValidationInfo) -> Part:
            try:
                return _canonical_part(str(info.field_name), value)
            except DDPluginsError as error:
                raise ValueError(str(error)) from None

    config: Config

    def working_bytes(self, network_bytes: int) -> int:
        """All networks that are trained."""
        return 0 if _made("score", self.config.score).epochs == 0 else self.config.networks * network_bytes

    def score(self, images: SyntheticSet, context: Context) -> Tensor:
        """A score for every image: float, ``(N,)``, as published; ``easy_is_high`` of the score is its direction."""
        config, score = self.config, _made("score", self.config.score)
        if score.epochs == 0:
            score.start((), images.images, images.targets, self._generator("random scores"))
            return score.compute()
        born = [context.draw_seed() for _ in range(config.networks)]
        seeds = [context.draw_seed() for _ in born]
        shared, name = _shared_scores(), str(config.score)
        stored = ScoresOfTraining(
            name,
            _digest(context, images, config.recipe(), [*born, *seeds]),
            lambda: self._observed(shared, images, context, born, seeds),
        )
        own = name not in shared or score.epochs is not None  # its training gives no other score
        if own and (name not in shared or not context.artifacts.has(stored)):
            return self._observed({name: score}, images, context, born, seeds)[name].cpu()
        return context.artifacts.get(stored, context.job)[name]

    def _observed(
        self, scores: Mapping[str, Score], images: SyntheticSet, context: Context, born: list[int], seeds: list[int]
    ) -> dict[str, Tensor]:
        """Scores from one training of networks with these seeds for their weights and their batches."""
        recipe, networks = self.config.recipe(), [context.make_network(seed) for seed in born]
        total = Plan.of(recipe, len(images.targets)).total * len(networks)
        with context.job("train for scores", total) as update:
            return observe_training(
                scores,
                networks,
                images.images,
                images.targets,
                recipe,
                images.data,
                seeds=seeds,
                generator=self._generator("random scores"),
                on_update=lambda done, _: update(done),
            )

    def select(self, score: Tensor, targets: Tensor, num_keep: int) -> Tensor:
        """The images to keep: int64, ``(num_keep,)``, ascending, every class in proportion."""
        config, selector = self.config, _made("selector", self.config.selector)
        as_it_is = not selector.takes_ease or _made("score", config.score).easy_is_high
        ease = score if as_it_is else -score
        beta = config.grid[0] if config.beta is None else config.beta
        generator, classes = self._generator("strata"), int(targets.max()) + 1
        return select(selector, ease.double(), targets.cpu(), num_keep, beta, generator, classes)

    def plugins(self) -> dict[str, str]:
        """Its score and its selector."""
        return {"score": _split(self.config.score)[0], "selector": _split(self.config.selector)[0]}

    def candidates(self) -> list[ScoreAndSelect]:
        """One strategy for each share of the grid if the selector uses it and it is not given; else this one alone."""
        config = self.config
        if config.beta is not None or not _made("selector", config.selector).uses_beta:
            return [self]
        return [type(self)(config.model_copy(update={"beta": beta})) for beta in config.grid]

    def _generator(self, purpose: str) -> Generator:
        return make_generator(seed_for(purpose, self.config.seed or 0))


class AUM(ScoreAndSelect):
    """Area under the margin, pruned at both ends: HMN's."""

    api_version = 2


class CCS(ScoreAndSelect):
    """Coverage-centric selection: a hard cut, then an even draw over all degrees of difficulty."""

    api_version = 2

    class Config(ScoreAndSelect.Config):
        """Settings of coverage-centric selection."""

        score: Part = Field("aum-probability", description=SCORE)
        selector: Part = Field("stratified", description=SELECTOR)


class EL2N(ScoreAndSelect):
    """The norm of the error early in training; keeps the hardest images."""

    api_version = 2

    class Config(ScoreAndSelect.Config):
        """Settings of EL2N."""

        score: Part = Field("el2n", description=SCORE)
        selector: Part = Field("top", description=SELECTOR)


class KCenter(ScoreAndSelect):
    """Greedy k-center in feature space: every image that is left out is close to one that is kept."""

    api_version = 2

    class Config(ScoreAndSelect.Config):
        """Settings of k-center."""

        score: Part = Field("k-center", description=SCORE)
        selector: Part = Field("top", description=SELECTOR)


class Random(ScoreAndSelect):
    """Images drawn at random."""

    api_version = 2

    class Config(ScoreAndSelect.Config):
        """Settings of random pruning."""

        score: Part = Field("random", description=SCORE)
        selector: Part = Field("top", description=SELECTOR)


def _canonical_part(kind: str, value: Part) -> Part:
    """The canonical name of a plugin; a mapping with complete settings if some were given.

    Raises:
        DDPluginsError: If there is no such plugin, or it has no such setting.
    """
    name, settings = _split(value)
    plugin, spec = registry.load(kind, name), registry.find(kind, name).spec
    config = parse_config(plugin.Config, settings, f"pruning.{kind}")
    return {"name": spec, **config.model_dump(mode="json")} if settings else spec


def _split(value: Part) -> tuple[str, dict[str, Any]]:
    if isinstance(value, str):
        return value, {}
    if not isinstance(value.get("name"), str):
        raise UsageError("expected a name, or a mapping with a name")
    return value["name"], {key: each for key, each in value.items() if key != "name"}


def _made(kind: str, value: Part) -> Any:
    name, settings = _split(value)
    return registry.create(kind, name, settings)


def _shared_scores() -> dict[str, Score]:
    """The built-in scores that depend on logits alone: one training gives all of them at no cost."""
    own = [info.name for info in registry.list_plugins("score") if info.distribution == registry.OWN]
    return {name: registry.create("score", name) for name in own if registry.load("score", name).from_logits}


class ScoresOfTraining(Artifact[dict[str, Tensor]]):
    """All scores of images that the logits of one training decide.

    Args:
        score: The score that is needed.
        key: The hash of all that decides the training.
        train: Trains, and returns the scores by their names: float64, ``(N,)`` each.
    """

    kind = "watched"
    key = ""
    title = "the scores of the images to prune"

    def __init__(self, score: str, key: str, train: Callable[[], dict[str, Tensor]]) -> None:
        self.score, self.key, self.train = score, key, train

    def load(self, files: ArtifactFiles) -> dict[str, Tensor] | None:
        """Reads them; damaged ones are computed again."""
        name = f"{self.key}.safetensors"
        try:
            found = files.read_tensors(name)[0] if files.exists(name) else {}
        except DataError:
            return None
        return found if self.score in found else None

    def build(self, files: ArtifactFiles, job: StartJob) -> dict[str, Tensor]:
        """Trains."""
        found = {name: score.cpu() for name, score in self.train().items()}
        files.write_tensors(f"{self.key}.safetensors", found, {})
        return found


def _digest(context: Context, images: SyntheticSet, recipe: TrainConfig, seeds: list[int]) -> str:
    """The hash of all that decides a training of these networks on these images."""
    content = [dict(context.network), recipe.model_dump(mode="json"), seeds, images.targets.tolist()]
    digest = sha256(json.dumps(content, sort_keys=True).encode())
    digest.update(images.images.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
