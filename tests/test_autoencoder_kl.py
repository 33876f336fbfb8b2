"""The decoder of a diffusers AutoencoderKL as a prior: the real package, with a tiny model."""

import json
import shutil

import pytest
import torch
from made_up import make_real, make_spec
from test_hpd import context

from dd_plugins.api import DataError, MissingExtraError, StorageBudget
from dd_plugins.parameterizations.hpd import GLaD
from dd_plugins.priors.base import check_contract
from dd_plugins.priors.store import load_prior
from dd_plugins.seeds import make_generator

diffusers = pytest.importorskip("diffusers", reason="the extra 'diffusers' is not installed")
SPEC = make_spec(classes=4, side=16, channels=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8), latent_channels=2, norm_num_groups=2, layers_per_block=1,
        )  # fmt: skip
    path = tmp_path_factory.mktemp("kl")
    model.save_pretrained(path, safe_serialization=True)
    return path


def test_it_keeps_the_contract_and_equals_the_whole_decoder(folder):
    stored = load_prior(folder, SPEC)
    prior = stored.generator
    check_contract(prior)
    assert prior.num_stages == 4
    assert stored.gates is None
    assert len(stored.prior().sha256) == 64
    styles = prior.sample_styles(torch.arange(3), make_generator(0))
    with torch.no_grad():
        whole = prior.model.decode(styles[0]).sample
    torch.testing.assert_close(prior(styles), (whole + 1) / 2)
    images = torch.rand(3, 3, 16, 16, generator=make_generator(1))
    with torch.no_grad():
        latent = prior.model.encode(2 * images - 1).latent_dist.mean
    torch.testing.assert_close(prior.encode(images, torch.arange(3))[0], latent)


def test_a_set_that_begins_with_real_images(folder):
    real = make_real(shape=(3, 16, 16))
    settings = {"prior": str(folder), "init": "encode", "levels": [1], "allow_weak_prior": True}
    container = GLaD(real.spec, StorageBudget.ipc(real.spec, 2), settings)
    container.prepare(real, context(real))
    container.reset(make_generator(0), real)
    images = container.decode()
    prior = container.prior
    near = []
    for rows in real.train.class_rows():
        pixels = real.spec.denormalize(real.train.images(rows)).clamp(0, 1)
        with torch.no_grad():
            near.append(real.spec.normalize(prior(prior.encode(pixels, torch.zeros(len(rows))))))
    for image, label in zip(images, container.labels, strict=True):
        assert (near[label] - image).abs().flatten(1).amax(1).min() < 1e-4
    assert (images[0] - images[1]).abs().max() > 1e-4


def test_what_does_not_fit_is_told(folder, tmp_path):
    with pytest.raises(DataError, match="sides that 2 divides"):
        load_prior(folder, make_spec(side=15, channels=3))
    with pytest.raises(DataError, match="expected images of 3 channels"):
        load_prior(folder, make_spec(side=16, channels=2))
    with pytest.raises(DataError, match="its sha256 is"):
        load_prior(folder, SPEC, sha256="00")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"diffusion_pytorch_model\.safetensors: no such file"):
        load_prior(tmp_path, SPEC)


def test_without_diffusers_the_line_to_install_it_is_told(folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dd-plugins\[diffusers\]'"):
        load_prior(folder, SPEC)


@pytest.mark.parametrize("change", [{"layers_per_block": 1.5}, {"block_out_channels": "x"}, {"norm_num_groups": None}])
def test_sizes_of_a_wrong_type_are_refused_in_one_line(change, folder, tmp_path):
    made = shutil.copytree(folder, tmp_path / "kl")
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(DataError, match="no AutoencoderKL there") as caught:
        load_prior(made, SPEC)
    assert "\n" not in str(caught.value)
