"""Every objective's step equals the naive one: loops over classes and steps, one graph for all."""

import pytest
import torch
from made_up import Factory, make_real
from naive import match

from dd_plugins.api import Context, FolderArtifacts
from dd_plugins.objectives.bptt import BPTT
from dd_plugins.objectives.cafe import CAFE
from dd_plugins.objectives.dc import DC
from dd_plugins.objectives.dm import DM
from dd_plugins.objectives.dsa import DSA
from dd_plugins.objectives.haba import HaBaMatching
from dd_plugins.objectives.idc import IDC
from dd_plugins.objectives.mtt import MTT
from dd_plugins.seeds import make_generator

FULL = "color_crop_cutout_flip_scale_rotate"
TRAJECTORY = {
    "experts": 2, "training_epochs": 3, "training_lr": 0.05, "training_batch": 16,
    "syn_steps": 4, "expert_epochs": 1, "max_start_epoch": 2, "start_lr": 0.05, "lr_lr": 1e-3,
}  # fmt: skip
CASES = {
    "dc": (DC, {"outer": 3, "inner": 2, "batch_real": 5}),
    "dsa": (DSA, {"outer": 3, "inner": 1, "batch_real": 5}),
    **{f"idc {m}": (IDC, {"batch_real": 5, "network_updates": 1, "metric": m}) for m in ("mse", "l1", "cosine", "dc")},
    "dm": (DM, {"batch_real": 5, "strategy": FULL}),
    "cafe": (CAFE, {"batch_real": 5, "probe": 3, "strategy": FULL, "loops": "fixed", "outer": 3, "inner": 1}),
    "mtt": (MTT, {**TRAJECTORY, "batch_syn": 5}),
    "haba": (HaBaMatching, TRAJECTORY),
    "bptt": (BPTT, {"unroll": 4, "batch_syn": 2, "batch_real": 5, "strategy": FULL}),
}


def prepared(kind, real, cache):
    cls, config = CASES[kind]
    objective, targets = cls(real.spec, config), torch.arange(4).repeat_interleave(4)
    network = {"name": "convnet", "width": 4, "depth": 2}
    groups = torch.arange(16) % 2
    context = Context(
        Factory(real),
        make_generator(0),
        10,
        torch.device("cpu"),
        FolderArtifacts(cache),
        groups=groups,
        network=network,
    )
    objective.prepare(real, targets, context)
    return objective


@pytest.mark.parametrize("kind", list(CASES))
def test_a_step_is_the_naive_step(kind, tmp_path):
    real = make_real()
    ours, theirs = prepared(kind, real, tmp_path), prepared(kind, real, tmp_path)
    images = torch.randn(16, 2, 8, 8, generator=make_generator(1))
    for step in range(4):  # networks are trained, replaced and learned along the way
        found = ours.match(images, ours.targets, step)
        loss, image_grad = match(theirs, images, theirs.targets, step)
        torch.testing.assert_close(found.loss, loss, rtol=1e-5, atol=1e-6)
        assert (found.image_grad - image_grad).norm() <= 1e-4 * image_grad.norm()
        assert image_grad.norm() > 0
        images = images - 0.1 * image_grad / image_grad.abs().max()
