"""MTT: matching training trajectories.

Source:
    Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022, arXiv 2203.11932, Eq. 2 and
    Algorithm 1; ``gradient=tesla``: Cui et al., ICML 2023, arXiv 2211.10586.
Deviations:
    The learned learning rate is recorded, not stored with the images: all methods are scored with the protocol's.
    With ``gradient=tesla`` the images' gradient has its full length; TESLA's code loses a factor of 2.
"""

from __future__ import annotations

from dd_plugins.trajectories import TrajectoryMatching


class MTT(TrajectoryMatching):
    """SGD on the synthetic images shall reach the weights that an expert reached on real ones."""

    api_version = 2
