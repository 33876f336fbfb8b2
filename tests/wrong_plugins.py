"""Plugins that keep their contract, and for every check one that breaks just what it demands."""

import json
import time
from dataclasses import replace

import torch
from pydantic import Field
from torch import nn
from torch.autograd.function import once_differentiable

from dd_plugins.api import (
    Dataset,
    DataSpec,
    DifferentiableObjective,
    IncompatibleError,
    Match,
    Network,
    Parameterization,
    PluginConfig,
    PruningStrategy,
    RawData,
    Stage,
    Staged,
    StorageLedger,
    SyntheticSet,
    TensorSpec,
    read_tensors,
    write_tensors,
)
from dd_plugins.api.benchmark import Benchmark, Cell, Scores
from dd_plugins.priors.small import SmallGenerator
from dd_plugins.seeds import make_generator


class Undescribed(PluginConfig):
    """Settings of which one is not described."""

    rank: int = 6
    batch_real: int = 8
    width: int = 8


# ---- parameterizations ----------------------------------------------------------------------------------------------


class Mixture(Parameterization):
    """Mixtures of a few shared images."""

    api_version = 2

    class Config(PluginConfig):
        """Settings."""

        rank: int = Field(6, description="shared images")

    @classmethod
    def shapes(cls, data, counts, config):
        return {
            "shared": TensorSpec((config.rank, *data.image_shape)),
            "weights": TensorSpec((sum(counts), config.rank)),
        }

    @torch.no_grad()
    def reset(self, generator, real):
        self.shared.copy_(torch.randn(self.shared.shape, generator=generator))
        self.weights.copy_(torch.randn(self.weights.shape, generator=generator))

    def _decode(self, index):
        return torch.einsum("nk,kchw->nchw", self.weights[index], self.shared)


class Prunable(Mixture):
    """Mixtures of a few shared images, each of which can be dropped."""

    api_version = 2

    def _keep(self, index):
        self.weights = nn.Parameter(self.weights.detach()[index])


class Mute(Mixture):
    api_version = 2
    pass


class Unsettled(Mixture):
    """A setting has no description."""

    api_version = 2
    Config = Undescribed


class Greedy(Mixture):
    """Stores an image of each class too many."""

    api_version = 2

    @classmethod
    def plan(cls, data, budget, config, cost):
        plan = super().plan(data, budget, config, cost)
        return replace(plan, counts=tuple(count + 1 for count in plan.counts))


class PlansWithTensors(Mixture):
    """Creates a tensor to count its numbers."""

    api_version = 2

    @classmethod
    def resolve(cls, data, budget, config, cost):
        return config if torch.zeros(data.image_shape).numel() else None


class DrawsInBuild(Mixture):
    """Draws where it should only allocate."""

    api_version = 2

    def build(self):
        super().build()
        torch.rand(1)


class SeedsItself(Mixture):
    """Begins in another way every time."""

    api_version = 2

    def reset(self, generator, real):
        generator = torch.Generator()
        generator.manual_seed(time.perf_counter_ns() % 2**62)
        super().reset(generator, real)


class AddsToTheLast(Mixture):
    """Begins with what is there already."""

    api_version = 2

    @torch.no_grad()
    def reset(self, generator, real):
        before = self.weights.clone()
        super().reset(generator, real)
        self.weights.add_(before)


class Unordered(Mixture):
    """Its images are not ordered by class."""

    api_version = 2

    def build(self):
        super().build()
        self.labels = self.labels.flip(0)


class Companions(Mixture):
    """An image depends on how many are decoded beside it."""

    api_version = 2

    def _decode(self, index):
        return super()._decode(index) + 0.01 * len(index)


class DrawsInDecode(Mixture):
    """Draws while it decodes."""

    api_version = 2

    def _decode(self, index):
        torch.rand(1)
        return super()._decode(index)


class Idle(Mixture):
    """Stores a number that no image depends on."""

    api_version = 2

    @classmethod
    def shapes(cls, data, counts, config):
        return {**super().shapes(data, counts, config), "idle": TensorSpec((1,))}


class ChunkPenalty(Mixture):
    """Its penalty is a mean over whatever is decoded at once."""

    api_version = 2

    def regularize(self, images, index):
        return 10 * images.square().mean()


class TwiceInGroups(Mixture):
    """The optimizer gets one tensor in two groups."""

    api_version = 2

    def parameter_groups(self):
        return [*super().parameter_groups(), {"params": [self.weights]}]


