"""Layouts as users have them: clones of the Hugging Face hub, folders without a split, labels of any type."""

import json
import logging
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_datasets import encode, load, make_images, write_parquet
from tiny_runs import run

from dd_plugins.api import ConfigError, DataError
from dd_plugins.datasets import load_dataset
from dd_plugins.datasets.layout import VALIDATION_AS_TEST, parquet_splits, split_of

TRAIN = [0, 1, 2] * 4
TEST = [0, 1, 2]


def contents(count, seed=0):
    return [encode(image) for image in make_images(count, seed)]


def write_table(path, metadata=None, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def write_splits(folder, train=TRAIN, test=TEST, column="label", names=("train.parquet", "test.parquet"), **more):
    """One file per split; the labels are a list or a pyarrow array."""
    for name, labels, seed in ((names[0], train, 0), (names[1], test, 1)):
        columns = {key: value[: len(labels)] for key, value in more.items()}
        write_table(folder / name, image=contents(len(labels), seed), **{column: labels}, **columns)
    return folder


def labels_by_file(real):
    """Labels of all training rows (train and validation) in the order of the file, and those of the test split."""
    rows = torch.cat([real.train.index, real.validation.index])
    labels = torch.cat([real.train.labels, real.validation.labels])
    return labels[rows.argsort()].tolist(), real.test.labels.tolist()


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001", "train"),
        ("my-set_test-0", "test"),
        ("validation", "validation"),
        ("valid", "validation"),
        ("val", "validation"),
        ("Dev", "validation"),
        ("testing.2", "test"),
        ("trainset", "train"),
        ("latest", None),
        ("constrained", None),
        ("0000", None),
    ],
)
def test_words_in_names_tell_the_split(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("train/0000.parquet", "validation/0000.parquet"),
        ("data/cifar-train.parquet", "data/cifar-valid.parquet"),
        ("train.parquet", "val.parquet"),
    ],
)
def test_layouts_of_the_hub_load_as_the_plain_one(tmp_path, names):
    plain, hub = write_splits(tmp_path / "plain"), write_splits(tmp_path / "hub", names=names)
    expected, found = load(f"parquet:{plain}", tmp_path), load(f"parquet:{hub}", tmp_path)
    assert found.spec.fingerprint == expected.spec.fingerprint
    assert found.notes == (() if "test" in names[1] else (VALIDATION_AS_TEST,))


def test_several_configurations_are_listed_and_one_is_chosen(tmp_path):
    for seed, config in enumerate(("large", "small")):
        write_splits(
            tmp_path / "set", TRAIN[seed * 3 :], names=(f"{config}/train-0.parquet", f"{config}/test-0.parquet")
        )
    with pytest.raises(
        ConfigError, match=r"several configurations, choose one with --set data\.config=NAME: large, small"
    ):
        load(f"parquet:{tmp_path}/set", tmp_path)
    with pytest.raises(ConfigError, match=r"data\.config = 'tiny': .* has large, small"):
        load(f"parquet:{tmp_path}/set", tmp_path, config={"config": "tiny"})
    real = load(f"parquet:{tmp_path}/set", tmp_path, config={"config": "small"})
    assert len(real.train) + len(real.validation) == 9
    write_splits(tmp_path / "set" / "default", names=("train.parquet", "test.parquet"))
    real = load(f"parquet:{tmp_path}/set", tmp_path)
    assert len(real.train) + len(real.validation) == 12


def test_named_sets_read_the_layouts_of_the_hub(tmp_path):
    write_splits(tmp_path / "root" / "cifar10", names=("plain_text/train-0.parquet", "plain_text/test-0.parquet"))
    assert load("cifar10", tmp_path).spec.origin == "parquet"
    for config in ("cropped_digits", "full_numbers"):
        write_splits(tmp_path / "root" / "svhn", names=(f"{config}/train-0.parquet", f"{config}/test-0.parquet"))
    with pytest.raises(ConfigError, match="cropped_digits, full_numbers"):
        load("svhn", tmp_path)
    assert load("svhn", tmp_path, config={"config": "cropped_digits"}).spec.num_classes == 3
    write_splits(tmp_path / "root" / "tiny-imagenet", names=("data/train-0.parquet", "data/valid-0.parquet"))
    assert load("tiny-imagenet", tmp_path).spec.mean == (0.485, 0.456, 0.406)


