"""H-PD and GLaD: images are learned through the levels of a generator, and stored as pixels.

Source:
    H-PD: "Hierarchical Features Matter: A Deep Exploration of Progressive Parameterization Method for Dataset
    Distillation", CVPR 2025, arXiv 2406.05704. GLaD: Cazenavette et al., CVPR 2023, arXiv 2305.01649.
Deviations:
    Built to the paper's intent; its released code keeps references where it means copies, so that no candidate is
    ever chosen, stops before the pixels, and stores nothing. Learning rates are relative to the scale of what is
    learned, for states change theirs from level to level. The distance that chooses is `ClassRelevantDistance`.
    States are not changed between levels: the code clips them to +-10, which is 10 times the scale of a StyleGAN-XL's
    states but not of other generators' (``clip=10`` does it in units of the scale), and replaces NaN, which stops a run
    here. As in the code, decoded images are not clipped: a pixel outside of [0, 1] keeps its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import isfinite
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from dd_plugins.api import (
    Artifact,
    ConfigError,
    Context,
    DataSpec,
    Network,
    RealData,
    ResumeMismatch,
    Shapes,
    Stage,
    Staged,
    TensorSpec,
    random_real_rows,
)
from dd_plugins.api.prior import LayeredGenerator, Styles, rows_at_once
from dd_plugins.parameterizations.candidates import PIXELS, Candidates
from dd_plugins.parameterizations.generator import FromGenerator, GeneratorConfig
from dd_plugins.parameterizations.latents import Latents, diverged
from dd_plugins.priors.base import pixel_values
from dd_plugins.priors.centres import centres
from dd_plugins.priors.distance import ClassRelevantDistance, check_reference_network
from dd_plugins.priors.reference import ReferenceClassifier
from dd_plugins.priors.small import sides
from dd_plugins.seeds import make_generator


class HPD(Staged, FromGenerator["HPD.Config"]):
    """Progressive levels of a generator: styles and state are learned level by level, then the pixels."""

    api_version = 2
    images: nn.Parameter  # float, (N, C, H, W), model space
    keeps_graph = False  # a generator's graph beside that of the matching would not fit
    check_settings: ClassVar[Mapping[str, Any]] = {
        "samples": 8,
        "allow_weak_prior": True,
        "recipe": {"kind": "vae", "width": 4, "noise": 4, "style": 4, "steps": 5, "classes": 4, "images": 2},
    }

    class Config(GeneratorConfig):
        """Settings of the progressive parameterization."""

        levels: tuple[int, ...] | None = Field(None, min_length=1, description="levels, in order; None: 0 to K - 1")
        pixels: bool = Field(True, description="a last stage that learns the pixels themselves")
        init: Literal["cluster", "sample", "encode"] = Field(
            "cluster",
            description="first latents: averages over clusters of a class's samples, samples, or real images' own",
        )
        samples: int = Field(1000, ge=1, description="samples of each class that are averaged")
        lr_styles: float = Field(0.03, gt=0, description="learning rate of styles, in units of their root mean square")
        lr_states: float = Field(0.03, gt=0, description="learning rate of states, likewise, level by level")
        lr_pixels: float = Field(0.03, gt=0, description="learning rate of pixels, likewise")
        select: Literal["crfd", "last"] = Field(
            "crfd",
            description="what a level passes on: the candidate of least class-relevant distance, or the last",
        )
        score_every: int = Field(5, ge=1, description="steps between two candidates")
        clip: float | None = Field(None, gt=0, description="largest state, in units of its root mean square; None: any")

    @classmethod
    def shapes(cls, data: DataSpec, counts: Sequence[int], config: Config) -> Shapes:
        """The images: only pixels are stored."""
        return {"images": TensorSpec((sum(counts), *data.image_shape))}

    def build(self) -> None:
        """Allocates the images."""
        super().build()
        self._distance: ClassRelevantDistance | None = None
        self._scales: tuple[float, list[float]] = (1.0, [])
        self._latents: Latents | None = None  # None: the pixels are learned, or done
        self._begun = False
        self._taken = 0  # steps of this stage
        self._seen = Candidates()

    # ---- what is needed and not stored ------------------------------------------------------------------------------

    def check(self, network: Network) -> None:
        """Levels must ascend and exist, as far as that is known ahead; a reference classifier needs feature maps."""
        levels = self.config.levels or ()
        if any(later <= before for before, later in pairwise(levels)):
            raise ConfigError(f"parameterization.levels = {list(levels)}: levels must ascend")
        if self.config.prior is None:
            if self.config.classes is not None:
                raise ConfigError("parameterization.classes = ...: goes with parameterization.prior; none is given")
            height, width = self.data.image_shape[1:]
            self._check_levels(2 * min(len(sides(height)), len(sides(width))))
        if self.config.select == "crfd":
            check_reference_network(network, self.data)

    def prepare(self, real: RealData, context: Context) -> None:
        """Finds the prior, or trains it, and the reference classifier of the candidates."""
        super().prepare(real, context)
        if self.config.select == "crfd":
            reference = ReferenceClassifier(real, context.network, context.make_network)
            self._distance = ClassRelevantDistance(context.artifacts.get(reference, context.job), real)

    def artifacts(self, real: RealData, context: Context) -> Iterator[Artifact[Any]]:
        """Those of the prior, and the reference classifier of the candidates."""
        yield from super().artifacts(real, context)
        if self.config.select == "crfd":
            yield ReferenceClassifier(real, context.network, context.make_network)

    def _accept(self, generator: LayeredGenerator) -> None:
        if not generator.num_classes and self.config.init != "encode":
            raise ConfigError(
                f"parameterization.init = {self.config.init!r}: this prior knows no classes, and its samples are of "
                f"none; 'encode' begins with real images"
            )
        self._scales = generator.scales()
        self._check_levels(generator.num_stages)

    def working_bytes(self) -> int:
        """Class numbers of the samples of one class."""
        return self.config.samples * torch.int64.itemsize if self.config.init == "cluster" else 0

    def _check_levels(self, stages: int) -> None:
        wrong = [level for level in self.config.levels or () if not 0 <= level <= stages]
        if wrong:
            raise ConfigError(
                f"parameterization.levels = {list(self.config.levels or ())}: level {wrong[0]} does not exist; "
                f"the prior has levels 0 to {stages}"
            )

    # ---- stages -----------------------------------------------------------------------------------------------------

    def levels(self) -> list[int]:
        """The levels, in order."""
        return list(self.config.levels or range(self.prior.num_stages))

    def stages(self) -> Sequence[Stage]:
        """One for each level, and one for the pixels; all of the same length."""
        names = [f"level {level}" for level in self.levels()] + [PIXELS] * self.config.pixels
        return tuple(Stage(name, 1 / len(names)) for name in names)

    @torch.no_grad()
    def reset(self, generator: Generator, real: RealData | None) -> None:
        """The first latents: single samples, or centres of as many clusters of samples as a class has images."""
        if self.config.init == "sample":
            self._begin(self.prior.sample_styles(self.labels, generator))
            return
        if self.config.init == "encode":
            self._begin(self._encoded(generator, real))
            return
        seed = int(torch.randint(2**31, (), generator=generator))
        of_class = []
        for label, count in enumerate(self.counts):
            drawn = torch.full((max(self.config.samples, count),), label, device=self.labels.device)
            of_class.append(centres(self.prior.sample_styles(drawn, generator), count, seed + label))
        self._begin(tuple(torch.cat(stage) for stage in zip(*of_class, strict=True)))

    def _encoded(self, generator: Generator, real: RealData | None) -> Styles:
        """The styles of random real images."""
        shown = random_real_rows(real, self.counts, generator)
        assert real is not None
        found = []
        for rows in self._chunks():
            styles = self.prior.encode(pixel_values(real, shown[rows]), self.labels[rows])
            if styles is None:
                raise ConfigError(
                    "parameterization.init = 'encode': this prior cannot encode images; cluster and sample remain"
                )
            found.append(styles)
        return tuple(torch.cat(stage) for stage in zip(*found, strict=True))

    def _chunks(self) -> Sequence[Tensor]:
        """All rows, as many at once as the generator sees."""
        rows = torch.arange(len(self.labels), device=self.labels.device)
        return torch.split(rows, self.chunk_size or rows_at_once(self.data.image_shape))

    def _begin(self, styles: Styles) -> None:
        self._latents, self._begun = Latents(self.prior, self._scales, styles, self._chunks()), True

    @torch.no_grad()
    def enter_stage(self, stage: Stage) -> None:
        """Continues from the best candidate of the stage before; the images stay the same."""
        fresh = not self._begun
        if fresh:  # of a run that continues: shapes now, values from its checkpoint
            zeros = self.prior.sample_styles(self.labels, make_generator(0))
            self._begin(tuple(torch.zeros_like(style) for style in zeros))
        elif self._seen.of_stage:
            self._restore_best_of_stage()
        self._seen.of_stage = {}
        if stage.name == PIXELS:
            self._to_pixels()
        elif self._latents is None:
            raise ConfigError(f"parameterization.levels: {stage.name} cannot follow the pixels")
        else:
            self._latents.advance(int(stage.name.removeprefix("level ")))
        self._taken = 0
        if self._distance is not None and not fresh:
            self._note_candidate()

    def _to_pixels(self) -> None:
        """From now on the pixels are what is learned; they begin as the images that the latents are decoded to."""
        if self._latents is not None:
            self.images.copy_(self.decode())
        self._latents = None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Styles that still have an effect, and the state; or the pixels."""
        config = self.config
        if self._latents is None:
            return [{"params": [self.images], "lr": config.lr_pixels}]  # in model space their scale is 1
        return self._latents.groups(config.lr_states, config.lr_styles)

    @torch.no_grad()
    def project(self) -> None:
        """Clips states where ``clip`` is set, and scores a candidate every few steps."""
        if self._latents is not None and self.config.clip is not None:
            self._latents.clip(self.config.clip)
        self._taken += 1
        if self._distance is not None and self._taken % self.config.score_every == 0:
            self._note_candidate()

    @torch.no_grad()
    def finish(self) -> None:
        """The best images of all stages, or the last ones."""
        if self._distance is not None:
            self._note_candidate()
            self.images.copy_(self._seen.best["images"])
            self._latents = None
        self._to_pixels()

    # ---- candidates -------------------------------------------------------------------------------------------------

    def _note_candidate(self) -> None:
        """Scores the current images; the best of this stage and of all stages are copied."""
        assert self._distance is not None
        images, level = self.decode(), -1 if self._latents is None else self._latents.level
        score = self._distance(images, self.labels)
        if not isfinite(score):
            raise diverged(f"images in the {PIXELS if level < 0 else f'level {level}'} stage")
        self._seen.note(level, self._taken, score, self._learned(), images)

    def _restore_best_of_stage(self) -> None:
        """Restores the best candidate of the stage, the one after its last step included."""
        if self._distance is not None and self._taken % self.config.score_every:
            self._note_candidate()
        self._seen.put_back(self._learned())

    def _learned(self) -> dict[str, Tensor]:
        """What is learned in this stage, by name."""
        return {"images": self.images} if self._latents is None else self._latents.named()

    def summary(self) -> dict[str, float]:
        """The least class-relevant distance of every stage, and the step of the stage after which it was reached."""
        return self._seen.summary()

    # ---- decoding, checkpoints --------------------------------------------------------------------------------------

    def _decode(self, index: Tensor) -> Tensor:
        if self._latents is None:
            return self.images[index]
        return self.data.normalize(self._latents.decode(index))

    def working_state(self) -> dict[str, Tensor]:
        """The latents, the best candidates, and the steps of this stage."""
        latents = {} if self._latents is None else self._latents.named()
        state = {f"learned.{name}": value.detach() for name, value in latents.items()}
        prior = torch.tensor(list(bytes.fromhex(self.config.prior_sha256)), dtype=torch.uint8)
        return {**state, **self._seen.state(), "taken": torch.tensor(self._taken), "prior": prior}

    def load_working_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what :meth:`working_state` returned."""
        if bytes(state["prior"].tolist()).hex() != self.config.prior_sha256:
            raise ResumeMismatch("h-pd: this run was started with another prior; remove its folder to start again")
        for name, value in ({} if self._latents is None else self._latents.named()).items():
            value.data.copy_(state[f"learned.{name}"])
        self._seen.load_state(state, self.images.device)
        self._taken = int(state["taken"])

    def _keep(self, index: Tensor) -> None:
        self.images = nn.Parameter(self.images.detach()[index])

    def describe(self) -> str:
        """The levels, and what the prior is."""
        if not self._prior:
            return ""
        config = self.config
        names = ", ".join(stage.name for stage in self.stages())
        return f"{names}; prior of {config.prior_elements:,} elements, trained in {self._prior_seconds:.0f} s"


class GLaD(HPD):
    """One fixed level of a generator, and no search."""

    api_version = 2

    class Config(HPD.Config):
        """Settings of the fixed level."""

        levels: tuple[int] = Field((2,), description="the level")
        pixels: bool = Field(False, description="a last stage that learns the pixels themselves")
        init: Literal["cluster", "sample", "encode"] = Field(
            "sample", description="first latents: single samples, averages, or real images' own"
        )
        select: Literal["crfd", "last"] = Field("last", description="the last images, or the nearest candidate")
