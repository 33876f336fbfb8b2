"""Every method on data that its authors never met: few images, one channel, images that are not square, one class."""

import numpy
import pytest
from PIL import Image
from tiny_runs import run

from dd_plugins.api import DDPluginsError
from dd_plugins.engine.methods import method_names

EXPERTS = ["objective.experts=2", "objective.training_epochs=2", "objective.expert_epochs=1"]
EXPERTS += ["objective.max_start_epoch=1", "objective.syn_steps=2", "data.zca=false"]
PRIOR = ["parameterization.allow_weak_prior=true", "parameterization.samples=8", "parameterization.recipe.steps=4"]
PRIOR += ["parameterization.recipe.width=6", "parameterization.recipe.kind=vae"]
OWN = {
    "glad": PRIOR,
    "h-pd": PRIOR,
    "mtt": EXPERTS,
    "haba": EXPERTS,
    "rtp": ["objective.unroll=2"],
    "hmn": ["parameterization.warm_start_steps=2", "objective.max_updates=2"],
    "idc": ["objective.max_updates=2"],
    "pixel": ["objective.max_updates=2"],
}
TINY = ["network.width=4", "protocol.network.width=4", "protocol.train.epochs=1", "protocol.trials=1"]


def folder(path, classes=3, mode="RGB", size=(16, 16), count=6):
    """A folder of noise: ``count`` images of each class to train on, a tenth of which is held out."""
    noise = numpy.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(classes):
            where = path / split / f"class-{label}"
            where.mkdir(parents=True)
            for number in range(count):
                shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
                pixels = noise.integers(0, 256, shape, dtype=numpy.uint8)
                Image.fromarray(pixels, mode).save(where / f"{number}.png")
    return f"folder:{path}"


def score(tmp_path, method, dataset, **flags):
    flags = {"method": method, "dataset": dataset, "ipc": 2, "steps": 2, "protocol": "dsa", **flags}
    return run(tmp_path / "runs", flags, [*TINY, *OWN.get(method, [])])


@pytest.mark.parametrize("method", method_names())
def test_a_class_with_fewer_images_than_a_batch(method, tmp_path):
    found = score(tmp_path, method, folder(tmp_path / "few"))  # a batch is 32 real images a class, or more
    assert min(found["images_per_class"]) >= 1
    assert len(found["scores"][0]["trials"]) == 1


@pytest.mark.parametrize("method", method_names())
def test_one_channel_and_images_that_are_not_square(method, tmp_path):
    dataset = folder(tmp_path / "grey", mode="L", size=(24, 16))
    assert score(tmp_path, method, dataset)["data"]["image_shape"] == [1, 16, 24]


@pytest.mark.parametrize("method", method_names())
def test_one_class_is_refused_in_one_line(method, tmp_path):
    with pytest.raises(DDPluginsError, match="class") as error:
        score(tmp_path, method, folder(tmp_path / "one", classes=1))
    assert "\n" not in str(error.value)
