"""Gradient matching, the tool that DC, DSA and IDC share."""

from dd_plugins.matching.gradients import Metric, Strategy, class_gradients, gradient_distance, match_classes
from dd_plugins.matching.networks import TrainedNetwork, sgd_update
from dd_plugins.matching.objective import GradientMatching, GradientMatchingConfig
from dd_plugins.matching.synthetic import TrainOnSynthetic, TrainOnSyntheticConfig

__all__ = [
    "GradientMatching",
    "GradientMatchingConfig",
    "Metric",
    "Strategy",
    "TrainOnSynthetic",
    "TrainOnSyntheticConfig",
    "TrainedNetwork",
    "class_gradients",
    "gradient_distance",
    "match_classes",
    "sgd_update",
]
