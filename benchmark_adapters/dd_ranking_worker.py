"""A process of its own: imports ``ddranking``, replaces some of its names, and says one line an evaluation.

What is replaced stands in each line. Where a name is missing, the release is another one than was read, and nothing is
guessed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

DSA = {
    "flip": 0.5, "rotate": 15.0, "saturation": 2.0, "brightness": 1.0, "contrast": 0.5, "scale": 1.2, "crop": 0.125,
    "cutout": 0.5,
}  # fmt: skip
AUGMENTATIONS: dict[str, dict[str, float]] = {"dsa": DSA, "mixup": {"lambda": 0.8}, "cutmix": {"beta": 1.0}, "none": {}}


NAMES = ("LabelRobustScoreHard", "get_dataset", "save_results", "set_seed", "tqdm", "REAL_DATA_ACC_CACHE")


class Labelled(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images that are normalised as they are taken, with labels that are plain numbers, as in the package's own."""

    def __init__(self, images: Tensor, targets: Tensor, mean: Tensor, std: Tensor) -> None:
        self.images, self.targets = images, targets.tolist()
        self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = self.images[row]
        pixels = image.float() / 255 if image.dtype == torch.uint8 else image
        return (pixels - self.mean) / self.std, self.targets[row]


def main(folder: Path) -> None:
    """Scores the bundle of a folder."""
    task, held = json.loads((folder / "task.json").read_text()), load_file(folder / "bundle.safetensors")
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # the package prints as it likes
        module = importlib.import_module("ddranking.metrics.hard_label")
        if lacking := [name for name in NAMES if not hasattr(module, name)]:
            raise SystemExit(f"ddranking {_version()} has no {', '.join(lacking)}; 0.2.0 is the release that is known")
        for trial in task["trials"]:
            with _patched(module, task, held, trial) as (captured, patches):
                row = _evaluate(module, task, held, captured, folder)
            row["notes"] = {"patches": patches, "ddranking": _version()}
            out.write(json.dumps({"trial": trial, **row}) + "\n")
            out.flush()


def _version() -> str:
    from importlib.metadata import version

    return version("ddranking")


def _evaluate(
    module: Any, task: dict[str, Any], held: dict[str, Tensor], captured: dict[str, Any], folder: Path
) -> Any:
    """One evaluation: accuracies in percent, and the package's own numbers."""
    scorer = module.LabelRobustScoreHard(
        dataset=task["dataset"],
        real_data_path=str(folder),
        ipc=task["ipc"],
        model_name=task["network"],
        data_aug_func=task["augmentation"],
        aug_params=_strengths(task),
        optimizer="sgd",
        lr_scheduler="step",
        step_size=max(1, task["epochs"] // 2),
        num_eval=1,
        im_size=tuple(held["images"].shape[2:]),
        num_epochs=task["epochs"],
        real_batch_size=task["batch"],
        syn_batch_size=task["batch"],
        num_workers=0,
        save_path=str(folder / "scores.csv"),
        device=task["device"],
        random_data_format="tensor",
        random_data_path=str(folder),
    )
    scorer.test_interval = task["epochs"] if task["final_epoch"] else min(scorer.test_interval, task["epochs"])
    accuracies: list[tuple[float, float]] = []
    helper = scorer._compute_hard_label_metrics_helper

    def watched(**arguments: Any) -> tuple[float, float]:
        found = helper(**arguments)
        accuracies.append((float(found[0]), float(found[1] or 0)))
        return found

    scorer._compute_hard_label_metrics_helper = watched
    scorer.compute_metrics(image_tensor=held["images"], hard_labels=held["targets"], syn_lr=task["lr"])
    (own, own_lr), (drawn, _) = accuracies[0], accuracies[-1]
    scorer.ipc = max(1, round(len(held["targets"]) / task["classes"]))
    _, images, targets = scorer._get_random_data_helper(eval_iter=1)
    decoded, _ = helper(
        image_tensor=images, image_path=None, hard_labels=targets, lr=None, mode="syn", hyper_param_search=True
    )
    results = captured["results"]
    return {
        "accuracy": own,
        "lr": own_lr,
        "random": drawn,
        "random_decoded": float(decoded),
        "HLR": float(results["hard_label_recovery"][0]),
        "IOR": float(results["improvement_over_random"][0]),
        "LRS_package": float(results["lrs"][0]),
    }


def _strengths(task: dict[str, Any]) -> dict[str, float]:
    """Its standard strengths; nothing is mirrored where labels would not survive it."""
    found = dict(AUGMENTATIONS[task["augmentation"]])
    return found if task["mirror"] else {name: 0.0 if name == "flip" else value for name, value in found.items()}


@contextlib.contextmanager
def _patched(
    module: Any, task: dict[str, Any], held: dict[str, Tensor], trial: int
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Replaces what cannot run, or would fetch, or takes the clock; everything is put back behind it."""
    captured: dict[str, Any] = {}
    replaced: list[str] = []

    def data(*_: Any, **__: Any) -> tuple[Any, ...]:
        train, test = (
            Labelled(held[f"{name}_images"], held[f"{name}_targets"], held["mean"], held["std"])
            for name in ("train", "test")
        )
        same = {label: label for label in range(task["classes"])}
        side = tuple(held["images"].shape[2:])
        return 3, side, held["mean"].tolist(), held["std"].tolist(), task["classes"], train, test, test, same, same

    def put(place: Any, name: str, value: Any, why: str) -> None:
        undo.callback(setattr, place, name, getattr(place, name))
        setattr(place, name, value)
        replaced.append(f"{name}: {why}")

    key = f"{task['dataset']}-{task['network']}"
    with contextlib.ExitStack() as undo:
        put(module, "get_dataset", data, "no download; the data set of the run")
        put(module, "save_results", lambda found, _: captured.update(results=found), "its lists have unequal lengths")
        put(module, "tqdm", lambda steps, *_, **__: steps, "no bars")
        put(module, "set_seed", lambda *_: _seeded(trial), "seeds came from the clock")
        if task["dataset"] not in ("CIFAR10", "CIFAR100"):
            scorer = module.LabelRobustScoreHard
            put(scorer, "_get_class_to_samples", lambda *_: None, "it knows folders of images only")
        put(module, "REAL_DATA_ACC_CACHE", {key: task["full_accuracy"]}, "the accuracy of the whole set, as given")
        yield captured, replaced


def _seeded(trial: int) -> None:
    """Seeds this process, which is the package's alone: it draws from global generators."""
    torch.manual_seed(trial)
    np.random.seed(trial)
    random.seed(trial)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