def test_other_splits_are_ignored_and_missing_shards_are_reported(tmp_path, caplog):
    write_splits(tmp_path / "set", names=("train-00000-of-00003.parquet", "test.parquet"))
    write_splits(tmp_path / "set", names=("train-00002-of-00003.parquet", "extra-00000-of-00001.parquet"))
    assert set(parquet_splits(tmp_path / "set")) == {"train", "test", "extra"}
    real = load(f"parquet:{tmp_path}/set", tmp_path)
    assert len(real.train) + len(real.validation) == 24
    assert "1 files of the split train are missing" in caplog.text


def test_a_git_lfs_pointer_is_named_as_one(tmp_path):
    write_splits(tmp_path)
    (tmp_path / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DataError, match=r"train\.parquet: is a Git LFS pointer, .*git lfs pull"):
        load(f"parquet:{tmp_path}", tmp_path)


# ---- labels ---------------------------------------------------------------------------------------------------------

WORDS = ["owl", "cat", "fox"]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_strings_become_classes_in_sorted_order(tmp_path, kind):
    train, test = (pa.array([WORDS[label] for label in labels]) for labels in (TRAIN, TEST))
    if pa.types.is_string_view(kind):
        train, test = train.cast(kind), test.cast(kind)
    elif pa.types.is_dictionary(kind):
        train, test = train.dictionary_encode(), test.dictionary_encode()
    else:
        train, test = train.cast(kind), test.cast(kind)
    real = load(f"parquet:{write_splits(tmp_path / 'set', train, test)}", tmp_path)
    assert real.class_names == ("cat", "fox", "owl")
    order = [2, 0, 1]  # of owl, cat, fox
    assert labels_by_file(real) == ([order[label] for label in TRAIN], [order[label] for label in TEST])


@pytest.mark.parametrize(
    ("kind", "names"),
    [(pa.int8(), "012"), (pa.uint64(), "012"), (pa.float64(), "012"), (pa.dictionary(pa.int8(), pa.int64()), "012")],
    ids=str,
)
def test_numbers_of_any_type_are_labels(tmp_path, kind, names):
    arrays = [pa.array(labels, kind) for labels in (TRAIN, TEST)]
    real = load(f"parquet:{write_splits(tmp_path / 'set', *arrays)}", tmp_path)
    assert real.class_names == tuple(names)
    assert labels_by_file(real) == (TRAIN, TEST)
    assert real.notes == ()


def test_booleans_are_two_classes(tmp_path):
    real = load(f"parquet:{write_splits(tmp_path / 'set', [True, False] * 4, [True, False])}", tmp_path)
    assert real.class_names == ("False", "True")
    assert labels_by_file(real) == ([1, 0] * 4, [1, 0])


@pytest.mark.parametrize("values", [(0, 5, 15), (-1, 1, 2), (1, 2, 3), (10**9, 10**12, 2**62)])
def test_labels_with_gaps_are_numbered_and_keep_their_values_as_names(tmp_path, caplog, values):
    train, test = ([values[label] for label in labels] for labels in (TRAIN, TEST))
    real = load(f"parquet:{write_splits(tmp_path / 'set', train, test)}", tmp_path)
    assert real.class_names == tuple(map(str, values))
    assert labels_by_file(real) == (TRAIN, TEST)
    assert f"labels are not 0 to 2; they are numbered in sorted order: {', '.join(map(str, values))}" in caplog.text


def test_one_label_of_a_thousand_million_is_refused_at_once(tmp_path):
    with pytest.raises(DataError, match=r"at least 2 training images per class.* found 1 of class 3 \(1000000000\)"):
        load(f"parquet:{write_splits(tmp_path / 'set', [10**9, *TRAIN])}", tmp_path)


def test_labels_that_are_no_classes_are_refused(tmp_path):
    too_large = pa.array([2**64 - 1], pa.uint64())
    with pytest.raises(DataError, match=r"test\.parquet: expected labels that are whole numbers of 64 bits"):
        load(f"parquet:{write_splits(tmp_path / 'large', test=too_large)}", tmp_path)
    with pytest.raises(DataError, match=r"train\.parquet: expected labels that are whole numbers"):
        load(f"parquet:{write_splits(tmp_path / 'half', [0.5, *TRAIN])}", tmp_path)
    with pytest.raises(
        DataError, match=r"test labels to occur in train, but these do not: 7 \(2 images\), 9 \(1 images\)"
    ):
        load(f"parquet:{write_splits(tmp_path / 'new', test=[0, 7, 9, 7])}", tmp_path)
    with pytest.raises(DataError, match=r"labels of at most 200 characters, but found x{80}\.\.\. \(999 characters\)"):
        load(f"parquet:{write_splits(tmp_path / 'long', ['x' * 999, 'a', 'b'] * 4, ['a'])}", tmp_path)
    with pytest.raises(DataError, match=r"these do not: 'dog' \(1 images\)"):
        load(f"parquet:{write_splits(tmp_path / 'word', [WORDS[label] for label in TRAIN], ['dog'])}", tmp_path)


