"""H-PD and GLaD: levels, candidates that are copies, what is stored, and that a run goes on bit by bit."""

import io
import json
import shutil
from itertools import pairwise

import pytest
import torch
from made_up import Factory, Mirror, make_real
from rich.console import Console
from tiny_runs import PROTOCOL, run

from benchmark_adapters.cli.progress import Reporter
from benchmark_adapters.runs import pipeline
from benchmark_adapters.runs.identity import compute_run_id
from benchmark_adapters.runs.parts import Options
from benchmark_adapters.signals import Interrupted
from dd_plugins.api import (
    ConfigError,
    Context,
    DataError,
    DivergedError,
    FolderArtifacts,
    IncompatibleError,
    MemoryArtifacts,
    ResumeMismatch,
    Stage,
    StorageBudget,
    read_tensors,
)
from dd_plugins.engine.config import resolve
from dd_plugins.networks import build_network
from dd_plugins.parameterizations.hpd import HPD, GLaD
from dd_plugins.priors.centres import centres
from dd_plugins.priors.gates import Gates
from dd_plugins.priors.store import StoredPrior, load_prior, save_prior
from dd_plugins.priors.train import PriorRecipe, trainable_prior
from dd_plugins.seeds import make_generator

NETWORK = {"name": "convnet", "width": 4, "depth": 2}
GOOD = Gates(0.9, 1.0, 0.25, 1.0, 0.8, 4, 2).to_dict()


@pytest.fixture(scope="module")
def real():
    return make_real()


@pytest.fixture(scope="module")
def prior(real, tmp_path_factory):
    """A prior that is hardly trained, with the figures of a good one."""
    path = tmp_path_factory.mktemp("prior")
    trainer = trainable_prior("vae").trainer(
        PriorRecipe(kind="vae", width=6, noise=4, style=5, steps=20, classes=4, images=2), real
    )
    trainer.run()
    save_prior(path, trainer.exported, "vae", trainer.config, {"gates": GOOD, "network": NETWORK, "seconds": 1.5})
    return path


def context(real, cache=None):
    artifacts = FolderArtifacts(cache) if cache else MemoryArtifacts()
    return Context(Factory(real), make_generator(0), 10, torch.device("cpu"), artifacts=artifacts, network=NETWORK)


def made(prior, real, cls=HPD, ipc=2, seed=0, **config):
    settings = {"prior": str(prior), "samples": 20, "score_every": 2, **config}
    container = cls(real.spec, StorageBudget.ipc(real.spec, ipc), settings)
    container.prepare(
        real, context(real, prior)
    )  # its folder keeps the reference classifier, so that it is trained once
    container.reset(make_generator(seed), real)
    return container


def learn(container, steps, target=None):
    """Steps towards a fixed picture; returns the optimizer."""
    optimizer = torch.optim.Adam(container.parameter_groups())
    for _ in range(steps):
        images = container.decode(for_backward=True)
        goal = torch.zeros_like(images) if target is None else target
        optimizer.zero_grad()
        container.backward(torch.arange(len(images)), 2 * (images - goal))
        optimizer.step()
        container.project()
    return optimizer


def through(container, steps=4):
    for stage in container.stages():
        container.enter_stage(stage)
        learn(container, steps)
    container.finish()
    return container


# ---- levels --------------------------------------------------------------------------------------------------------


def test_stages_are_all_levels_and_the_pixels(prior, real):
    stages = made(prior, real).stages()
    assert [stage.name for stage in stages] == ["level 0", "level 1", "level 2", "level 3", "pixels"]
    assert sum(stage.share for stage in stages) == pytest.approx(1)
    assert [s.name for s in made(prior, real, levels=(1, 3), pixels=False).stages()] == ["level 1", "level 3"]
    assert [s.name for s in made(prior, real, GLaD).stages()] == ["level 2"]


