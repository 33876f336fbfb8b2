"""Artifacts: made once, whoever needs them; the same in a folder and in memory; interrupted, damaged, too large."""

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from made_up import Factory, make_real
from PIL import Image

from dd_plugins.api import (
    Artifact,
    Context,
    DataError,
    FolderArtifacts,
    FolderFiles,
    MemoryArtifacts,
    NotEnoughMemory,
    StorageBudget,
)
from dd_plugins.api.memory_files import HeldFiles, MemoryFiles
from dd_plugins.datasets import load_dataset, pixel_values
from dd_plugins.engine.artifacts import needed_artifacts
from dd_plugins.engine.config import resolve
from dd_plugins.objectives.haba import HaBaMatching
from dd_plugins.objectives.mtt import MTT
from dd_plugins.parameterizations.hpd import HPD
from dd_plugins.seeds import make_generator

NETWORK = {"name": "convnet", "width": 4, "depth": 2}
BACKENDS = ["folder", "memory"]


class Squares(Artifact):
    """The squares of 0 to 9, ten rows that are written one by one."""

    kind, key, title = "squares", "ten", "the squares"
    own_folder = True

    def __init__(self, stop=10, pause=0.0):
        self.stop, self.pause, self.made = stop, pause, []

    def load(self, files):
        if len(files.names("row-*")) < 10:
            return None
        return torch.cat([files.read_tensors(f"row-{k}", DataError, "; remove it")[0]["row"] for k in range(10)])

    def build(self, files, job):
        with job("square", 10) as update:
            for k in range(10):
                if files.exists(f"row-{k}"):
                    continue
                if k >= self.stop:
                    raise KeyboardInterrupt
                time.sleep(self.pause)
                files.write_tensors(f"row-{k}", {"row": torch.tensor([k * k])}, {})
                self.made.append(k)
                update(k + 1)
        return self.load(files)

    def state(self, files):
        return f"{len(files.names('row-*'))} of 10"


@pytest.fixture(params=BACKENDS)
def store(request, tmp_path):
    return FolderArtifacts(tmp_path / "store") if request.param == "folder" else MemoryArtifacts()


def test_an_artifact_is_made_once(store):
    provided, first, second = [], Squares(), Squares()
    store.on_get = provided.append
    assert not store.has(first)
    assert torch.equal(store.get(first), torch.arange(10) ** 2)
    assert torch.equal(store.get(second), torch.arange(10) ** 2)
    assert (first.made, second.made) == (list(range(10)), [])
    assert [(each.kind, each.key, each.made) for each in provided] == [
        ("squares", "ten", True),
        ("squares", "ten", False),
    ]
    assert store.has(first)


def test_an_interrupted_build_goes_on_where_it_was(store):
    first, second = Squares(stop=4), Squares()
    with pytest.raises(KeyboardInterrupt):
        store.get(first)
    assert second.state(store.files(second)) == "4 of 10"
    assert torch.equal(store.get(second), torch.arange(10) ** 2)
    assert second.made == [4, 5, 6, 7, 8, 9]


def test_threads_wait_for_each_other_and_say_for_what(store):
    jobs, artifacts = [], [Squares(pause=0.05) for _ in range(3)]

    @contextmanager
    def job(name, total):
        jobs.append(name)
        yield lambda done: None

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda artifact: store.get(artifact, job), artifacts))
    assert all(torch.equal(each, torch.arange(10) ** 2) for each in found)
    assert sum(len(artifact.made) for artifact in artifacts) == 10
    assert jobs.count("square") == 1
    assert jobs.count("wait for the squares") == 2


def test_who_waits_can_be_interrupted(store):
    slow, begun = Squares(pause=0.2), threading.Event()

    @contextmanager
    def tell(name, total):
        begun.set()
        yield lambda done: None

    @contextmanager
    def stop(name, total):
        def update(done):
            raise KeyboardInterrupt

        yield update

    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(store.get, slow, tell)
        begun.wait()
        with pytest.raises(KeyboardInterrupt):
            store.get(Squares(), stop)
        assert torch.equal(making.result(), torch.arange(10) ** 2)


def test_a_damaged_file_is_named_with_what_to_do(tmp_path):
    store = FolderArtifacts(tmp_path)
    store.get(Squares())
    (tmp_path / "squares/ten/row-3").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"squares/ten/row-3: .*; remove it$"):
        store.get(Squares())
    (tmp_path / "squares/ten/row-3").unlink()
    assert torch.equal(store.get(Squares()), torch.arange(10) ** 2)


