"""Sets in other people's formats: what is exported comes back as it was, and bad files change nothing."""

import hashlib
import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import command, run

from benchmark_adapters.formats import load_format
from benchmark_adapters.formats.base import load_tensors
from benchmark_adapters.formats.dc_bench import LAYOUTS
from dd_plugins import __version__
from dd_plugins.api import DataError, FolderArtifacts, RawData, UsageError
from dd_plugins.api.format import Exported
from dd_plugins.datasets import build_real_data, load_dataset
from dd_plugins.datasets.zca import whitened
from dd_plugins.seeds import make_generator

CLASSES = 4
PLAIN = ["pt", "imagefolder", "parquet"]
OF_DC_BENCH = [("dc-bench", {"layout": layout}) for layout in LAYOUTS]
ALL = [*((name, {}) for name in PLAIN), *OF_DC_BENCH]


def make_real(name="cifar10", shape=(3, 32, 32)):
    generator = make_generator(0)
    images = torch.randint(0, 256, (48, *shape), generator=generator, dtype=torch.uint8)
    labels = torch.arange(48) % CLASSES
    names = ("a cat", "a/dog", "fish", "bird")
    return build_real_data(name, RawData(images, labels, images[:8], labels[:8], names))


def exported(real, counts=(2, 1, 3, 2), ipc=2):
    targets = torch.arange(CLASSES).repeat_interleave(torch.tensor(counts))
    images = torch.randn(len(targets), *real.spec.image_shape, generator=make_generator(1))
    return Exported(images, targets, real.spec, real.class_names, ipc, {"name": "hmn + idc", "run": "1"})


def _parquet_of(path, label, pixels):
    """Replaces the file of a parquet export by one with these columns."""
    path.unlink()
    with pq.ParquetWriter(path, pa.schema([("label", label.type), ("pixels", pixels.type)])) as writer:
        writer.write_table(pa.table({"label": label, "pixels": pixels}))


@pytest.mark.parametrize("length", [3072, 3071])
def test_a_parquet_file_that_does_not_fit_is_refused_before_it_is_decoded(length, tmp_path, monkeypatch):
    real, form = make_real(), load_format("parquet")
    form.write(exported(real), tmp_path / "set")
    monkeypatch.setattr(pq, "read_table", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr("dd_plugins.api.memory.available_memory", lambda _: 2**26)
    count = 2000  # of zeros, which take a few hundred bytes for each page
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(count * length, np.float32)), length)
    file = tmp_path / "set" / "data" / "train-00000-of-00001.parquet"
    _parquet_of(file, pa.array(np.zeros(count, np.int64)), zeros)
    assert file.stat().st_size < 10**6
    expected = "of memory would be needed" if length == 3072 else "numbers are not 2,000 images"
    with pytest.raises(DataError, match=expected):
        form.read(tmp_path / "set", real)


def test_a_parquet_file_that_is_a_pipe_is_refused(tmp_path):
    form, file = load_format("parquet"), tmp_path / "set" / "data" / "train-00000-of-00001.parquet"
    form.write(exported(make_real()), tmp_path / "set")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match="not a regular file"):
        form.read(tmp_path / "set", make_real())


def test_names_in_a_card_are_text_and_nothing_else(tmp_path):
    score = {"trials": [0.5, 0.6], "protocol": "dsa|<b>", "network": "convnet"}
    notes = {"name": "<script> größer", "scores": [score]}
    load_format("parquet").write(replace(exported(make_real()), notes=notes), tmp_path / "set")
    card = (tmp_path / "set" / "README.md").read_text(encoding="utf-8")
    assert "&lt;script&gt; größer" in card
    assert r"| dsa\|&lt;b&gt; | convnet |" in card
    assert "<" not in card.partition("# A distilled")[2]


# ---- there and back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings"), ALL)
def test_an_import_of_an_export_is_the_identity(name, settings, tmp_path):
    real = make_real()
    out, form = exported(real), load_format(name, settings)
    written = form.write(out, tmp_path / "root")
    assert all(path.exists() for path in written)
    found = form.read(tmp_path / "root", real)
    assert torch.equal(found.targets, out.targets)
    if name in PLAIN:
        assert torch.equal(found.images, out.images)
    else:  # normalised with other constants and back
        torch.testing.assert_close(found.images, out.images, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in PLAIN), ("dc-bench", {"layout": "tm"})])