def test_a_level_change_leaves_the_images_alone(prior, real):
    container = made(prior, real, select="last")
    for stage in container.stages():
        before = container.decode() if container._latents is not None else None
        container.enter_stage(stage)
        if before is not None:
            assert (container.decode() - before).abs().max() < 1e-5
        learn(container, 3)


def test_every_stage_learns_what_it_says(prior, real):
    container = made(prior, real, select="last")
    for stage in container.stages():
        container.enter_stage(stage)
        before = container.decode()
        optimizer = learn(container, 3)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        if stage.name == "pixels":
            assert len(held) == 1
            assert held[0] is container.images
        else:
            level = int(stage.name.removeprefix("level "))
            assert len(held) == 1 + 4 - level
            assert all(p.grad is not None and p.grad.any() for p in held)
        assert not torch.equal(container.decode(), before)


def test_rates_are_in_units_of_what_is_learned(prior, real):
    container = made(prior, real, lr_states=0.5, lr_styles=0.25)
    of_styles, of_states = container.prior.scales()
    for level in range(4):
        container.enter_stage(container.stages()[level])
        state, styles = container.parameter_groups()
        assert state["lr"] == pytest.approx(0.5 * of_states[level])
        assert styles["lr"] == pytest.approx(0.25 * of_styles)


def test_levels_that_do_not_exist_are_refused(prior, real):
    with pytest.raises(ConfigError, match="level 9 does not exist; the prior has levels 0 to 4"):
        made(prior, real, levels=(0, 9))
    container = made(prior, real, levels=(3, 1))
    container.enter_stage(container.stages()[0])
    with pytest.raises(ConfigError, match="level 1 cannot follow level 3"):
        container.enter_stage(container.stages()[1])


# ---- initial latents -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["cluster", "sample"])
def test_images_of_a_class_differ_at_first_and_in_the_end(init, prior, real):
    container = made(prior, real, ipc=3, init=init)
    container.enter_stage(container.stages()[0])
    for images in (container.decode(), through(made(prior, real, ipc=3, init=init)).decode()):
        for label in range(4):
            own = images[container.labels == label]
            gaps = [(own[a] - own[b]).abs().max() for a, b in ((0, 1), (0, 2), (1, 2))]
            assert min(gaps) > 1e-4


def test_one_image_of_a_class_begins_at_the_mean_of_all_samples(prior, real):
    container = made(prior, real, ipc=1, samples=50)
    drawn = make_generator(0)
    torch.randint(2**31, (), generator=drawn)
    for label in range(4):
        samples = container.prior.sample_styles(torch.full((50,), label), drawn)
        torch.testing.assert_close(container._latents.styles[0][label], samples[0].mean(0), atol=1e-5, rtol=1e-5)


def test_every_centre_has_samples_even_if_all_are_alike():
    styles = (torch.ones(6, 3),)
    (found,) = centres(styles, 4, 0)
    assert torch.equal(found, torch.ones(4, 3))


# ---- candidates ----------------------------------------------------------------------------------------------------


def test_candidates_are_copies(prior, real):
    container = made(prior, real, score_every=1)
    container.enter_stage(container.stages()[0])
    best = container._seen.of_stage
    score, state = float(best["score"]), best["state"].clone()
    learn(container, 6, target=torch.full((8, 2, 8, 8), 30.0))  # away from all real images
    assert torch.equal(container._seen.of_stage["state"], state)
    assert not torch.equal(container._latents.state, state)
    container.enter_stage(container.stages()[1])
    torch.testing.assert_close(container._distance(container.decode(), container.labels), score, rtol=1e-4, atol=1e-6)


def test_the_best_images_of_all_stages_win(prior, real):
    container = through(made(prior, real))
    scores = [score for *_, score in container._seen.history]
    found = container._distance(container.decode(), container.labels)
    assert found == pytest.approx(min(scores), rel=1e-5)
    assert {level for level, *_ in container._seen.history} == {0, 1, 2, 3, -1}


