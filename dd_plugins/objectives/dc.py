"""DC: dataset condensation with gradient matching.

Source:
    Zhao, Mopuri & Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021, arXiv 2006.05929, Eq. 6 and 7.
Deviations:
    See ``dd_plugins.matching.synthetic``; the maths is the authors'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dd_plugins.api import DataSpec, PluginConfig
from dd_plugins.augmentation import Augmentation
from dd_plugins.matching import TrainOnSynthetic, TrainOnSyntheticConfig


class DC(TrainOnSynthetic):
    """Gradient matching on networks trained with the synthetic images, without augmentation."""

    api_version = 2

    class Config(TrainOnSyntheticConfig):
        """Settings of DC."""

    def __init__(self, data: DataSpec, config: PluginConfig | Mapping[str, Any] | None = None) -> None:
        super().__init__(data, config)
        self.augmentation = Augmentation(())