def test_the_same_for_whitened_sets(name, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("DD_PLUGINS_CACHE", str(tmp_path / "cache"))
    plain = make_real(shape=(3, 8, 8))
    real = whitened(plain, FolderArtifacts(tmp_path / "cache"))
    out, form = exported(real), load_format(name, settings)
    form.write(out, tmp_path / "root")
    found = form.read(tmp_path / "root", real)
    assert torch.equal(found.images, out.images)
    if name in PLAIN:
        with pytest.raises(DataError, match="with fingerprint"):
            form.read(tmp_path / "root", plain)
        (tmp_path / "root/about.json").unlink()
        with pytest.raises(DataError, match="without it nobody knows in which space"):
            form.read(tmp_path / "root", real)
        return
    with pytest.raises(UsageError, match="a whitened set goes into the layout tm alone"):
        load_format("dc-bench").write(out, tmp_path / "dm")
    load_format("dc-bench").write(exported(plain), tmp_path / "plain")
    with pytest.raises(DataError, match="sets of this kind are not whitened"):
        load_format("dc-bench").read(tmp_path / "plain", real)


@pytest.mark.parametrize(("name", "settings"), ALL)
def test_nothing_is_overwritten_and_nothing_is_left_half(name, settings, tmp_path, monkeypatch):
    real, form = make_real(), load_format(name, settings)
    form.write(exported(real), tmp_path / "root")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UsageError, match="is there already; nothing was written"):
        form.write(exported(real), tmp_path / "root")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for place in ("torch.save", "benchmark_adapters.formats.imagefolder.write_tensors", "pyarrow.parquet.write_table"):
        monkeypatch.setattr(place, full)
    with pytest.raises(OSError, match="No space left"):
        form.write(exported(real), tmp_path / "second")
    assert not (tmp_path / "second").exists()
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("place", ["torch.save", "benchmark_adapters.formats.dc_bench.write_about"])
@pytest.mark.parametrize("layout", ["dm", "tm"])
def test_an_interrupted_export_for_dc_bench_leaves_nothing(layout, place, tmp_path, monkeypatch):
    """Stopped behind the first file, or before the one that tells of them."""
    save, saved = torch.save, []

    def stopped(content, path, *_, **__):
        if place == "torch.save" and not saved:
            saved.append(path)
            save(content, path)
            if layout != "dm":  # which has one file
                return
        raise KeyboardInterrupt

    monkeypatch.setattr(place, stopped)
    with pytest.raises(KeyboardInterrupt):
        load_format("dc-bench", {"layout": layout}).write(exported(make_real()), tmp_path)
    assert not list(tmp_path.iterdir())


# ---- what an export for DC-BENCH says of itself ----------------------------------------------------------------------


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bundle_tells_what_the_files_leave_open(layout, tmp_path):
    real = make_real()
    out = exported(real)
    *files, bundle = load_format("dc-bench", {"layout": layout}).write(out, tmp_path)
    assert sorted([*files, bundle]) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert json.loads(bundle.read_text()) == {
        "name": "hmn + idc",
        "run": "1",
        "data": json.loads(json.dumps(real.spec.to_dict())),
        "classes": list(real.class_names),
        "ipc": 2,
        "images_per_class": [2, 1, 3, 2],
        "normalised_with": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]},
        "whitened": False,
        "dd_plugins": __version__,
        "sha256": {path.name: digest(path) for path in files},
    }
    assert real.spec.fingerprint


def test_an_import_needs_no_bundle_but_heeds_one(tmp_path):
    real, form = make_real(), load_format("dc-bench", {"layout": "random"})
    images, labels, bundle = form.write(exported(real), tmp_path)
    told = bundle.read_text()
    torch.save(torch.load(labels, weights_only=True).flip(0), labels)
    for path in (tmp_path, images):
        with pytest.raises(DataError, match=r"CIFAR10_IPC2_normalize_labels.pt changed after the export") as caught:
            form.read(path, real)
        assert "normalize_images" not in str(caught.value)
        assert "\n" not in str(caught.value)
    for damaged in ("{", "[]", json.dumps({**json.loads(told), "data": {}})):
        bundle.write_text(damaged)
        with pytest.raises(DataError, match=r"bundle.json: .*damaged"):
            form.read(tmp_path, real)
    bundle.write_text(json.dumps({**json.loads(told), "sha256": "none"}))
    with pytest.raises(DataError, match="changed after the export"):
        form.read(tmp_path, real)
    bundle.unlink()
    assert torch.equal(form.read(tmp_path, real).targets, exported(real).targets.flip(0))


