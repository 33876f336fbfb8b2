"""ZCA whitening of a data set against numpy's eigenvectors."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from made_up import make_real

from dd_plugins.api import ConfigError, DataError, FolderArtifacts, write_tensors
from dd_plugins.datasets import load_dataset
from dd_plugins.datasets import zca as module
from dd_plugins.datasets.zca import whitened


@pytest.fixture(scope="module")
def real():
    return make_real(classes=4, shape=(2, 5, 5), count=60)


def test_whitened_images_equal_the_closed_form(real, tmp_path):
    made = whitened(real, FolderArtifacts(tmp_path))
    x = real.train.pixels[real.train.index].flatten(1).double().numpy() / 255
    values, vectors = np.linalg.eigh(np.cov(x.T))
    matrix = vectors @ np.diag((values + 0.1) ** -0.5) @ vectors.T
    for split, own in ((made.train, real.train), (made.test, real.test), (made.validation, real.validation)):
        y = own.pixels[own.index].flatten(1).double().numpy() / 255
        found = split.images().flatten(1).double().numpy()
        np.testing.assert_allclose(found, (y - x.mean(0)) @ matrix, atol=2e-5)


def test_unit_pixels_reach_all_training_images(real, tmp_path):
    made = whitened(real, FolderArtifacts(tmp_path))
    unit = made.spec.denormalize(made.train.images())
    assert float(unit.min()) >= 0
    assert float(unit.max()) <= 1
    assert max(float(unit.max()), 1 - float(unit.min())) == pytest.approx(1)


def test_another_space_is_another_data_set(real, tmp_path):
    made = whitened(real, FolderArtifacts(tmp_path))
    assert made.spec.fingerprint != real.spec.fingerprint
    assert "ZCA" in made.spec.origin
    assert torch.equal(made.train.labels, real.train.labels)
    again = whitened(real, FolderArtifacts(tmp_path))  # from the cache
    assert torch.equal(again.train.pixels, made.train.pixels)
    (file,) = tmp_path.glob("zca-*.safetensors")
    file.write_bytes(b"damaged")
    torch.testing.assert_close(whitened(real, FolderArtifacts(tmp_path)).train.pixels, made.train.pixels)
    for matrix in (torch.eye(3), torch.eye(50, dtype=torch.float64)):  # of other images, of another type
        write_tensors(file, {"matrix": matrix, "mean": torch.zeros(1, len(matrix))}, {})
        torch.testing.assert_close(whitened(real, FolderArtifacts(tmp_path)).train.pixels, made.train.pixels)


def test_settings(tmp_path, monkeypatch):
    plain = load_dataset("digits", cache=tmp_path)
    made = load_dataset("digits", cache=tmp_path, config={"zca": True})
    assert plain.spec.fingerprint != made.spec.fingerprint
    assert load_dataset("digits", cache=tmp_path, config={"zca": False}).spec == plain.spec
    with pytest.raises(ConfigError, match=r"data\.zca"):
        load_dataset("digits", cache=tmp_path, config={"zca": "yes"})
    monkeypatch.setattr(module, "MOST", 10)
    with pytest.raises(DataError, match="too large to whiten"):
        load_dataset("digits", cache=tmp_path, config={"zca": True})


def test_two_that_need_the_matrix_fit_it_once(real, tmp_path, monkeypatch):
    fitted, fit = [], module._fit

    def slow(real):
        fitted.append(real)
        time.sleep(0.5)
        return fit(real)

    monkeypatch.setattr(module, "_fit", slow)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: whitened(real, FolderArtifacts(tmp_path)).train.pixels, range(2))
    assert len(fitted) == 1
    assert torch.equal(one, other)
