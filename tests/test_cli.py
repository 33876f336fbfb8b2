"""The command dd-bench: what it prints, its exit codes, and one line for every mistake."""

import io
import json
import re
import shutil
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_runs import WORDS, command, run, start

from benchmark_adapters.cli.main import app
from dd_plugins import __version__, registry
from dd_plugins.api import read_tensors
from dd_plugins.datasets import load_dataset
from dd_plugins.engine.distilled import load_stored
from dd_plugins.networks import build_network
from dd_plugins.priors.distance import ClassRelevantDistance
from dd_plugins.priors.gates import DIVERSITY, LEAST_ACCURACY, LEAST_SCORE
from dd_plugins.priors.train import PriorRecipe


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return out, run(out)


def _one_line(capsys, *words, code=2):
    assert command(*words) == code
    error = capsys.readouterr().err
    assert error.startswith("dd-bench: ")
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    return error


# ---- help and listing ----------------------------------------------------------------------------------------------


def test_help_is_instant_and_names_every_subcommand():
    begun = time.perf_counter()
    output, error = start("--help").communicate(timeout=60)
    assert time.perf_counter() - begun < 3  # torch alone takes longer
    assert not error
    assert all(name in output for name in (command.name or "" for command in app.registered_commands))


@pytest.mark.parametrize("name", [command.name for command in app.registered_commands])
def test_help_of_a_subcommand_has_examples(name, capsys):
    assert command(name, "--help") == 0
    output = capsys.readouterr().out
    assert f"dd-bench {name}" in output
    assert "Examples" in output


def test_help_of_run_tells_the_precedence(capsys):
    command("run", "--help")
    output = " ".join(capsys.readouterr().out.split())
    assert "built-in defaults < method < --config < flags and --set" in output
    assert all(f"--{flag}" in output for flag in ("param", "objective", "dataset", "ipc", "seed", "out", "dry-run"))


def test_version(capsys):
    assert command("--version") == 0
    assert capsys.readouterr().out == f"dd-plugins {__version__}\n"


def test_no_arguments_is_help(capsys):
    command()
    assert "dd-bench [OPTIONS] COMMAND" in " ".join(capsys.readouterr())


def test_list_shows_every_plugin_on_one_line(capsys):
    assert command("list") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    installed = [info for kind in registry.KINDS for info in registry.list_plugins(kind)]
    assert [line.split()[:2] for line in lines] == [[info.kind, info.spec] for info in installed]


@pytest.mark.parametrize("kind", ["parameterization", "parameterizations"])
def test_list_of_a_kind(kind, capsys):
    assert command("list", kind) == 0
    rows = [line.split()[:5] for line in capsys.readouterr().out.splitlines()[1:]]
    assert ["parameterization", "hmn", "dd-plugins", "0.1.0", "ok"] in rows
    assert {row[0] for row in rows} == {"parameterization"}


def test_list_of_one_plugin_tells_all_its_settings(capsys):
    assert command("list", "parameterization", "h-pd") == 0
    output = capsys.readouterr().out
    told = [line.split()[0] for line in output.splitlines()[2:]]
    cls = registry.load("parameterization", "h-pd")
    recipe = [f"parameterization.recipe.{name}" for name in PriorRecipe.model_fields]
    own = [f"parameterization.{name}" for name in cls.Config.model_fields if name != "recipe"]
    assert sorted(told) == sorted(own + recipe)
    assert re.search(r"parameterization\.init +cluster +.*\(cluster, sample, encode\)", output)
    assert re.search(r"parameterization\.levels +null ", output)


def test_list_of_a_plugin_without_settings(capsys):
    assert command("list", "parameterization", "real") == 0
    assert "no settings" in capsys.readouterr().out


def test_list_of_an_unknown_plugin(capsys):
    assert "did you mean hmn?" in _one_line(capsys, "list", "parameterization", "hnm")


@pytest.mark.parametrize("networks", ["convnet,lenet", "lenet,convnet"])
def test_networks_without_maps_are_refused_before_any_is_trained(networks, finished, capsys, monkeypatch):
    out, record = finished
    monkeypatch.setattr("dd_plugins.priors.reference.train_networks", None)
    error = _one_line(capsys, "eval", record["id"], "--out", out, "--metric", "crfd", "--network", networks)
    assert "no maps" in error


def test_a_benchmark_takes_no_yardsticks(finished, capsys):
    out, record = finished
    error = _one_line(capsys, "eval", record["id"], "--out", out, "--benchmark", "native", "--no-full-data")
    assert "go without --benchmark" in error


