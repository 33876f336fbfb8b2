"""How runs use a data set: few real images, data sets that are known by name, and the names that are shown."""

import json
from dataclasses import replace

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from made_up import make_real
from PIL import Image
from tiny_runs import command, run

from benchmark_adapters.report.comparison import entries
from benchmark_adapters.report.comparison import rows as comparison_rows
from benchmark_adapters.report.references import published
from benchmark_adapters.report.summary import rows as summary_rows
from benchmark_adapters.runs.identity import compute_run_id
from benchmark_adapters.runs.notes import few_images, general_settings
from benchmark_adapters.yardsticks import random_subset
from dd_plugins.api import ConfigError, RawData, StorageBudget, UnknownPluginError, UsageError
from dd_plugins.datasets import build_real_data, load_dataset
from dd_plugins.datasets.digits import Digits
from dd_plugins.engine.config import resolve
from dd_plugins.parameterizations.real import Real
from dd_plugins.seeds import make_generator, seed_for

CPU = torch.device("cpu")
SMALL = ["network.width=4", "protocol.network.width=4", "protocol.train.epochs=1", "protocol.trials=1"]
WORDS = ["--device", "cpu", *(f"--set={text}" for text in SMALL)]
FEW = "1 of 3 classes has fewer training images (validation images not counted) than "


def write_folder(path, counts, shape=(8, 8), seed=0):
    """Images of noise: for each class so many to train on, and two to test."""
    noise = numpy.random.default_rng(seed)
    for label, count in enumerate(counts):
        for split, images in (("train", count), ("test", 2)):
            where = path / split / f"class-{label}"
            where.mkdir(parents=True)
            for number in range(images):
                Image.fromarray(noise.integers(0, 256, shape, dtype=numpy.uint8)).save(where / f"{number}.png")
    return f"folder:{path}"


def write_parquet(path, classes=10, count=3, shape=(32, 32, 3)):
    """Images of noise as raw PNG, class by class, in both splits."""
    noise = numpy.random.default_rng(0)
    path.mkdir(parents=True)
    for split in ("train", "test"):
        contents, labels = [], [label for label in range(classes) for _ in range(count)]
        for row in range(len(labels)):
            file = path / f"{row}.png"
            Image.fromarray(noise.integers(0, 256, shape, dtype=numpy.uint8)).save(file)
            contents.append({"bytes": file.read_bytes(), "path": None})
            file.unlink()
        pq.write_table(pa.table({"image": contents, "label": labels}), path / f"{split}.parquet")
    return f"parquet:{path}"


def uneven(*counts):
    """A data set with so many training images of each class, apart from one each for validation."""
    labels = torch.cat([torch.full((count + 1,), label) for label, count in enumerate(counts)])
    images = torch.randint(0, 256, (len(labels), 1, 8, 8), dtype=torch.uint8, generator=make_generator(0))
    names = tuple(f"class {label}" for label in range(len(counts)))
    return build_real_data("uneven", RawData(images, labels, images[:2], labels[:2], names))


def flat(text):
    return " ".join(text.split())


# ---- fewer real images than the budget -----------------------------------------------------------------------------


def test_the_warning_names_the_classes_and_what_asks_for_more():
    real = uneven(2, 4, 9)
    assert real.train.class_sizes() == [2, 4, 9]
    assert few_images(real, 2, [2, 2, 2]) == ""
    assert few_images(real, 3, [3, 3, 3]).startswith(f"{FEW}an IPC of 3: 'class 0' (2); ")
    decoded = few_images(real, 1, [3, 3, 3])
    assert decoded.startswith(f"{FEW}the 3 images decoded per class: 'class 0' (2); ")
    assert "random real" not in decoded  # which has as many as the budget says
    both = few_images(real, 3, [6, 6, 6])
    assert "2 of 3 classes have" in both
    assert "than an IPC of 3 or the 6 images decoded per class: 'class 0' (2), 'class 1' (4); " in both
    assert "exceeds the whole training split" not in both
    assert "the budget exceeds the whole training split" in few_images(real, 6, [6, 6, 6])


