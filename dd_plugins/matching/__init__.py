"""Gradient matching, the tool that DC, DSA and IDC share."""

from dd_plugins.matching.features import class_means, embed_in_chunks
from dd_plugins.matching.gradients import Metric, Strategy, class_gradients, gradient_distance, match_classes
from dd_plugins.matching.networks import TrainedNetwork, sgd_update
from dd_plugins.matching.objective import GradientMatching, GradientMatchingConfig
from dd_plugins.matching.synthetic import TrainOnSynthetic, TrainOnSyntheticConfig, synthetic_epoch

__all__ = [
    "GradientMatching",
    "GradientMatchingConfig",
    "Metric",
    "Strategy",
    "TrainOnSynthetic",
    "TrainOnSyntheticConfig",
    "TrainedNetwork",
    "class_gradients",
    "class_means",
    "embed_in_chunks",
    "gradient_distance",
    "match_classes",
    "sgd_update",
    "synthetic_epoch",
]