def test_a_distance_is_told_and_noted(finished, capsys, tmp_path):
    shutil.copytree(finished[0], tmp_path / "runs")
    folder = tmp_path / "runs" / finished[1]["id"]
    for _ in range(2):  # the second one takes the place of the first
        words = ["--metric", "crfd", "--set", "network.width=8", "--device", "cpu", "--out", folder.parent]
        assert command("eval", folder.name, *words) == 0
    (told,) = set(re.findall(r"training images: (\S+)", capsys.readouterr().out))
    (noted,) = json.loads((folder / "record.json").read_text())["metrics"]
    assert (noted["metric"], noted["network"]["width"]) == ("crfd", 8)
    assert float(told) == pytest.approx(noted["value"], rel=1e-5)
    classifier = build_network("convnet", (1, 8, 8), 10, {"width": 8}, seed=0)
    classifier.load_state_dict(read_tensors(next((folder.parent / "reference-classifiers").glob("*.safetensors")))[0])
    stored = load_stored(folder / "synthetic.safetensors")
    expected = ClassRelevantDistance(classifier, load_dataset("digits"))(stored.decode(), stored.labels)
    assert noted["value"] == pytest.approx(expected, rel=1e-5)
    assert noted["value"] > 0
    variant = ClassRelevantDistance(classifier, load_dataset("digits")).of_activations(stored.decode(), stored.labels)
    assert noted["of_activations"] == pytest.approx(variant, rel=1e-5)


def test_help_of_prepare_names_the_gates(capsys):
    command("prepare", "--help")
    output = " ".join(capsys.readouterr().out.split())
    expected = (f"{LEAST_ACCURACY} times", f"{DIVERSITY[0]} to {DIVERSITY[1]} times", f"{LEAST_SCORE} times")
    assert all(each in output for each in expected)


def test_list_of_nonsense(capsys):
    assert all(kind in _one_line(capsys, "list", "nonsense") for kind in registry.KINDS)


# ---- run -----------------------------------------------------------------------------------------------------------


def test_dry_run_prints_all_and_makes_nothing(finished, tmp_path, capsys):
    assert command(*WORDS, "--out", tmp_path / "runs", "--dry-run") == 0
    output = capsys.readouterr().out
    assert f"run id: {finished[1]['id']}" in output
    assert "warm_start_steps: 5" in output
    assert re.search(rf"all .* {finished[1]['storage']['elements']} ", output)
    assert re.search(r"budget .* 640 .* 2,560 ", output)
    assert "steps: 6" in output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("container", "told"), [("hmn", True), ("pixel", False)])
def test_a_learning_rate_that_no_tensor_takes_is_told(container, told, tmp_path, capsys):
    words = ["run", "--param", container, "--out", tmp_path, "--dry-run"]
    assert command(*words, "--set", "optimizer.lr=0.5") == 0
    assert ("optimizer.lr = 0.5 has no effect: hmn" in capsys.readouterr().out) == told
    assert command(*words) == 0
    assert "no effect" not in capsys.readouterr().out


def test_run_of_a_finished_run_prints_its_scores_again(finished, capsys):
    out, record = finished
    assert command(*WORDS, "--out", out) == 0
    output = capsys.readouterr().out
    mean = 100 * np.mean(record["scores"][0]["trials"])
    for text in (f"{mean:.2f} +- ", "(n=2)", "random real", "whole training set", "preview.png"):
        assert text in output


