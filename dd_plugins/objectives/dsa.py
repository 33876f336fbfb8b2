"""DSA: gradient matching under differentiable siamese augmentation.

Source:
    Zhao & Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021, arXiv 2102.08259, Eq. 4.
Deviations:
    See ``dd_plugins.matching.synthetic``; draws are records, not seeds, so that one image per class works.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from dd_plugins.api import DataSpec, PluginConfig
from dd_plugins.augmentation import Augmentation, default_strategy
from dd_plugins.matching import TrainOnSynthetic, TrainOnSyntheticConfig


class DSA(TrainOnSynthetic):
    """DC with one augmentation shared by the real and the synthetic images of a class."""

    api_version = 2

    class Config(TrainOnSyntheticConfig):
        """Settings of DSA."""

        strategy: str = Field("auto", description="operations joined by _; auto: the field's for the data set")

    config: Config

    def __init__(self, data: DataSpec, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        super().__init__(data, config)
        strategy = default_strategy(data) if self.config.strategy == "auto" else self.config.strategy
        self.augmentation = Augmentation.dsa(strategy)