class Forgetful(Mixture):
    """Needs a tensor that is not stored."""

    api_version = 2

    def build(self):
        super().build()
        self.register_buffer("offset", torch.zeros(self.data.image_shape), persistent=False)

    def reset(self, generator, real):
        super().reset(generator, real)
        self.offset = torch.randn(self.data.image_shape, generator=generator)

    def _decode(self, index):
        return super()._decode(index) + self.offset


class ChangesTheKept(Mixture):
    """Images that are kept change."""

    api_version = 2

    def _keep(self, index):
        self.weights = nn.Parameter(1.01 * self.weights.detach()[index])


class Stuck(Mixture):
    """Holds a tensor that does not move along."""

    api_version = 2

    def build(self):
        super().build()
        self.table = torch.eye(self.config.rank)

    def _decode(self, index):
        return torch.einsum("nk,kchw->nchw", self.weights[index] @ self.table, self.shared)


class HalfStages(Staged, Mixture):
    """The shares of its stages do not add up."""

    api_version = 2

    def stages(self):
        return (Stage("main", 0.5),)


# ---- objectives -----------------------------------------------------------------------------------------------------


class MeanFeatures(DifferentiableObjective):
    """Mean features of each class under a fresh network."""

    api_version = 2

    class Config(PluginConfig):
        """Settings."""

        batch_real: int = Field(4, description="real images of each class")

    skipped = ()

    def loss(self, images, targets, step):
        network = self.context.make_network(self.context.draw_seed()).requires_grad_(False)
        rows = self.real.train.per_class(self.config.batch_real, self.context.generator)
        total = images.new_zeros(())
        for label, own in enumerate(rows):
            if label not in self.skipped and bool((targets == label).any()):
                expected = network.embed(self.real.train.images(own)).mean(0)
                total = total + (network.embed(images[targets == label]).mean(0) - expected).square().sum()
        return total

    def state_dict(self):
        return {"generator": self.context.generator.get_state()}

    def load_state_dict(self, state):
        self.context.generator.set_state(state["generator"])


class MuteObjective(MeanFeatures):
    api_version = 2
    pass


class UnsettledObjective(MeanFeatures):
    """A setting has no description."""

    api_version = 2
    Config = Undescribed