def test_what_ended_processes_left_is_removed(tmp_path):
    store = FolderArtifacts(tmp_path)
    store.get(Squares())
    left = tmp_path / "squares/ten/.row-1.another-host-1-0-00000000.tmp"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    store.get(Squares())
    assert not left.exists()


def test_both_backends_hold_the_same(tmp_path):
    rows = torch.arange(12.0).view(4, 3)
    for files in (FolderFiles(tmp_path / "a"), MemoryFiles(HeldFiles(10**6), "a", "it")):
        files.write("bytes", b"some")
        files.write("written", lambda file: file.write(b"more"))
        files.write_tensors("rows.safetensors", {"rows": rows}, {"note": "x"})
        files.write_json("it.json", {"a": [1, None]})
        assert files.names() == {"bytes", "written", "rows.safetensors", "it.json"}
        assert files.names("*.json") == {"it.json"}
        assert (files.read("bytes"), files.read("written")) == (b"some", b"more")
        with files.binary("bytes") as file:
            assert file.read() == b"some"
        assert files.read_json("it.json") == {"a": [1, None]}
        tensors, notes = files.read_tensors("rows.safetensors")
        assert torch.equal(tensors["rows"], rows)
        assert notes == {"note": "x"}
        with files.opened("rows.safetensors") as opened:
            part = opened.get_slice("rows")
            assert (part.get_shape(), part.get_dtype()) == ([4, 3], "F32")
            assert torch.equal(part[2], rows[2])
            assert opened.metadata() == {"note": "x"}
        held = files.read("rows.safetensors")  # the bytes of the file
        files.remove("rows.safetensors")
        files.remove("rows.safetensors")
        assert not files.exists("rows.safetensors")
        with pytest.raises(DataError):
            files.read("rows.safetensors")
    assert FolderFiles(tmp_path / "b").names() == set()
    files = FolderFiles(tmp_path / "b")
    files.write_tensors("rows", {"rows": rows}, {"note": "x"})
    assert files.read("rows") == held


def test_what_is_held_is_a_copy():
    files, tensor = MemoryFiles(HeldFiles(100), "a", "it"), torch.zeros(3)
    files.write_tensors("it", {"it": tensor}, {})
    tensor.fill_(1)
    assert not files.read_tensors("it")[0]["it"].any()


def test_the_limit_counts_what_is_held_and_what_is_replaced():
    files = MemoryFiles(HeldFiles(100), "a", "the thing")
    files.write("one", b"x" * 60)
    files.write("one", b"x" * 90)  # in its place
    with pytest.raises(NotEnoughMemory, match=r"the thing: 20 B in memory, with 90 B .* the limit of 100 B") as caught:
        files.write("two", b"x" * 20)
    assert "\n" not in str(caught.value)
    with pytest.raises(NotEnoughMemory, match="limit of 100 B"):
        files.write_tensors("two", {"it": torch.zeros(3)}, {})
    with pytest.raises(NotEnoughMemory, match="limit of 100 B"):
        files.require(11)
    files.remove("one")
    files.require(100)


# ---- what plugins need ----------------------------------------------------------------------------------------------


def context(real, artifacts):
    return Context(Factory(real), make_generator(0), 4, torch.device("cpu"), artifacts=artifacts, network=NETWORK)


TRAJECTORY = {"syn_steps": 3, "expert_epochs": 1, "experts": 2, "training_epochs": 3, "training_batch": 16}


