"""dd-bench eval: a run or a file scored again, on other networks and under other protocols."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_runs import PROTOCOL, command, run

from benchmark_adapters.runs import pipeline
from benchmark_adapters.runs.store import RunFolder, write_json
from dd_plugins.api import PluginContractError, read_tensors
from dd_plugins.engine.protocols import load_protocol

SHORT = [f"--set={text}" for text in PROTOCOL if "network" not in text]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return out, run(out)["id"]


@pytest.fixture
def done(finished, tmp_path, monkeypatch):
    """A copy of a finished run; condensing again is a failure."""
    out = tmp_path / "runs"
    shutil.copytree(finished[0], out)
    monkeypatch.setattr(pipeline, "_condense", lambda *_: pytest.fail("condensed again"))
    monkeypatch.setenv("COLUMNS", "200")
    return out, RunFolder(out / finished[1])


def _read(folder):
    return json.loads(folder.record.read_text())


def _refused(capsys, *words):
    capsys.readouterr()
    assert command("eval", *words, "--device", "cpu") == 2
    error = capsys.readouterr().err
    assert error.startswith("dd-bench: ")
    assert error.count("\n") == 1, error
    return error


def test_a_run_is_scored_by_default_as_it_was(done, monkeypatch):
    out, folder = done
    before = _read(folder)
    monkeypatch.setattr("benchmark_adapters.runs.scoring.evaluate", lambda *_: pytest.fail("scored again"))
    assert command("eval", folder.path.name, "--out", out, "--device", "cpu") == 0
    assert _read(folder) == before


def test_several_networks_join_the_record(done, capsys):
    out, folder = done
    before = _read(folder)
    assert command("eval", folder.path.name, "--network", "convnet,alexnet", "--out", out, "--device", "cpu") == 0
    record, output = _read(folder), capsys.readouterr().out
    assert [score["network"] for score in record["scores"]] == ["convnet", "alexnet"]
    assert record["scores"][0] == before["scores"][0]  # known already
    other = record["scores"][1]
    assert other["protocol_hash"] != record["scores"][0]["protocol_hash"]
    assert (len(other["trials"]), "epochs=5" in other["protocol"]) == (2, True)  # the run's own changes stay
    assert f"{100 * np.mean(other['trials']):.2f} +- " in output
    assert [y["network"] for y in record["yardsticks"]] == ["convnet"] * 2 + ["alexnet"] * 2


def test_another_protocol_by_name_leaves_the_runs_own_changes_behind(done, monkeypatch):
    out, folder = done
    seen = []
    monkeypatch.setattr(
        "benchmark_adapters.runs.scoring.evaluate", lambda _, p, *__: seen.append(p) or (0.5,) * p.trials
    )
    assert command("eval", folder.path, "--protocol", "dc", "--out", out, "--device", "cpu") == 0
    assert seen == [load_protocol("dc")] * 3  # the set and two yardsticks
    assert _read(folder)["scores"][-1]["protocol"] == "dc"


def test_a_file_scores_as_its_run_did(done, tmp_path):
    _, folder = done
    file = tmp_path / "alone.safetensors"
    shutil.copy(folder.synthetic, file)
    words = [*SHORT, "--set=protocol.network.width=8", "--out", tmp_path / "elsewhere", "--device", "cpu"]
    assert command("eval", file, *words) == 0
    (written,) = (tmp_path / "elsewhere" / "evaluations").glob("*/record.json")
    record = json.loads(written.read_text())
    assert record["scores"][0]["trials"] == _read(folder)["scores"][0]["trials"]
    assert record["storage"]["elements"] == sum(t.numel() for t in read_tensors(file)[0].values())
    assert command("eval", file, *words, "--set=protocol.train.epochs=2") == 0
    assert len(json.loads(written.read_text())["scores"]) == 2  # the first one stays


@pytest.mark.parametrize(
    ("key", "value"),
    [("config", None), ("config", 3), ("storage", None), ("storage", {}), ("images_per_class", "x"), ("container", 3),
     ("name", None), ("data", {}), ("scores", {}), ("yardsticks", None)],
)  # fmt: skip
def test_a_damaged_record_of_a_scored_file_is_one_line(done, tmp_path, capsys, key, value):
    _, folder = done
    out = tmp_path / "elsewhere"
    name = hashlib.sha256(folder.synthetic.read_bytes()).hexdigest()[:10]
    record = {k: v for k, v in _read(folder).items() if k != "config"}
    (out / "evaluations" / name).mkdir(parents=True)
    (out / "evaluations" / name / "record.json").write_text(json.dumps({**record, key: value}))
    capsys.readouterr()
    assert command("eval", folder.synthetic, *SHORT, "--out", out, "--device", "cpu") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert f"{name}/record.json is no record" in error
    assert key in error


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Sets of grey 8x8 images: ten classes as digits has, and two."""
    root = tmp_path_factory.mktemp("folders")
    for classes in (2, 10):
        for split in ("train", "test"):
            for label in range(classes):
                path = root / str(classes) / split / str(label)
                path.mkdir(parents=True)
                for k in range(2):
                    Image.fromarray(np.full((8, 8), 20 * label + k, dtype=np.uint8)).save(path / f"{k}.png")
    return root