class KeepsTheGraph(MeanFeatures):
    """Returns a loss with its graph."""

    api_version = 2

    def match(self, images, targets, step):
        leaf = images.detach().requires_grad_()
        loss = self.loss(leaf, targets, step)
        (image_grad,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        return Match(loss, image_grad)


class HalvesTheGradient(MeanFeatures):
    """Its gradient is that of half its loss."""

    api_version = 2

    def match(self, images, targets, step):
        found = super().match(images, targets, step)
        return Match(found.loss, found.image_grad / 2)


class SaysItsGradientIsInexact(HalvesTheGradient):
    """Its gradient is that of half its loss, and it says so."""

    api_version = 2
    inexact = "half of it is left out"


class InFloat32(MeanFeatures):
    """Takes float32 for granted."""

    api_version = 2

    def loss(self, images, targets, step):
        return super().loss(images.float(), targets, step)


class RoundsItsLoss(MeanFeatures):
    """Tells its loss in float32."""

    api_version = 2

    def loss(self, images, targets, step):
        return super().loss(images, targets, step).float()


class ForColour(MeanFeatures):
    """Takes three channels for granted."""

    api_version = 2

    def loss(self, images, targets, step):
        return super().loss(images, targets, step) + images[:, 2].square().mean()


class RefusesGrey(ForColour):
    """Takes three channels, and says so."""

    api_version = 2

    def check(self, targets, groups, network):
        if self.data.image_shape[0] != 3:
            raise IncompatibleError("it works with colour alone")


class SelectsTwice(MeanFeatures):
    """Selects an image twice."""

    api_version = 2

    def select(self, step):
        return torch.cat([super().select(step), torch.tensor([0])])


class LeavesAClassOut(MeanFeatures):
    """Never looks at the first class."""

    api_version = 2
    skipped = (0,)


class Writes(MeanFeatures):
    """Writes into the images that it is given."""

    api_version = 2

    def match(self, images, targets, step):
        found = super().match(images, targets, step)
        images.add_(0.001)
        return found


class DrawsGlobally(MeanFeatures):
    """Draws from the global generator."""

    api_version = 2

    def match(self, images, targets, step):
        torch.rand(1)
        return super().match(images, targets, step)


class ForgetsItsState(MeanFeatures):
    """Its state says nothing of its generator."""

    api_version = 2

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


# ---- prunings -------------------------------------------------------------------------------------------------------


class Distance(PruningStrategy):
    """Keeps the images that are nearest to the mean of their class."""

    api_version = 2

    class Config(PluginConfig):
        """Settings."""

        power: float = Field(1.0, description="of the distance")

    def score(self, images, context):
        flat = images.images.flatten(1).double()
        return (flat - flat.mean(0)).norm(dim=1) ** self.config.power

    def select(self, score, targets, num_keep):
        classes, chosen = targets.unique(), []
        for number, label in enumerate(classes):
            rows = torch.nonzero(targets == label).flatten()
            share = num_keep // len(classes) + (number < num_keep % len(classes))
            chosen.append(rows[torch.argsort(score[rows], stable=True)[:share]])
        return torch.cat(chosen).sort().values


class MutePruning(Distance):
    api_version = 2
    pass


class UnsettledPruning(Distance):
    """A setting has no description."""

    api_version = 2

    class Config(PluginConfig):
        """Settings."""

        power: float = 1.0


class ScoresInAColumn(Distance):
    """Its scores are a matrix."""

    api_version = 2

    def score(self, images, context):
        return super().score(images, context)[:, None]


class ScoresByChance(Distance):
    """Draws from the global generator."""

    api_version = 2

    def score(self, images, context):
        torch.rand(1)
        return super().score(images, context)


class WritesWhileScoring(Distance):
    """Changes the images that it scores."""

    api_version = 2

    def score(self, images, context):
        found = super().score(images, context)
        images.images.add_(1)
        return found


class Unsorted(Distance):
    """Selects in descending order."""

    api_version = 2

    def select(self, score, targets, num_keep):
        return super().select(score, targets, num_keep).flip(0)


class NeedsDifferentScores(Distance):
    """Keeps what is below a threshold, of equal scores nothing."""

    api_version = 2

    def select(self, score, targets, num_keep):
        index = super().select(score, targets, num_keep)
        return index if len(score.unique()) > 1 else index[:0]


class NoCandidate(Distance):
    """Has no candidate."""

    api_version = 2

    def candidates(self):
        return ()


# ---- networks -------------------------------------------------------------------------------------------------------


class Small(Network):
    """Two convolutions."""

    api_version = 2

    class Config(Network.Config):
        """Settings."""

        width: int = Field(8, description="channels")

    extra = 0

    def __init__(self, image_shape, num_classes, config=None):
        super().__init__(image_shape, num_classes, config)
        width = self.config.width
        self.features = nn.Sequential(
            nn.Conv2d(image_shape[0], width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3),
            nn.AdaptiveAvgPool2d(2),
        )
        self.classifier = nn.Linear(4 * width, num_classes + self.extra * (image_shape[-1] == 32))

    def embed(self, images):
        return self.features(images).flatten(1)

    def forward(self, images):
        return self.classifier(self.embed(images))


class MuteNetwork(Small):
    api_version = 2
    pass


class UnsettledNetwork(Small):
    """A setting has no description."""

    api_version = 2

    class Config(Network.Config):
        """Settings."""

        width: int = 8


class OneLogitTooMany(Small):
    """Has a logit too many for some images."""

    api_version = 2
    extra = 1


class IdleWeight(Small):
    """Has a parameter that nothing depends on."""

    api_version = 2

    def __init__(self, image_shape, num_classes, config=None):
        super().__init__(image_shape, num_classes, config)
        self.idle = nn.Parameter(torch.randn(1))


class Once(torch.autograd.Function):
    """The identity; its gradient has no gradient."""

    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad


class DifferentiableOnce(Small):
    """Cannot be differentiated twice."""

    api_version = 2

    def forward(self, images):
        return self.classifier(Once.apply(self.embed(images)))


class SeedsItsWeights(Small):
    """Its weights are others every time."""

    api_version = 2

    def __init__(self, image_shape, num_classes, config=None):
        super().__init__(image_shape, num_classes, config)
        generator = torch.Generator()
        generator.manual_seed(time.perf_counter_ns() % 2**62)
        self.classifier.weight.data.normal_(generator=generator)


class DrawsInEvaluation(Small):
    """Draws in evaluation mode."""

    api_version = 2

    def forward(self, images):
        if not self.training:
            torch.rand(1)
        return super().forward(images)


class MapsAsFeatures(Small):
    """Its features are maps."""

    api_version = 2

    def embed(self, images):
        return self.features(images)

    def forward(self, images):
        return self.classifier(self.features(images).flatten(1))


class WritesIntoImages(Small):
    """Writes into its input."""

    api_version = 2

    def forward(self, images):
        logits = super().forward(images)
        if self.training and not images.requires_grad and images.dtype == torch.float32:
            images.add_(0.001)
        return logits


# ---- data sets ------------------------------------------------------------------------------------------------------


class Squares(Dataset):
    """Four classes of grey noise."""

    api_version = 2
    dtype, shared = torch.uint8, 0

    def read(self, root, artifacts):
        generator = make_generator(0)
        images = torch.randint(0, 256, (48, 1, 8, 8), generator=generator, dtype=torch.uint8).to(self.dtype)
        labels = torch.arange(48) % 4
        test = slice(40 - self.shared, 48 - self.shared)
        return RawData(images[:40], labels[:40], images[test], labels[test], ("a", "b", "c", "d"))


class MuteData(Squares):
    api_version = 2
    pass


class UnsettledData(Squares):
    """A setting has no description."""

    api_version = 2

    class Config(PluginConfig):
        """Settings."""

        size: int = 8


class Floats(Squares):
    """Its images are no bytes."""

    api_version = 2
    dtype = torch.float32


class TestsOnTraining(Squares):
    """Some of its test images are training images."""

    api_version = 2
    shared = 8


class ReadsAnew(Squares):
    """Draws from the global generator."""

    api_version = 2

    def read(self, root, artifacts):
        torch.rand(1)
        return super().read(root, artifacts)


# ---- benchmarks -----------------------------------------------------------------------------------------------------


class Means(Benchmark):
    """Accuracy of the nearest mean of each class, with noise of a seed."""

    api_version = 2
    metric, shift, protocol = "accuracy", 0.0, "means"

    def cells(self):
        return [Cell("digits", 1, "none"), Cell("digits", 10, "none")]

    def score(self, synthetic, cell, context):
        means = torch.stack([synthetic.images[synthetic.targets == c].mean(0) for c in synthetic.targets.unique()])
        found = torch.cdist(context.real.test.images().flatten(1), means.flatten(1)).argmin(1)
        value = float((found == context.real.test.labels).float().mean())
        trials = []
        for trial in range(2):
            if trial not in context.known:
                context.on_trial(trial, value + 0.001 * trial)
            trials.append(context.known.get(trial, value + 0.001 * trial))
        return Scores("means", self.protocol, "1", self.metric, tuple(trials))

    def export(self, synthetic, folder):
        held = {"images": synthetic.images + self.shift, "targets": synthetic.targets}
        write_tensors(folder / "set.safetensors", held, {"data": json.dumps(synthetic.data.to_dict())})
        return [folder / "set.safetensors"]

    def load(self, folder, cell):
        held, notes = read_tensors(folder / "set.safetensors")
        data, ledger = DataSpec.from_dict(json.loads(notes["data"])), StorageLedger.of(held.items())
        return SyntheticSet("set", data, held["images"], held["targets"], ledger)


class MuteBenchmark(Means):
    api_version = 2
    pass


class UnsettledBenchmark(Means):
    """A setting has no description."""

    api_version = 2
    Config = Undescribed


class OneCellTwice(Means):
    """Names a cell twice."""

    api_version = 2

    def cells(self):
        return [*super().cells(), *super().cells()]


class NoMetric(Means):
    """Does not say what it measures."""

    api_version = 2
    metric = ""


class WritesIntoTheSet(Means):
    """Changes the set that it scores."""

    api_version = 2

    def score(self, synthetic, cell, context):
        found = super().score(synthetic, cell, context)
        synthetic.images.add_(1)
        return found


class ScoresByClock(Means):
    """Scores the same set in another way every time."""

    api_version = 2

    def score(self, synthetic, cell, context):
        shift = time.perf_counter_ns() % 10**9 / 1e9
        for trial in range(2):
            if trial not in context.known:
                context.on_trial(trial, shift)
        return Scores("means", "means", "1", "accuracy", tuple(context.known.get(k, shift) for k in range(2)))


class RepeatsTrials(Means):
    """Does what is known again."""

    api_version = 2

    def score(self, synthetic, cell, context):
        context.known.clear()
        return super().score(synthetic, cell, context)


class ExportsAnother(Means):
    """What it exports are other images."""

    api_version = 2
    shift = 1.0


GOOD = [Mixture, Prunable, MeanFeatures, Distance, Small, Squares, Means]


class UndeclaredParameterization(Mixture):
    """Declares no API version of its own."""


class UndeclaredObjective(MeanFeatures):
    """Declares no API version of its own."""


class UndeclaredPruning(Distance):
    """Declares no API version of its own."""


class UndeclaredNetwork(Small):
    """Declares no API version of its own."""


class UndeclaredDataset(Squares):
    """Declares no API version of its own."""


class UndeclaredBenchmark(Means):
    """Declares no API version of its own."""


class MutePrior(SmallGenerator):
    api_version = 2


class UndeclaredPrior(SmallGenerator):
    """Does not say which API it is written for."""


class UnsettledPrior(SmallGenerator):
    """A setting has no description."""

    api_version = 2

    class Config(SmallGenerator.Config):
        """Settings."""

        depth: int = 8


class CoupledPrior(SmallGenerator):
    """Its images depend on their batch."""

    api_version = 2

    def step(self, stage, state, styles):
        made = super().step(stage, state, styles)
        return made + made.mean(0, keepdim=True)


WRONG = {
    "parameterization": {
        "documented": Mute,
        "declares_its_api_version": UndeclaredParameterization,
        "settings_are_described": Unsettled,
        "fits_its_budget_at_every_ipc": Greedy,
        "planning_is_arithmetic": PlansWithTensors,
        "build_draws_nothing": DrawsInBuild,
        "reset_is_seeded": SeedsItself,
        "reset_begins_anew": AddsToTheLast,
        "decoded_images": Unordered,
        "decodes_row_by_row": Companions,
        "decoding_is_deterministic": DrawsInDecode,
        "gradients_reach_everything_that_is_learned": Idle,
        "chunked_gradients_are_whole_ones": ChunkPenalty,
        "a_step_changes_the_images": TwiceInGroups,
        "is_rebuilt_from_its_file_alone": Forgetful,
        "pruning_keeps_the_other_images": ChangesTheKept,
        "moves_to_other_types_and_devices": Stuck,
        "stages_add_up": HalfStages,
    },
    "objective": {
        "documented": MuteObjective,
        "declares_its_api_version": UndeclaredObjective,
        "settings_are_described": UnsettledObjective,
        "matches_are_well_formed": KeepsTheGraph,
        "gradient_is_that_of_the_loss": HalvesTheGradient,
        "selection": SelectsTwice,
        "every_class_is_matched": LeavesAClassOut,
        "inputs_are_left_alone": Writes,
        "is_seeded": DrawsGlobally,
        "resumes_bit_by_bit": ForgetsItsState,
    },
    "pruning": {
        "documented": MutePruning,
        "declares_its_api_version": UndeclaredPruning,
        "settings_are_described": UnsettledPruning,
        "scores": ScoresInAColumn,
        "scoring_is_seeded": ScoresByChance,
        "scoring_changes_nothing": WritesWhileScoring,
        "selection": Unsorted,
        "equal_scores": NeedsDifferentScores,
        "candidates": NoCandidate,
    },
    "network": {
        "documented": MuteNetwork,
        "declares_its_api_version": UndeclaredNetwork,
        "settings_are_described": UnsettledNetwork,
        "logits": OneLogitTooMany,
        "every_parameter_gets_a_gradient": IdleWeight,
        "can_be_differentiated_twice": DifferentiableOnce,
        "weights_follow_the_seed": SeedsItsWeights,
        "evaluation_is_deterministic": DrawsInEvaluation,
        "features": MapsAsFeatures,
        "inputs_are_left_alone": WritesIntoImages,
    },
    "prior": {
        "documented": MutePrior,
        "declares_its_api_version": UndeclaredPrior,
        "settings_are_described": UnsettledPrior,
        "stages_decode_to_the_same_images": CoupledPrior,
    },
    "dataset": {
        "documented": MuteData,
        "declares_its_api_version": UndeclaredDataset,
        "settings_are_described": UnsettledData,
        "images_and_labels": Floats,
        "no_test_image_is_trained_on": TestsOnTraining,
        "reading_is_deterministic": ReadsAnew,
    },
    "benchmark": {
        "documented": MuteBenchmark,
        "declares_its_api_version": UndeclaredBenchmark,
        "settings_are_described": UnsettledBenchmark,
        "cells": OneCellTwice,
        "scores": NoMetric,
        "scoring_changes_nothing": WritesIntoTheSet,
        "scores_are_reproducible": ScoresByClock,
        "known_trials_are_not_repeated": RepeatsTrials,
        "export_is_read_back": ExportsAnother,
    },
}