def test_the_record_tells_when_each_stage_was_best(prior, real):
    container = through(made(prior, real, score_every=1), steps=3)
    told, found = container.summary(), container._seen.history
    for level, name in ((0, "level 0"), (3, "level 3"), (-1, "pixels")):
        of_stage = [(score, taken) for at, taken, score in found if at == level]
        assert {taken for _, taken in of_stage} == {0, 1, 2, 3}
        assert (told[f"crfd, {name}"], told[f"best step, {name}"]) == min(of_stage)
    assert list(told) == [f"{what}, {stage.name}" for what in ("crfd", "best step") for stage in container.stages()]


def test_a_stage_never_goes_on_from_worse_than_it_began_with(prior, real):
    container = made(prior, real, score_every=1)
    entered = []
    for stage in container.stages():
        container.enter_stage(stage)
        entered.append(container._seen.history[-1][-1])
        learn(container, 3, target=torch.full((8, 2, 8, 8), 5.0))
    assert all(later <= before * (1 + 1e-4) + 1e-7 for before, later in pairwise(entered))


def test_the_last_step_of_a_stage_can_win(prior, real):
    container = made(prior, real, score_every=4)
    container.enter_stage(container.stages()[0])
    count = len(container._seen.history)
    learn(container, 3)  # no candidate yet
    assert len(container._seen.history) == count
    container.enter_stage(container.stages()[1])
    assert len(container._seen.history) == count + 2  # the last step, and the entry of the next level


def test_without_selection_the_last_images_are_stored_and_nothing_is_compared(prior, real):
    container = made(prior, real, select="last")
    through(container)
    assert container._seen.history == []
    glad = made(prior, real, GLaD)
    glad.enter_stage(glad.stages()[0])
    learn(glad, 3)
    last = glad.decode()
    glad.finish()
    torch.testing.assert_close(glad.decode(), last)


def test_clipping_does_nothing_unless_asked_for(prior, real, caplog):
    free, held = made(prior, real, select="last"), made(prior, real, select="last", clip=0.01)
    for container in (free, held):
        container.enter_stage(container.stages()[0])
        with caplog.at_level("INFO", "dd_plugins"):
            learn(container, 1)
    limit = 0.01 * held.prior.scales()[1][0]
    assert held._latents.state.abs().max() <= limit * 1.0001
    assert free._latents.state.abs().max() > limit
    assert "clipped" in caplog.text


# ---- what is stored ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [HPD, GLaD])
def test_pixels_alone_are_stored_and_come_back_without_the_prior(cls, prior, real, tmp_path):
    container = through(made(prior, real, cls))
    ledger = container.save(tmp_path / "set.safetensors")
    assert [entry.name for entry in ledger.entries] == ["images"]
    assert ledger.elements == 2 * 4 * 2 * 8 * 8
    loaded = cls.load(tmp_path / "set.safetensors")
    assert torch.equal(loaded.decode(), container.decode())
    (noted,) = loaded.priors()
    assert noted.elements == sum(p.numel() for p in container.prior.parameters())
    assert noted.seconds == 0  # the file depends on no clock
    assert container.priors()[0].seconds == 1.5
    assert len(noted.sha256) == 64


def test_images_are_in_model_space(prior, real):
    container = made(prior, real)
    container.enter_stage(container.stages()[0])
    pixels = real.spec.denormalize(container.decode())
    assert pixels.min() >= -1e-5
    assert pixels.max() <= 1 + 1e-5
    styles = tuple(style.detach() for style in container._latents.styles)
    torch.testing.assert_close(pixels, container.prior.decode_from(0, container._latents.state.detach(), styles))


def test_no_graph_of_the_generator_is_held_while_images_are_matched(prior, real):
    container = made(prior, real)
    container.enter_stage(container.stages()[1])
    images = container.decode(for_backward=True)
    assert container._graph is None
    container.backward(torch.arange(len(images)), torch.ones_like(images))
    assert container._latents.state.grad.abs().max() > 0


