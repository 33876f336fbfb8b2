"""Tools for priors: a choice of classes, pixel values of real images, and the check of the contract."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from dd_plugins.api import LayeredGenerator, PluginContractError, RealData, Styles
from dd_plugins.seeds import make_generator

if TYPE_CHECKING:
    from dd_plugins.priors.train import PriorRecipe, Trainer

MOST_OUTSIDE = 0.25  # share of pixel values outside of [0, 1]; values from -1 to 1 have about twice as many


class TrainablePrior(LayeredGenerator):
    """A prior that is trained here, on the training split of the data set; so its images may be whitened."""

    @classmethod
    @abstractmethod
    def trainer(cls, recipe: PriorRecipe, real: RealData) -> Trainer:
        """Its training, before the first update."""


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


def pixel_values(real: RealData, rows: Tensor) -> Tensor:
    """Training images as generators make and see them: float, ``(len(rows), C, H, W)``, from 0 to 1."""
    return real.spec.denormalize(real.train.images(rows)).clamp(0, 1)


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

    labels = torch.arange(count, device=prior.device) % max(1, prior.num_classes)

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
                refuse(f"state {stage}: gradients of single images differ by {gap:.2e} from those of the batch")


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