def test_of_many_classes_the_first_ten_are_named():
    told = few_images(uneven(*[2] * 12), 3)
    assert "'class 9' (2) and 2 more" in told
    assert "'class 10'" not in told


@pytest.fixture
def few(tmp_path):
    """The flags of a command on three classes, one of which has two training images."""
    dataset = write_folder(tmp_path / "data", (3, 9, 12))
    return ["--dataset", dataset, "--ipc", "4", "--no-full-data", *WORDS, "--out", tmp_path / "runs"]


def test_a_run_and_its_plan_warn_once(few, capsys):
    for more in (["--dry-run"], ["--steps", "1"], ["--steps", "1"]):  # the last one is only read
        assert command("run", "--method", "dm", *few, *more) == 0
        assert flat(capsys.readouterr().out).count(f"{FEW}an IPC of 4: 'class-0' (2); ") == 1


def test_a_comparison_and_its_plan_warn_once(few, capsys):
    for more in (["--dry-run"], []):
        assert command("compare", "--methods", "dm,dc", *few, "--steps", "1", *more) == 0
        assert flat(capsys.readouterr().out).count(f"{FEW}an IPC of 4: 'class-0' (2); ") == 1


def test_coresets_and_references_warn(tmp_path, capsys):
    dataset = write_folder(tmp_path / "data", (3, 9, 12))
    where = ["--dataset", dataset, *WORDS, "--out", tmp_path / "runs"]
    assert command("yardsticks", *where, "--no-full-data", "--ipc", "4") == 0
    assert f"{FEW}an IPC of 4: 'class-0' (2)" in flat(capsys.readouterr().out)
    assert command("prune", *where, "--keep", "0.6", "--strategy", "random") == 0
    assert f"{FEW}an IPC of 5: 'class-0' (2)" in flat(capsys.readouterr().out)  # 60 % of 21 images
    (stored,) = tmp_path.glob("runs/*/synthetic.safetensors")
    assert command("eval", stored.parent, "--out", tmp_path / "runs", *WORDS[:2]) == 0
    assert f"{FEW}an IPC of 5: 'class-0' (2)" in flat(capsys.readouterr().out)


def test_a_random_reference_has_every_image_once():
    real = uneven(2, 4, 9)
    drawn = random_subset(real, 5, 0, CPU)
    assert torch.bincount(drawn.targets).tolist() == [2, 4, 5]
    assert len(drawn.images.flatten(1).unique(dim=0)) == 11
    assert drawn.ledger.elements == 11 * 64  # what is there, not the budget


def test_a_random_reference_of_even_classes_is_the_draw_it_was():
    real = make_real(classes=3, shape=(1, 8, 8), count=10)
    rows = real.train.per_class(4, make_generator(seed_for("random subset", 7)))
    drawn = random_subset(real, 4, 7, CPU)
    assert torch.equal(drawn.images, real.train.images(rows.flatten()))
    assert drawn.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_reference_of_fewer_images_is_not_one_that_was_kept_with_repeated_ones(tmp_path):
    dataset = write_folder(tmp_path / "data", (3, 9, 12))
    flags = {"method": "dm", "dataset": dataset, "ipc": 4, "steps": 0, "protocol": "dsa"}
    record = run(tmp_path / "runs", flags, SMALL, full_data=False)
    (reference,) = record["yardsticks"]
    assert reference["images_per_class"] == [2, 4, 4]
    (folder,) = (tmp_path / "runs" / "yardsticks").iterdir()
    real = load_dataset(dataset)
    assert folder.name != digest_of(["random real", real.spec.fingerprint, 4, reference["protocol_hash"], {"seed": 0}])


def digest_of(identity):
    from hashlib import sha256

    return sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