def test_a_bundle_tells_in_which_space_the_images_are(tmp_path):
    plain, form = make_real(shape=(3, 8, 8)), load_format("dc-bench", {"layout": "tm"})
    white = whitened(plain, FolderArtifacts(tmp_path / "cache"))
    (*_, bundle) = form.write(exported(white), tmp_path / "white")
    about = json.loads(bundle.read_text())
    assert (about["whitened"], about["normalised_with"]) == (True, None)
    form.write(exported(plain), tmp_path / "plain")
    with pytest.raises(DataError, match="the set is whitened: import it with"):
        form.read(tmp_path / "white", plain)
    with pytest.raises(DataError, match="the set is not whitened: import it without"):
        form.read(tmp_path / "plain", white)


# ---- a set in shards -------------------------------------------------------------------------------------------------


def in_shards(real):
    return exported(real, counts=(4, 1, 3, 4), ipc=50)


def test_a_set_in_shards_comes_back_as_it_was(tmp_path):
    real, form = make_real("tiny-imagenet", (3, 64, 64)), load_format("dc-bench", {"layout": "tm"})
    out = in_shards(real)
    *files, bundle = form.write(out, tmp_path)
    assert list(json.loads(bundle.read_text())["sha256"].values()) == [digest(path) for path in sorted(files)]
    for path in (tmp_path, bundle.parent, files[0], files[3]):
        found = form.read(path, real)
        assert torch.equal(found.targets, out.targets)
        torch.testing.assert_close(found.images, out.images, atol=2e-6, rtol=0)
    sizes = [path.stat().st_size for path in files[:5]]
    assert max(sizes) < 3.5 * 3 * 64 * 64 * 4  # each holds its own images alone


def test_shards_that_do_not_make_a_set_are_refused(tmp_path):
    real, form = make_real("tiny-imagenet", (3, 64, 64)), load_format("dc-bench", {"layout": "tm"})
    *files, bundle = form.write(in_shards(real), tmp_path)
    last = torch.load(files[4], weights_only=True)
    torch.save(last.flip(0), files[4])
    with pytest.raises(DataError, match=r"IPC50: images_best_4.pt changed after the export"):
        form.read(tmp_path, real)
    bundle.unlink()
    torch.save(last[..., :32], files[4])
    with pytest.raises(DataError, match=r"images_best_0.pt and its 4 other shards are no parts of one tensor"):
        form.read(tmp_path, real)
    files[4].unlink()
    with pytest.raises(DataError, match=r"images_best_4.pt: no such file"):
        form.read(tmp_path, real)


# ---- layouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "files"),
    [
        ("dm", ["DM/CIFAR10/IPC2/res_DM_CIFAR10_ConvNet_2ipc.pt"]),
        ("dsa", ["DSA/CIFAR10/IPC2/res_DSA_CIFAR10_ConvNet_2ipc.pt"]),
        ("tm", ["TM/CIFAR10/IPC2/images_best.pt", "TM/CIFAR10/IPC2/labels_best.pt"]),
        (
            "random",
            [f"random/CIFAR10/IPC2/CIFAR10_IPC2_normalize_{part}.pt" for part in ("images", "labels")],
        ),
        ("kmeans", [f"Kmeans/CIFAR10/IPC2/CIFAR10_IPC2_{part}.pt" for part in ("images", "labels")]),
    ],
)
def test_dc_bench_finds_its_files_and_constants(layout, files, tmp_path):
    """Read as its documentation says: by path, with plain torch, normalised with its own constants."""
    real = make_real()
    out = exported(real)
    load_format("dc-bench", {"layout": layout}).write(out, tmp_path)
    folder = tmp_path / "distilled_results"
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.pt")) == sorted(files)
    if len(files) == 1:
        images, labels = torch.load(folder / files[0], weights_only=True)["data"][-1]
    else:
        images, labels = (torch.load(folder / file, weights_only=True) for file in files)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, out.targets)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
    torch.testing.assert_close(images * std + mean, real.spec.denormalize(out.images), atol=1e-5, rtol=0)


