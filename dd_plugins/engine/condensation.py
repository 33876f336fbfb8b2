"""The condensation loop: select, decode, match, pull back, step; resumable bit by bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.profiler import record_function

from dd_plugins.api import (
    DivergedError,
    MatchingObjective,
    Parameterization,
    ResumeMismatch,
    Stage,
    Staged,
    UsageError,
    checked_match,
)
from dd_plugins.engine.checkpoints import Checkpointer, CheckpointNotes
from dd_plugins.engine.config import OptimizerConfig
from dd_plugins.errors import is_out_of_memory


@dataclass
class Condensation:
    """One condensation: a container, an objective, and the optimizer between them.

    Attributes:
        parameterization: What is learned.
        objective: What it is learned by; already prepared.
        optimizer_config: Which optimizer, and its schedule.
        steps: Matching steps in all.
        checkpointer: Keeps what an interrupted condensation goes on from.
        limit: Seconds after which it ends, if the steps are not done before.
        step: The next step.
        seconds: Time spent so far, over all sessions.
        cpu_seconds: Processor time spent so far, over all threads and sessions.
        prepare_seconds: Time that the objective's one-off work took before, such as training experts.
        resumed: Whether it goes on from a checkpoint.
    """

    parameterization: Parameterization
    objective: MatchingObjective
    optimizer_config: OptimizerConfig
    steps: int
    checkpointer: Checkpointer
    limit: float | None = None
    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    prepare_seconds: float = 0.0
    resumed: bool = False
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._bounds = _stage_bounds(self.parameterization, self.steps)
        self._enter(self._stage_at(0))

    def run(
        self,
        on_step: Callable[[int, float], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
        checkpoint_seconds: float = 30.0,
    ) -> bool:
        """Takes all steps that are left, or as many as the time allows.

        Args:
            on_step: Called with (steps done, loss).
            stop: Called after each step; if it returns True, the state is saved and the loop ends.
            checkpoint_seconds: Time between checkpoints; has no influence on the result.

        Returns:
            Whether all steps are done.

        Raises:
            DivergedError: If a loss or gradient is NaN or infinite; the last good checkpoint stays.
        """
        begun = saved = time.perf_counter()
        cpu_begun = time.process_time()
        before, cpu_before = self.seconds, self.cpu_seconds
        while self.progress() < 1:
            stage = self._stage_at(self._position())
            if stage is not self._stage:
                self._enter(stage)
            try:
                loss = self.take_step()
            except DivergedError as error:
                raise self._diverged(str(error)) from None
            self.step += 1
            now = time.perf_counter()
            self.seconds = before + now - begun
            self.cpu_seconds = cpu_before + time.process_time() - cpu_begun
            self.losses.append(loss)
            if on_step:
                on_step(self.step, loss)
            stopping = stop()
            if stopping or now - saved >= checkpoint_seconds:
                self.save()
                saved = now
            if stopping and self.progress() < 1:
                return False
        self._check_finite()
        return True

    def progress(self) -> float:
        """How much is done, from 0 to 1: of the steps, or of the time."""
        return self._position() / self.steps if self.steps else 1.0

    def left_out(self) -> str:
        """What to say where there are too few steps for every stage to get one; empty if all do, or none is taken."""
        without = [stage.name for stage, (first, last) in self._bounds.items() if first == last]
        if not self.steps or not without:
            return ""
        return f"{self.steps} steps are too few for {len(self._bounds)} stages: {', '.join(without)} will get none"

    def _position(self) -> float:
        """The step, or where a run that is as far as the time would be."""
        timed = 0.0 if self.limit is None else self.seconds / self.limit * self.steps
        return max(self.step, timed)

    def take_step(self) -> float:
        """One matching step: select, decode, match, pull back, update; returns the loss. `run` counts the steps.

        Raises:
            DivergedError: If the loss or the gradient is NaN or infinite, with what the objective knows about it.
        """
        rate = self._rate()
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base * rate
        step, container = self.step, self.parameterization
        with record_function("select"):
            index = self.objective.select(step)
        with record_function("decode"):
            images = container.decode(index, for_backward=True)
        with record_function("match"):
            match = checked_match(self.objective, images, container.labels[index], step)
            loss = float(match.loss)
        if not math.isfinite(loss) or not bool(torch.isfinite(match.image_grad).all()):
            raise DivergedError(f"NaN or infinite loss at step {step}; {self._why()}")
        self.objective.check_learned()
        self.optimizer.zero_grad()
        with record_function("pull back"):
            container.backward(index, match.image_grad)
        with record_function("update"):
            if self.optimizer_config.clip_norm is not None:
                held = [p for group in self.optimizer.param_groups for p in group["params"]]
                torch.nn.utils.clip_grad_norm_(held, self.optimizer_config.clip_norm)
            self.optimizer.step()
            container.project()
        return loss

    def _check_finite(self) -> None:
        container = self.parameterization
        for name, value in {**container.state_dict(), **_working_state(container)}.items():
            if not bool(torch.isfinite(value).all()):
                raise self._diverged(f"NaN or infinite values in {name} after step {self.step - 1}; {self._why()}")

    def _why(self) -> str:
        return self.objective.diagnosis() or "smaller learning rates may help"

    def _diverged(self, what: str) -> DivergedError:
        place = self.checkpointer.place()
        last = f"; the last good checkpoint is {place}" if place else ""
        previous = f"{self.losses[-1]:.6g}" if self.losses else "none"
        return DivergedError(f"{what} (last finite loss: {previous}){last}")

    def _rate(self) -> float:
        config = self.optimizer_config
        if config.schedule == "constant":
            return 1.0
        if config.schedule == "multistep":
            passed = sum(self.progress() >= share for share in config.milestones)
            return float(config.decay**passed)
        first, last = self._bounds[self._stage]
        done = (self._position() - first) / (last - first)
        return 0.5 * (1 + math.cos(math.pi * done))

    # ---- stages -------------------------------------------------------------------------------------------------

    def _stage_at(self, position: float) -> Stage:
        if not self.steps:  # nothing is learned, so the first stage is where it ends
            return next(iter(self._bounds))
        return next(stage for stage, (_, last) in self._bounds.items() if position < last)

    def _enter(self, stage: Stage) -> None:
        self._stage = stage
        if isinstance(self.parameterization, Staged):
            self.parameterization.enter_stage(stage)
        self.optimizer = build_optimizer(self.parameterization, self.optimizer_config)
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes everything that the next step depends on."""
        self._check_finite()
        tensors = {f"container.{name}": value for name, value in self.parameterization.state_dict().items()}
        tensors |= {f"working.{name}": value for name, value in _working_state(self.parameterization).items()}
        tensors |= {f"objective.{name}": value for name, value in self.objective.state_dict().items()}
        for position, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{position}.{name}": value for name, value in state.items() if value is not None}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        notes = CheckpointNotes(
            step=self.step,
            stage=self._stage.name,
            seconds=self.seconds,
            cpu_seconds=self.cpu_seconds,
            prepare_seconds=self.prepare_seconds,
        )
        self.checkpointer.save(tensors, notes)

    def resume(self) -> bool:
        """Restores the last checkpoint, if there is one."""
        found = self.checkpointer.load()
        if found is None:
            return False
        try:
            self._restore(*found)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, StopIteration) as error:
            if is_out_of_memory(error):
                raise
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ResumeMismatch(
                f"{self.checkpointer.place()} does not fit this run ({why}); remove it to begin again"
            ) from error
        self.resumed = True
        return True

    def _restore(self, tensors: dict[str, Tensor], notes: CheckpointNotes) -> None:
        if not 0 <= notes.step <= self.steps or tensors["losses"].shape != (notes.step,):
            raise ValueError(f"step {notes.step} of {self.steps}, losses of shape {tuple(tensors['losses'].shape)}")
        self.step = notes.step
        self.seconds, self.cpu_seconds = notes.seconds, notes.cpu_seconds
        self.prepare_seconds += notes.prepare_seconds
        self._enter(next(stage for stage in self._bounds if stage.name == notes.stage))
        self.parameterization.load_state_dict(_under("container.", tensors))
        if isinstance(self.parameterization, Staged):
            self.parameterization.load_working_state(_under("working.", tensors))
        self.objective.load_state_dict(_under("objective.", tensors))
        saved = self.optimizer.state_dict()
        for name, value in _under("optimizer.", tensors).items():
            position, _, key = name.partition(".")
            saved["state"].setdefault(int(position), {})[key] = value
        self.optimizer.load_state_dict(saved)
        self.losses = tensors["losses"].tolist()


def build_optimizer(container: Parameterization, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of what a container learns now."""
    groups = container.parameter_groups()
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.Adam(groups, lr=config.lr, betas=config.betas)


def _stage_bounds(container: Parameterization, steps: int) -> dict[Stage, tuple[int, int]]:
    stages = container.stages() if isinstance(container, Staged) else (Stage("main"),)
    if not stages or not math.isclose(sum(stage.share for stage in stages), 1, abs_tol=1e-6):
        raise UsageError(f"{type(container).__name__}.stages: expected shares that add up to 1, but got {stages}")
    bounds, done, share = {}, 0, 0.0
    for stage in stages:
        share += stage.share
        end = round(steps * share)
        bounds[stage] = (done, end)
        done = end
    return bounds


def _working_state(container: Parameterization) -> dict[str, Tensor]:
    return container.working_state() if isinstance(container, Staged) else {}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
