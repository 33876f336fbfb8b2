"""Candidates of a staged optimisation: copies of the best of a stage, and of the best images of all stages."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PIXELS = "pixels"


class Candidates:
    """Every distance that was measured, and copies of the nearest candidates.

    Attributes:
        of_stage: ``score`` and what is learned, by name, of the best of this stage; empty before the first.
        best: ``score`` and ``images`` of the best of all stages; likewise.
        history: Level (-1: pixels), steps taken at it, and distance of every candidate.
    """

    def __init__(self) -> None:
        self.of_stage: dict[str, Tensor] = {}
        self.best: dict[str, Tensor] = {}
        self.history: list[tuple[int, int, float]] = []

    def note(self, level: int, taken: int, score: float, learned: Mapping[str, Tensor], images: Tensor) -> None:
        """Records a candidate, and copies it if none was nearer.

        Args:
            level: Its level; -1 for pixels.
            taken: Steps taken at it.
            score: Its distance, finite.
            learned: What is learned in this stage, by name.
            images: What that decodes to, ``(N, C, H, W)``.
        """
        self.history.append((level, taken, score))
        found = torch.tensor(score, dtype=torch.float64)
        if not self.of_stage or found < self.of_stage["score"]:
            self.of_stage = {"score": found, **{name: value.detach().clone() for name, value in learned.items()}}
        if not self.best or found < self.best["score"]:
            self.best = {"score": found.clone(), "images": images.detach().clone()}

    def put_back(self, learned: Mapping[str, Tensor]) -> None:
        """Copies the best of this stage to the learned tensors."""
        for name, value in learned.items():
            value.data.copy_(self.of_stage[name])

    def summary(self) -> dict[str, float]:
        """The least distance of every stage, and the step of the stage after which it was reached."""
        least: dict[int, tuple[float, int]] = {}
        for level, taken, score in self.history:
            if level not in least or score < least[level][0]:
                least[level] = (score, taken)
        names = {level: PIXELS if level < 0 else f"level {level}" for level in least}
        distances = {f"crfd, {names[level]}": score for level, (score, _) in least.items()}
        return {**distances, **{f"best step, {names[level]}": taken for level, (_, taken) in least.items()}}

    def state(self) -> dict[str, Tensor]:
        """As tensors, for a checkpoint."""
        of_stage = {f"of_stage.{name}": value for name, value in self.of_stage.items()}
        best = {f"best.{name}": value for name, value in self.best.items()}
        return {**of_stage, **best, "history": torch.tensor(self.history, dtype=torch.float64).view(-1, 3)}

    def load_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Restores what :meth:`state` returned; other names are ignored."""

        def under(prefix: str) -> dict[str, Tensor]:
            found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            return {name: value if name == "score" else value.to(device) for name, value in found.items()}

        self.of_stage, self.best = under("of_stage."), under("best.")
        self.history = [(int(level), int(taken), float(score)) for level, taken, score in state["history"]]