def test_dc_bench_says_what_it_does_not_know(tmp_path):
    with pytest.raises(UsageError, match="DC-BENCH does not know the data set digits; it knows cifar10, cifar100"):
        load_format("dc-bench").write(exported(make_real("digits", (1, 8, 8))), tmp_path)
    with pytest.raises(UsageError, match=r"format\.layout = 'mtt'.*'dc', 'dsa', 'dm', 'tm', 'random' or 'kmeans'"):
        load_format("dc-bench", {"layout": "mtt"}).write(exported(make_real()), tmp_path)
    assert not list(tmp_path.iterdir())
    real = make_real()
    for layout in ("dm", "tm"):
        load_format("dc-bench", {"layout": layout}).write(exported(real), tmp_path)
    with pytest.raises(
        DataError, match=r"expected one set of cifar10 below a folder CIFAR10, but found .*DM.*TM.*; name its file"
    ):
        load_format("dc-bench").read(tmp_path, real)
    assert len(load_format("dc-bench").read(tmp_path / "distilled_results/TM", real).targets) == 8


def test_dc_bench_finds_its_shards(tmp_path):
    """As its documentation says: the set of TM for tinyimagenet at IPC 50, and no other one, lies in five pairs."""
    real = make_real("tiny-imagenet", (3, 64, 64))
    out = in_shards(real)
    load_format("dc-bench", {"layout": "tm"}).write(out, tmp_path)
    folder = tmp_path / "distilled_results/TM/tinyimagenet/IPC50"
    names = [f"{part}_best_{shard}.pt" for part in ("images", "labels") for shard in range(5)]
    assert sorted(path.name for path in folder.glob("*.pt")) == names
    held = [torch.load(folder / name, weights_only=True) for name in names]
    assert [len(images) for images in held[:5]] == [len(labels) for labels in held[5:]]
    images, labels = torch.cat(held[:5]), torch.cat(held[5:])
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(labels, out.targets)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(images * std + mean, real.spec.denormalize(out.images), atol=1e-5, rtol=0)
    load_format("dc-bench", {"layout": "tm"}).write(exported(real, ipc=10), tmp_path)
    load_format("dc-bench").write(out, tmp_path)
    found = {str(path.relative_to(tmp_path / "distilled_results")) for path in tmp_path.rglob("*.pt")}
    assert found - {f"TM/tinyimagenet/IPC50/{name}" for name in names} == {
        "TM/tinyimagenet/IPC10/images_best.pt",
        "TM/tinyimagenet/IPC10/labels_best.pt",
        "DM/tinyimagenet/IPC50/res_DM_tinyimagenet_ConvNetD4_50ipc.pt",
    }


def test_pictures_are_those_of_an_image_folder(tmp_path):
    real = make_real()
    out = exported(real)
    load_format("imagefolder").write(out, tmp_path / "set")
    files = sorted((tmp_path / "set/train").glob("*/*.png"))
    assert [file.parent.name for file in files][::3] == ["a cat", "bird", "fish"]
    shown = np.asarray(Image.open(files[0]))
    expected = real.spec.denormalize(out.images)[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    assert np.abs(shown - expected).max() <= 0.5 + 1e-3


def test_parquet_has_the_columns_and_the_card_of_a_hub_data_set(tmp_path):
    real = make_real()
    load_format("parquet").write(exported(real), tmp_path / "set")
    table = pq.read_table(tmp_path / "set/data/train-00000-of-00001.parquet")
    assert table.column_names == ["image", "label", "pixels"]
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"_type": "ClassLabel", "names": list(real.class_names)}
    card = (tmp_path / "set/README.md").read_text()
    assert card.startswith("---\n")
    assert "{" not in card
    assert "reshape(-1, 3, 32, 32)" in card
    assert (
        "8 synthetic images of 4 classes, made from cifar10 by hmn + idc within a budget of 2 images per class" in card
    )