def test_pushing_in_chunks_changes_nothing(prior, real):
    whole, parts = made(prior, real, select="last"), made(prior, real, select="last")
    parts.chunk_size = 3
    for container in (whole, parts):
        for stage in container.stages()[:3]:
            container.enter_stage(stage)
    torch.testing.assert_close(whole._latents.state, parts._latents.state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"levels": (3, 1)}, r"levels = \[3, 1\]: levels must ascend"),
        ({"levels": (2, 2)}, "levels must ascend"),
        ({"levels": (0, 9)}, "level 9 does not exist; the prior has levels 0 to 4"),
    ],
)
def test_levels_are_checked_before_a_prior_is_trained(config, told, real):
    container = HPD(real.spec, StorageBudget.ipc(real.spec, 1), config)
    with pytest.raises(ConfigError, match=told):
        container.check(Factory(real)(0))


def test_a_network_that_is_no_reference_classifier_is_refused_ahead(real):
    network = build_network("mlp", real.spec.image_shape, 4, seed=0)
    with pytest.raises(IncompatibleError, match="no maps at several depths"):
        HPD(real.spec, StorageBudget.ipc(real.spec, 1)).check(network)
    HPD(real.spec, StorageBudget.ipc(real.spec, 1), {"select": "last"}).check(network)


def test_a_prior_can_be_pinned_and_is_the_same_when_a_run_goes_on(prior, real, tmp_path):
    digest = json.loads((prior / "prior.json").read_text())["sha256"]
    container = made(prior, real, prior_sha256=digest)
    with pytest.raises(DataError, match=r"0{64} was expected"):
        made(prior, real, prior_sha256="0" * 64)
    container.enter_stage(container.stages()[0])
    state = container.working_state()
    other = tmp_path / "other"
    shutil.copytree(prior, other)
    tensors, _ = read_tensors(other / "prior.safetensors")
    stored = load_prior(other)
    stored.generator.load_state_dict({name: value + 0.01 for name, value in tensors.items()})
    about = {key: stored.about[key] for key in ("gates", "network", "seconds")}
    save_prior(other, stored.generator, "vae", stored.generator.config, about)
    second = made(other, real)
    second.enter_stage(second.stages()[0])
    with pytest.raises(ResumeMismatch, match="started with another prior"):
        second.load_working_state(state)


def test_images_that_are_no_numbers_end_the_run(prior, real):
    container = made(prior, real)
    container.enter_stage(container.stages()[0])
    container._latents.state.data[0] = float("nan")
    container.project()
    with pytest.raises(DivergedError, match="NaN or infinite images in the level 0 stage"):
        container.project()  # a candidate is looked at every second step


@pytest.mark.parametrize("cls", [HPD, GLaD])
def test_a_state_that_is_no_number_is_not_carried_to_another_level(cls, prior, real):
    container = made(prior, real, HPD, select="last") if cls is HPD else made(prior, real, GLaD)
    container.enter_stage(container.stages()[0])
    container._latents.state.data[0] = float("nan")
    with pytest.raises(DivergedError, match="NaN or infinite state at level"):
        container.enter_stage(Stage("level 3", 1.0))


def test_clipping_hides_no_infinite_state(prior, real):
    container = made(prior, real, select="last", clip=5.0)
    container.enter_stage(container.stages()[0])
    container._latents.state.data[0] = float("inf")
    with pytest.raises(DivergedError, match="NaN or infinite state at level 0"):
        container.project()


