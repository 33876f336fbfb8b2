"""What a prior must be able to do before anything is distilled through it; measured on the validation split.

The gates find what image grids hide: a generator whose samples are of the right class (conditional accuracy) may still
make one and the same image of each class (intra-class diversity), or images that no classifier learns from
(classification accuracy score).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from dd_plugins.api import DataError, Network, PluginConfig, RealData
from dd_plugins.api.prior import LayeredGenerator, Styles, rows_at_once
from dd_plugins.priors.base import pixel_values
from dd_plugins.seeds import make_generator, seed_for
from dd_plugins.training import TrainConfig, accuracy, train_networks

SAMPLES = 100  # of each class, for accuracy and diversity
LEAST_ACCURACY, LEAST_SCORE = 0.8, 0.75  # of what real images reach
DIVERSITY = (0.7, 1.3)  # of that of real images
EARLIER_NAMES = {"spread": "intra_class_diversity", "worth": "classification_accuracy_score"}  # in files of release 1
LEAST_STAGES, LEAST_SIZES = 4, 2
UPDATES = 600  # of the classifiers
ABOVE_GUESSING = 0.05  # of the way from guessing to all; a classifier below it has learned nothing


@dataclass(frozen=True)
class Gates:
    """The figures of a prior.

    Attributes:
        accuracy: Share of its samples that a classifier, trained on real images, finds in their class.
        real_accuracy: That classifier's accuracy on validation images.
        guessing: The accuracy of guessing, one over the number of classes.
        intra_class_diversity: Standard deviation of its samples within their class, over that of real images.
        classification_accuracy_score: Validation accuracy of a classifier that is trained on as many samples as there
            are real images (Ravuri & Vinyals, NeurIPS 2019, arXiv 1905.10887).
        stages: How many stages it has.
        sizes: How many sizes its states have, counting height and width; one means that it never enlarges them.
    """

    accuracy: float
    real_accuracy: float
    guessing: float
    intra_class_diversity: float
    classification_accuracy_score: float
    stages: int
    sizes: int

    @classmethod
    def read(cls, figures: Mapping[str, Any]) -> Gates | None:
        """From JSON, also with the names of release 1; None if one is missing: the file is older than that gate.

        Raises:
            ValueError: If they are no finite numbers.
        """
        if not isinstance(figures, Mapping):
            raise ValueError("gates are no figures by name")
        if not all(isinstance(figure, int | float) and isfinite(figure) for figure in figures.values()):
            raise ValueError("gates are no finite numbers")
        named = {EARLIER_NAMES.get(name, name): figure for name, figure in figures.items()}
        names = [field.name for field in fields(cls)]
        return None if set(names) - set(named) else cls(*(named[name] for name in names))

    def failed(self) -> list[str]:
        """The gates that it fails, with the figures; empty if it passes all."""
        found = []
        if learned_nothing(self.real_accuracy, self.guessing):
            found.append(
                f"the classifier that measures it reaches {self.real_accuracy:.3f} on real images, "
                f"where guessing gives {self.guessing:.3f}"
            )
        if self.accuracy < LEAST_ACCURACY * self.real_accuracy:
            found.append(
                f"conditional accuracy {self.accuracy:.3f} is below {LEAST_ACCURACY} x {self.real_accuracy:.3f}"
            )
        if not DIVERSITY[0] <= self.intra_class_diversity <= DIVERSITY[1]:
            found.append(
                f"intra-class diversity {self.intra_class_diversity:.2f} is outside {DIVERSITY[0]} to {DIVERSITY[1]}"
            )
        if self.classification_accuracy_score < LEAST_SCORE * self.real_accuracy:
            found.append(
                f"classification accuracy score {self.classification_accuracy_score:.3f} is below {LEAST_SCORE} x "
                f"{self.real_accuracy:.3f}"
            )
        if self.stages < LEAST_STAGES:
            found.append(f"{self.stages} stages are fewer than {LEAST_STAGES}")
        if self.sizes < LEAST_SIZES:
            found.append("all its states are of one size")
        return found

    def describe(self) -> str:
        """The figures in one line."""
        return (
            f"conditional accuracy {self.accuracy:.3f} (real images {self.real_accuracy:.3f}), intra-class diversity "
            f"{self.intra_class_diversity:.2f} of real images, classification accuracy score "
            f"{self.classification_accuracy_score:.3f}"
        )

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def learned_nothing(reached: float, guessing: float) -> bool:
    """Whether a classifier does no better than guess, or hardly."""
    return reached < guessing + ABOVE_GUESSING * (1 - guessing)


def measure(
    prior: LayeredGenerator,
    real: RealData,
    make_network: Callable[[int], Network],
    seed: int = 0,
    train: PluginConfig | None = None,
) -> Gates:
    """Measures a prior.

    Args:
        prior: The generator.
        real: Its training split trains the classifiers' real side, its validation split tests both.
        make_network: From a seed to a fresh classifier.
        seed: Of classifiers and samples.
        train: How classifiers are trained; by default 600 updates without augmentation.

    Raises:
        DataError: If the training images of a class do not differ, so that no diversity can be compared with theirs.
    """
    spec, labels, of_real = real.spec, real.train.labels, diversity_of_real(real)
    generator = make_generator(seed_for("gates", seed))
    config = train if isinstance(train, TrainConfig) else _recipe(len(labels))
    classifier = make_network(seed)
    train_networks([classifier], real.train.images, labels, config, spec, seeds=[seed])
    validation = real.validation.images()
    wanted = torch.arange(spec.num_classes, device=labels.device).repeat_interleave(SAMPLES)
    samples = sample(prior, real, wanted, generator)
    student = make_network(seed + 1)
    lessons = sample(prior, real, labels, generator)
    train_networks([student], lessons, labels, config, spec, seeds=[seed + 1])
    return Gates(
        accuracy=accuracy(classifier, samples, wanted),
        real_accuracy=accuracy(classifier, validation, real.validation.labels),
        guessing=1 / spec.num_classes,
        intra_class_diversity=within_class(samples, wanted) / of_real,
        classification_accuracy_score=accuracy(student, validation, real.validation.labels),
        stages=prior.num_stages,
        sizes=_sizes(prior, wanted[:1]),
    )


def _sizes(prior: LayeredGenerator, labels: Tensor) -> int:
    """How many heights and widths there are among the states of feature maps."""
    states = prior.states(prior.sample_styles(labels, make_generator(0)))
    return len({tuple(state.shape[2:]) for state in states if state.dim() == 4})


@torch.no_grad()
def sample(prior: LayeredGenerator, real: RealData, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Random images of these classes, in model space: float, ``(N, C, H, W)``.

    A prior that knows no classes reconstructs random training images of these classes.
    """
    chunks = torch.arange(len(labels), device=labels.device).split(rows_at_once(prior.image_shape))
    if prior.num_classes:
        drawn = (prior.sample_styles(labels[rows], generator) for rows in chunks)
    else:
        shown = _rows_of(labels, real, generator)
        drawn = (_encoded(prior, real, shown[rows], labels[rows]) for rows in chunks)
    return real.spec.normalize(torch.cat([prior(styles) for styles in drawn]))


