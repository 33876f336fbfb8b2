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

from benchmark_adapters.runs.identity import compute_run_id
from dd_plugins import registry
from dd_plugins.api import (
    ConfigError,
    Context,
    FolderArtifacts,
    PluginContractError,
    StorageLedger,
    SyntheticSet,
    UsageError,
)
from dd_plugins.api.pruning import Selector
from dd_plugins.dynamics import observe_training
from dd_plugins.engine.config import resolve
from dd_plugins.engine.keys import flatten
from dd_plugins.networks import build_network
from dd_plugins.pruning import selectors, strategies
from dd_plugins.pruning.features import herding
from dd_plugins.pruning.scores import EARLY, entropy, error_norm, gradient_norms, margin
from dd_plugins.pruning.selectors import share, shares
from dd_plugins.pruning.strategies import AUM, CCS, EL2N, GRID, KCenter, Random, ScoreAndSelect
from dd_plugins.seeds import make_generator
from dd_plugins.training import TrainConfig

CLASSES, COUNT = 4, 30
SCORES = [info.name for info in registry.list_plugins("score")]
SELECTORS = [info.name for info in registry.list_plugins("selector")]
OF_LOGITS = ("aum", "aum-probability", "el2n", "forgetting", "entropy", "loss")


class Observed:
    """The scores of logits of one network, by the names of the plugins."""

    def __init__(self, targets):
        self.found = {name: registry.create("score", name) for name in OF_LOGITS}
        for score in self.found.values():
            score.start([None], torch.zeros(len(targets), 1), targets, make_generator(0))

    def see(self, logits):
        for score in self.found.values():
            score.update(0, logits)

    def scores(self):
        return {name: score.compute() for name, score in self.found.items()}


