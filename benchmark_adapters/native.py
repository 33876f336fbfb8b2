"""The native benchmark: the one evaluator, and DD-Ranking's scores by its trainings.

Source:
    DD-Ranking, arXiv 2505.13300, defines HLR, IOR, LRS and ARS.
Deviations:
    Scores are fractions. Nothing is chosen on test images: every training, whatever the images, has the protocol's rate
    and counts by its last epoch. Random images are one draw for all trials (``seed``), not a draw for each: intervals
    do not have the spread over subsets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from benchmark_adapters.lines import append_line, read_lines
from benchmark_adapters.robustness import augmentation_score, robust_score
from benchmark_adapters.yardsticks import LARGE, random_subset, whole_set
from dd_plugins.api import PluginConfig, SyntheticSet, parse_config
from dd_plugins.api.benchmark import Benchmark, Cell, ScoreContext, Scores
from dd_plugins.engine.evaluation import NAME, evaluate
from dd_plugins.engine.protocols import Protocol, load_protocol, protocol_names

PLAIN = "none"


class NativeBenchmark(Benchmark):
    """Test accuracy under one frozen protocol, and HLR, IOR, LRS and ARS by the same trainings."""

    api_version = 2
    follows_protocol = True
    check_settings: ClassVar[Mapping[str, Any]] = {
        "protocol": {
            "name": "tiny",
            "network": {"name": "convnet", "width": 4},
            "train": {"epochs": 2, "batch_size": 4},
            "trials": 2,
        }
    }

    class Config(PluginConfig):
        """Settings of the native benchmark."""

        protocol: Protocol | None = Field(None, description="how sets are scored; None: as the run was, or dsa")
        weight: float = Field(0.5, ge=0, le=1, description="weight of IOR against HLR in LRS")
        augmentation_weight: float = Field(0.5, ge=0, le=1, description="weight of augmented trainings in ARS")
        full_accuracy: float | None = Field(
            None, gt=0, le=100, description="percent that the whole training set gives; None: measured if it is small"
        )
        seed: int = Field(0, ge=0, description="which random real images")

        @field_validator("protocol", mode="before")
        @classmethod
        def _by_name(cls, value: Any) -> Any:
            """A protocol of the package by its name, or a whole one."""
            if isinstance(value, Mapping) and value.get("name") in protocol_names() and "train" not in value:
                if set(value) != {"name"}:
                    raise ValueError("write the name of a protocol alone, or a whole protocol with its training")
                value = value["name"]
            return load_protocol(value) if isinstance(value, str) else value

    config: Config

    def cells(self) -> Sequence[Cell]:
        """The cells of the field's main tables."""
        network = (self.config.protocol or load_protocol("dsa")).network.name
        sets = ("mnist", "fashion-mnist", "svhn", "cifar10", "cifar100", "tiny-imagenet")
        return [Cell(name, ipc, network) for name in sets for ipc in (1, 10, 50)]

    def score(self, synthetic: SyntheticSet, cell: Cell, context: ScoreContext) -> Scores:
        """Accuracy of every trial, in fractions as all its metrics.

        ``HLR``: accuracy of the whole training set less this one; ``IOR``: this one less that of random real images, as
        many as the budget would hold as pixels; ``IOR_decoded``: as many as are decoded. Of both, a class with fewer
        images gives all of them. ``LRS`` joins HLR and IOR; ``ARS`` joins IOR with augmentation and without. A metric
        is absent where a part of it is not known: HLR and LRS of a large set whose whole accuracy nobody gave, ARS
        under a protocol without augmentation.
        """
        protocol = self.config.protocol or (
            parse_config(Protocol, context.protocol, "protocol") if context.protocol else load_protocol("dsa")
        )
        trials = evaluate(synthetic, protocol, cell, context)
        measured = _Measured(protocol, cell, context)
        seed, device, classes = self.config.seed, context.device, synthetic.data.num_classes
        drawn = random_subset(context.real, cell.ipc, seed, device)
        count = max(1, len(synthetic.targets) // classes)
        metrics = {
            "random": measured(drawn),
            "random_decoded": measured(random_subset(context.real, count, seed, device)),
        }
        metrics["IOR"] = _less(trials, metrics["random"])
        metrics["IOR_decoded"] = _less(trials, metrics["random_decoded"])
        full, source = self._full(measured, context)
        if full:
            metrics["HLR"] = _less(full, trials)
            for name in ("", "_decoded"):
                joined = zip(metrics["HLR"], metrics[f"IOR{name}"], strict=True)
                metrics[f"LRS{name}"] = tuple(robust_score(*pair, self.config.weight) for pair in joined)
        if protocol.train.augmentation != PLAIN:
            train = protocol.train.model_copy(update={"augmentation": PLAIN})
            plain = _Measured(protocol.model_copy(update={"train": train}), cell, context)
            metrics["plain"], metrics["random_plain"] = plain(synthetic), plain(drawn)
            both = zip(metrics["IOR"], _less(metrics["plain"], metrics["random_plain"]), strict=True)
            metrics["ARS"] = tuple(augmentation_score(*pair, self.config.augmentation_weight) for pair in both)
        notes = {"full_accuracy_source": source, "decoded_per_class": count}
        return Scores(NAME, protocol.name, protocol.hash, "accuracy", trials, protocol.network.name, metrics, notes)

    def _full(self, measured: _Measured, context: ScoreContext) -> tuple[tuple[float, ...], str]:
        """Accuracies of the whole training set, and where they are from."""
        real, protocol = context.real, measured.protocol
        if self.config.full_accuracy is not None:
            return (self.config.full_accuracy / 100,) * protocol.trials, "given"
        matched = ", same updates" if protocol.train.match_updates else ""
        if len(real.train) + len(real.validation) <= LARGE:
            return measured(whole_set(real, "whole training set", protocol.split)), f"measured{matched}"
        if context.full_accuracy is not None and context.full_hash == protocol.hash:
            return (context.full_accuracy,) * protocol.trials, context.full_source
        return (), "not known under this protocol"


class _Measurement(BaseModel):
    """A line of the file that keeps accuracies."""

    model_config = ConfigDict(strict=True)

    set: str
    trial: int
    accuracy: float


class _Measured:
    """Accuracies of other sets under the same protocol, kept in the context's folder as they come."""

    def __init__(self, protocol: Protocol, cell: Cell, context: ScoreContext) -> None:
        self.protocol, self.cell, self.context = protocol, cell, context
        self.file: Path | None = None if context.folder is None else context.folder / f"{NAME}-{protocol.hash}.jsonl"

    def __call__(self, chosen: SyntheticSet) -> tuple[float, ...]:
        content = [value.cpu().contiguous().numpy().tobytes() for value in (chosen.images, chosen.targets)]
        digest = hashlib.sha256(b"".join(content)).hexdigest()[:10]
        known = {row.trial: row.accuracy for row in read_lines(self.file, _Measurement) if row.set == digest}

        def keep(trial: int, accuracy: float) -> None:
            if self.file is not None:
                row = {"set": digest, "trial": trial, "accuracy": accuracy}
                append_line(self.file, row)

        context = ScoreContext(
            self.context.real, self.context.device, known=known, on_trial=keep, on_update=self.context.on_update
        )
        return evaluate(chosen, self.protocol, self.cell, context)


def _less(these: Sequence[float], those: Sequence[float]) -> tuple[float, ...]:
    return tuple(one - other for one, other in zip(these, those, strict=True))