def test_a_class_in_the_current_folder_needs_no_packaging(tmp_path):
    (tmp_path / "in_the_making.py").write_text("from dd_plugins.parameterizations.pixel import Pixel as Mine\n")
    words = ["run", "--param", "in_the_making:Mine", "--dry-run", "--device", "cpu"]
    output, error = start(*words, cwd=tmp_path).communicate(timeout=100)
    assert "name: in_the_making:Mine" in output, error


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--param", "pixle"], ["unknown parameterization 'pixle'", "did you mean pixel?", "hmn, idc, pixel"]),
        (["--param", "nowhere/pixel"], ["unknown parameterization 'nowhere/pixel'"]),
        (["--param", "no_module:Class"], ["no_module:Class", "ModuleNotFoundError"]),
        (["--objective", "dcc"], ["unknown objective 'dcc'", "dc"]),
        (["--dataset", "cifar1"], ["unknown dataset 'cifar1'", "cifar10"]),
        (["--dataset", "digits:3"], ["takes no argument"]),
        (["--dataset", "folder"], ["needs an argument"]),
        (["--dataset", "folder:/there/is/none"], ["/there/is/none"]),
        (["--method", "hmm"], ["unknown method 'hmm'", "hmn"]),
        (["--protocol", "dsaa"], ["unknown protocol 'dsaa'", "dsa-steps"]),
        (["--set", "parameterization.memory_rl=1"], ["parameterization.memory_rl", "did you mean memory_lr"]),
        (["--set", "optimizer.lr=fast"], ["optimizer.lr = 'fast'", "number"]),
        (["--set", "optimizer.lr=1e38"], ["optimizer.lr = 1e+38", "less than or equal to"]),
        (["--set", "steps=true"], ["steps = True", "boolean"]),
        (["--set", "network.width=yes"], ["width = 'yes'", "valid integer"]),
        (["--set", "parameterization.warm_start_steps=true"], ["warm_start_steps = True", "boolean"]),
        (["--set", "objective.strategy=crop_foo"], ["unknown augmentation foo"]),
        (["--set", "objective.strategy=crop_foo", "--dry-run"], ["unknown augmentation foo"]),
        (["--set", "network.depth=9", "--dry-run"], ["network.depth = 9"]),
        (["--set", "optimizer.lr"], ["--set optimizer.lr", "KEY=VALUE"]),
        (["--set", "protocol.network.name=nonet"], ["unknown network 'nonet'"]),
        (["--ipc", "0"], ["ipc = 0", "greater than or equal to 1"]),
        (["--steps", "-1"], ["steps = -1"]),
        (["--seed", "-1"], ["seed = -1"]),
        (["--config", "/there/is/none.yaml"], ["/there/is/none.yaml", "no such file"]),
        (["--device", "abacus"], ["'abacus'", "cpu or cuda"]),
        (["--device", "meta"], ["'meta'", "cpu or cuda"]),
        (["--device", "cuda:99"], ["'cuda:99'", "CUDA device"]),
    ],
)
def test_mistakes_of_run(words, parts, tmp_path, capsys):
    error = _one_line(capsys, "run", *words, "--out", tmp_path / "runs")
    assert all(part in error for part in parts), error
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_glad_without_its_level_is_refused(tmp_path, capsys):
    words = ["run", "--method", "glad", "--set", "parameterization.levels=null", "--out", tmp_path]
    assert "parameterization.levels" in _one_line(capsys, *words)


@pytest.mark.parametrize(
    "idle", [("--trials", "3"), ("--protocol", "dsa"), ("--benchmark", "dd-ranking"), ("--no-full-data",)]
)
def test_a_distance_takes_no_settings_of_trainings(idle, finished, capsys):
    out, record = finished
    error = _one_line(capsys, "eval", record["id"], "--out", out, "--metric", "crfd", *idle)
    assert f"{idle[0]} would have no effect" in error


WEAK = [
    *("--method", "h-pd", "--set", "network.width=4"),
    *(f"--set=parameterization.recipe.{name}" for name in ("steps=2", "width=4", "noise=2", "style=2")),
]


def test_a_weak_prior_is_shown_with_its_gates_and_kept(tmp_path, capsys):
    error = _one_line(capsys, "prepare", *WEAK, "--out", tmp_path, code=1)
    assert "too weak: conditional accuracy" in error
    assert "parameterization.allow_weak_prior=true" in error
    assert list(tmp_path.glob("priors/*/prior.json"))
    capsys.readouterr()
    allowed = [*WEAK, "--set", "parameterization.allow_weak_prior=true", "--out", tmp_path]
    assert command("prepare", *allowed) == 0
    output = capsys.readouterr().out
    assert "exists: the prior of digits" in output
    assert "classification accuracy score" in output
    assert "exists: the reference classifier of digits" in output
    few = ["--set", "parameterization.samples=9", "--set", "objective.batch_real=4", "--steps", "5"]
    assert command("run", *allowed, *few, *SCORED, "--no-full-data") == 0
    assert len(list(tmp_path.glob("priors/*/prior.json"))) == 1  # none was trained for the run
    assert not list(tmp_path.glob("priors/gates-*.json"))  # and none measured


def test_a_dry_run_of_prepare_lists_what_is_missing(tmp_path, capsys):
    assert command("prepare", *WEAK, "--dry-run", "--out", tmp_path) == 0
    output = capsys.readouterr().out
    assert "missing: the prior of digits" in output
    assert "missing: the reference classifier of digits" in output
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_method_without_artifacts_says_so(tmp_path, capsys):
    assert command("prepare", "--method", "dm", "--out", tmp_path) == 0
    assert "dm on digits needs no artifacts but its data" in capsys.readouterr().out


