"""A process of its own: imports ``ddranking``, replaces some of its names, and says one line an evaluation.

What is replaced stands in each line. Where a name is missing, the release is another one than was read, and nothing is
guessed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import random
import sys
from collections.abc import Iterator, Sequence
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


# The score's module and class, and its helpers, each of which trains the set and then random images.
SCORERS = {
    "hard": ("hard_label", "LabelRobustScoreHard", ("_compute_hard_label_metrics_helper",)),
    "soft": (
        "soft_label",
        "LabelRobustScoreSoft",
        ("_compute_soft_label_metrics_helper", "_compute_hard_label_metrics_helper"),
    ),
    "ars": (
        "aug_robust",
        "AugmentationRobustScore",
        ("_compute_with_aug_metrics_helper", "_compute_without_aug_metrics_helper"),
    ),
}
NAMES = ("get_dataset", "save_results", "set_seed", "tqdm", "get_random_data_tensors", "get_lr_scheduler")
TEACHER_RATE = 0.01


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
        name, scorer, helpers = SCORERS[task["score"]]
        module = importlib.import_module(f"ddranking.metrics.{name}")
        wanted = {module: (scorer, *NAMES), getattr(module, scorer, None): ("_get_random_data_helper", *helpers)}
        if lacking := [name for place, names in wanted.items() for name in names if not hasattr(place, name)]:
            raise SystemExit(f"ddranking {_version()} has no {', '.join(lacking)}; 0.2.0 is the release that is known")
        teacher = _find_teacher(task, held) if task["score"] == "soft" else {}
        for trial in task["trials"]:
            with _patched(module, scorer, task, held, trial) as (captured, patches):
                row = EVALUATIONS[task["score"]](module, task, held, captured, folder)
            row["notes"] = {"patches": patches, "ddranking": _version(), **teacher}
            out.write(json.dumps({"trial": trial, **row}) + "\n")
            out.flush()


def _version() -> str:
    from importlib.metadata import version

    return version("ddranking")


def _settings(task: dict[str, Any], held: dict[str, Tensor], folder: Path) -> dict[str, Any]:
    """What all scorers take."""
    return {
        "dataset": task["dataset"],
        "real_data_path": str(folder),
        "model_name": task["network"],
        "data_aug_func": task["augmentation"],
        "aug_params": _strengths(task),
        "optimizer": "sgd",
        "lr_scheduler": "step",
        "step_size": max(1, task["epochs"] // 2),
        "num_eval": 1,
        "im_size": tuple(held["images"].shape[2:]),
        "num_epochs": task["epochs"],
        "num_workers": 0,
        "save_path": str(folder / "scores.csv"),
        "device": task["device"],
        "random_data_format": "tensor",
        "random_data_path": str(folder),
    }


def _watch(scorer: Any, helpers: Sequence[str], task: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Notes accuracy and learning rate of every training, by helper; and when the accuracy is looked at."""
    scorer.test_interval = task["epochs"] if task["final_epoch"] else min(scorer.test_interval, task["epochs"])
    noted: dict[str, list[tuple[float, float]]] = {name: [] for name in helpers}

    def watched(name: str, helper: Any) -> Any:
        def call(**arguments: Any) -> Any:
            found = helper(**arguments)
            noted[name].append((float(found[0]), float(found[1] or 0)))
            return found

        return call

    for name in helpers:
        setattr(scorer, name, watched(name, getattr(scorer, name)))
    return noted