# ---- published sets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("kind", ["dc", "mtt", "ddranking", "dc-bench"])
def test_published_sets_come_in_with_their_own_constants(kind, dataset, tmp_path):
    ten = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    hundred = ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
    mean, std = hundred if dataset == "cifar100" and kind in ("dc", "dc-bench") else ten
    real = make_real(dataset)
    pixels = torch.rand(8, 3, 32, 32, generator=make_generator(2))
    images = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    labels = torch.arange(4).repeat_interleave(2)
    if kind in ("dc", "dc-bench"):
        path = tmp_path / "res_DM_X_ConvNet_2ipc.pt"
        earlier = [torch.zeros_like(images), labels]
        scores = {"ConvNet": [np.float64(0.5), np.float32(0.25)]}  # as the released code stores them
        torch.save({"data": [earlier, [images, labels]], "accs_all_exps": scores}, path)
    else:
        path = tmp_path
        for part, tensor in (("images", images), ("labels", labels)):
            torch.save(tensor, path / (f"{part}_best.pt" if kind == "mtt" else f"{part}.pt"))
    found = load_format(kind).read(path, real)
    torch.testing.assert_close(real.spec.denormalize(found.images), pixels, atol=1e-5, rtol=0)


def test_numbers_of_an_older_numpy_are_let_through(tmp_path):
    """Published files name numpy's scalar where numpy 1 had it."""
    images, labels = torch.randn(8, 3, 32, 32, generator=make_generator(0)), torch.arange(4).repeat_interleave(2)
    path = tmp_path / "res_x.pt"
    torch.save({"data": [[images, labels]], "accs": [np.float64(0.5)]}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"numpy._core.multiarray\nscalar" in content
    path.write_bytes(content.replace(b"numpy._core.multiarray\nscalar", b"numpy.core.multiarray\nscalar"))
    assert len(load_format("dc").read(path, make_real()).targets) == 8


class Payload:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path):
    for name, write in (("new.pt", torch.save), ("old.pt", lambda value, path: path.write_bytes(pickle.dumps(value)))):
        write({"data": [[Payload(), torch.zeros(2)]]}, tmp_path / name)
        with pytest.raises(DataError, match="holds more than tensors, and nothing in it was run") as caught:
            load_tensors(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"text"])
def test_damaged_files_are_one_line(content, tmp_path):
    path = tmp_path / "res_DM_X_ConvNet_2ipc.pt"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_format("dc").read(path, make_real())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "labels", "told"),
    [
        (torch.zeros(8, 3, 28, 28), torch.arange(8) % 4, r"images of shape \(8, 3, 28, 28\), but those of cifar10"),
        (torch.full((8, 3, 32, 32), float("nan")), torch.arange(8) % 4, "NaN or infinite"),
        (torch.zeros(8, 3, 32, 32), torch.arange(7) % 4, "8 images, but labels of shape"),
        (torch.zeros(8, 3, 32, 32), torch.arange(8), "labels from 0 to 7 for 4 classes"),
        (torch.zeros(8, 3, 32, 32), torch.arange(8) % 4 - 1, "labels from -1 to 2 for 4 classes"),
        (torch.zeros(8, 3, 32, 32), torch.arange(8) % 3, r"no image of class 3 \(bird\)"),
        (torch.zeros(8, 3, 32, 32), torch.full((8, 4), 0.25), "soft labels"),
        (torch.zeros(8, 3, 32, 32), torch.full((8,), 0.5), "no whole numbers"),
        (torch.zeros(8, 3, 32, 32), [0] * 8, "expected two tensors"),
        (torch.zeros(8, 3, 32, 32), torch.tensor([0, 1, 2, 3, 0, 1, 2, 10**12]), "labels from 0 to 1000000000000"),
        (torch.zeros(0, 3, 32, 32), torch.zeros(0), "no image"),
        (torch.zeros(8, 3, 32, 32).to_sparse(), torch.arange(8) % 4, "sparse"),
    ],
)
def test_sets_of_other_shapes_and_labels_are_refused(images, labels, told, tmp_path):
    torch.save({"data": [[images, labels]]}, tmp_path / "res_x.pt")
    with pytest.raises(DataError, match=told):
        load_format("dc").read(tmp_path / "res_x.pt", make_real())


