"""CutMix: the share is the true area, the labels are the partners', the loss is that of mixed labels."""

import numpy as np
import pytest
import torch
from scipy import stats

from dd_plugins.augmentation import cutmix
from dd_plugins.seeds import make_generator


def noise(count):
    return torch.randn(count, 3, 8, 8, generator=make_generator(1))


def test_cutmix_share_is_the_true_area_and_labels_are_the_partners():
    targets, shares = torch.arange(6), []
    batch = (targets + 1.0).view(6, 1, 1, 1).expand(6, 2, 16, 12)  # an image's value names it
    for seed in range(300):
        mixed = cutmix(batch, targets, 1.0, make_generator(seed))
        shares.append(mixed.share)
        assert torch.equal(mixed.first, targets)
        assert sorted(mixed.second.tolist()) == targets.tolist()
        for image, own, partner in zip(mixed.images, targets.tolist(), mixed.second.tolist(), strict=True):
            assert set(image.unique().tolist()) <= {own + 1.0, partner + 1.0}
            if own != partner:
                assert float((image == own + 1).double().mean()) == pytest.approx(mixed.share, abs=1e-6)
    # The area is that of a box of side sqrt(1 - lambda), lambda uniform, at a uniform centre, clipped.
    draws = np.random.default_rng(0)

    def length(size, cut):
        centre, half = draws.integers(size), int(size * cut) // 2
        return len(set(range(centre - half, centre + half)) & set(range(size)))

    cuts = np.sqrt(1 - draws.random(3000))
    assert stats.ks_2samp(shares, [1 - length(16, cut) * length(12, cut) / 192 for cut in cuts]).pvalue > 1e-3


def test_cutmix_loss_is_the_cross_entropy_of_mixed_labels():
    logits, targets = noise(5).flatten(1)[:, :4], torch.tensor([0, 1, 2, 3, 0])
    mixed = cutmix(noise(5), targets, 1.0, make_generator(2))
    soft = mixed.share * np.eye(4)[mixed.first] + (1 - mixed.share) * np.eye(4)[mixed.second]
    expected = -(soft * torch.log_softmax(logits, 1).numpy()).sum(1).mean()
    assert float(mixed.cross_entropy(logits)) == pytest.approx(expected, rel=1e-5)


def test_cutmix_probability():
    batch, targets = noise(4), torch.arange(4)
    never = cutmix(batch, targets, 0.0, make_generator(0))
    assert torch.equal(never.images, batch)
    assert never.share == 1
    assert torch.equal(never.second, targets)
    generator = make_generator(0)
    mixed = sum(cutmix(batch, targets, 0.5, generator).share < 1 for _ in range(1000))
    always = sum(cutmix(batch, targets, 1.0, generator).share < 1 for _ in range(1000))
    # On 8 pixels a side below 2 is an empty box: lambda above 1 - 1/16.
    assert stats.binomtest(always, 1000, 15 / 16).pvalue > 1e-3
    assert stats.binomtest(mixed, 1000, 15 / 32).pvalue > 1e-3