def test_names_of_class_labels_and_classes_without_images(tmp_path, caplog):
    for name, labels in (("train", TRAIN), ("test", TEST)):
        file = tmp_path / "set" / f"{name}.parquet"
        write_parquet(file, contents(len(labels)), [2 * label for label in labels], names=list("abcdefg"))
    real = load(f"parquet:{tmp_path}/set", tmp_path)
    assert real.class_names == ("a", "c", "e")
    assert labels_by_file(real) == (TRAIN, TEST)
    assert "4 of the 7 classes have no images" in caplog.text
    write_parquet(tmp_path / "set" / "train.parquet", contents(4), [0, -1, 2, 9], names=list("abc"))
    with pytest.raises(
        DataError, match=r"from 0 to 2 for its 3 class names, but found -1 \(1 images\), 4 .*9 \(1 images"
    ):
        load(f"parquet:{tmp_path}/set", tmp_path)


@pytest.mark.parametrize(
    "damaged", ["{", "[]", "3", '{"info": 3}', '{"info": {"features": {"label": {"names": 7}}}}', "ÿ"]
)
def test_damaged_names_are_ignored(tmp_path, damaged):
    for name, labels in (("train", TRAIN), ("test", TEST)):
        image = contents(len(labels))
        write_table(tmp_path / f"{name}.parquet", {"huggingface": damaged.encode("latin-1")}, image=image, label=labels)
    assert load(f"parquet:{tmp_path}", tmp_path).class_names == ("0", "1", "2")


@pytest.mark.parametrize("hidden", [-1, None])
def test_hidden_test_labels_make_the_validation_split_count(tmp_path, caplog, hidden):
    write_splits(tmp_path / "set", test=pa.array([hidden] * 5, pa.int64()))
    write_splits(tmp_path / "set", names=("train.parquet", "validation.parquet"))
    real = load(f"parquet:{tmp_path}/set", tmp_path)
    assert real.test.labels.tolist() == TEST
    assert "the split test has no labels; it is not used" in caplog.text
    write_table(tmp_path / "set" / "test.parquet", image=contents(5))
    assert load(f"parquet:{tmp_path}/set", tmp_path).spec.fingerprint == real.spec.fingerprint
    (tmp_path / "set" / "validation.parquet").unlink()
    assert len(load(f"parquet:{tmp_path}/set", tmp_path).test) == 3  # split off


# ---- columns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["label", "labels", "fine_label", "class_id", "target", "category", "anything"])
def test_label_columns_are_found(tmp_path, column):
    write_splits(tmp_path / "set", column=column, text=pa.array(["x"] * 12))
    assert labels_by_file(load(f"parquet:{tmp_path}/set", tmp_path)) == (TRAIN, TEST)


def test_a_declared_class_label_goes_before_other_columns(tmp_path):
    features = {"info": {"features": {"kind": {"_type": "ClassLabel", "names": WORDS}, "width": {"_type": "Value"}}}}
    for name, labels in (("train", TRAIN), ("test", TEST)):
        columns = {"image": contents(len(labels)), "width": [9] * len(labels), "kind": labels}
        write_table(tmp_path / f"{name}.parquet", {"huggingface": json.dumps(features)}, **columns)
    real = load(f"parquet:{tmp_path}", tmp_path)
    assert real.class_names == tuple(WORDS)
    assert labels_by_file(real) == (TRAIN, TEST)


def test_the_column_of_labels_is_told_where_there_are_several(tmp_path):
    write_splits(tmp_path, column="fine_label", coarse_label=pa.array([0] * 6 + [1] * 6), text=pa.array(["x"] * 12))
    found = load(f"parquet:{tmp_path}", tmp_path)
    assert labels_by_file(found) == (TRAIN, TEST)
    told = "the labels are the column fine_label; --set data.label_column=NAME takes another (coarse_label)"
    assert [note for note in found.notes if "column" in note] == [told]
    chosen = load(f"parquet:{tmp_path}", tmp_path, config={"label_column": "fine_label"})
    assert not [note for note in chosen.notes if "column" in note]