def test_unknown_formats_and_data_sets_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"unknown format 'zip' \(installed: dc, dc-bench"):
        load_format("zip")
    torch.save({"data": [[torch.zeros(4, 1, 8, 8), torch.arange(4)]]}, tmp_path / "res_x.pt")
    with pytest.raises(DataError, match="what images of digits were normalised with is not known"):
        load_format("dc").read(tmp_path / "res_x.pt", make_real("digits", (1, 8, 8)))
    for name in ("dc", "mtt", "ddranking"):
        with pytest.raises(UsageError, match="is for import only"):
            load_format(name).write(exported(make_real()), tmp_path / "new")


# ---- the commands --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return out, run(out)


@pytest.mark.parametrize("name", PLAIN)
def test_a_run_goes_out_and_comes_in_as_a_run(name, finished, tmp_path, capsys):
    out, record = finished
    assert command("export", record["id"], "--to", name, "--root", tmp_path / "set", "--out", out) == 0
    assert str(tmp_path / "set") in capsys.readouterr().out
    words = ["--from", name, "--dataset", "digits", "--name", "back", "--out", tmp_path / "runs"]
    assert command("import", tmp_path / "set", *words) == 0
    printed = capsys.readouterr().out
    (folder,) = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert f"run {folder.name}: back, {sum(record['images_per_class'])} images" in printed
    stored = load_file(folder / "synthetic.safetensors")["images"]
    from dd_plugins.engine.distilled import load_stored

    with torch.no_grad():
        decoded = load_stored(out / record["id"] / "synthetic.safetensors").decode()
    assert torch.equal(stored, decoded)
    sets = ["--set", "protocol.network.width=8", "--set", "protocol.train.epochs=5", "--trials", "2"]
    assert command("eval", folder.name, *sets, "--out", tmp_path / "runs", "--device", "cpu") == 0
    found = json.loads((folder / "record.json").read_text())
    (score,) = found["scores"]
    (own,) = record["scores"]
    assert score["trials"] == own["trials"]  # the same images under the same protocol
    assert found["name"] == "back"


def test_an_export_says_which_run_it_is_of(finished, tmp_path):
    out, record = finished
    assert command("export", record["id"], "--to", "pt", "--root", tmp_path / "set", "--out", out) == 0
    about = json.loads((tmp_path / "set/about.json").read_text())
    assert (about["run"], about["name"], about["config"]) == (record["id"], record["name"], record["config"])
    assert about["storage"] == {part: record["storage"][part] for part in ("elements", "bytes", "budget")}


def test_an_interrupted_export_says_that_nothing_was_written(finished, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    out, record = finished
    monkeypatch.setattr("benchmark_adapters.runs.exchange.open_set", interrupted)
    assert command("export", record["id"], "--to", "pt", "--root", tmp_path / "x", "--out", out) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err


def test_mistakes_are_one_line_and_leave_nothing(finished, tmp_path, capsys):
    out, record = finished
    real = load_dataset("digits")
    torch.save({"data": [[real.test.images()[:20], real.test.labels[:20]]]}, tmp_path / "res_x.pt")
    for words, told in (
        (["export", record["id"], "--to", "zip", "--root", tmp_path / "x", "--out", out], "unknown format"),
        (["export", record["id"], "--to", "dc-bench", "--root", tmp_path / "x", "--out", out], "does not know"),
        (["export", "0123456789", "--to", "pt", "--root", tmp_path / "x", "--out", out], "0123456789"),
        (["import", tmp_path / "res_x.pt", "--from", "dc", "--ipc", 0, "--out", tmp_path / "y"], "--ipc"),
        (["import", tmp_path, "--from", "dc", "--out", tmp_path / "y"], "is a folder; name its file"),
        (["import", tmp_path / "nothing", "--from", "pt", "--out", tmp_path / "y"], "no such file"),
        (["import", tmp_path / "res_x.pt", "--from", "dc", "--out", tmp_path / "y"], "is not known"),
    ):
        assert command(*words) in (1, 2)
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1 or "--ipc" in error  # that one is typer's own
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()