def test_decoded_images_and_whitening_are_prepared(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DD_PLUGINS_CACHE", str(tmp_path / "cache"))
    for done in ("made in", "exists"):
        assert command("prepare", "--method", "dm", "--set", "data.zca=true", "--out", tmp_path) == 0
        assert re.search(rf"{done}.*the whitening matrix of digits", capsys.readouterr().out)


def test_an_empty_folder_of_a_prior_is_no_folder(tmp_path, capsys):
    words = ["run", "--method", "h-pd", "--out", tmp_path, "--set"]
    assert "no value; write null" in _one_line(capsys, *words, "parameterization.prior=")
    assert "parameterization.prior = ''" in _one_line(capsys, *words, "parameterization.prior=''")


def test_a_gpu_that_is_not_there(capsys):
    assert "torch finds no CUDA device here" in _one_line(capsys, "run", "--device", "cuda")


def test_a_number_that_is_none(capsys):
    assert command("run", "--ipc", "many") == 2
    error = capsys.readouterr().err
    assert "--ipc" in error
    assert "Traceback" not in error


def test_a_budget_too_small_tells_what_is_needed(capsys):
    sizes = [
        "grid=8",
        "widths=[]",
        "dataset_channels=4",
        "class_channels=4",
        "instance_channels=2",
        "extractor_channels=3",
    ]
    words = [word for size in sizes for word in ("--set", f"parameterization.{size}")]
    error = _one_line(capsys, "run", "--param", "hmn", "--device", "cpu", *words)
    # m^D + m^C, f_c: 10 classes of 3 x (4 + 1), D: 9 inputs to one grey channel of 3x3 and a bias; then the images
    shared = (4 + 10 * 4) * 64 + 10 * 3 * (4 + 1) + (9 * 9 + 1)
    assert f"take {shared + 10 * 2 * 64} elements" in error
    assert "budget is 640" in error


def _parquet(folder, contents, labels):
    folder.mkdir(exist_ok=True)
    names = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["a", "b"]}}}}).encode()}
    table = pa.table({"image": [{"bytes": content} for content in contents], "label": labels})
    for split in ("train", "test"):
        pq.write_table(table.replace_schema_metadata(names), folder / f"{split}.parquet")


def _png(value=0):
    content = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(content, format="PNG")
    return content.getvalue()


def test_damaged_parquet_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DD_PLUGINS_CACHE", str(tmp_path / "cache"))
    words = ["run", "--dataset", f"parquet:{tmp_path / 'set'}", "--device", "cpu", "--out", tmp_path / "runs"]
    assert "no such file or folder" in _one_line(capsys, *words)
    images = [_png(value) for value in (0, 80, 160, 240)]
    _parquet(tmp_path / "set", images, [0, 1, 0, 7])
    assert "labels from 0 to 1 for its 2 class names, but found 7 (2 images)" in _one_line(capsys, *words)
    _parquet(tmp_path / "set", [*images[:3], b"no image"], [0, 1, 0, 1])
    assert command(*words) == 2  # the same bytes are the training and the test set: two images, one line each
    summary, *details = capsys.readouterr().err.splitlines()
    assert summary.startswith("dd-bench: 2 of 8 images cannot be used")
    assert [detail.startswith("  ") and "parquet: row 3" in detail for detail in details] == [True, True]
    (tmp_path / "set" / "train.parquet").write_bytes(b"PAR1 cut short")
    assert "truncated, or not a parquet file" in _one_line(capsys, *words)
    assert not (tmp_path / "runs").exists()


# ---- show ----------------------------------------------------------------------------------------------------------


def test_show_by_id_beginning_and_folder(finished, capsys, monkeypatch, tmp_path):
    out, record = finished
    monkeypatch.chdir(tmp_path)
    for name, words in ((record["id"], ["--out", out]), (record["id"][:4], ["--out", out]), (out / record["id"], [])):
        assert command("show", name, *words) == 0
        output = capsys.readouterr().out
        assert f"run {record['id']}: hmn + idc (method hmn), seed 0" in output
        assert record["data"]["fingerprint"] in output


def test_show_json_is_the_record(finished, capsys):
    out, record = finished
    assert command("show", record["id"], "--json", "--out", out) == 0
    assert json.loads(capsys.readouterr().out) == record