def test_chunks_change_no_gradient(prior, real):
    whole, parts = made(prior, real, select="last"), made(prior, real, select="last")
    parts.chunk_size = 3
    for container in (whole, parts):
        container.enter_stage(container.stages()[1])
        images = container.decode(for_backward=True)
        container.backward(torch.arange(len(images)), images.cos())
    for one, other in zip(whole.parameter_groups(), parts.parameter_groups(), strict=True):
        for a, b in zip(one["params"], other["params"], strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_the_seed_decides_everything(prior, real):
    one, two, other = (through(made(prior, real, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(one.decode(), two.decode())
    assert not torch.equal(one.decode(), other.decode())


def test_a_weak_prior_is_refused_with_its_figures_unless_allowed(real, prior, tmp_path):
    trainer = trainable_prior("gan").trainer(PriorRecipe(width=6, noise=4, style=5, steps=1, classes=2, images=2), real)
    weak = Gates(0.2, 0.9, 0.25, 0.05, 0.3, 4, 2)
    save_prior(
        tmp_path, trainer.exported, "gan", trainer.config, {"gates": weak.to_dict(), "network": NETWORK, "seconds": 1}
    )
    with pytest.raises(DataError, match=r"too weak: conditional accuracy 0.200 .* 0.05 is outside .* 0.300"):
        made(tmp_path, real)
    assert made(tmp_path, real, allow_weak_prior=True).prior is not None


def test_a_prior_without_classes_begins_with_real_images_only(real, monkeypatch, tmp_path):
    stored = StoredPrior(Mirror(), {"sha256": "ab", "gates": GOOD, "network": NETWORK, "kind": "mirror"}, str(tmp_path))
    monkeypatch.setattr("dd_plugins.parameterizations.generator.load_prior", lambda *_: stored)
    for init in ("cluster", "sample"):
        with pytest.raises(ConfigError, match=f"init = '{init}': this prior knows no classes"):
            made(tmp_path, real, init=init, select="last")
    images = made(tmp_path, real, init="encode", select="last").decode()
    for image, rows in zip(images, [rows for rows in real.train.class_rows() for _ in range(2)], strict=True):
        # In the space that networks see, which is that of real images.
        assert (real.train.images(rows) - image).abs().flatten(1).amax(1).min() < 1e-5


@pytest.mark.parametrize("asked", [3, None])
def test_the_latents_of_many_images_are_made_in_chunks(asked, prior, real, monkeypatch):
    whole, chunked = made(prior, real, select="last"), made(prior, real, select="last")
    chunked.chunk_size = asked
    monkeypatch.setattr("dd_plugins.api.prior.PIXELS_AT_ONCE", 3 * 64)
    seen, begin = [], chunked.prior.begin
    chunked.prior.begin = lambda styles: seen.append(len(styles[0])) or begin(styles)
    chunked.reset(make_generator(0), real)
    assert seen == [3, 3, 2]
    torch.testing.assert_close(chunked.decode(), whole.decode())


@pytest.mark.parametrize("pinned", [True, False])
def test_a_prior_of_its_own_can_be_pinned_by_its_sha256(pinned, real, tmp_path):
    recipe = {"kind": "vae", "width": 6, "noise": 4, "style": 5, "steps": 2, "classes": 4, "images": 2}
    settings = {"recipe": recipe, "allow_weak_prior": True, "select": "last"}

    def prepared(**more):
        container = HPD(real.spec, StorageBudget.ipc(real.spec, 2), {**settings, **more})
        container.prepare(real, context(real, tmp_path))
        return container.config.prior_sha256

    sha256 = prepared()
    if pinned:
        assert prepared(prior_sha256=sha256) == sha256
    else:
        with pytest.raises(DataError, match=f"sha256 is {sha256}, but 00 was expected"):
            prepared(prior_sha256="00")


def test_classes_of_no_prior_are_refused(real):
    container = HPD(real.spec, StorageBudget.ipc(real.spec, 2), {"classes": (0, 1, 2, 3)})
    with pytest.raises(ConfigError, match=r"parameterization\.classes"):
        container.check(Factory(real)(0))


def test_other_weights_in_the_same_folder_are_another_run(prior, tmp_path, monkeypatch):
    folder = tmp_path / "prior"
    shutil.copytree(prior, folder)
    config = resolve({"method": "h-pd"}, [f"parameterization.prior={folder}"])
    assert config.parameterization.settings["prior_sha256"] == ""  # another prior can take its place
    first = compute_run_id(config, "data")
    assert compute_run_id(config, "data") == first
    other = load_prior(folder).generator
    with torch.no_grad():
        next(other.parameters()).add_(1)
    save_prior(folder, other, "vae", other.config, {"gates": GOOD})
    assert compute_run_id(config, "data") != first
    shutil.rmtree(folder)
    assert compute_run_id(config, "data") != first  # the run will say that it is not there
    trained = resolve({"method": "h-pd"})
    second = compute_run_id(trained, "data")
    monkeypatch.setattr("dd_plugins.parameterizations.generator.VERSION", 0)  # a release that trains other priors
    assert compute_run_id(trained, "data") != second


# ---- runs ----------------------------------------------------------------------------------------------------------

SMALL = ["network.width=4", "parameterization.samples=20", "parameterization.score_every=2", "objective.batch_real=4"]
RECIPE = [
    f"parameterization.recipe.{key}={value}"
    for key, value in {"kind": "vae", "width": 6, "noise": 4, "style": 5, "steps": 10, "classes": 4}.items()
]
TINY = [*SMALL, *RECIPE, *PROTOCOL, "parameterization.allow_weak_prior=true"]


@pytest.mark.parametrize("objective", ["dm", "dc", "dsa", "mtt"])
def test_it_is_learned_by_any_objective_from_a_prior_of_its_own(objective, tmp_path):
    flags = {"method": "h-pd", "objective": objective, "steps": 10, "ipc": 2}
    sets = {"mtt": ["objective.experts=1", "objective.training_epochs=1", "objective.expert_epochs=1",
                    "objective.max_start_epoch=1", "objective.syn_steps=2", "data.zca=false"]}  # fmt: skip
    plain = [text for text in TINY if objective != "mtt" or "batch_real" not in text]
    record = run(tmp_path, flags, [*plain, *sets.get(objective, [])])
    assert record["storage"]["elements"] == record["storage"]["budget"]
    (noted,) = record["storage"]["priors"]
    assert noted["elements"] > 0
    stages = ("level 0", "level 1", "level 2", "level 3", "pixels")
    told = [f"{what}, {stage}" for what in ("crfd", "best step") for stage in stages]
    assert list(record["condensation"]["learned"])[-10:] == told
    assert len(list((tmp_path / "priors").iterdir())) == 1


def test_stages_without_a_step_are_told(tmp_path):
    said = Console(record=True, width=500, file=io.StringIO())
    config = resolve({"method": "h-pd", "steps": 2, "ipc": 2}, TINY)
    pipeline.run(config, Options(tmp_path, torch.device("cpu"), full_data=False), Reporter(said))
    assert "2 steps are too few for 5 stages: level 0, level 2, pixels will get none" in said.export_text()


def test_a_run_that_was_interrupted_goes_on_bit_by_bit(tmp_path, monkeypatch):
    flags = {"method": "h-pd", "steps": 10, "ipc": 2}
    whole = run(tmp_path / "whole", flags, TINY)
    from dd_plugins.engine.condensation import Condensation

    for stop in (1, 4, 5, 9):
        out = tmp_path / f"stopped {stop}"
        for shared in ("priors", "reference-classifiers", "yardsticks"):  # made once
            shutil.copytree(tmp_path / "whole" / shared, out / shared)
        original = Condensation.run

        def stopping(self, on_step=None, stop=lambda: False, checkpoint_seconds=30.0, at=stop, original=original):
            return original(self, on_step, lambda: self.step >= at, 0)

        with monkeypatch.context() as patch:
            patch.setattr(Condensation, "run", stopping)
            with pytest.raises(Interrupted):
                run(out, flags, TINY)
        again = run(out, flags, TINY)
        assert again["condensation"]["sha256"] == whole["condensation"]["sha256"]
