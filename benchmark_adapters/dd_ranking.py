"""DD-Ranking as a benchmark: the real package scores a set, in a process of its own, and its numbers keep its name.

Source:
    DD-Ranking, PyPI ``ddranking`` 0.2.0: hard-label recovery, improvement over random, the label-robust score (of hard
    and of soft labels) and the augmentation-robust score.
Deviations:
    The package as released cannot finish any of these on tensors, fetches its data, and takes its seeds from the clock:
    some of its names are replaced while it runs (`dd_ranking_worker`), the record says which, and a release that lacks
    one of them is refused. Seeds are those of the trials.
    Sets here have hard labels, so soft ones are a teacher's at every step (its mode M): a network of the package's that
    is trained here on the real training images, or one of its own from a folder.
    Its robust scores are computed on percentages, where they mean nothing; they are recomputed on fractions, and the
    package's own numbers stand beside them. It chooses the best epoch, and learning rates, on the test set: so do its
    numbers here; ``final_epoch`` leaves the first out, ``lr`` the second for the set, but not for random images.
    Random images are drawn at the budget's number of images and at the decoded number: the sign of the improvement can
    depend on which is meant.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from benchmark_adapters.formats.base import rescaled
from benchmark_adapters.formats.published import OF_DDRANKING
from benchmark_adapters.lines import append_line, read_lines
from benchmark_adapters.robustness import augmentation_score, robust_score
from dd_plugins.api import DataSpec, PluginConfig, RealData, SyntheticSet, UsageError, temporary_folder, write_tensors
from dd_plugins.api.benchmark import Benchmark, BenchmarkFailed, Cell, ScoreContext, Scores
from dd_plugins.api.reading import parse_json

NAMES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny-imagenet": "TinyImageNet"}
LEAST_SIDE, LEAST_CLASSES = 32, 5  # its networks are made for 32 pixels; it always takes a top-5 accuracy
WORKER = Path(__file__).with_name("dd_ranking_worker.py")  # needs ddranking and safetensors alone


class DDRankingBenchmark(Benchmark):
    """DD-Ranking's scores: LRS (HLR, IOR) of hard or soft labels, or ARS, as its package computes them."""

    api_version = 2
    needs = "ddranking"
    check_settings: ClassVar[Mapping[str, Any]] = {
        "network": "MLP", "epochs": 2, "evaluations": 2, "lr": 0.01, "full_accuracy": 90.0, "final_epoch": True,
    }  # fmt: skip

    class Config(PluginConfig):
        """Settings of DD-Ranking; the defaults are those of its CIFAR presets."""

        score: Literal["hard", "soft", "ars"] = Field(
            "hard", description="LRS of hard labels, LRS of a teacher's soft labels, or ARS"
        )
        network: str = Field("ConvNet-3", description="its name of the network: ConvNet-3, ResNet-18, MLP, ...")
        epochs: int = Field(1000, ge=1, description="epochs of every training")
        evaluations: int = Field(5, ge=1, description="evaluations, each with trainings of its own")
        batch: int = Field(256, ge=1, description="images a step")
        lr: float | None = Field(None, gt=0, description="learning rate; None: the best of its five, as for random")
        augmentation: Literal["dsa", "mixup", "cutmix", "none"] = Field("dsa", description="its augmentation")
        weight: float = Field(
            0.5, ge=0, le=1, description="weight of IOR against HLR in LRS, of augmented trainings in ARS"
        )
        teacher_dir: str | None = Field(None, description="soft: folder of its teachers; None: one is trained")
        teacher_epochs: int = Field(50, ge=1, description="soft: epochs of the teacher, on the training split")
        full_accuracy: float | None = Field(
            None, gt=0, le=100, description="percent that the whole training set gives, from a source of yours"
        )
        final_epoch: bool = Field(False, description="the last epoch instead of the best one on the test set")
        python: str | None = Field(None, description="an interpreter that has ddranking; None: this one")

    config: Config

    def missing(self) -> bool:
        """The package, unless another interpreter is named that has it."""
        if self.config.python is not None and shutil.which(self.config.python) is None:
            raise UsageError(f"benchmark.python = {self.config.python}: no such program")
        return self.config.python is None and super().missing()

    def cells(self) -> Sequence[Cell]:
        """What its leaderboard has of the data sets here."""
        return [Cell(name, ipc, self.config.network) for name in NAMES for ipc in (1, 10, 50)]

    def score(self, synthetic: SyntheticSet, cell: Cell, context: ScoreContext) -> Scores:
        """LRS or ARS in fractions, one an evaluation; what it is made of and the package's own numbers beside it.

        Raises:
            UsageError: If the package cannot take such a set.
            BenchmarkFailed: If its code fails, with the last line of its own words.
        """
        _check(synthetic.data, self.config.network)
        score = self.config.score
        counts = torch.bincount(synthetic.targets, minlength=synthetic.data.num_classes)
        if score != "hard" and int(counts.min()) != int(counts.max()):
            raise UsageError(
                f"dd-ranking ({score}) takes as many images of every class; benchmark.score=hard takes any"
            )
        fewest = min(len(rows) for rows in context.real.train.class_rows())
        if max(cell.ipc, len(synthetic.targets) // synthetic.data.num_classes) > fewest:
            raise UsageError(f"dd-ranking draws as many random images as are decoded: a class has only {fewest}")
        full, source = (0.0, "not needed") if score == "ars" else self._full(context)
        rows = _earlier(self._kept(context), full)
        wanted = [trial for trial in range(self.config.evaluations) if trial not in rows]
        if wanted:
            rows |= self._run(synthetic, cell, context, full, wanted)
        chosen = [rows[trial] for trial in range(self.config.evaluations)]
        metrics = {name: tuple(float(row[name]) for row in chosen) for name in METRICS if name in chosen[0]}
        notes = {"full_accuracy": full or None, "full_accuracy_source": source, **chosen[0]["notes"]}
        notes["defects"] = DEFECTS[: 1 if self.config.final_epoch else 2]
        metric = "ARS" if score == "ars" else "LRS"
        trials = metrics.pop(metric)
        name = f"{PROTOCOLS[score]}, {self.config.epochs} epochs"
        return Scores("dd-ranking", name, self.key(), metric, trials, self.config.network, metrics, notes)

    def _full(self, context: ScoreContext) -> tuple[float, str]:
        """Percent that the whole training set gives, and who says so."""
        if self.config.full_accuracy is not None:
            return self.config.full_accuracy, "given"
        if context.full_accuracy is None:
            raise UsageError(
                "dd-ranking needs the accuracy of the whole training set: --set benchmark.full_accuracy=PERCENT, or "
                "score the run with --full-data first"
            )
        return 100 * context.full_accuracy, f"native evaluator: {context.full_source}"

    def _run(
        self, synthetic: SyntheticSet, cell: Cell, context: ScoreContext, full: float, wanted: Sequence[int]
    ) -> dict[int, dict[str, Any]]:
        """The evaluations that are missing, in a process that imports the package."""
        config, real = self.config, context.real
        order = torch.argsort(synthetic.targets.cpu(), stable=True)
        images, targets = synthetic.images.cpu()[order], synthetic.targets.cpu()[order]
        known = OF_DDRANKING.get(real.spec.name)
        mean, std = (real.spec.mean, real.spec.std) if known is None or real.spec.whitened else known
        space = replace(real.spec, mean=tuple(mean), std=tuple(std))
        with temporary_folder() as folder:
            write_tensors(
                folder / "bundle.safetensors",
                {
                    "images": _three_channels(rescaled(images, real.spec.mean, real.spec.std, space)),
                    "targets": targets,
                    **_splits(real, mean, std),
                },
                {},
            )
            task = {
                **config.model_dump(exclude={"python", "teacher_dir"}),
                "dataset": NAMES.get(real.spec.name, real.spec.name),
                "classes": real.spec.num_classes,
                "ipc": cell.ipc,
                "full_accuracy": full,
                "trials": list(wanted),
                "mirror": real.spec.mirror,
                "device": str(context.device),
                "teachers": str(self._teachers(context) or folder / "teachers"),
                "teacher_epochs": 0 if config.teacher_dir else config.teacher_epochs,  # theirs is there, or refused
            }
            (folder / "task.json").write_text(json.dumps(task))
            words = [config.python or sys.executable, "-P", str(WORKER), str(folder)]
            return self._follow(words, context, full, folder / "words.txt")

    def _teachers(self, context: ScoreContext) -> Path | None:
        """Folder of teachers in the package's layout: theirs, or where those that are trained here are kept."""
        if self.config.teacher_dir is not None:
            return Path(self.config.teacher_dir).absolute()
        return context.folder and context.folder.absolute() / (
            f"dd-ranking-teachers-{self.config.teacher_epochs}-{self.config.batch}"
        )

    def _kept(self, context: ScoreContext) -> Path | None:
        """Where evaluations are kept with all their numbers; None if nowhere."""
        return context.folder / f"dd-ranking-{self.key()}.jsonl" if context.folder else None

    def _follow(self, words: Sequence[str], context: ScoreContext, full: float, log: Path) -> dict[int, dict[str, Any]]:
        """Reads one line of JSON an evaluation, and keeps each as it comes; what else is said goes to a file."""
        rows: dict[int, dict[str, Any]] = {}
        keep = self._kept(context)
        with (
            log.open("w") as said,
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=said, text=True) as process,  # noqa: S603
        ):
            try:
                for line in process.stdout or ():
                    made = parse_json(line, "dd-ranking", BenchmarkFailed)
                    row = {**_finished(made, self.config.weight), "full_accuracy": full}
                    score = row["ARS" if self.config.score == "ars" else "LRS"]
                    rows[row["trial"]] = row
                    if keep is not None:
                        append_line(keep, row)
                    if context.on_trial:
                        context.on_trial(row["trial"], score)
            except BaseException:  # a signal, for example: Popen would wait for the process to end by itself
                process.kill()
                raise
        if process.returncode:
            last = (log.read_text(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise BenchmarkFailed(f"dd-ranking failed: {last}")
        return rows


PROTOCOLS = {
    "hard": "hard labels",
    "soft": "soft labels of a teacher",
    "ars": "hard labels, with and without augmentation",
}
METRICS = (
    "LRS", "HLR", "IOR", "IOR_decoded", "LRS_decoded", "LRS_package", "accuracy", "accuracy_hard", "random",
    "random_decoded", "ARS", "IOR_plain", "IOR_plain_decoded", "ARS_decoded", "ARS_package", "plain", "random_plain",
    "random_decoded_plain",
)  # fmt: skip
PERCENTAGES = (
    "HLR", "IOR", "IOR_plain", "accuracy", "accuracy_hard", "random", "random_decoded", "plain", "random_plain",
    "random_decoded_plain",
)  # fmt: skip
DEFECTS = ("learning rates are chosen on the test set", "epochs are chosen on the test set")


def _finished(row: dict[str, Any], weight: float) -> dict[str, Any]:
    """The row of one evaluation with what follows from its accuracies; percentages become fractions."""
    made = {**row, **{name: row[name] / 100 for name in PERCENTAGES if name in row}}
    made["IOR_decoded"] = made["accuracy"] - made["random_decoded"]
    if "HLR" in made:
        for end in ("", "_decoded"):
            made[f"LRS{end}"] = robust_score(made["HLR"], made[f"IOR{end}"], weight)
    else:
        made["IOR_plain_decoded"] = made["plain"] - made["random_decoded_plain"]
        for end in ("", "_decoded"):
            made[f"ARS{end}"] = augmentation_score(made[f"IOR{end}"], made[f"IOR_plain{end}"], weight)
    return made


class _Evaluation(BaseModel):
    """A line of the file that keeps evaluations: numbers by name, and notes."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, float]

    trial: int
    full_accuracy: float
    notes: dict[str, Any]


def _earlier(file: Path | None, full: float) -> dict[int, dict[str, Any]]:
    """Evaluations that are kept, against the same accuracy of the whole set; a line that was cut off is left out."""
    return {row.trial: row.model_dump() for row in read_lines(file, _Evaluation) if row.full_accuracy == full}


def _check(data: DataSpec, network: str) -> None:
    if data.num_classes < LEAST_CLASSES:
        raise UsageError(f"dd-ranking always takes a top-5 accuracy: {data.num_classes} classes are too few")
    if data.image_shape[0] not in (1, 3):
        raise UsageError(f"dd-ranking takes images of 3 channels, not {data.image_shape[0]}")
    depth = network.partition("-")[2].partition("-")[0]
    if network.partition("-")[0] in ("ConvNet", "VGG", "ResNet") and not depth.isdigit():
        raise UsageError(f"dd-ranking needs the depth of a network: {network}-3, say")


def _three_channels(images: Tensor) -> Tensor:
    """Colour images of 32 pixels at least: grey is repeated, and small images are enlarged pixel by pixel."""
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    factor = -(-LEAST_SIDE // min(images.shape[2:])) if min(images.shape[2:]) < LEAST_SIDE else 1
    if factor > 1:
        images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return images.contiguous()


def _splits(real: RealData, mean: Sequence[float], std: Sequence[float]) -> dict[str, Tensor]:
    """Training and test images, uint8 where they are, and what normalises them."""
    made: dict[str, Tensor] = {"mean": torch.tensor(mean), "std": torch.tensor(std)}
    for name, split in (("train", real.train), ("test", real.test)):
        made[f"{name}_images"] = _three_channels(split.pixels[split.index].cpu())
        made[f"{name}_targets"] = split.labels.cpu()
    return made
