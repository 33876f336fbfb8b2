"""Averages of a generator's samples, so that a distillation begins at what is typical of a class."""

from __future__ import annotations

import warnings

import torch
from scipy.cluster.vq import kmeans2

from dd_plugins.api.prior import Styles


def centres(styles: Styles, count: int, seed: int) -> Styles:
    """Means of ``count`` clusters of samples of one class; so no two images of a class begin alike."""
    points = torch.cat([style.flatten(1) for style in styles], dim=1).cpu().double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty clusters, which are filled below
        _, found = kmeans2(points.numpy(), count, seed=seed, minit="points")
    owners = torch.from_numpy(found).long()
    for empty in set(range(count)) - set(owners.tolist()):
        largest = int(torch.bincount(owners).argmax())
        owners[torch.nonzero(owners == largest)[0]] = empty  # one sample of its own
    return tuple(
        torch.stack([style[(owners == number).to(style.device)].mean(0) for number in range(count)]) for style in styles
    )