@pytest.mark.parametrize("name", ["nonsense", "**", "[", "../x"])
def test_show_of_an_unknown_run_lists_those_there_are(finished, capsys, name):
    assert finished[1]["id"] in _one_line(capsys, "show", name, "--out", finished[0])


def test_show_of_an_unfinished_or_ambiguous_run(tmp_path, capsys):
    for name in ("aa1", "aa2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("")
    assert "more than one run begins like 'aa'" in _one_line(capsys, "show", "aa", "--out", tmp_path)
    assert "config.yaml: expected a mapping" in _one_line(capsys, "show", "aa1", "--out", tmp_path)
    (tmp_path / "aa1" / "record.json").write_text("{")
    assert "record.json: not valid JSON" in _one_line(capsys, "show", "aa1", "--out", tmp_path)


def test_usage_errors_and_unknown_options(capsys):
    for words in (["nonsense"], ["run", "--bogus"], ["show"]):
        assert command(*words) == 2
        assert "Traceback" not in capsys.readouterr().err


# ---- yardsticks and profile ----------------------------------------------------------------------------------------

SCORED = ["--set", "protocol.network.width=8", "--set", "protocol.train.epochs=2", "--set", "protocol.trials=2"]


def test_yardsticks_alone_are_those_of_a_run(tmp_path, capsys):
    words = ["yardsticks", "--dataset", "digits", "--ipc", "2", "--device", "cpu", "--out", tmp_path, *SCORED]
    assert command(*words) == 0
    output = capsys.readouterr().out
    assert re.search(r"random real, protocol quick\[.*\], 1,280 elements: \d+\.\d+ \+- \d+\.\d+ \(n=2\) %", output)
    assert "whole training set, same updates" in output
    folders = sorted((tmp_path / "yardsticks").iterdir())
    assert command("table", *folders) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[4] for row in rows[2:]] == ["random real", "whole training set, same updates"]


@pytest.mark.parametrize(
    ("large", "flag", "wanted"),
    [
        (10_000, None, True),
        (10_000, "--no-full-data", False),
        (100, None, False),
        (100, "--full-data", True),
    ],
)
def test_the_whole_training_set_is_scored_if_it_is_small_or_wanted(tmp_path, capsys, monkeypatch, large, flag, wanted):
    monkeypatch.setattr("benchmark_adapters.runs.scoring.LARGE", large)
    words = ["yardsticks", "--device", "cpu", "--out", tmp_path, *SCORED]
    assert command(*words, *([flag] if flag else [])) == 0
    output = capsys.readouterr().out
    assert "random real" in output
    assert ("whole training set" in output) == wanted


def test_comparisons_and_scores_on_other_networks_can_do_without_the_whole_training_set(tmp_path):
    where = [*SCORED, "--device", "cpu", "--out", tmp_path, "--no-full-data"]
    words = [
        "--methods",
        "dm",
        "--ipc",
        "1",
        "--steps",
        "2",
        "--set",
        "network.width=8",
        "--set",
        "objective.batch_real=8",
    ]
    assert command("compare", *words, *where) == 0
    (folder,) = (path for path in tmp_path.iterdir() if (path / "synthetic.safetensors").exists())
    assert command("eval", folder.name, "--network", "lenet", *where[2:]) == 0
    yardsticks = json.loads((folder / "record.json").read_text())["yardsticks"]
    assert [(found["name"], found["network"]) for found in yardsticks] == [
        ("random real", "convnet"),
        ("random real", "lenet"),
    ]


def test_a_yardstick_that_was_cut_off_goes_on_with_its_next_trial(tmp_path, capsys, monkeypatch):
    from dd_plugins.engine import evaluation

    words = ["yardsticks", "--device", "cpu", "--out", tmp_path, *SCORED]
    real, trained = evaluation.train_networks, []

    def train(networks, *args, **options):
        trained.append(len(networks))
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(networks, *args, **options)

    monkeypatch.setattr(evaluation, "train_networks", train)
    assert command(*words) == 130
    assert command(*words) == 0
    assert trained == [1, 1, 1, 1, 1]  # one of the second trial was lost; the whole set's two follow


def test_profile_tells_times_and_parts_and_stores_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word for word in WORDS[1:] if word not in ("--steps", "6")]
    assert command("profile", *words, "--repeat", "2") == 0
    output = " ".join(capsys.readouterr().out.split())
    for text in ("condensation: ", "per step", "match", "evaluation (quick", "per update", "backward", "convolution"):
        assert text in output
    assert "300 steps make" in output
    assert list(tmp_path.iterdir()) == []
