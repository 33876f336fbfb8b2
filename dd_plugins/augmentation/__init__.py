"""Differentiable augmentation with explicit parameter records instead of seeds."""

from dd_plugins.augmentation.cutmix import CutMix, cutmix
from dd_plugins.augmentation.pipeline import Augmentation, Draw, default_strategy

__all__ = ["Augmentation", "CutMix", "Draw", "cutmix", "default_strategy"]
