"""Pruning strategies: a score and a selector. All built-in ones are the same class with other defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor

from dd_plugins.api import (
    Context,
    PluginConfig,
    PruningStrategy,
    SyntheticFileError,
    SyntheticSet,
    locked,
    read_tensors,
    write_tensors,
)
from dd_plugins.augmentation import Augmentation
from dd_plugins.pruning.scores import EASY_IS_HIGH, OF_FEATURES, random_scores, watched_training
from dd_plugins.pruning.selectors import USES_BETA, select
from dd_plugins.seeds import make_generator, seed_for
from dd_plugins.training import Plan, TrainConfig

ScoreName = Literal[
    "aum", "aum-probability", "el2n", "forgetting", "entropy", "loss", "grand", "random", "herding", "k-center"
]
SelectorName = Literal["double-end", "keep-easy", "keep-hard", "stratified", "top"]
GRID = tuple(tenth / 10 for tenth in range(11))
ENDS_EARLY = ("el2n", "grand", *OF_FEATURES)  # scores whose training gives no other score, or ends too early for it


class WatchedTraining(PluginConfig):
    """How the networks are trained whose training is watched."""

    networks: int = Field(3, ge=1, description="networks from different seeds, over which scores are averaged")
    epochs: int = Field(200, ge=1, description="epochs that are watched")
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
        """The recipe as the training loop knows it."""
        return TrainConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            schedule=self.schedule,
            augmentation="none" if self.strategy == "none" else "dsa",
            strategy="auto" if self.strategy == "none" else self.strategy,
        )


class ScoreAndSelect(PruningStrategy):
    """Scores images by a training that is watched, and selects class by class."""

    check_settings: ClassVar[Mapping[str, Any]] = {"networks": 2, "epochs": 3}

    class Config(WatchedTraining):
        """Settings of a score and a selector."""

        score: ScoreName = Field("aum", description="what is measured of every image")
        selector: SelectorName = Field("double-end", description="which images of a class are kept")
        beta: float | None = Field(
            None, ge=0, le=1, description="share removed at the hard end; None: chosen on the validation split"
        )
        grid: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
            GRID, min_length=1, description="the shares that are tried"
        )
        seed: int | None = Field(None, ge=0, description="of random scores and of strata; None: the run's")

    config: Config

    def working_bytes(self, network_bytes: int) -> int:
        """All networks whose training is watched."""
        return 0 if self.config.score == "random" else self.config.networks * network_bytes

    def score(self, images: SyntheticSet, context: Context) -> Tensor:
        """A score for every image: float64, ``(N,)``, as published (see `EASY_IS_HIGH` for its direction)."""
        config, targets = self.config, images.targets
        if config.score == "random":
            return random_scores(len(targets), make_generator(seed_for("random scores", config.seed or 0)))
        born = [context.draw_seed() for _ in range(config.networks)]
        seeds, recipe = [context.draw_seed() for _ in born], config.recipe()
        kept = _kept_in(context, images, recipe, [*born, *seeds])
        if kept is not None and config.score in (known := _read(kept)):
            return known[config.score]
        if kept is None or config.score in ENDS_EARLY:
            return self._watched(images, context, born, seeds)[config.score].cpu()
        with locked(kept.with_suffix(".lock"), "the scores of the images to prune"):
            if config.score not in (known := _read(kept)):
                found = self._watched(images, context, born, seeds)
                known = {name: score.cpu() for name, score in found.items()}
                write_tensors(kept, known, {})  # one training gives all scores that logits decide
        return known[config.score]

    def _watched(self, images: SyntheticSet, context: Context, born: list[int], seeds: list[int]) -> dict[str, Tensor]:
        """Scores from one training of networks with these seeds for their weights and their batches."""
        recipe, networks = self.config.recipe(), [context.make_network(seed) for seed in born]
        total = Plan.of(recipe, len(images.targets)).total * len(networks)
        with context.job("watch the training", total) as update:
            return watched_training(
                networks,
                images.images,
                images.targets,
                recipe,
                images.data,
                seeds=seeds,
                wanted=self.config.score,
                on_update=lambda done, _: update(done),
            )

    def select(self, score: Tensor, targets: Tensor, num_keep: int) -> Tensor:
        """The images to keep: int64, ``(num_keep,)``, ascending, every class in proportion."""
        config = self.config
        ease = score if config.selector == "top" or EASY_IS_HIGH[config.score] else -score
        generator = make_generator(seed_for("strata", config.seed or 0))
        classes = int(targets.max()) + 1
        beta = config.grid[0] if config.beta is None else config.beta
        return select(config.selector, ease.double(), targets.cpu(), num_keep, beta, generator, classes)

    def candidates(self) -> list[ScoreAndSelect]:
        """One strategy for each share of the grid, where one is to be chosen; this one alone otherwise."""
        config = self.config
        if config.beta is not None or config.selector not in USES_BETA:
            return [self]
        return [type(self)(config.model_copy(update={"beta": beta})) for beta in config.grid]


class AUM(ScoreAndSelect):
    """Area under the margin, pruned at both ends: HMN's."""

    api_version = 2


class CCS(ScoreAndSelect):
    """Coverage-centric selection: a hard cut, then an even draw over all degrees of difficulty."""

    api_version = 2

    class Config(ScoreAndSelect.Config):
        """Settings of coverage-centric selection."""

        score: ScoreName = Field("aum-probability", description="what is measured of every image")
        selector: SelectorName = Field("stratified", description="which images of a class are kept")


class EL2N(ScoreAndSelect):
    """The norm of the error early in training; keeps the hardest images."""

    api_version = 2

    class Config(ScoreAndSelect.Config):
        """Settings of EL2N."""

        score: ScoreName = Field("el2n", description="what is measured of every image")
        selector: SelectorName = Field("top", description="which images of a class are kept")


class KCenter(ScoreAndSelect):
    """Greedy k-center in feature space: every image that is left out is close to one that is kept."""

    api_version = 2

    class Config(ScoreAndSelect.Config):
        """Settings of k-center."""

        score: ScoreName = Field("k-center", description="what is measured of every image")
        selector: SelectorName = Field("top", description="which images of a class are kept")


class Random(ScoreAndSelect):
    """Images drawn at random."""

    api_version = 2

    class Config(ScoreAndSelect.Config):
        """Settings of random pruning."""

        score: ScoreName = Field("random", description="what is measured of every image")
        selector: SelectorName = Field("top", description="which images of a class are kept")


def _kept_in(context: Context, images: SyntheticSet, recipe: TrainConfig, seeds: list[int]) -> Path | None:
    """Where the scores of this training of these networks on these images are kept; None if there is no folder."""
    if context.cache is None:
        return None
    content = [dict(context.network), recipe.model_dump(mode="json"), seeds, images.targets.tolist()]
    digest = sha256(json.dumps(content, sort_keys=True).encode())
    digest.update(images.images.detach().cpu().contiguous().numpy().tobytes())
    return context.cache / "watched" / f"{digest.hexdigest()[:16]}.safetensors"


def _read(file: Path) -> dict[str, Tensor]:
    """Scores that are kept; none where there are none, or damaged ones."""
    try:
        return read_tensors(file)[0] if file.exists() else {}
    except SyntheticFileError:
        return {}
