"""Checks of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from math import isfinite
from pathlib import Path

import torch

from dd_plugins.api import RealData, StorageLedger, SyntheticSet, UsageError, temporary_folder
from dd_plugins.api.benchmark import Benchmark, Cell, ScoreContext, Scores
from dd_plugins.testing.checks import NotApplicable, Subject
from dd_plugins.testing.common import check_declares_its_api_version, check_documented, check_settings_are_described
from dd_plugins.testing.subjects import global_generators_left_alone, made_up_data

CLASSES = 6  # some benchmarks take a top-5 accuracy


def check_cells(subject: Subject) -> None:
    """It names the cells that it is known for, each once."""
    cells = _made(subject).cells()
    assert isinstance(cells, Sequence), f"{subject.name}.cells: expected a sequence"
    assert cells, f"{subject.name}.cells: none"
    assert len(set(cells)) == len(cells), f"{subject.name}.cells: one of them twice"


def check_scores(subject: Subject) -> None:
    """A score names its benchmark, protocol and metric, and has a finite number a trial."""
    scores = _score(subject)
    assert scores.trials, f"{subject.name}.score: no trial"
    assert all(isfinite(trial) for trial in scores.trials), f"{subject.name}.score: NaN or infinite trials"
    empty = [name for name in ("benchmark", "protocol", "protocol_hash", "metric") if not getattr(scores, name)]
    assert not empty, f"{subject.name}.score leaves {', '.join(empty)} empty"


def check_scoring_changes_nothing(subject: Subject) -> None:
    """The set is as it was, and global generators are left alone."""
    real = made_up_data(classes=CLASSES)
    synthetic = _set(real)
    images, targets = synthetic.images.clone(), synthetic.targets.clone()
    with global_generators_left_alone(f"{subject.name}.score"):
        _score(subject, synthetic)
    assert torch.equal(synthetic.images, images), f"{subject.name}.score changes the images"
    assert torch.equal(synthetic.targets, targets), f"{subject.name}.score changes the targets"


def check_scores_are_reproducible(subject: Subject) -> None:
    """The same set gets the same score."""
    one, other = _score(subject), _score(subject)
    assert one.trials == other.trials, f"{subject.name}.score: {one.trials}, and the second time {other.trials}"


def check_known_trials_are_not_repeated(subject: Subject) -> None:
    """Each trial is told as it ends, and one that is known is taken over."""
    told: dict[int, float] = {}
    scores = _score(subject, told=told)
    assert sorted(told.values()) == sorted(scores.trials), (
        f"{subject.name}.score: told {told}, returned {scores.trials}"
    )
    again: dict[int, float] = {}
    taken = _score(subject, told=again, known=told)
    assert taken.trials == scores.trials, f"{subject.name}.score: other trials where all are known"
    assert not again, f"{subject.name}.score repeats trials {sorted(again)}, which are known"


def check_export_is_read_back(subject: Subject) -> None:
    """What it exports in its own format it reads back as the same images and targets."""
    with temporary_folder() as folder:
        synthetic, written = _exported(_made(subject), folder)
        assert written, f"{subject.name}.export writes nothing"
        found = _made(subject).load(folder, _cell(synthetic))
    assert torch.equal(found.targets, synthetic.targets), f"{subject.name}: other targets behind an export"
    apart = float((found.images - synthetic.images).abs().max())
    assert apart < 1e-5, f"{subject.name}: other images behind an export (off by {apart:.3g})"


CHECKS: list[Callable[[Subject], None]] = [
    check_documented,
    check_declares_its_api_version,
    check_settings_are_described,
    check_cells,
    check_scores,
    check_scoring_changes_nothing,
    check_scores_are_reproducible,
    check_known_trials_are_not_repeated,
    check_export_is_read_back,
]


def _made(subject: Subject) -> Benchmark:
    made: Benchmark = subject.plugin(subject.config)
    return made


def _set(real: RealData) -> SyntheticSet:
    images = torch.cat([real.train.images(rows[:2]) for rows in real.train.class_rows()])
    targets = torch.arange(real.spec.num_classes).repeat_interleave(2)
    return SyntheticSet("made-up", real.spec, images, targets, StorageLedger.of([("images", images)]))


def _exported(benchmark: Benchmark, folder: Path) -> tuple[SyntheticSet, list[Path]]:
    """A made-up set and what was written of it; where its name is refused, it takes that of a data set of the cells."""
    real = made_up_data(classes=CLASSES)
    for name in dict.fromkeys([real.spec.name, *(cell.dataset for cell in benchmark.cells())]):
        synthetic = _set(replace(real, spec=replace(real.spec, name=name)))
        with suppress(UsageError):
            return synthetic, benchmark.export(synthetic, folder)
    raise NotApplicable("it has no format of its own for such a set, and says so")


def _cell(synthetic: SyntheticSet) -> Cell:
    return Cell(synthetic.data.name, 2, "convnet")


def _score(
    subject: Subject,
    synthetic: SyntheticSet | None = None,
    told: dict[int, float] | None = None,
    known: dict[int, float] | None = None,
) -> Scores:
    made, real = _made(subject), made_up_data(classes=CLASSES)
    if made.missing():
        raise NotApplicable(f"{made.needs} is not installed")
    synthetic = synthetic or _set(real)
    told = {} if told is None else told
    context = ScoreContext(real, torch.device("cpu"), known=dict(known or {}), on_trial=told.__setitem__)
    try:
        return made.score(synthetic, _cell(synthetic), context)
    except UsageError as error:
        raise NotApplicable(f"it does not take a made-up set, and says so: {error}") from None