def select(name, *arguments):
    return selectors.select(registry.create("selector", name), *arguments)


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
    observed = Observed(targets)
    for epoch in range(5):
        logits = noise(COUNT, CLASSES, seed=epoch)
        observed.see(logits)
        for rows in torch.split(torch.arange(COUNT), sizes):
            records = calculator.update(logits[rows], targets[rows], rows.tolist())
            assert set(records) == set(rows.tolist())
    calculator.finalize()
    lines = (tmp_path / "aum_values.csv").read_text().splitlines()[1:]
    theirs = {int(name): float(value) for name, value in (line.split(",") for line in lines)}
    expected = torch.tensor([theirs[row] for row in range(COUNT)], dtype=torch.float64)
    torch.testing.assert_close(observed.scores()["aum"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("epochs", [1, 3, EARLY, EARLY + 4])
def test_scores_equal_their_formulas(epochs):
    targets, observed = labels(), Observed(labels())
    passes = [noise(COUNT, CLASSES, seed=seed) for seed in range(epochs)]
    for logits in passes:
        observed.see(logits)
    found = observed.scores()
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


def test_memory_does_not_grow_with_the_epochs():
    observed = Observed(labels())
    observed.see(noise(COUNT, CLASSES))

    def held():
        values = [value for score in observed.found.values() for value in vars(score).values()]
        values += [inner for value in values if isinstance(value, dict) for inner in value.values()]
        return sum(value.numel() for value in values if isinstance(value, torch.Tensor))

    before = held()
    for seed in range(50):
        observed.see(noise(COUNT, CLASSES, seed=seed))
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


# ---- the training --------------------------------------------------------------------------------------------------


def train_and_observe(*names, networks=2, epochs=3):
    real = make_real(CLASSES, (2, 8, 8), 8)
    made = [Factory(real)(seed) for seed in range(networks)]
    images, targets = real.train.images(), real.train.labels
    config = TrainConfig(epochs=epochs, batch_size=10, augmentation="none")
    scores = {name: registry.create("score", name) for name in names or OF_LOGITS}
    options = {"seeds": [5, 6][:networks], "generator": make_generator(0)}
    found = observe_training(scores, made, images, targets, config, real.spec, **options)
    return found, made, images, targets


def test_scores_are_updated_after_every_epoch():
    found, made, images, targets = train_and_observe(networks=1)
    last = made[0].eval()(images).detach()
    torch.testing.assert_close(found["loss"], functional.cross_entropy(last.double(), targets, reduction="none"))
    torch.testing.assert_close(found["entropy"], entropy(last))
    margins = []
    for epochs in (1, 2, 3):  # the schedule of a shorter training is the same as long as nothing drops
        _, (network,), _, _ = train_and_observe(networks=1, epochs=epochs)
        margins.append(margin(network.eval()(images).detach(), targets))
    torch.testing.assert_close(found["aum"][:3], torch.stack(margins).mean(0)[:3], atol=0.05, rtol=0.05)


def test_observing_changes_no_weight():
    real = make_real(CLASSES, (2, 8, 8), 8)
    _, (network,), images, targets = train_and_observe(networks=1)
    from dd_plugins.training import train_networks

    plain = Factory(real)(0)
    config = TrainConfig(epochs=3, batch_size=10, augmentation="none")
    train_networks([plain], images, targets, config, real.spec, seeds=[5])
    for one, other in zip(network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("wanted", ["el2n", "grand"])
def test_a_training_ends_after_the_last_observed_epoch(wanted, monkeypatch):
    _, made, *_ = train_and_observe(wanted, networks=2, epochs=EARLY + 5)
    _, whole, *_ = train_and_observe(wanted, "loss", networks=2, epochs=EARLY + 5)
    assert not any(torch.equal(*pair) for pair in zip(made[0].parameters(), whole[0].parameters(), strict=True))
    passes = []
    cls = registry.load("score", wanted)
    monkeypatch.setattr(cls, "update", lambda self, number, logits: passes.append(number))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "compute", lambda self: torch.zeros(len(self.targets)))
        train_and_observe(wanted, networks=2, epochs=EARLY + 5)
    assert sorted(passes) == [0] * EARLY + [1] * EARLY


def test_the_first_epochs_count_alone_in_a_whole_training():
    early, *_ = train_and_observe("el2n", epochs=EARLY + 5)
    whole, *_ = train_and_observe("el2n", "aum", epochs=EARLY + 5)
    torch.testing.assert_close(early["el2n"], whole["el2n"])


def test_networks_are_averaged():
    both, *_ = train_and_observe(networks=2)
    first, *_ = train_and_observe(networks=1)
    real = make_real(CLASSES, (2, 8, 8), 8)
    config = TrainConfig(epochs=3, batch_size=10, augmentation="none")
    arguments = (real.train.images(), real.train.labels, config, real.spec)
    scores = {name: registry.create("score", name) for name in OF_LOGITS}
    second = observe_training(scores, [Factory(real)(1)], *arguments, seeds=[6], generator=make_generator(0))
    for name, score in both.items():
        torch.testing.assert_close(score, (first[name] + second[name]) / 2, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["sequential", "side-by-side", "stacked"])
def test_every_strategy_of_training_gives_the_same_scores(strategy, monkeypatch):
    expected, *_ = train_and_observe()
    monkeypatch.setattr("dd_plugins.training._resolve", lambda *_: strategy)
    found, *_ = train_and_observe()
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
    name, beta = data.draw(st.sampled_from(SELECTORS)), data.draw(st.sampled_from(GRID))
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
    context = Context(
        Factory(real),
        make_generator(0),
        1,
        torch.device("cpu"),
        **({"artifacts": FolderArtifacts(cache)} if cache else {}),
    )
    made = strategy({"networks": 1, "epochs": 2, "batch_size": 16, **config})
    return made, made.score(images, context), images.targets


@pytest.mark.parametrize("name", SCORES)
def test_every_score_goes_with_every_selector(name):
    made, score, targets = score_with(ScoreAndSelect, score=name)
    assert (score.shape, score.dtype) == (targets.shape, torch.float64)
    assert torch.equal(score, score_with(ScoreAndSelect, score=name)[1])
    ease = score if registry.load("score", name).easy_is_high else -score
    for selector in SELECTORS:
        chosen = ScoreAndSelect({**made.config.model_dump(), "selector": selector, "beta": 0.5})
        kept = chosen.select(score, targets, 16)
        assert len(kept) == 16
        own, of = kept[targets[kept] == 0], torch.nonzero(targets == 0).flatten()
        if selector in ("keep-easy", "keep-hard", "top"):
            ranked = of[torch.argsort(score[of] if selector == "top" else ease[of], stable=True)]
            expected = ranked[: len(own)] if selector == "keep-hard" else ranked[-len(own) :]
            assert sorted(own.tolist()) == sorted(expected.tolist())


def test_one_training_gives_all_scores_of_the_same_images(tmp_path, monkeypatch):
    alone = {name: score_with(ScoreAndSelect, score=name)[1] for name in SCORES}
    trained = []
    original = strategies.observe_training
    monkeypatch.setattr(strategies, "observe_training", lambda *a, **k: trained.append(1) or original(*a, **k))
    for name in ("aum", "aum-probability", "el2n", "forgetting", "entropy", "loss", "aum"):
        assert torch.equal(score_with(ScoreAndSelect, tmp_path, score=name)[1], alone[name]), name
    assert len(trained) == 1
    for name in ("grand", "herding", "k-center"):  # these need passes of their own
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


# ---- of third parties ----------------------------------------------------------------------------------------------


class Brightness(registry.load("score", "random")):
    """The mean pixel value, times a factor."""

    api_version = 2

    class Config(registry.base_of("score").Config):
        factor: float = 1.0

    def compute(self):
        return self.config.factor * self.images.flatten(1).double().mean(1)


class Odd(Selector):
    """Always the first row."""

    api_version = 2

    def select(self, ease, keep, beta, generator):
        return torch.zeros(keep, dtype=torch.int64)


def test_a_score_of_a_third_party_with_settings():
    spec = f"{__name__}:Brightness"
    with registry.trusted(spec):
        made, score, _ = score_with(ScoreAndSelect, score={"name": spec, "factor": 3}, selector="TOP")
        assert made.config.score == {"name": spec, "factor": 3.0}
        assert made.config.selector == "top"
        plain = ScoreAndSelect({"score": spec})
        assert plain.config.score == spec
        real = make_real(CLASSES, (2, 8, 8), 8)
        torch.testing.assert_close(score, 3 * real.train.images().flatten(1).double().mean(1))
        assert made.working_bytes(10) == 0
    with pytest.raises(ConfigError, match="--trust"):
        ScoreAndSelect({"score": spec})


def test_settings_of_a_score_in_a_configuration():
    spec = f"{__name__}:Brightness"
    with registry.trusted(spec):
        base = resolve({"pruning": "aum"}, [f"pruning.score={spec}", "pruning.score.factor=3"])
        assert base.pruning.settings["score"] == {"name": spec, "factor": 3.0}
        assert resolve({"pruning": "aum"}, [f"pruning.score={{name: {spec}, factor: 3}}"]) == base
        again = flatten(base.model_dump(mode="json"))
        assert resolve({}, [], base=again) == base
        assert resolve({}, ["pruning.score=el2n"], base=again).pruning.settings["score"] == "el2n"
        plain = resolve({"pruning": "aum"}, [f"pruning.score={spec}"])
        built_in = resolve({"pruning": "aum"})
        ids = {compute_run_id(config, "0" * 16) for config in (base, plain, built_in)}
        assert len(ids) == 3


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"score": "aumm"}, r"pruning\.score = 'aumm': .*did you mean aum"),
        ({"selector": {"name": "top", "x": 1}}, r"pruning\.selector.*x"),
        ({"selector": {"x": 1}}, "expected a name"),
        ({"score": 3}, r"pruning\.score"),
    ],
)
def test_unknown_scores_and_selectors_are_one_line(config, told):
    with pytest.raises(ConfigError, match=told) as caught:
        ScoreAndSelect(config)
    assert "\n" not in str(caught.value)


def test_a_selector_that_breaks_its_contract_is_named():
    with pytest.raises(PluginContractError, match=r"Odd\.select: expected 4 different rows of 8"):
        selectors.select(Odd(), noise(32), labels(32), 16, 0.5, make_generator(0), CLASSES)
