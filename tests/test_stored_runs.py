"""Stored sets of runs without the data they were made from, and runs that were interrupted."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import PROTOCOL, command, run

from benchmark_adapters.formats.imagefolder import folder_names
from benchmark_adapters.runs import pipeline
from benchmark_adapters.runs.records import code_check
from benchmark_adapters.runs.store import RunFolder
from dd_plugins.api import read_stored, read_tensors, write_tensors

NAMES = ("ant", "Bee", "cup")  # sorted as the data set sorts them: capital letters first
SHORT = [f"--set={text}" for text in PROTOCOL]
FLAGS = {"method": "pixel", "objective": "dm", "dataset": "folder:my", "protocol": "quick", "steps": 2}
SETTINGS = ["data.size=8", "network.width=8", "network.depth=1", "objective.batch_real=4", *PROTOCOL]


def make_folder(path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(NAMES):
            (path / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = (generator.integers(0, 99, (10, 12, 3)) + 70 * label).astype(np.uint8)
                Image.fromarray(pixels).save(path / split / name / f"{k}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run on a folder of pictures that is named by a relative path."""
    place = tmp_path_factory.mktemp("place")
    make_folder(place / "my")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("DD_PLUGINS_CACHE", str(place / "cache"))
        return place, run(place / "runs", FLAGS, SETTINGS)


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it, where the test is; the data is there until a test removes it."""
    shutil.copytree(made[0], tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setenv("DD_PLUGINS_CACHE", str(tmp_path / "place/cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "place", RunFolder(tmp_path / "place/runs" / made[1]["id"])


def refused(capsys, *words):
    capsys.readouterr()
    assert command(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("dd-bench: ")
    assert error.count("\n") == 1, error
    return error


def without_source(folder):
    """The set as an earlier release stored it."""
    tensors, metadata = read_tensors(folder.synthetic)
    header = json.loads(metadata["dd_plugins"])
    del header["source"]
    write_tensors(folder.path / "old.safetensors", tensors, {"dd_plugins": json.dumps(header)})
    return folder.path / "old.safetensors"


# ---- the file knows its data -----------------------------------------------------------------------------------------


def test_a_file_is_scored_with_the_data_settings_it_knows(made, place):
    _, folder = place
    shutil.copy(folder.synthetic, "alone.safetensors")
    source = read_stored(folder.synthetic)[0].source
    assert (source.dataset, dict(source.settings), source.class_names) == (
        "folder:my",
        {"size": 8},
        tuple(sorted(NAMES)),
    )
    words = ["--protocol", "quick", *SHORT, "--device", "cpu"]
    assert command("eval", "alone.safetensors", *words, "--out", "a") == 0
    (written,) = folder.path.parents[1].glob("a/evaluations/*/record.json")
    assert json.loads(written.read_text())["scores"][0]["trials"] == made[1]["scores"][0]["trials"]


def test_the_same_data_elsewhere_needs_its_place_alone(place, capsys):
    root, folder = place
    (root / "my").rename(root / "moved")
    shutil.copy(folder.synthetic, "alone.safetensors")
    assert "my: " in (error := refused(capsys, "eval", "alone.safetensors", "--device", "cpu"))
    assert "--dataset names the data the set was made from, where it is now" in error
    words = ["--protocol", "quick", *SHORT, "--device", "cpu"]
    for stored in ("alone.safetensors", folder.path):
        assert command("eval", stored, "--dataset", "folder:moved", *words) == 0
        assert command("eval", stored, "--dataset", "folder:moved", "--set", "data.size=8", *words) == 0


def test_settings_of_the_data_win_over_those_of_the_file(place, capsys):
    _, folder = place
    for stored in (folder.synthetic, folder.path):
        error = refused(capsys, "eval", stored, "--set", "data.size=10", "--device", "cpu")
        assert "3 classes of (3, 8, 8)" in error
        assert "3 classes of (3, 10, 10)" in error
    assert "unknown configuration key data.zise" in refused(capsys, "eval", folder.path, "--set", "data.zise=10")


@pytest.mark.parametrize("setting", ["steps=3", "ipc=2", "network.width=8", "parameterization=hmn"])
def test_settings_without_effect_on_a_stored_set_are_refused(place, capsys, setting):
    error = refused(capsys, "eval", place[1].path, "--set", setting)
    assert f"--set {setting} has no effect on a stored set; protocol.KEY and data.KEY can be set" in error


def test_an_old_file_is_scored_when_the_settings_are_given(place):
    old = without_source(place[1])
    words = ["--dataset", "folder:my", "--set", "data.size=8", "--protocol", "quick", *SHORT, "--device", "cpu"]
    assert command("eval", old, *words) == 0


# ---- exports without the data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pt", "imagefolder", "parquet"])
def test_a_set_is_exported_when_its_data_is_gone(place, form, capsys):
    root, folder = place
    shutil.rmtree(root / "my")
    for number, stored in enumerate((folder.synthetic, folder.path.name)):
        assert command("export", stored, "--to", form, "--root", f"set{number}") == 0
        about = json.loads((root / f"set{number}/about.json").read_text())
        assert about["classes"] == sorted(NAMES)
        assert (about["dataset"], about["data_settings"]) == ("folder:my", {"size": 8})
        assert about["test_images"].startswith("(pixels / 255 - mean) / std per channel")
    assert capsys.readouterr().err == ""


def test_an_old_set_takes_its_class_names_from_the_data_or_numbers_them(place, capsys):
    root, folder = place
    old = without_source(folder)
    words = ["export", old, "--to", "pt", "--root"]
    assert command(*words, "named", "--dataset", "folder:my", "--set", "data.size=8") == 0
    assert json.loads((root / "named/about.json").read_text())["classes"] == sorted(NAMES)
    assert command(*words, "numbered") == 0
    assert json.loads((root / "numbered/about.json").read_text())["classes"] == ["0", "1", "2"]
    error = " ".join(capsys.readouterr().err.split())
    assert "does not know its class names" in error
    assert "its classes are named 0, 1, ..." in error


def test_pictures_of_a_whitened_set_have_the_colours_of_the_data(tmp_path, monkeypatch, capsys):
    make_folder(tmp_path / "my")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DD_PLUGINS_CACHE", str(tmp_path / "cache"))
    record = run(tmp_path / "runs", {**FLAGS, "steps": 0}, [*SETTINGS, "data.zca=true", "parameterization.init=real"])
    words = ["export", record["id"], "--root"]
    assert command(*words, "whole", "--to", "imagefolder") == 0
    sizes = [np.asarray(Image.open(path).resize((8, 8))) for path in sorted((tmp_path / "my/train").rglob("*.png"))]
    shown = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "whole/train").rglob("*.png"))]
    assert len(shown) == 3
    for picture in shown:  # each is one of the real pictures, up to how they are resized
        assert min(np.abs(picture.astype(int) - real.astype(int)).mean() for real in sizes) < 30
    assert "ZCA whitening" in json.loads((tmp_path / "whole/about.json").read_text())["test_images"]
    assert command(*words, "card", "--to", "parquet") == 0
    card = (tmp_path / "card/README.md").read_text()
    assert "ZCA-whitened" in card
    assert "load_dataset('folder:PATH', config={'size': 8, 'zca': True})" in card

    shutil.rmtree(tmp_path / "cache")  # the matrix is computed again, from the data ...
    assert command(*words, "again", "--to", "imagefolder") == 0
    (old, new) = (sorted((tmp_path / name / "train").rglob("*.png")) for name in ("whole", "again"))
    assert [path.read_bytes() for path in old] == [path.read_bytes() for path in new]
    shutil.rmtree(tmp_path / "cache")  # ... which is gone
    shutil.rmtree(tmp_path / "my")
    for form in ("imagefolder", "parquet"):
        error = refused(capsys, *words, "none", "--to", form)
        assert "the colours of its pictures need the data set" in error
        assert not (tmp_path / "none").exists()
    assert command(*words, "numbers", "--to", "pt") == 0


def test_the_card_has_the_scores_the_storage_and_no_path_of_this_machine(made, place):
    root, folder = place
    for stored, name in ((folder.path, "pixel + dm"), (folder.synthetic, "pixel")):
        assert command("export", stored, "--to", "parquet", "--root", f"set-{name}") == 0
        card = (root / f"set-{name}/README.md").read_text()
        assert f"made from my by {name} within" in card
        assert "stored as 576 numbers in 2,304 bytes (6,144 bits per class)" in card  # 3 images of 3 x 8 x 8, 3 classes
        assert "folder:my" not in card
        assert ("| quick[" in card) == (stored == folder.path)
    trials = np.array(made[1]["scores"][0]["trials"])
    assert f"| {100 * trials.mean():.2f} +- " in (root / "set-pixel + dm/README.md").read_text()


def test_image_folders_have_the_names_of_the_classes_and_keep_their_order(place):
    root, folder = place
    assert command("export", folder.path, "--to", "imagefolder", "--root", "set") == 0
    assert sorted(path.name for path in (root / "set/train").iterdir()) == sorted(NAMES)
    classes = json.loads((root / "set/classes.json").read_text())
    assert [entry["name"] for entry in classes] == sorted(NAMES)
    words = [
        "import",
        "set",
        "--from",
        "imagefolder",
        "--dataset",
        "folder:my",
        "--set",
        "data.size=8",
        "--out",
        "back",
    ]
    assert command(*words) == 0
    (again,) = (root / "back").glob("*/synthetic.safetensors")
    assert torch.equal(read_tensors(again)[0]["images"], read_tensors(folder.synthetic)[0]["images"])
    assert read_stored(again)[0].source == read_stored(folder.synthetic)[0].source


def test_two_exports_of_one_run_are_one_import_and_it_says_so(place, capsys):
    _, folder = place
    made = []
    for form in ("pt", "imagefolder"):
        assert command("export", folder.path, "--to", form, "--root", f"set-{form}") == 0
        capsys.readouterr()
        words = ["--from", form, "--dataset", "folder:my", "--set", "data.size=8", "--out", "back"]
        assert command("import", f"set-{form}", *words) == 0
        made.append(capsys.readouterr().out)
    assert "imported before" not in made[0]
    assert "it has the same images as set-pt, imported before: both are this one run" in made[1]
    assert made[0].splitlines()[0] == made[1].splitlines()[0]


def test_a_pruning_that_empties_a_class_names_it_and_leaves_no_folder(place, capsys):
    root, _ = place
    words = ["prune", "--dataset", "folder:my", "--set", "data.size=8", "--keep", "0.25", "--strategy", "random"]
    assert "2 of 9 images to keep would leave class cup with none" in refused(capsys, *words, "--out", "pruned")
    assert not (root / "pruned").exists()


def test_an_import_reads_the_order_of_classes_and_does_without(place, capsys):
    root, folder = place
    assert command("export", folder.path, "--to", "imagefolder", "--root", "set") == 0
    file = root / "set/classes.json"
    words = [
        "import",
        "set",
        "--from",
        "imagefolder",
        "--dataset",
        "folder:my",
        "--set",
        "data.size=8",
        "--out",
        "back",
    ]
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told[::-1]))
    assert "class 0 is 'cup', not 'Bee'" in refused(capsys, *words)
    for damaged in ("{", "3", "[3]", '[{"folder": "x"}]', "[" * 5000):
        file.write_text(damaged)
        assert "classes.json: " in refused(capsys, *words)
    file.write_text(json.dumps(told[:2]))
    assert "2 classes, but my has 3" in refused(capsys, *words)
    file.unlink()  # as earlier releases wrote it
    assert command(*words) == 0


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["a/b", "a:b", "a_b"], ["a_b", "a_b (2)", "a_b (3)"]),
        (["..", ".", "", " ", "/"], ["_", "_ (2)", "_ (3)", "_ (4)", "_ (5)"]),
        (["Cat", "cat", "CAT"], ["Cat", "cat (2)", "CAT (3)"]),
        ([".hidden", "end.", "end"], ["_.hidden", "end", "end (2)"]),
        (["con", "COM1", "nul.txt", "console"], ["_con", "_COM1", "_nul.txt", "console"]),
        (["two\nlines", "\x1b[31mred"], ["two_lines", "_[31mred"]),
        (["é", "e\u0301"], ["é", "é (2)"]),  # composed and decomposed
        (["日本", "straße", "STRASSE"], ["日本", "straße", "STRASSE (2)"]),
        (["a (2)", "a", "a"], ["a (2)", "a", "a (3)"]),
    ],
)
def test_folders_of_classes_are_what_every_file_system_takes(names, folders, tmp_path):
    found = folder_names(names)
    assert found == folders
    for name in found:
        (tmp_path / name).mkdir()


def test_folders_of_long_names_are_short_and_differ():
    first, second, third = folder_names(["ä" * 2_000_000, "ä" * 1000, "\udcff"])
    assert max(len(name.encode()) for name in (first, second)) <= 255
    assert first != second
    assert third == "_"


# ---- interrupted runs ------------------------------------------------------------------------------------------------


@pytest.fixture
def unscored(place, monkeypatch):
    """A run that was interrupted while it was scored."""
    root, _ = place
    shutil.rmtree(root / "runs")
    score = pipeline.score_set

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "score_set", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(root / "runs", FLAGS, SETTINGS)
    monkeypatch.setattr(pipeline, "score_set", score)
    (config,) = root.glob("runs/*/config.yaml")
    folder = RunFolder(config.parent)
    assert folder.synthetic.exists()
    assert not folder.record.exists()
    return folder


def test_show_tells_what_an_unscored_run_holds(made, unscored, capsys):
    unscored.add_trial(f"{made[1]['scores'][0]['protocol_hash']}/convnet", 0, 0.5)
    assert command("show", unscored.path.name) == 0
    printed = capsys.readouterr().out
    assert "images" in printed
    assert "576" in printed  # elements: 3 images of 3 x 8 x 8
    assert "the set is stored, and 1 of 2 trials are scored" in printed
    assert f"dd-bench run --config runs/{unscored.path.name}/config.yaml" in printed
    assert command("show", unscored.path, "--json") == 0
    shown, whole = json.loads(capsys.readouterr().out), made[1]
    for key in ("id", "name", "config", "data", "plugins", "storage", "images_per_class"):
        assert shown[key] == whole[key], key


def test_an_unscored_run_is_scored_by_eval_and_finished_by_run(made, unscored):
    assert command("eval", unscored.path.name, "--device", "cpu") == 0
    record = json.loads(unscored.record.read_text())
    assert record["scores"][0]["trials"] == made[1]["scores"][0]["trials"]
    assert command("run", "--config", unscored.path / "config.yaml", "--device", "cpu") == 0
    finished = json.loads(unscored.record.read_text())
    assert finished["status"] == "done"
    assert finished["scores"] == record["scores"]
    assert [path.name for path in unscored.path.parent.glob("*/config.yaml")] == ["config.yaml"]


def test_show_tells_how_far_a_condensation_is(place, capsys, monkeypatch):
    root, _ = place
    shutil.rmtree(root / "runs")
    project = "dd_plugins.parameterizations.pixel.Pixel.project"
    done = []

    def stopped(self):
        done.append(1)
        if len(done) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(project, stopped)
    with pytest.raises(KeyboardInterrupt):
        run(root / "runs", {**FLAGS, "steps": 9}, SETTINGS, checkpoint_seconds=0)
    (config,) = root.glob("runs/*/config.yaml")
    for words in (
        ["show", config.parent],
        ["eval", config.parent.name],
        ["export", config.parent, "--to=pt", "--root=x"],
    ):
        error = refused(capsys, *words)
        assert "condensed up to step 3 of 9 at its last checkpoint" in error
        assert f"dd-bench run --config {config}" in error or f"run --config runs/{config.parent.name}" in error
    RunFolder(config.parent).checkpoint.write_bytes(b"damaged")
    assert "no checkpoint yet, of 9 steps" in refused(capsys, "show", config.parent)


def test_a_run_whose_set_was_replaced_is_not_scored(unscored, capsys):
    tensors, metadata = read_tensors(unscored.synthetic)
    write_tensors(unscored.synthetic, {"images": tensors["images"] + 1}, metadata)
    for name in ("show", "eval"):
        assert "is not the set that this run stored" in refused(capsys, name, unscored.path)


# ---- records and files -----------------------------------------------------------------------------------------------


def test_a_record_makes_its_run_again(made, place, capsys):
    root, folder = place
    shutil.copy(folder.record, "record-of-mine.json")
    shutil.rmtree(root / "runs")
    assert command("run", "--config", "record-of-mine.json", "--device", "cpu") == 0
    again = json.loads(folder.record.read_text())  # under the same id
    assert again["scores"][0]["trials"] == made[1]["scores"][0]["trials"]
    assert "a record holds no images" in refused(capsys, "eval", "record-of-mine.json")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"imported": "x"}, "not condensed by a run"),
        ({"config": {"dataset": "digits"}}, "not condensed by a run"),
        ({"config": {"objective": {"name": "none"}}}, "not condensed by a run"),
    ],
)
def test_records_of_sets_that_no_run_makes_are_refused(place, capsys, change, told):
    record = json.loads(place[1].record.read_text())
    place[0].joinpath("other.json").write_text(json.dumps({**record, **change}))
    assert told in refused(capsys, "run", "--config", "other.json")


def test_show_prints_a_record_and_a_stored_set(place, capsys):
    _, folder = place
    assert command("show", folder.record) == 0
    printed = capsys.readouterr().out
    assert "pixel + dm" in printed
    assert command("show", folder.synthetic) == 0
    printed = capsys.readouterr().out
    for text in (
        "stored set: pixel, 3 images, 1 per class",
        "--dataset folder:my --set data.size=8",
        "classes: 3: Bee, ant, cup",
    ):
        assert text in printed
    assert command("show", folder.synthetic, "--json") == 0
    assert json.loads(capsys.readouterr().out)["source"]["class_names"] == sorted(NAMES)
    assert "nothing.json" in refused(capsys, "show", "nothing.json")


# ---- records made by other code --------------------------------------------------------------------------------------


def changed(record, **plugin):
    parameterization = {**record["plugins"]["parameterization"], **plugin}
    return {**record, "plugins": {**record["plugins"], "parameterization": parameterization}}


def test_what_made_a_record_is_compared_with_what_is_installed(made):
    record, check = made[1], code_check()
    assert check(record) == []
    older = {**record, "versions": {**record["versions"], "dd-plugins": "0.0.1", "torch": "1.0.0+cu90"}}
    assert [line.partition(", installed")[0] for line in check(older)] == ["dd-plugins 0.0.1", "torch 1.0.0"]
    build = {**record, "versions": {**record["versions"], "torch": torch.__version__.partition("+")[0] + "+other"}}
    assert check(build) == []  # the same release for another device
    for change, told in (
        ({"sha256": "0" * 64}, "parameterization pixel of another source (sha256 00000000, installed is "),
        ({"version": "0.0.1"}, "parameterization pixel of version 0.0.1, installed is "),
        ({"distribution": "elsewhere"}, "parameterization pixel, which is not installed"),
        ({"name": "gone"}, "parameterization gone, which is not installed"),
        (
            {"distribution": "module", "entry_point": "not_there:Class"},
            "parameterization pixel, which is not installed",
        ),
    ):
        (line,) = check(changed(record, **change))
        assert line.startswith(told)
    assert check({key: value for key, value in record.items() if key not in ("plugins", "versions")}) == []


def test_records_made_by_other_code_are_marked(place, capsys):
    _, folder = place
    record = json.loads(folder.record.read_text())
    assert command("table", folder.path) == 0
    printed = capsys.readouterr()
    assert "†" not in printed.out
    assert printed.err == ""
    folder.record.write_text(json.dumps(changed(record, sha256="0" * 64)))
    for words in (
        ["table", folder.path],
        ["table", folder.path, "--format", "csv"],
        ["table", folder.path, "--format", "table"],
    ):
        assert command(*words) == 0
        printed = capsys.readouterr()
        assert printed.out.count("pixel + dm †") == 1
        assert "random real †" not in printed.out
        assert "†: 1 of 1 records made by other code than is installed" in printed.err
    assert command("show", folder.path) == 0
    assert "parameterization pixel of another source (sha256 00000000" in capsys.readouterr().out


def test_a_stored_set_does_not_decide_which_code_reads_its_data(place, capsys):
    root, folder = place
    (root / "evil.py").write_text("raise SystemExit('ran')")
    tensors, metadata = read_tensors(folder.synthetic)
    header = json.loads(metadata["dd_plugins"])
    header["source"]["dataset"] = "evil:Data:x"
    write_tensors(root / "set.safetensors", tensors, {"dd_plugins": json.dumps(header)})
    error = refused(capsys, "eval", "set.safetensors", "--device", "cpu")
    assert "evil:Data" in error
    assert "--trust" in error
    assert command("export", "set.safetensors", "--to", "pt", "--root", "out") == 0  # reads no data


@pytest.mark.parametrize(
    "about",
    [
        "{",
        "[]",
        "3",
        '{"data": 3}',
        '{"data": {"name": "my"}}',
        "[" * 5000,
        '{"data": 1, "data": 2}',
        "fingerprint",
        "shape",
        "nan",
    ],
)
def test_damaged_notes_of_an_export_are_one_line(place, capsys, about):
    root, folder = place
    assert command("export", folder.path, "--to", "pt", "--root", "set") == 0
    held = json.loads((root / "set/about.json").read_text())
    changes = {"fingerprint": {"fingerprint": ""}, "shape": {"image_shape": [3, 8]}, "nan": {"mean": [None] * 3}}
    if about in changes:
        about = json.dumps({**held, "data": {**held["data"], **changes[about]}})
    (root / "set/about.json").write_text(about)
    words = ["import", "set", "--from", "pt", "--dataset", "folder:my", "--set", "data.size=8", "--out", "back"]
    assert "set/about.json: " in refused(capsys, *words)
    assert not (root / "back").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode there")
def test_class_names_that_are_no_unicode_are_stored_and_exported(place):
    root, _ = place
    for split in ("train", "test"):
        (root / "my" / split / "ant").rename(root / "my" / split / os.fsdecode(b"ant\xff"))
    assert run(root / "others", FLAGS, SETTINGS)
    (folder,) = (path.parent for path in (root / "others").glob("*/config.yaml"))
    assert read_stored(RunFolder(folder).synthetic)[0].source.class_names == ("Bee", "ant?", "cup")
    words = ["--to", "imagefolder", "--root", "set", "--dataset", "folder:my", "--set", "data.size=8"]
    assert command("export", folder, *words) == 0
    assert command("import", "set", "--from", "imagefolder", *words[4:], "--out", "back") == 0
    assert sorted(path.name for path in (root / "set/train").iterdir()) == ["Bee", "ant_", "cup"]


def test_what_another_command_made_is_not_continued_by_run(place, capsys, monkeypatch):
    _, folder = place

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmark_adapters.runs.coreset.score_set", interrupted)
    words = ["prune", folder.path, "--keep", "1", "--strategy", "random", "--device", "cpu"]
    assert command(*words) == 130
    (coreset,) = (path.parent for path in folder.path.parent.glob("*/config.yaml") if path.parent != folder.path)
    capsys.readouterr()
    assert command("show", coreset) == 0
    printed = capsys.readouterr().out
    assert "the command that began it continues it\n" in printed
    assert "pruned by random: 3 of 3 images kept" in printed