def _of_hard_labels(
    module: Any, task: dict[str, Any], held: dict[str, Tensor], captured: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """One evaluation with hard labels: accuracies in percent, and the package's own numbers."""
    batches = {"real_batch_size": task["batch"], "syn_batch_size": task["batch"]}
    scorer = module.LabelRobustScoreHard(ipc=task["ipc"], **batches, **_settings(task, held, folder))
    (helper,) = SCORERS["hard"][2]
    trained = _watch(scorer, [helper], task)[helper]
    scorer.compute_metrics(image_tensor=held["images"], hard_labels=held["targets"], syn_lr=task["lr"])
    (own, own_lr), (drawn, _) = trained[0], trained[-1]
    scorer.ipc = max(1, _per_class(task, held))
    _, images, targets = scorer._get_random_data_helper(eval_iter=1)
    decoded, _ = getattr(scorer, helper)(
        image_tensor=images, image_path=None, hard_labels=targets, lr=None, mode="syn", hyper_param_search=True
    )
    found = {"accuracy": own, "lr": own_lr, "random": drawn, "random_decoded": float(decoded)}
    return {**found, **_label_scores(captured)}


def _of_soft_labels(
    module: Any, task: dict[str, Any], held: dict[str, Tensor], captured: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """One evaluation in which a teacher labels the images at every step; the recovery is that of hard labels."""
    scorer = module.LabelRobustScoreSoft(
        ipc=_per_class(task, held),
        real_batch_size=task["batch"],
        syn_batch_size=task["batch"],
        soft_label_mode="M",
        soft_label_criterion="kl",
        loss_fn_kwargs={"temperature": 1.0},
        use_aug_for_hard=True,
        teacher_dir=task["teachers"],
        teacher_model_names=[task["network"]],
        **_settings(task, held, folder),
    )
    soft, hard = SCORERS["soft"][2]
    _draw_at_budget(scorer, task)
    train = scorer._compute_soft_label_metrics

    def as_many(**arguments: Any) -> Any:  # it makes labels for as many images as its ipc says
        before, scorer.ipc = scorer.ipc, len(arguments["image_tensor"]) // task["classes"]
        try:
            return train(**arguments)
        finally:
            scorer.ipc = before

    scorer._compute_soft_label_metrics = as_many
    trained = _watch(scorer, [soft, hard], task)
    scorer.compute_metrics(image_tensor=held["images"], syn_lr=task["lr"])
    (own, own_lr), (drawn, _) = trained[soft]
    _, images, _ = type(scorer)._get_random_data_helper(scorer, eval_iter=1)
    decoded, _ = getattr(scorer, soft)(
        image_tensor=images, image_path=None, soft_labels=None, lr=None, hyper_param_search=True
    )
    found = {"accuracy": own, "lr": own_lr, "random": drawn, "random_decoded": float(decoded)}
    return {**found, "accuracy_hard": trained[hard][0][0], **_label_scores(captured)}


def _label_scores(captured: dict[str, Any]) -> dict[str, float]:
    results = captured["results"]
    return {
        "HLR": float(results["hard_label_recovery"][0]),
        "IOR": float(results["improvement_over_random"][0]),
        "LRS_package": float(results["lrs"][0]),
    }


def _of_augmentation(
    module: Any, task: dict[str, Any], held: dict[str, Tensor], captured: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """One evaluation with augmentation and without: accuracies in percent, and the package's own numbers."""
    scorer = module.AugmentationRobustScore(
        ipc=_per_class(task, held), label_type="hard", batch_size=task["batch"], **_settings(task, held, folder)
    )
    scorer.teacher_models, scorer.test_loader_real = None, scorer.test_loader_syn  # it reads both, and sets neither
    _draw_at_budget(scorer, task)
    helpers = SCORERS["ars"][2]
    trained = _watch(scorer, helpers, task)
    scorer.compute_metrics(image_tensor=held["images"], syn_lr=task["lr"])
    (own, own_lr), (drawn, _) = trained[helpers[0]]
    (plain, _), (drawn_plain, _) = trained[helpers[1]]
    _, images, targets, _ = type(scorer)._get_random_data_helper(scorer, eval_iter=1)
    decoded, decoded_plain = (
        float(
            getattr(scorer, helper)(
                image_tensor=images,
                image_path=None,
                hard_labels=targets,
                soft_labels=None,
                lr=None,
                hyper_param_search=True,
            )[0]
        )
        for helper in helpers
    )
    return {
        "accuracy": own, "lr": own_lr, "random": drawn, "random_decoded": decoded,
        "plain": plain, "random_plain": drawn_plain, "random_decoded_plain": decoded_plain,
        "IOR": float(captured["results"]["with_aug_scores"][0]),
        "IOR_plain": float(captured["results"]["without_aug_scores"][0]),
        "ARS_package": float(captured["results"]["ars_list"][0]),
    }  # fmt: skip


EVALUATIONS = {"hard": _of_hard_labels, "soft": _of_soft_labels, "ars": _of_augmentation}


def _per_class(task: dict[str, Any], held: dict[str, Tensor]) -> int:
    return len(held["targets"]) // int(task["classes"])


def _draw_at_budget(scorer: Any, task: dict[str, Any]) -> None:
    """Random images are as many as the budget says, and not as many as the set has."""
    draw = scorer._get_random_data_helper

    def drawn(**arguments: Any) -> Any:
        before, scorer.ipc = scorer.ipc, task["ipc"]
        try:
            return draw(**arguments)
        finally:
            scorer.ipc = before

    scorer._get_random_data_helper = drawn


def _find_teacher(task: dict[str, Any], held: dict[str, Tensor]) -> dict[str, str]:
    """The teacher, a network of the package; trained on the real training images unless its file is there."""
    file = Path(task["teachers"]) / task["dataset"] / task["network"] / "ckpt_best.pt"
    if not file.exists():
        if not task["teacher_epochs"]:
            raise SystemExit(f"{file} is not there")
        _train_teacher(file, task, held)
    source = f"trained here, {task['teacher_epochs']} epochs" if task["teacher_epochs"] else "given"
    return {"teacher": source, "teacher_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def _train_teacher(file: Path, task: dict[str, Any], held: dict[str, Tensor]) -> None:
    tools = importlib.import_module("ddranking.utils")
    _seeded(0)
    side = tuple(held["images"].shape[2:])
    network = tools.build_model(
        task["network"], num_classes=task["classes"], im_size=side, pretrained=False, device=task["device"]
    )
    train = Labelled(held["train_images"], held["train_targets"], held["mean"], held["std"])
    loader = torch.utils.data.DataLoader(train, batch_size=task["batch"], shuffle=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=TEACHER_RATE, momentum=0.9, weight_decay=5e-4)
    for epoch in range(task["teacher_epochs"]):
        loss = torch.nn.CrossEntropyLoss()
        tools.train_one_epoch(epoch, network, loader, loss, optimizer, device=task["device"])
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.cpu() for name, value in network.state_dict().items()}, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)


def _strengths(task: dict[str, Any]) -> dict[str, float]:
    """Its standard strengths; nothing is mirrored where labels would not survive it."""
    found = dict(AUGMENTATIONS[task["augmentation"]])
    return found if task["mirror"] else {name: 0.0 if name == "flip" else value for name, value in found.items()}


@contextlib.contextmanager
def _patched(
    module: Any, scorer: str, task: dict[str, Any], held: dict[str, Tensor], trial: int
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
            owner = getattr(module, scorer)
            put(owner, "_get_class_to_samples", lambda *_: None, "it knows folders of images only")
        if task["score"] != "ars":
            put(module, "REAL_DATA_ACC_CACHE", {key: task["full_accuracy"]}, "the accuracy of the whole set, as given")
        if task["score"] != "hard":
            draw, schedule = module.get_random_data_tensors, module.get_lr_scheduler
            same = {label: label for label in range(task["classes"])}
            middle = max(1, task["epochs"] // 2)

            def drawn(name: str, train: Any, rows: Any, count: int, number: int, place: str) -> Any:
                return draw(name, train, rows, count, same, number, place)

            put(module, "get_random_data_tensors", drawn, "its map of classes was left out")
            scheduled = lambda name, optimizer, epochs, step=None: schedule(name, optimizer, epochs, step or middle)  # noqa: E731
            put(module, "get_lr_scheduler", scheduled, "its step size was left out")
        yield captured, replaced


def _seeded(trial: int) -> None:
    """Seeds this process, which is the package's alone: it draws from global generators."""
    torch.manual_seed(trial)
    np.random.seed(trial)
    random.seed(trial)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