@pytest.mark.parametrize("plugin", [MTT, HaBaMatching])
def test_trajectories_are_matched_without_a_folder_bit_by_bit(plugin, tmp_path):
    real, found = make_real(), []
    targets = torch.arange(4).repeat_interleave(2)
    for store in (FolderArtifacts(tmp_path), MemoryArtifacts()):
        objective = plugin(real.spec, TRAJECTORY)
        given = Context(
            Factory(real), make_generator(0), 4, torch.device("cpu"), artifacts=store, network=NETWORK,
            groups=torch.arange(8) % 2,
        )  # fmt: skip
        objective.prepare(real, targets, given)
        images = torch.randn(8, *real.spec.image_shape, generator=make_generator(1))
        found.append([objective.match(images, targets, step).image_grad for step in range(4)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


HPD_SETTINGS = {
    "samples": 8, "allow_weak_prior": True, "score_every": 2,
    "recipe": {"kind": "vae", "width": 6, "noise": 4, "style": 5, "steps": 5, "classes": 4, "images": 2},
}  # fmt: skip


def test_images_of_a_prior_are_learned_without_a_folder_bit_by_bit(tmp_path):
    real, stored = make_real(), []
    for store in (FolderArtifacts(tmp_path), MemoryArtifacts()):
        container = HPD(real.spec, StorageBudget.ipc(real.spec, 2), HPD_SETTINGS)
        container.prepare(real, context(real, store))
        container.reset(make_generator(0), real)
        for stage in container.stages():
            container.enter_stage(stage)
            optimizer = torch.optim.Adam(container.parameter_groups())
            for _ in range(3):
                images = container.decode(for_backward=True)
                optimizer.zero_grad()
                container.backward(torch.arange(len(images)), images)
                optimizer.step()
                container.project()
        container.finish()
        file = tmp_path / f"{type(store).__name__}.safetensors"
        container.save(file, "h-pd")
        stored.append(file.read_bytes())
    assert stored[0] == stored[1]


@pytest.mark.parametrize("limit", [1_000, 30_000])
def test_a_prior_that_exceeds_the_limit_is_refused_in_one_line(limit):
    real = make_real()
    container = HPD(real.spec, StorageBudget.ipc(real.spec, 2), HPD_SETTINGS)
    with pytest.raises(NotEnoughMemory, match=r"limit of .*; store artifacts in a folder") as caught:
        container.prepare(real, context(real, MemoryArtifacts(limit)))
    assert "\n" not in str(caught.value)


def test_the_next_artifact_is_known_once_the_one_before_exists(tmp_path):
    real, store = load_dataset("digits"), FolderArtifacts(tmp_path)
    settings = [f"parameterization.recipe.{each}" for each in ("kind=vae", "steps=3", "width=4", "noise=2", "style=2")]
    config = resolve({"method": "h-pd"}, [*settings, "network.width=4"])
    needed = list(needed_artifacts(config, real, store, torch.device("cpu")))
    assert [artifact.kind for artifact in needed] == ["priors", "reference-classifiers"]
    made, problems = [], []
    for artifact in needed_artifacts(config, real, store, torch.device("cpu")):
        found = store.get(artifact)
        made.append(artifact.title)
        problems.append(artifact.problem(found))
    assert made == ["the prior of digits", "the measurement of the prior", "the reference classifier of digits"]
    assert "too weak" in problems[1]
    assert not any(problems[::2])
    config = resolve({"method": "dm"})
    assert not list(needed_artifacts(config, real, store, torch.device("cpu")))


# ---- data -----------------------------------------------------------------------------------------------------------


def test_data_is_decoded_and_whitened_without_a_folder(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (24, 8, 8), dtype=np.uint8)
    for k, image in enumerate(pixels):
        place = tmp_path / "set" / ("train" if k < 16 else "test") / f"class-{k % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{k}.png")
    monkeypatch.setenv("DD_PLUGINS_CACHE", "/proc/nowhere")  # nothing can be written there
    store, spec = MemoryArtifacts(), f"folder:{tmp_path / 'set'}"
    provided = []
    store.on_get = provided.append
    first, again = (load_dataset(spec, cache=store, config={"zca": True}) for _ in range(2))
    assert torch.equal(first.train.pixels, again.train.pixels)
    assert [(each.title, each.made) for each in provided[2:]] == [
        ("decoded images", False), (f"the whitening matrix of {first.spec.name}", False)
    ]  # fmt: skip
    colors = pixel_values(first.train.images(), first.spec, store)
    plain = load_dataset(spec, cache=tmp_path / "cache")
    torch.testing.assert_close(colors, plain.train.pixels[plain.train.index].float() / 255, atol=1e-3, rtol=0)
    with pytest.raises(NotEnoughMemory, match=r"decoded images: .* limit of 10 B"):
        load_dataset(spec, cache=MemoryArtifacts(10))


def test_a_wait_is_reported(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("dd_plugins.api.locks.FIRST_NOTICE_SECONDS", 0.3)
    store, slow, begun = FolderArtifacts(tmp_path), Squares(pause=0.15), threading.Event()

    @contextmanager
    def tell(name, total):
        begun.set()
        yield lambda done: None

    with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.WARNING):
        making = pool.submit(store.get, slow, tell)
        begun.wait()
        store.get(Squares())
        making.result()
    assert "waiting for the squares" in caplog.text