def _rows_of(labels: Tensor, real: RealData, generator: torch.Generator) -> Tensor:
    """A training image of each of these classes, none twice before all of its class were there: int64, ``(N,)``."""
    order, sizes = labels.argsort(stable=True), torch.bincount(labels, minlength=real.spec.num_classes)
    sorted_labels = labels[order]
    place = torch.arange(len(labels), device=labels.device) - (sizes.cumsum(0) - sizes)[sorted_labels]
    rows = torch.empty_like(labels)
    rows[order] = real.train.per_class(int(sizes.max()), generator)[sorted_labels, place]
    return rows


def _encoded(prior: LayeredGenerator, real: RealData, rows: Tensor, labels: Tensor) -> Styles:
    """The styles of training images."""
    styles = prior.encode(pixel_values(real, rows), labels)
    if styles is None:
        raise DataError(f"{type(prior).__name__} knows no classes and cannot encode images, so it cannot be measured")
    return styles


def within_class(images: Tensor, labels: Tensor) -> float:
    """Root of the mean variance of a pixel among the images of a class."""
    return _root_of_variances([images[labels == label] for label in labels.unique().tolist()])


def diversity_of_real(real: RealData) -> float:
    """The same of the training images, one class at a time.

    Raises:
        DataError: If it is 0.
    """
    found = _root_of_variances(real.train.images(rows) for rows in real.train.class_rows())
    if not found > 0:
        raise DataError(f"{real.spec.name}: the images of each class are all alike, so no prior can be measured")
    return found


def _root_of_variances(classes: Iterable[Tensor]) -> float:
    return float(torch.stack([images.var(0, unbiased=False).mean() for images in classes]).mean().sqrt())


def _recipe(count: int) -> TrainConfig:
    per_epoch = -(-count // 256)
    return TrainConfig(epochs=max(1, UPDATES // per_epoch), lr=0.02, schedule="cosine", augmentation="none")