def test_columns_are_chosen_among_several(tmp_path):
    write_splits(tmp_path, column="first", second=pa.array([0] * 6 + [1] * 6), mask=contents(12, 7))
    for config, message in (
        ({}, r"data\.image_column=NAME: |data\.label_column=NAME: first, second"),
        ({"label_column": "third"}, r"data\.label_column = 'third': expected one of \['first', 'second'\]"),
        ({"label_column": "image"}, r"data\.label_column = 'image': expected one of"),
        ({"image_column": "first"}, r"data\.image_column = 'first': expected one of \['image', 'mask'\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(f"parquet:{tmp_path}", tmp_path, config=config)
    chosen = {"label_column": "first", "image_column": "mask"}
    real = load(f"parquet:{tmp_path}", tmp_path, config=chosen)
    assert labels_by_file(real) == (TRAIN, TEST)
    assert torch.equal(real.train.pixels[:12], torch.from_numpy(make_images(12, 7)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("content", ["text", 7, [1, 2], None])
def test_image_bytes_of_another_type_are_refused(tmp_path, content):
    for name in ("train", "test"):
        write_table(tmp_path / f"{name}.parquet", image=[{"bytes": content, "path": "a"}] * 6, label=[0, 1] * 3)
    with pytest.raises(DataError, match=r"expected a column of image bytes, but found image \(struct<bytes: "):
        load(f"parquet:{tmp_path}", tmp_path)


def test_columns_of_one_name_are_refused(tmp_path):
    arrays = [pa.array(contents(6)), pa.array([0, 1] * 3), pa.array([0, 1] * 3)]
    table = pa.Table.from_arrays(arrays, names=["image", "label", "label"])
    for name in ("train", "test"):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: .* found twice: label"):
        load(f"parquet:{tmp_path}", tmp_path)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_arguments_that_are_no_paths_are_refused(tmp_path, kind):
    for argument, message in (
        ("~nouser/x", "home directory"),
        ("a\0b", "no such (file or )?folder"),
        ("x" * 5000, "too long"),
    ):
        with pytest.raises(DataError, match=message):
            load(f"{kind}:{argument}", tmp_path)


# ---- data without a test split --------------------------------------------------------------------------------------


def write_flat(folder, counts=(20, 10, 4)):
    for label, count in enumerate(counts):
        (folder / f"class-{label}").mkdir(parents=True)
        for row, content in enumerate(contents(count, label)):
            (folder / f"class-{label}" / f"{row}.png").write_bytes(content)


def write_only_train(folder):
    labels = [0] * 20 + [1] * 10 + [2] * 4
    write_table(
        folder / "train.parquet", image=[c for s, n in enumerate((20, 10, 4)) for c in contents(n, s)], label=labels
    )


@pytest.mark.parametrize(("kind", "write"), [("folder", write_flat), ("parquet", write_only_train)])
def test_a_test_split_is_split_off_stratified_and_said(tmp_path, caplog, kind, write):
    write(tmp_path / "set")
    real, again = load(f"{kind}:{tmp_path}/set", tmp_path), load(f"{kind}:{tmp_path}/set", tmp_path)
    assert real.test.labels.bincount().tolist() == [4, 2, 1]
    assert real.spec.fingerprint == again.spec.fingerprint
    assert "no test split; 7 of 34 images are split off for testing" in caplog.text
    rows = [
        set(map(bytes, split.pixels[split.index].flatten(1).numpy()))
        for split in (real.train, real.validation, real.test)
    ]
    assert [len(row) for row in rows] == [24, 3, 7]
    assert len(set.union(*rows)) == 34
    for split in (real.train, real.validation, real.test):  # every image still has its label
        for pixels, label in zip(split.pixels[split.index], split.labels, strict=True):
            known = torch.from_numpy(make_images((20, 10, 4)[label], int(label))).permute(0, 3, 1, 2)
            assert (known == pixels).flatten(1).all(1).any()
    half = load(f"{kind}:{tmp_path}/set", tmp_path, config={"test_fraction": 0.5})
    assert half.test.labels.bincount().tolist() == [10, 5, 2]
    with pytest.raises(ConfigError, match="test_fraction"):
        load(f"{kind}:{tmp_path}/set", tmp_path, config={"test_fraction": 1})


def test_classes_may_be_called_like_splits(tmp_path):
    for name in ("train", "plane", "test"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for row, content in enumerate(contents(5, len(name))):
            (tmp_path / "set" / name / f"{row}.png").write_bytes(content)
    assert load(f"folder:{tmp_path}/set", tmp_path).class_names == ("plane", "test", "train")


def test_what_only_looks_like_classes_is_refused(tmp_path):
    for name in ("train", "test"):
        (tmp_path / "split" / name).mkdir(parents=True)
        (tmp_path / "split" / name / "0.png").write_bytes(contents(1)[0])
    with pytest.raises(DataError, match=r"split: expected folders of classes in 'test', 'train'"):
        load(f"folder:{tmp_path}/split", tmp_path)
    write_flat(tmp_path / "outer" / "inner")
    with pytest.raises(DataError, match=r"but found one folder; did you mean folder:.*outer/inner\?"):
        load(f"folder:{tmp_path}/outer", tmp_path)


def test_a_test_folder_without_train_is_no_set_of_classes(tmp_path):
    for name in ("test", "val"):
        write_flat(tmp_path / "set" / name)
    with pytest.raises(DataError, match="expected a folder train next to test, val"):
        load(f"folder:{tmp_path}/set", tmp_path)


def test_users_of_the_library_see_the_notes(tmp_path):
    write_flat(tmp_path / "set")
    code = "import sys; from dd_plugins.datasets import load_dataset; print(load_dataset(sys.argv[1]).notes)"
    done = subprocess.run(
        [sys.executable, "-c", code, f"folder:{tmp_path}/set"],
        capture_output=True,
        text=True,
        check=True,
        env={"DD_PLUGINS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": ":".join(sys.path)},
    )
    assert "no test split; 7 of 34 images" in done.stdout
    assert "no test split; 7 of 34 images" in done.stderr


def test_notes_and_images_left_out_are_in_the_log_of_a_run(tmp_path):
    write_flat(tmp_path / "set")
    (tmp_path / "set" / "class-0" / "20.png").write_bytes(b"no image")
    flags = {"method": "dm", "dataset": f"folder:{tmp_path}/set", "protocol": "dsa", "steps": 1}
    tiny = ["data.on_error=skip", "network.width=4", "protocol.network.width=4", "protocol.train.epochs=1"]
    record = run(tmp_path / "runs", flags, [*tiny, "protocol.trials=1", "objective.batch_real=4"])
    log = (tmp_path / "runs" / record["id"] / "log.txt").read_text()
    assert "no test split; 7 of 35 images are split off for testing" in log
    assert "class-0/20.png: cannot be decoded" in log


def test_a_folder_of_one_class_without_a_split_is_refused(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    write_flat(tmp_path / "set", counts=(6,))
    with pytest.raises(DataError, match="expected two classes at least, but found 1"):
        load(f"folder:{tmp_path}/set", tmp_path)


def test_tiny_imagenet_annotations_are_checked_together(tmp_path):
    from test_datasets import write_archive

    write_archive(tmp_path / "root" / "tiny-imagenet")
    table = tmp_path / "root" / "tiny-imagenet" / "val" / "val_annotations.txt"
    table.write_text("a.JPEG\tcow\nb.JPEG\tbee\nc.JPEG\n")
    with pytest.raises(
        DataError, match=r"annotations\.txt, line 1: there is no class 'cow' in train; line 3: no class"
    ):
        load("tiny-imagenet", tmp_path)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as UTF-8 text"):
        load("tiny-imagenet", tmp_path)


def test_labels_of_the_whole_set_are_those_of_its_files(tmp_path):
    noise = np.random.default_rng(0).permutation(np.arange(30) % 3).tolist()
    assert labels_by_file(load(f"parquet:{write_splits(tmp_path / 'set', noise)}", tmp_path)) == (noise, TEST)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_validation_split_that_is_used_for_testing_is_reported(tmp_path, kind):
    place = tmp_path / "set"
    for split in ("train", "valid"):
        for label, name in enumerate(("ant", "bee")):
            for number in range(4):
                if kind == "folder":
                    path = place / split / name / f"{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.full((8, 8), 40 * label + number, np.uint8)).save(path)
        if kind == "parquet":
            place.mkdir(exist_ok=True)
            write_parquet(place / f"{split}.parquet", [encode(image) for image in make_images(8, 0)], [0, 1] * 4)
    real = load_dataset(f"{kind}:{place}", cache=tmp_path / "cache")
    assert "no test split; the validation split is used for testing" in real.notes
    assert len(real.test) == 8


def test_a_folder_that_is_not_there_is_called_missing(tmp_path):
    for kind in ("folder", "parquet"):
        with pytest.raises(DataError, match=r"nowhere: no such (file or )?folder"):
            load_dataset(f"{kind}:{tmp_path / 'nowhere'}", cache=tmp_path / "cache")


def test_images_of_many_sizes_are_one_line(tmp_path):
    for split in ("train", "test"):
        for label, name in enumerate(("ant", "bee")):
            for number in range(4):
                path = tmp_path / "set" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.zeros((8 + number + 4 * label, 9), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"^16 images of 8 sizes, from 9x8 to 9x15 pixels; --set data\.size=N"):
        load_dataset(f"folder:{tmp_path / 'set'}", cache=tmp_path / "cache", config={"on_error": "skip"})
