"""Scores against direct formulas and the `aum` package; selectors against their definitions."""

import math
from itertools import pairwise

import pytest
import torch
from aum import AUMCalculator
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_up import Factory, make_real, make_spec
from torch.nn import functional

from dd_plugins.api import Context, StorageLedger, SyntheticSet, UsageError
from dd_plugins.networks import build_network
from dd_plugins.pruning import strategies
from dd_plugins.pruning.scores import (
    EARLY,
    EASY_IS_HIGH,
    SCORES,
    Watch,
    entropy,
    error_norm,
    gradient_norms,
    herding,
    margin,
    watched_training,
)
from dd_plugins.pruning.selectors import SELECTORS, select, share, shares
from dd_plugins.pruning.strategies import AUM, CCS, EL2N, GRID, KCenter, Random, ScoreAndSelect
from dd_plugins.seeds import make_generator
from dd_plugins.training import TrainConfig

CLASSES, COUNT = 4, 30


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=make_generator(seed))


def labels(count=COUNT, classes=CLASSES):
    return torch.arange(count) % classes


# ---- scores --------------------------------------------------------------------------------------------------------


def test_margins_by_hand():
    found = margin(torch.tensor([[1.0, 2.0, 3.0], [6.0, 5.0, 4.0]]), torch.tensor([1, 0]))
    assert found.tolist() == [-1.0, 1.0]
    assert found.dtype == torch.float64


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pandas, about what the package does
@pytest.mark.parametrize("sizes", [(30,), (7, 2, 21), (10, 10, 10)])
def test_aum_is_that_of_the_package(sizes, tmp_path):
    calculator = AUMCalculator(str(tmp_path), compressed=False)
    targets = labels()
    watch = Watch(targets)
    for epoch in range(5):
        logits = noise(COUNT, CLASSES, seed=epoch)
        watch.see(logits)
        for rows in torch.split(torch.arange(COUNT), sizes):
            records = calculator.update(logits[rows], targets[rows], rows.tolist())
            assert set(records) == set(rows.tolist())
    calculator.finalize()
    lines = (tmp_path / "aum_values.csv").read_text().splitlines()[1:]
    theirs = {int(name): float(value) for name, value in (line.split(",") for line in lines)}
    expected = torch.tensor([theirs[row] for row in range(COUNT)], dtype=torch.float64)
    torch.testing.assert_close(watch.scores()["aum"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("epochs", [1, 3, EARLY, EARLY + 4])
def test_scores_equal_their_formulas(epochs):
    targets, watch = labels(), Watch(labels())
    passes = [noise(COUNT, CLASSES, seed=seed) for seed in range(epochs)]
    for logits in passes:
        watch.see(logits)
    found = watch.scores()
    for row in range(COUNT):
        label, history = int(targets[row]), []
        margins, probability_margins, norms = [], [], []
        for logits in passes:
            z = logits[row].double().tolist()
            p = [math.exp(v) / sum(math.exp(u) for u in z) for v in z]
            margins.append(z[label] - max(v for k, v in enumerate(z) if k != label))
            probability_margins.append(p[label] - max(v for k, v in enumerate(p) if k != label))
            norms.append(math.sqrt(sum((v - (k == label)) ** 2 for k, v in enumerate(p))))
            history.append(z.index(max(z)) == label)
        forgotten = sum(before and not after for before, after in pairwise(history))
        expected = {
            "aum": sum(margins) / epochs,
            "aum-probability": sum(probability_margins) / epochs,
            "el2n": sum(norms[:EARLY]) / min(epochs, EARLY),
            "forgetting": forgotten if any(history) else epochs,
            "entropy": -sum(v * math.log(v) for v in p),
            "loss": -math.log(p[label]),
        }
        assert {name: found[name][row].item() for name in expected} == pytest.approx(expected, abs=1e-9)


def test_entropy_and_error_of_certainty():
    certain = torch.tensor([[1000.0, 0.0, 0.0]])
    assert entropy(certain).item() == 0
    assert error_norm(certain, torch.tensor([0])).item() == 0
    assert error_norm(certain, torch.tensor([1])).item() == pytest.approx(math.sqrt(2))


def test_memory_of_a_watch_does_not_grow():
    watch = Watch(labels())
    watch.see(noise(COUNT, CLASSES))

    def held():
        return sum(value.numel() for value in vars(watch).values() if isinstance(value, torch.Tensor))

    before = held()
    for seed in range(50):
        watch.see(noise(COUNT, CLASSES, seed=seed))
    assert held() == before


def test_gradient_norms_are_those_of_single_backward_passes():
    network = build_network("convnet", (2, 8, 8), CLASSES, {"width": 3, "depth": 2}, seed=0).eval()
    images, targets = noise(70, 2, 8, 8), labels(70)  # more than are held at once
    found = gradient_norms(network, images, targets)
    for row in (0, 1, 63, 64, 69):
        loss = functional.cross_entropy(network(images[row : row + 1]), targets[row : row + 1])
        gradient = torch.autograd.grad(loss, list(network.parameters()))
        expected = torch.cat([g.flatten() for g in gradient]).double().norm()
        assert found[row].item() == pytest.approx(expected.item(), rel=1e-4)


def test_herding_takes_whatever_brings_the_mean_closest():
    found, targets = noise(14, 5), torch.tensor([0] * 8 + [1] * 6)
    score = herding(found, targets)
    for label, count in ((0, 8), (1, 6)):
        rows = torch.nonzero(targets == label).flatten().tolist()
        unit = {row: functional.normalize(found[row].double(), dim=0) for row in rows}
        goal, taken = sum(unit.values()) / count, []
        while len(taken) < count:
            free = [row for row in rows if row not in taken]
            gaps = [(goal - sum(unit[r] for r in [*taken, row]) / (len(taken) + 1)).norm() for row in free]
            taken.append(free[int(torch.stack(gaps).argmin())])
        assert sorted(rows, key=lambda row: -score[row]) == taken


# ---- the training that is watched ----------------------------------------------------------------------------------


def train_and_watch(strategy="auto", networks=2, epochs=3, **options):
    real = make_real(CLASSES, (2, 8, 8), 8)
    made = [Factory(real)(seed) for seed in range(networks)]
    images, targets = real.train.images(), real.train.labels
    config = TrainConfig(epochs=epochs, batch_size=10, augmentation="none")
    found = watched_training(made, images, targets, config, real.spec, seeds=[5, 6][:networks], **options)
    return found, made, images, targets


def test_a_training_is_watched_behind_every_epoch():
    found, made, images, targets = train_and_watch(networks=1)
    for costly in ("grand", "herding", "k-center"):
        assert costly not in found
        assert set(train_and_watch(networks=1, wanted=costly)[0]) == {*found, costly}
    assert set(found) == set(SCORES) - {"random", "grand", "herding", "k-center"}
    last = made[0].eval()(images).detach()
    torch.testing.assert_close(found["loss"], functional.cross_entropy(last.double(), targets, reduction="none"))
    torch.testing.assert_close(found["entropy"], entropy(last))
    margins = []
    for epochs in (1, 2, 3):  # the schedule of a shorter training is the same as long as nothing drops
        _, (network,), _, _ = train_and_watch(networks=1, epochs=epochs)
        margins.append(margin(network.eval()(images).detach(), targets))
    torch.testing.assert_close(found["aum"][:3], torch.stack(margins).mean(0)[:3], atol=0.05, rtol=0.05)


def test_watching_changes_no_weight():
    real = make_real(CLASSES, (2, 8, 8), 8)
    _, (watched,), images, targets = train_and_watch(networks=1)
    from dd_plugins.training import train_networks

    plain = Factory(real)(0)
    config = TrainConfig(epochs=3, batch_size=10, augmentation="none")
    train_networks([plain], images, targets, config, real.spec, seeds=[5])
    for one, other in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("wanted", ["el2n", "grand"])
def test_a_training_whose_end_does_not_matter_ends_early(wanted, monkeypatch):
    passes = []
    whole = Watch.see
    monkeypatch.setattr(Watch, "see", lambda self, logits: (passes.append(1), whole(self, logits))[1])
    early, *_ = train_and_watch(networks=2, epochs=EARLY + 5, wanted=wanted)
    assert len(passes) == 2 * EARLY
    if wanted == "el2n":
        full, *_ = train_and_watch(networks=2, epochs=EARLY + 5)
        torch.testing.assert_close(early["el2n"], full["el2n"])


def test_networks_are_averaged():
    both, *_ = train_and_watch(networks=2)
    first, *_ = train_and_watch(networks=1)
    real = make_real(CLASSES, (2, 8, 8), 8)
    config = TrainConfig(epochs=3, batch_size=10, augmentation="none")
    arguments = (real.train.images(), real.train.labels, config, real.spec)
    second = watched_training([Factory(real)(1)], *arguments, seeds=[6])
    for name, score in both.items():
        torch.testing.assert_close(score, (first[name] + second[name]) / 2, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["sequential", "side-by-side", "stacked"])
def test_every_strategy_of_training_is_watched_alike(strategy, monkeypatch):
    expected, *_ = train_and_watch()
    monkeypatch.setattr("dd_plugins.training._resolve", lambda *_: strategy)
    found, *_ = train_and_watch()
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, atol=1e-4, rtol=1e-3)


# ---- selectors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removed", [0, 1, 2, 7])
@pytest.mark.parametrize("beta", GRID)
def test_double_end_takes_its_share_from_either_end(removed, beta):
    count = 20
    ease = torch.randperm(CLASSES * count, generator=make_generator(1)).double()
    targets = torch.arange(CLASSES).repeat_interleave(count)
    kept = select("double-end", ease, targets, CLASSES * (count - removed), beta, make_generator(0), CLASSES)
    assert len(kept) == CLASSES * (count - removed)
    for label in range(CLASSES):
        own = ease[targets == label].sort().values
        hard = math.floor(round(beta * 10) * removed / 10)
        expected = own[hard : count - (removed - hard)]
        assert torch.equal(ease[kept[targets[kept] == label]].sort().values, expected)
        assert len(expected) == count - removed


def test_shares_are_exact_decimals():
    assert share(0.29, 100) == 29
    assert [share(beta, 7) for beta in GRID] == [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 7]


def test_ties_are_broken_by_row():
    targets, ease = torch.zeros(6, dtype=torch.int64), torch.zeros(6)
    assert select("double-end", ease, targets, 4, 0.5, make_generator(0), 1).tolist() == [1, 2, 3, 4]
    assert select("keep-hard", ease, targets, 2, 0.5, make_generator(0), 1).tolist() == [0, 1]
    assert select("keep-easy", ease, targets, 2, 0.5, make_generator(0), 1).tolist() == [4, 5]


def test_the_order_of_classes_does_not_matter():
    ease, targets = noise(40), labels(40)
    shuffled = torch.randperm(40, generator=make_generator(3))
    for name in ("double-end", "keep-easy", "keep-hard"):
        kept = select(name, ease, targets, 28, 0.3, make_generator(0), CLASSES)
        other = select(name, ease[shuffled], targets[shuffled], 28, 0.3, make_generator(0), CLASSES)
        assert sorted(shuffled[other].tolist()) == kept.tolist()


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=6), data=st.data())
def test_every_selector_keeps_what_it_was_told(counts, data):
    total = sum(counts)
    keep = data.draw(st.integers(1, total))
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    ease = noise(total, seed=data.draw(st.integers(0, 99)))
    name, beta = data.draw(st.sampled_from(list(SELECTORS))), data.draw(st.sampled_from(GRID))
    assume(min(count * keep // total for count in counts) >= 1)  # or a class would be left with none
    expected = shares(torch.tensor(counts), keep)
    kept = select(name, ease, targets, keep, beta, make_generator(0), len(counts))
    assert torch.bincount(targets[kept], minlength=len(counts)).tolist() == expected
    assert torch.equal(kept, kept.unique())
    for count, share_kept in zip(counts, expected, strict=True):
        assert abs(share_kept - count * keep / total) < 1


def test_strata_are_filled_evenly_from_the_smallest():
    ease = torch.cat([torch.full((3,), 0.0), torch.full((40,), 0.51), torch.full((17,), 1.0)]) + 0.001 * noise(60)
    targets = torch.zeros(60, dtype=torch.int64)
    kept = select("stratified", ease.double(), targets, 21, 0.0, make_generator(0), 1)
    found = [int(((ease[kept] - middle).abs() < 0.1).sum()) for middle in (0.0, 0.51, 1.0)]
    assert found == [3, 9, 9]


def test_strata_keep_the_easiest_in_the_last_bin_and_cut_the_hardest():
    ease = -torch.arange(1.0, 101.0)  # all below zero: the published top edge would lose the best one
    targets = torch.zeros(100, dtype=torch.int64)
    kept = select("stratified", ease, targets, 100, 0.0, make_generator(0), 1)
    assert kept.tolist() == list(range(100))
    kept = select("stratified", ease, targets, 50, 0.4, make_generator(0), 1)
    assert kept.max() < 80  # floor(0.4 * 50) hardest are gone
    assert len(kept) == 50


@pytest.mark.parametrize(
    ("keep", "told"),
    [(0, "0 images to keep, but there are 40"), (41, "41 images to keep"), (3, "would leave class 3 with none")],
)
def test_counts_that_do_not_work_are_refused(keep, told):
    with pytest.raises(UsageError, match=told):
        select("double-end", noise(40), labels(40), keep, 0.5, make_generator(0), CLASSES)


def test_scores_that_are_no_numbers_are_refused():
    ease = noise(40)
    ease[[3, 7]] = torch.tensor([float("nan"), float("inf")])
    with pytest.raises(UsageError, match="2 of 40 scores are NaN or infinite"):
        select("double-end", ease, labels(40), 20, 0.5, make_generator(0), CLASSES)


# ---- strategies ----------------------------------------------------------------------------------------------------


def score_with(strategy, cache=None, shift=0.0, **config):
    real = make_real(CLASSES, (2, 8, 8), 8)
    images = SyntheticSet("made-up", real.spec, real.train.images() + shift, real.train.labels, StorageLedger.of([]))
    context = Context(Factory(real), make_generator(0), 1, torch.device("cpu"), cache=cache)
    made = strategy({"networks": 1, "epochs": 2, "batch_size": 16, **config})
    return made, made.score(images, context), images.targets


@pytest.mark.parametrize("name", SCORES)
def test_every_score_goes_with_every_selector(name):
    made, score, targets = score_with(ScoreAndSelect, score=name)
    assert (score.shape, score.dtype) == (targets.shape, torch.float64)
    assert torch.equal(score, score_with(ScoreAndSelect, score=name)[1])
    ease = score if EASY_IS_HIGH[name] else -score
    for selector in SELECTORS:
        chosen = ScoreAndSelect({**made.config.model_dump(), "selector": selector, "beta": 0.5})
        kept = chosen.select(score, targets, 16)
        assert len(kept) == 16
        own, of = kept[targets[kept] == 0], torch.nonzero(targets == 0).flatten()
        if selector in ("keep-easy", "keep-hard", "top"):
            ranked = of[torch.argsort(score[of] if selector == "top" else ease[of], stable=True)]
            expected = ranked[: len(own)] if selector == "keep-hard" else ranked[-len(own) :]
            assert sorted(own.tolist()) == sorted(expected.tolist())


def test_one_watched_training_tells_all_scores_of_the_same_images(tmp_path, monkeypatch):
    alone = {name: score_with(ScoreAndSelect, score=name)[1] for name in SCORES}
    trained = []
    original = strategies.watched_training
    monkeypatch.setattr(strategies, "watched_training", lambda *a, **k: trained.append(1) or original(*a, **k))
    for name in ("aum", "aum-probability", "el2n", "forgetting", "entropy", "loss", "aum"):
        assert torch.equal(score_with(ScoreAndSelect, tmp_path, score=name)[1], alone[name]), name
    assert len(trained) == 1
    for name in ("grand", "herding", "k-center"):  # these take passes of their own
        assert torch.equal(score_with(ScoreAndSelect, tmp_path, score=name)[1], alone[name]), name
    assert len(trained) == 4
    for other in ({"shift": 0.1}, {"epochs": 3}, {"batch_size": 8}):
        score_with(AUM, tmp_path, **other)
    assert len(trained) == 7
    for file in (tmp_path / "watched").iterdir():
        file.write_bytes(b"damaged")
    assert torch.equal(score_with(AUM, tmp_path)[1], alone["aum"])
    assert len(trained) == 8


@pytest.mark.parametrize(
    ("strategy", "score", "selector"),
    [
        (AUM, "aum", "double-end"),
        (CCS, "aum-probability", "stratified"),
        (EL2N, "el2n", "top"),
        (KCenter, "k-center", "top"),
        (Random, "random", "top"),
    ],
)
def test_shorthands(strategy, score, selector):
    config = strategy().config
    assert (config.score, config.selector) == (score, selector)


def test_candidates_are_the_shares_of_the_grid_where_one_is_to_be_chosen():
    assert [c.config.beta for c in AUM().candidates()] == list(GRID)
    assert [c.config.beta for c in AUM({"grid": (0.2, 0.7)}).candidates()] == [0.2, 0.7]
    assert [type(c) for c in CCS().candidates()] == [CCS] * 11
    for fixed in (AUM({"beta": 0.3}), EL2N(), Random()):
        assert list(fixed.candidates()) == [fixed]


def test_random_pruning_follows_its_seed():
    spec = make_spec()
    images = SyntheticSet("x", spec, noise(40, *spec.image_shape), labels(40), StorageLedger.of([]))
    scores = [Random({"seed": seed}).score(images, None) for seed in (0, 0, 1)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
