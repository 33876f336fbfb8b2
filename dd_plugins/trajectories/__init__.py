"""Trajectories of weights: unrolled training, experts, and their matching; the tool that MTT, HaBa and BPTT share."""

from dd_plugins.trajectories.experts import ExpertRecipe, Experts, ExpertTrajectories
from dd_plugins.trajectories.matching import TrajectoryMatching, TrajectoryMatchingConfig
from dd_plugins.trajectories.unroll import Batch, FlatNetwork, Trajectory, flat_weights, pull_back, train_on

__all__ = [
    "Batch",
    "ExpertRecipe",
    "ExpertTrajectories",
    "Experts",
    "FlatNetwork",
    "Trajectory",
    "TrajectoryMatching",
    "TrajectoryMatchingConfig",
    "flat_weights",
    "pull_back",
    "train_on",
]
