"""The evaluator: paired trials, accuracy of the last epoch, and intervals as scipy has them."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from dd_plugins.api import StorageLedger, SyntheticSet
from dd_plugins.api.benchmark import Cell, ScoreContext
from dd_plugins.datasets import load_dataset
from dd_plugins.engine import evaluation
from dd_plugins.engine.evaluation import evaluate
from dd_plugins.engine.protocols import Protocol
from dd_plugins.engine.score import Estimate

CELL = Cell("digits", 1, "convnet")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def real():
    return load_dataset("digits")


def _protocol(trials=2, **train):
    values = {"epochs": 3, "batch_size": 8, "lr": 0.1, **train}
    return Protocol.model_validate(
        {"name": "tiny", "network": {"name": "convnet", "width": 4}, "train": values, "trials": trials}
    )


def _set(real, rows):
    images, labels = real.train.images(torch.arange(len(real.train))[rows]), real.train.labels[rows]
    order = labels.argsort(stable=True)
    return SyntheticSet("some", real.spec, images[order], labels[order], StorageLedger.of([("images", images)]))


@pytest.fixture
def watched(monkeypatch):
    """Notes the weights that each training starts from, and those that it ends with."""
    starts, ends, train = [], [], evaluation.train_networks

    def watching(networks, images, *args, **kwargs):
        starts.extend([p.detach().clone() for p in network.parameters()] for network in networks)
        train(networks, images, *args, **kwargs)
        ends.extend(networks)

    monkeypatch.setattr(evaluation, "train_networks", watching)
    return starts, ends


def _same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_trial_k_of_two_sets_starts_alike_and_trials_differ(real, watched):
    starts, _ = watched
    for rows in (slice(0, 20), slice(100, 120)):
        evaluate(_set(real, rows), _protocol(), CELL, ScoreContext(real, CPU))
    assert _same(starts[0], starts[2])
    assert _same(starts[1], starts[3])
    assert not _same(starts[0], starts[1])


def test_trial_k_of_two_sets_sees_the_same_order_of_batches(real, monkeypatch):
    import dd_plugins.training as training

    seen, prepare = [], training._prepare

    def noting(images, targets, rows, *rest):
        seen.append(rows.tolist())
        return prepare(images, targets, rows, *rest)

    monkeypatch.setattr(training, "_prepare", noting)
    for rows in (slice(0, 20), slice(100, 120)):
        evaluate(_set(real, rows), _protocol(), CELL, ScoreContext(real, CPU))
    half, trial = len(seen) // 2, len(seen) // 4
    assert len(seen) == 2 * 2 * 3 * math.ceil(20 / 8)  # sets x trials x epochs x batches
    assert seen[:half] == seen[half:]
    assert seen[:trial] != seen[trial:half]
    for epoch in range(3):  # every epoch sees every image once
        assert sorted(row for batch in seen[3 * epoch : 3 * epoch + 3] for row in batch) == list(range(20))


def test_a_trial_does_not_depend_on_how_many_there_are(real):
    chosen = _set(real, slice(0, 20))
    three = evaluate(chosen, _protocol(3), CELL, ScoreContext(real, CPU))
    assert evaluate(chosen, _protocol(2), CELL, ScoreContext(real, CPU)) == three[:2]
    assert evaluate(chosen, _protocol(3), CELL, ScoreContext(real, CPU, known={0: three[0], 2: three[2]})) == three


def test_known_trials_are_not_trained_again(real, watched):
    starts, _ = watched
    told, updates = [], []
    context = ScoreContext(
        real,
        CPU,
        known={0: 0.25, 2: 0.75},
        on_trial=lambda trial, score: told.append((trial, score)),
        on_update=lambda *counts: updates.append(counts),
    )
    scores = evaluate(_set(real, slice(0, 20)), _protocol(3), CELL, context)
    assert (scores[0], scores[2]) == (0.25, 0.75)
    assert told == [(1, scores[1])]
    assert len(starts) == 1
    assert context.known == {0: 0.25, 2: 0.75}
    per_trial = 3 * math.ceil(20 / 8)
    assert updates == [(2 * per_trial + done, 3 * per_trial) for done in range(1, per_trial + 1)]


def test_all_trials_known_means_no_training(real, watched):
    assert evaluate(_set(real, slice(0, 20)), _protocol(), CELL, ScoreContext(real, CPU, known={0: 0.5, 1: 1})) == (
        0.5,
        1,
    )
    assert watched == ([], [])


def test_score_is_the_test_accuracy_of_the_last_epoch(real, watched):
    _, ends = watched
    protocol = _protocol(epochs=10, lr=0.02, augmentation="none")
    scores = evaluate(_set(real, slice(0, 400)), protocol, CELL, ScoreContext(real, CPU))
    images = real.spec.normalize(real.test.pixels[real.test.index])
    for score, network in zip(scores, ends, strict=True):
        with torch.no_grad():
            predicted = network.eval()(images).argmax(1).numpy()
        assert score == pytest.approx(np.mean(predicted == real.test.labels.numpy()), abs=1e-12)
        assert 0.4 < score <= 1


def test_step_matched_protocol_takes_the_updates_of_the_budget(real):
    updates = []
    context = ScoreContext(real, CPU, on_update=lambda done, total: updates.append(total))
    evaluate(_set(real, slice(0, 40)), _protocol(1, match_updates=True), CELL, context)
    assert set(updates) == {3 * math.ceil(1 * 10 / 8)}  # epochs x batches of ipc x classes images, not of 40
    assert len(updates) == updates[0]


@pytest.mark.parametrize("change", [{"epochs": 4}, {"lr": 0.2}, {"augmentation": "none"}, {"match_updates": True}])
def test_hash_changes_with_the_training(change):
    assert _protocol(**change).hash != _protocol().hash


def test_hash_changes_with_the_network_and_not_with_prose_or_trials():
    protocol = _protocol()
    for same in ({"summary": "other"}, {"source": "other"}, {"trials": 9}, {"name": "other"}):
        assert protocol.model_copy(update=same).hash == protocol.hash
    values = protocol.model_dump()
    for other in ({"name": "convnet", "width": 5}, {"name": "alexnet"}):
        assert Protocol.model_validate({**values, "network": other}).hash != protocol.hash
    written_out = {"name": "convnet", "width": 4, "norm": "instance"}
    assert Protocol.model_validate({**values, "network": written_out}).hash == protocol.hash


@pytest.mark.parametrize("values", [[0.5, 0.7], [0.11, 0.13, 0.19, 0.17], list(np.linspace(0.2, 0.9, 30))])
def test_interval_is_scipys(values):
    estimate = Estimate.of(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert estimate.n == len(values)
    assert estimate.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert (estimate.mean - estimate.half_width, estimate.mean + estimate.half_width) == pytest.approx((low, high))


def test_interval_of_five_is_the_textbooks():
    values = [0.90, 0.91, 0.92, 0.93, 0.94]  # t(0.975, 4) = 2.776, s = 0.01 * sqrt(2.5)
    estimate = Estimate.of(values)
    assert estimate.half_width == pytest.approx(2.776 * 0.01 * math.sqrt(2.5 / 5), rel=1e-3)
    assert estimate.percent() == "92.00 +- 1.96 (n=5)"


def test_a_single_value_has_no_interval():
    estimate = Estimate.of([0.5])
    assert (estimate.mean, estimate.half_width, estimate.percent()) == (0.5, None, "50.00 (n=1)")


def test_equal_values_have_an_interval_of_zero():
    assert Estimate.of([0.25] * 3).half_width == 0
