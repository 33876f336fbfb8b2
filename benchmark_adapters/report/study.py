"""The figure of a pruning study: accuracy against beta, scores with the pruned ends, hardest and easiest images."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from benchmark_adapters.escape import plot_text
from benchmark_adapters.runs.store import RunFolder
from dd_plugins.api import DataSpec, read_tensors, write_atomically
from dd_plugins.engine.distilled import load_stored
from dd_plugins.engine.score import Estimate

STRIP = 12  # images of either end
BINS = 40


def save_figure(record: Mapping[str, Any], out: Path) -> Path:
    """Draws the figure of one pruned run into its folder.

    Args:
        record: Of the run.
        out: The folder of all runs.
    """
    folder = RunFolder(out / record["id"])
    larger = load_stored(RunFolder(out / record["pruning"]["larger"]).synthetic)
    tensors, _ = read_tensors(folder.scores)
    path = folder.path / "study.png"
    save_study(path, record["pruning"], tensors["score"], larger.decode(), larger.labels, larger.data)
    return path


def save_study(
    path: Path, pruning: Mapping[str, Any], score: Tensor, images: Tensor, labels: Tensor, data: DataSpec
) -> None:
    """Writes the picture.

    Args:
        path: A PNG file.
        pruning: What a pruned run's record says of its pruning.
        score: float64, ``(N,)``: of every image of the larger set.
        images: Float, ``(N, C, H, W)``: that set, model space.
        labels: int64, ``(N,)``.
        data: Maps model space back to pixel values.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=(3, 1, 1))
    _curve(figure.add_subplot(grid[0, 0]), pruning["candidates"], pruning["settings"])
    kept = torch.zeros(len(score), dtype=torch.bool)
    kept[torch.tensor(pruning["kept"])] = True
    _histogram(figure.add_subplot(grid[0, 1]), score, kept, pruning["settings"]["score"])
    order = torch.argsort(score, stable=True)
    for row, (title, rows) in enumerate((("lowest", order[:STRIP]), ("highest", order.flip(0)[:STRIP]))):
        axes = figure.add_subplot(grid[row + 1, :])
        pixels = data.denormalize(images[rows].cpu().float()).clamp(0, 1)
        strip = make_grid(pixels, nrow=STRIP, padding=1, pad_value=1.0).permute(1, 2, 0)
        axes.imshow(strip.numpy(), interpolation="nearest")
        axes.set_title(
            plot_text(
                f"{title} {pruning['settings']['score']}, classes {labels[rows].tolist()}, "
                f"{int((~kept[rows]).sum())} of {len(rows)} pruned"
            ),
            fontsize=8,
        )
        axes.axis("off")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_atomically(path, content.getvalue())


def _curve(axes: Axes, candidates: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    found = [(entry["settings"]["beta"], Estimate.of(entry["trials"])) for entry in candidates]
    axes.errorbar(
        [beta for beta, _ in found],
        [100 * estimate.mean for _, estimate in found],
        yerr=[100 * (estimate.half_width or 0) for _, estimate in found],
        marker="o",
        capsize=3,
    )
    if settings["beta"] is not None:
        axes.axvline(settings["beta"], linestyle="--", color="grey")
    axes.set(xlabel="beta: share of the pruned images that are hard", ylabel="validation accuracy (%)")
    axes.set_title("what was tried, and what was chosen", fontsize=9)


def _histogram(axes: Axes, score: Tensor, kept: Tensor, name: str) -> None:
    edges = torch.linspace(float(score.min()), float(score.max()), BINS + 1).tolist()
    axes.hist([score[kept].tolist(), score[~kept].tolist()], bins=edges, stacked=True, label=["kept", "pruned"])
    axes.set(xlabel=plot_text(name), ylabel="images")
    axes.set_title("scores of the larger set", fontsize=9)
    axes.legend()