@pytest.mark.parametrize(("classes", "reason"), [(2, "2 classes of (1, 8, 8)"), (10, "with fingerprint")])
def test_other_data_than_it_was_made_from_is_refused(done, folders, tmp_path, capsys, monkeypatch, classes, reason):
    monkeypatch.setenv("DD_PLUGINS_CACHE", str(tmp_path / "cache"))
    out, folder = done
    for stored in (folder.path, folder.synthetic):
        error = _refused(capsys, stored, "--dataset", f"folder:{folders / str(classes)}", "--out", out)
        assert "the set was made from digits" in error
        assert reason in error


def test_files_that_are_none_of_ours(done, tmp_path, capsys):
    content = done[1].synthetic.read_bytes()
    file = tmp_path / "stored.safetensors"
    for damaged in (b"", content[:5], content[:100], content[:-1], content + b"x", b"\xff" * 400):
        file.write_bytes(damaged)
        assert "truncated, or not a safetensors file" in _refused(capsys, file)
    save_file({"images": torch.zeros(2)}, file)
    assert "not a synthetic set written by dd-plugins" in _refused(capsys, file)
    for header in (
        "{",
        "[]",
        "3",
        '{"format": 1}',
        '{"format": "new"}',
        '{"format": 1, "plugin": "pixel", "config": 3}',
    ):
        save_file({"images": torch.zeros(2)}, file, {"dd_plugins": header})
        assert "its header" in _refused(capsys, file), header
    save_file({"images": torch.zeros(2)}, file, {"dd_plugins": '{"format": 99}'})
    assert "format 99 is newer than this release reads" in _refused(capsys, file)


@pytest.mark.parametrize(
    "change",
    [
        {"data": []},
        {"data": {}},
        {"counts": 3},
        {"counts": ["a"]},
        {"counts": [1, 2]},
        {"counts": [0] * 10},
        {"budget": None},
        {"budget": {"elements": 1}},
        {"plugin": "nonsense"},
        {"plugin": "os:getcwd"},
        {"config": {"colour": 3}},
        {"data.image_shape": []},
        {"data.image_shape": "8x8"},
        {"data.std": [0]},
        {"data.num_classes": -1},
    ],
)
def test_headers_that_lie(done, tmp_path, capsys, change):
    tensors, metadata = read_tensors(done[1].synthetic)
    header = json.loads(metadata["dd_plugins"])
    for key, value in change.items():
        *parents, last = key.split(".")
        (header[parents[0]] if parents else header)[last] = value
    file = tmp_path / "stored.safetensors"
    save_file(tensors, file, {"dd_plugins": json.dumps(header)})
    _refused(capsys, file)


def test_tensors_that_do_not_fit_the_header(done, tmp_path, capsys):
    tensors, metadata = read_tensors(done[1].synthetic)
    file, name = tmp_path / "stored.safetensors", "class_memory"
    nan = torch.full_like(tensors[name], float("nan"))
    for wrong in ({}, {name: tensors[name][:1]}, {name: tensors[name].double()}, {name: nan}, {"more": torch.zeros(1)}):
        held = {**tensors, **wrong} if wrong else {key: value for key, value in tensors.items() if key != name}
        save_file(held, file, metadata)
        assert "tensor " in _refused(capsys, file)


def test_what_is_neither_run_nor_file(done, capsys):
    out, folder = done
    assert folder.path.name in _refused(capsys, "nonsense", "--out", out)
    assert "unknown network 'nonet'" in _refused(capsys, folder.path, "--network", "nonet", "--out", out)


def test_a_distance_that_is_no_number_is_one_line_and_not_written(done, capsys, monkeypatch):
    out, folder = done
    before = _read(folder)
    monkeypatch.setattr("benchmark_adapters.runs.rescore.ClassRelevantDistance.__call__", lambda *_: float("nan"))
    assert "NaN or infinite" in _refused(capsys, folder.path.name, "--out", out, "--metric", "crfd")
    assert _read(folder) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_with_a_number_that_is_none_is_not_written(tmp_path, value):
    file = tmp_path / "record.json"
    file.write_text("{}")
    with pytest.raises(PluginContractError, match=r"record\.json: not written, since a value in it is NaN or infinite"):
        write_json(file, {"metrics": [1.0, value]})
    assert file.read_text() == "{}"