def test_a_reference_that_no_class_is_large_enough_for_is_refused(tmp_path, capsys):
    assert command("yardsticks", "--ipc", "2000", "--out", tmp_path, "--device", "cpu") == 2
    error = capsys.readouterr().err
    largest = max(load_dataset("digits").train.class_sizes())
    assert error.startswith(f"dd-bench: --ipc 2000: expected at most {largest}, ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_stored_real_images_are_not_repeated():
    real = uneven(2, 4, 9)
    container = Real(real.spec, StorageBudget.ipc(real.spec, 3))
    with pytest.raises(UsageError, match="2 of 3"):
        container.reset(make_generator(0), real)
    fewer = Real(real.spec, StorageBudget.ipc(real.spec, 3), counts=[2, 3, 3])
    fewer.reset(make_generator(0), real)
    assert len(fewer.decode().flatten(1).unique(dim=0)) == 8


# ---- data sets that are known by name ------------------------------------------------------------------------------


def test_data_as_is_the_named_data_set(tmp_path):
    elsewhere = write_parquet(tmp_path / "elsewhere")
    write_parquet(tmp_path / "root" / "cifar10")
    named = load_dataset("cifar10", tmp_path / "root", cache=tmp_path / "cache")
    plain = load_dataset(elsewhere, cache=tmp_path / "cache")
    known = load_dataset(elsewhere, cache=tmp_path / "cache", config={"as": "cifar10"})
    assert known.spec == replace(named.spec, origin="parquet:elsewhere, as cifar10")
    assert known.spec.fingerprint != plain.spec.fingerprint
    assert (known.spec.mean, known.spec.name) == ((0.4914, 0.4822, 0.4465), "cifar10")


def test_data_as_applies_mirroring_unless_it_is_set(tmp_path):
    dataset = write_folder(tmp_path / "numbers", [4] * 10)
    given = ({}, {"as": "digits"}, {"as": "digits", "mirror": True}, {"as": "digits", "zca": True})
    loaded = [load_dataset(dataset, cache=tmp_path, config=each).spec for each in given]
    assert [spec.mirror for spec in loaded] == [True, False, True, False]
    assert [spec.whitened for spec in loaded] == [False, False, False, True]
    assert [spec.origin for spec in loaded[::3]] == ["folder", "folder:numbers, as digits, ZCA"]
    assert loaded[0].mean == loaded[1].mean  # digits have no published ones


@pytest.mark.parametrize(
    ("known", "error", "told"),
    [
        ("digits", ConfigError, r"expected 10 classes of images \(1, 8, 8\), but folder:.* has 10 classes of images"),
        ("cifar100", ConfigError, "expected 100 classes"),
        ("cifr10", UnknownPluginError, "did you mean cifar10"),
        ("folder:x", ConfigError, "fixed classes"),
        (5, ConfigError, "expected the name of a data set"),
        (True, ConfigError, "expected the name of a data set"),
        ("", ConfigError, "expected the name of a data set"),
    ],
)
def test_data_as_is_refused_in_one_line(known, error, told, tmp_path):
    dataset = write_folder(tmp_path / "images", [2] * 10, shape=(32, 32, 3))
    with pytest.raises(error, match=told) as refused:
        load_dataset(dataset, cache=tmp_path, config={"as": known})
    assert "\n" not in str(refused.value)


def test_conventions_are_those_of_what_is_read():
    real = load_dataset("digits")
    found = Digits().conventions()
    assert (found.num_classes, found.image_shape, found.mirror) == (10, real.spec.image_shape, real.spec.mirror)


@pytest.mark.parametrize("method", ["dsa", "mtt", "hmn"])
def test_data_as_gives_the_settings_of_the_method(method):
    named = resolve({"method": method, "dataset": "cifar10", "ipc": 10})
    known = resolve({"method": method, "dataset": "parquet:x/y", "ipc": 10}, ["data.as=CIFAR10"])
    general = resolve({"method": method, "dataset": "parquet:x/cifar10", "ipc": 10})
    assert known.data == {**named.data, "as": "cifar10"}
    assert known.known_as == "cifar10"
    same = {"dataset": "cifar10", "data": named.data}
    assert known.model_copy(update=same) == named
    if method == "mtt":
        assert general.model_copy(update=same) != named
    assert compute_run_id(known, "content") == compute_run_id(named, "content")  # of the same content


def test_data_as_digits_has_the_short_protocol():
    assert resolve({"dataset": "folder:x"}, ["data.as=digits"]).protocol.name == "quick"
    assert resolve({"dataset": "folder:x/digits"}).protocol.name == "dsa"


def test_general_settings_are_told_where_the_name_suggests_others(tmp_path):
    dataset = write_folder(tmp_path / "CIFAR-10", [2] * 10, shape=(32, 32, 3))
    real = load_dataset(dataset, cache=tmp_path)
    told = general_settings(resolve({"method": "mtt", "dataset": dataset}), real)
    assert "general settings of mtt" in told
    assert told.endswith("--set data.as=cifar10 applies those of cifar10")
    assert general_settings(resolve({"method": "mtt", "dataset": dataset}, ["data.as=cifar10"]), real) == ""
    assert general_settings(resolve({"method": "mtt", "dataset": "digits"}), load_dataset("digits")) == ""
    other = write_folder(tmp_path / "other" / "cifar10", [2] * 3, shape=(32, 32, 3))  # no cifar10
    assert general_settings(resolve({"dataset": other}), load_dataset(other, cache=tmp_path)) == ""


def test_tables_tell_data_with_and_without_the_settings_apart(tmp_path):
    dataset = write_folder(tmp_path / "digits", [3] * 10)
    flags = {"method": "dm", "dataset": dataset, "steps": 1, "protocol": "quick"}
    plain = run(tmp_path / "runs", flags, SMALL, full_data=False)
    known = run(tmp_path / "runs", flags, [*SMALL, "data.as=digits"], full_data=False)
    assert plain["id"] != known["id"]
    names = {row[0] for row in summary_rows([plain, known])}
    assert names == {"digits (folder)", "digits (folder:digits, as digits)"}


def test_published_results_stand_next_to_what_is_known_by_name(tmp_path):
    record = run(tmp_path, {"method": "dm", "steps": 1}, SMALL, full_data=False)
    record["data"]["name"] = "cifar10"
    protocol, shown = resolve({"method": "dm"}, SMALL).protocol, []
    for dataset, data in (("cifar10", {}), ("folder:x", {"as": "cifar10"}), ("folder:x/cifar10", {})):
        record["config"] |= {"dataset": dataset, "data": data}
        shown += [row[-1] for row in comparison_rows(entries({"dm": [record]}, protocol), protocol) if row[0] == "dm"]
    known = f"{published('dm', 'cifar10', 1).percent:.1f} "
    assert [cell.startswith(known) for cell in shown] == [True, True, False]


def test_settings_that_every_data_set_has_are_listed(capsys):
    assert command("list", "dataset", "digits") == 0
    told = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert [line for line in told if line[0].startswith("data.")] == [["data.as", "null"], ["data.zca", "false"]]


# ---- equal content under several names -----------------------------------------------------------------------------


def test_equal_content_is_shown_under_the_name_that_was_asked_for(tmp_path, capsys):
    one = write_folder(tmp_path / "one", [3] * 3)
    other = write_folder(tmp_path / "other", [3] * 3)
    words = ["--method", "dm", "--steps", "1", "--no-full-data", *WORDS, "--out", tmp_path / "runs"]
    for dataset, name in ((one, "one"), (other, "other"), (one, "one")):
        assert command("run", "--dataset", dataset, *words) == 0
        assert f"{name} (folder), IPC 1" in flat(capsys.readouterr().out)
        (file,) = tmp_path.glob("runs/*/record.json")
        (reference,) = tmp_path.glob("runs/yardsticks/*/record.json")
        for record in (json.loads(file.read_text()), json.loads(reference.read_text())):
            assert (record["data"]["name"], record["config"]["dataset"]) == (name, dataset)
        assert yaml.safe_load((file.parent / "config.yaml").read_text())["dataset"] == dataset


def test_a_stored_set_is_scored_on_equal_content_under_its_own_name(tmp_path, capsys):
    one, other = (write_folder(tmp_path / name, [3] * 10) for name in ("one", "other"))
    record = run(tmp_path / "runs", {"method": "dm", "dataset": one, "steps": 1}, [*SMALL, "data.as=digits"])
    words = ["eval", tmp_path / "runs" / record["id"], "--out", tmp_path / "runs", *WORDS[:2]]
    for more, shown in (([], "folder:one"), (["--dataset", other], "folder:other")):
        assert command(*words, *more) == 0
        assert f"digits ({shown}, as digits), IPC 1, protocol quick" in flat(capsys.readouterr().out)
