"""What a layered generator is: a chain of stages from a latent state to an image, with a style for every stage.

Source:
    GLaD: Cazenavette et al., "Generalizing Dataset Distillation via Deep Generative Prior", CVPR 2023, arXiv
    2305.01649.
    H-PD: "Hierarchical Features Matter", CVPR 2025, arXiv 2406.05704.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Generator, Tensor, nn

from dd_plugins.api import PluginContractError, RealData
from dd_plugins.seeds import make_generator

SCALE_SAMPLES = 64
MOST_OUTSIDE = 0.25  # share of pixel values outside of [0, 1]; values from -1 to 1 have about twice as many
PIXELS_AT_ONCE = 2**19  # without a graph
Styles = tuple[Tensor, ...]  # one tensor a stage, float ``(N, d)``; d may be 0 where a stage takes none


class LayeredGenerator(nn.Module, ABC):
    """Base of every prior: ``num_stages`` stages, each of which maps a state to the next one.

    State k is what k stages have made; state K is what :meth:`to_pixels` turns into an image. Generators are frozen and
    in evaluation mode, and images of a batch do not depend on each other.

    Attributes:
        num_stages: K.
        image_shape: ``(C, H, W)`` of the images.
        num_classes: Classes that it knows; 0 if it knows none, and makes images of no class.
    """

    num_stages: int
    image_shape: tuple[int, int, int]
    num_classes: int

    @abstractmethod
    def sample_styles(self, labels: Tensor, generator: Generator) -> Styles:
        """Random styles for images of these classes.

        Args:
            labels: int64, ``(N,)``.
            generator: On the CPU; everything random comes from it.
        """

    @abstractmethod
    def begin(self, styles: Styles) -> Tensor:
        """State 0: float32, ``(N, ...)``."""

    @abstractmethod
    def step(self, stage: int, state: Tensor, styles: Styles) -> Tensor:
        """State ``stage + 1`` from state ``stage``."""

    @abstractmethod
    def to_pixels(self, state: Tensor) -> Tensor:
        """Images from state K: float, ``(N, C, H, W)``, pixel values, not normalised and not clipped.

        Values from 0 to 1 are colors; a few may lie outside, where they still have a gradient.
        """

    def encode(self, images: Tensor, labels: Tensor) -> Styles | None:
        """Styles that come close to real images (float, ``(N, C, H, W)``, pixel values); None if it cannot."""
        del images, labels
        return None

    def mean_styles(self, labels: Tensor, count: int, generator: Generator) -> Styles:
        """For each image the average of ``count`` random styles of its class (H-PD's averaged initial latent)."""
        means = []
        for label in labels.split(1):
            drawn = self.sample_styles(label.expand(count), generator)
            means.append([style.mean(0) for style in drawn])
        return tuple(torch.stack(stage) for stage in zip(*means, strict=True))

    @final
    def decode_from(self, stage: int, state: Tensor, styles: Styles) -> Tensor:
        """Images from a state: float, ``(N, C, H, W)``, pixel values.

        Args:
            stage: How many stages have made the state, 0 to K.
            state: As ``begin`` or ``step`` returned it.
            styles: Those of the stages that are left have an effect.
        """
        for later in range(stage, self.num_stages):
            state = self.step(later, state, styles)
        return self.to_pixels(state)

    def forward(self, styles: Styles) -> Tensor:
        """Images from styles alone: float, ``(N, C, H, W)``, pixel values."""
        return self.decode_from(0, self.begin(styles), styles)

    @torch.no_grad()
    def scales(self) -> tuple[float, list[float]]:
        """Root mean square of random styles, and of every state that they lead to; always of the same samples.

        Learning rates and clipping are relative to them.
        """
        labels = torch.arange(SCALE_SAMPLES, device=device_of(self)) % max(1, self.num_classes)
        styles = self.sample_styles(labels, make_generator(0))
        filled = [style for style in styles if style.numel()]
        of_styles = float(torch.cat([style.flatten() for style in filled]).square().mean().sqrt()) if filled else 1.0
        squares = torch.zeros(self.num_stages + 1, dtype=torch.float64)
        for rows in torch.arange(SCALE_SAMPLES).split(rows_at_once(self.image_shape)):
            part = tuple(style[rows] for style in styles)
            for number, state in enumerate(self.states(part)):
                squares[number] += len(rows) * float(state.square().mean(dtype=torch.float64))
        return of_styles, (squares / SCALE_SAMPLES).sqrt().tolist()

    @final
    @torch.no_grad()
    def states(self, styles: Styles) -> Iterator[Tensor]:
        """All states, from 0 to K, one after the other."""
        state = self.begin(styles)
        yield state
        for stage in range(self.num_stages):
            state = self.step(stage, state, styles)
            yield state


class ForClasses(LayeredGenerator):
    """A generator of many classes, for a data set of some of them.

    Args:
        generator: The generator.
        classes: Its class for every class of the data set.
    """

    def __init__(self, generator: LayeredGenerator, classes: Sequence[int]) -> None:
        super().__init__()
        self.generator, self.num_stages = generator, generator.num_stages
        self.image_shape, self.num_classes = generator.image_shape, len(classes)
        self.classes: Tensor
        self.register_buffer("classes", torch.tensor(classes, dtype=torch.int64), persistent=False)

    def _of(self, labels: Tensor) -> Tensor:
        return self.classes.to(labels.device)[labels]

    def sample_styles(self, labels: Tensor, generator: Generator) -> Styles:
        """Those of the generator's own classes."""
        return self.generator.sample_styles(self._of(labels), generator)

    def begin(self, styles: Styles) -> Tensor:
        """As the generator."""
        return self.generator.begin(styles)

    def step(self, stage: int, state: Tensor, styles: Styles) -> Tensor:
        """As the generator."""
        return self.generator.step(stage, state, styles)

    def to_pixels(self, state: Tensor) -> Tensor:
        """As the generator."""
        return self.generator.to_pixels(state)

    def encode(self, images: Tensor, labels: Tensor) -> Styles | None:
        """As the generator."""
        return self.generator.encode(images, self._of(labels))


def rows_at_once(image_shape: tuple[int, int, int]) -> int:
    """How many images a generator may make at once without a graph: 512 at 32 px, 32 at 128 px."""
    return max(1, PIXELS_AT_ONCE // (image_shape[1] * image_shape[2]))


def pixel_values(real: RealData, rows: Tensor) -> Tensor:
    """Training images as generators make and see them: float, ``(len(rows), C, H, W)``, from 0 to 1."""
    return real.spec.denormalize(real.train.images(rows)).clamp(0, 1)


def device_of(prior: LayeredGenerator) -> torch.device:
    """Where a generator's weights lie."""
    held = [*prior.parameters(), *prior.buffers()]
    return held[0].device if held else torch.device("cpu")


@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # a batch and its parts are compared
def check_contract(prior: LayeredGenerator, seed: int = 0, count: int = 3, tolerance: float = 1e-4) -> None:
    """Holds a generator to its contract.

    Args:
        prior: The generator.
        seed: Of the styles.
        count: Images.
        tolerance: Largest difference of two images that should be one.

    Raises:
        PluginContractError: Names what was expected and what was found.
    """

    def refuse(what: str) -> None:
        raise PluginContractError(f"{type(prior).__name__}: {what}")

    labels = torch.arange(count, device=device_of(prior)) % max(1, prior.num_classes)

    def draw() -> Styles:
        return prior.sample_styles(labels, make_generator(seed))

    if prior.training or any(p.requires_grad for p in prior.parameters()):
        refuse("expected evaluation mode and frozen parameters")
    styles = draw()
    if len(styles) != prior.num_stages or any(len(style) != count for style in styles):
        refuse(f"sample_styles: expected {prior.num_stages} tensors of {count} rows")
    if not _same(styles, draw()):
        refuse("sample_styles: expected the same styles from the same generator")
    before = torch.get_rng_state()
    with torch.no_grad():
        images = prior(styles)
        again = prior(styles)
    if not torch.equal(before, torch.get_rng_state()):
        refuse("the global random generator was used")
    if tuple(images.shape) != (count, *prior.image_shape) or not images.is_floating_point():
        refuse(f"expected float images of shape {(count, *prior.image_shape)}, but got {tuple(images.shape)}")
    outside = float(((images < -1e-6) | (images > 1 + 1e-6)).double().mean())
    if not bool(torch.isfinite(images).all()) or outside > MOST_OUTSIDE:
        refuse("expected pixel values from 0 to 1")
    if float((images - again).abs().max()) > 0:
        refuse("expected the same images from the same styles")
    for stage, state in enumerate(prior.states(styles)):
        if state.dtype != torch.float32:
            refuse(f"state {stage}: expected float32, but got {state.dtype}")
        with torch.no_grad():
            gap = float((prior.decode_from(stage, state, styles) - images).abs().max())
        if gap > tolerance:
            refuse(f"decoding from state {stage} differs by {gap:.2e} from the whole")
        with torch.no_grad():
            alone = torch.cat([prior.decode_from(stage, state[k : k + 1], _rows(styles, k)) for k in range(count)])
        if float((alone - images).abs().max()) > tolerance:
            refuse(f"state {stage}: images depend on their batch")
        whole = _gradients(prior, stage, state, styles)
        if not bool(torch.isfinite(whole[0]).all()) or not bool(whole[0].any()):
            refuse(f"state {stage}: expected a gradient from the images")
        parts = [_gradients(prior, stage, state[k : k + 1], _rows(styles, k)) for k in range(count)]
        for expected, *found in zip(whole, *parts, strict=True):
            gap = float((torch.cat(found) - expected).abs().max()) if expected.numel() else 0.0
            if gap > tolerance * max(1.0, float(expected.abs().max()) if expected.numel() else 0.0):
                refuse(f"state {stage}: gradients taken image by image differ by {gap:.2e} from those of the batch")


def _gradients(prior: LayeredGenerator, stage: int, state: Tensor, styles: Styles) -> list[Tensor]:
    """The gradients of the sum of all pixels with respect to the state and to every style; zero where it has none."""
    leaves = [tensor.clone().requires_grad_() for tensor in (state, *styles)]
    pixels = prior.decode_from(stage, leaves[0], tuple(leaves[1:])).sum()
    found = torch.autograd.grad(pixels, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]


def _rows(styles: Styles, row: int) -> Styles:
    return tuple(style[row : row + 1] for style in styles)


def _same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
