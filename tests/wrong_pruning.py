"""A score and a selector that keep their contracts, and for every check one that breaks exactly what it checks."""

import torch

from dd_plugins.api import PluginConfig
from dd_plugins.api.pruning import Score, Selector


class Confidence(Score):
    """The probability of the class after the last epoch."""

    api_version = 2
    from_logits = True

    def start(self, networks, images, targets, generator):
        super().start(networks, images, targets, generator)
        self.found = torch.zeros(len(networks), len(targets))

    def update(self, number, logits):
        self.found[number] += logits.softmax(1).gather(1, self.targets[:, None]).squeeze(1)

    def compute(self):
        return self.found.mean(0)


class MuteScore(Confidence):
    api_version = 2


class UndeclaredScore(Confidence):
    """Declares no API version of its own."""


class UnsettledScore(Confidence):
    """Has a setting without a description."""

    api_version = 2

    class Config(PluginConfig):
        power: int = 1


class OneTooFew(Confidence):
    """Leaves the last image out."""

    api_version = 2

    def compute(self):
        return super().compute()[:-1]


class NeverForgets(Confidence):
    """Does not begin anew when it is started again."""

    api_version = 2

    def start(self, networks, images, targets, generator):
        before = getattr(self, "found", None)
        super().start(networks, images, targets, generator)
        self.found += 0 if before is None or before.shape != self.found.shape else before


class ShrinksWeights(Confidence):
    """Changes the networks that it observes."""

    api_version = 2

    def compute(self):
        with torch.no_grad():
            for parameter in self.networks[0].parameters():
                parameter.mul_(0.5)
        return super().compute()


class Last(Selector):
    """The last rows."""

    api_version = 2

    def select(self, ease, keep, beta, generator):
        return torch.arange(len(ease) - keep, len(ease))


class MuteSelector(Last):
    api_version = 2


class UndeclaredSelector(Last):
    """Declares no API version of its own."""


class UnsettledSelector(Last):
    """Has a setting without a description."""

    api_version = 2

    class Config(PluginConfig):
        power: int = 1


class KeepsPositive(Last):
    """Ignores how many to keep where scores differ."""

    api_version = 2

    def select(self, ease, keep, beta, generator):
        if len(ease) != 20 or bool((ease == 0).all()):
            return super().select(ease, keep, beta, generator)
        return torch.arange(len(ease))[:-1]


class KeepsTies(Last):
    """Keeps all images that have the threshold's score."""

    api_version = 2

    def select(self, ease, keep, beta, generator):
        return torch.nonzero(ease >= ease.sort().values[len(ease) - keep]).flatten()


class DrawsRows(Last):
    """Draws from the global generator."""

    api_version = 2

    def select(self, ease, keep, beta, generator):
        torch.rand(1)
        return super().select(ease, keep, beta, generator)


class Normalises(Last):
    """Scales the scores in place."""

    api_version = 2

    def select(self, ease, keep, beta, generator):
        ease.mul_(0.5)
        return super().select(ease, keep, beta, generator)


class UsesBeta(Last):
    """Depends on beta, and does not declare it."""

    api_version = 2

    def select(self, ease, keep, beta, generator):
        first = int(beta * (len(ease) - keep))
        return torch.arange(first, first + keep)


WRONG_PRUNING = {
    "score": {
        "documented": MuteScore,
        "declares_its_api_version": UndeclaredScore,
        "settings_are_described": UnsettledScore,
        "scores": OneTooFew,
        "scoring_is_seeded": NeverForgets,
        "scoring_changes_nothing": ShrinksWeights,
    },
    "selector": {
        "documented": MuteSelector,
        "declares_its_api_version": UndeclaredSelector,
        "settings_are_described": UnsettledSelector,
        "selection": KeepsPositive,
        "equal_scores": KeepsTies,
        "selection_is_seeded": DrawsRows,
        "inputs_are_left_alone": Normalises,
        "beta_is_declared": UsesBeta,
    },
}
