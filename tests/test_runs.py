"""A run from its configuration to a scored record: what is kept, and what is not done twice."""

import io
import json
import logging
import math
import shutil
import threading
import time

import pytest
import torch
from PIL import Image
from rich.console import Console
from tiny_runs import FLAGS, PROTOCOL, TINY, command, run

from benchmark_adapters.cli.progress import Reporter
from benchmark_adapters.runs import pipeline, scoring
from benchmark_adapters.runs.identity import compute_run_id
from benchmark_adapters.runs.parts import Options
from benchmark_adapters.runs.store import RunFolder
from dd_plugins.api import read_tensors
from dd_plugins.datasets import load_dataset
from dd_plugins.engine.condensation import Condensation
from dd_plugins.engine.config import resolve
from dd_plugins.engine.distilled import load_stored


@pytest.fixture
def no_condensing(monkeypatch):
    monkeypatch.setattr(pipeline, "_condense", lambda *_: pytest.fail("condensed again"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run for all tests that only look at it."""
    out = tmp_path_factory.mktemp("runs")
    record = run(out)
    return out, RunFolder(out / record["id"]), record


@pytest.fixture
def done(finished, tmp_path):
    """A copy of the finished run, to work on."""
    out = tmp_path / "runs"
    shutil.copytree(finished[0], out)
    return out, RunFolder(out / finished[2]["id"]), finished[2]


# ---- what a run leaves behind --------------------------------------------------------------------------------------


def test_files_and_record(finished):
    _, folder, record = finished
    names = {path.name for path in folder.path.iterdir()}
    assert names >= {"config.yaml", "record.json", "synthetic.safetensors", "trials.jsonl", "log.txt", "preview.png"}
    assert not folder.checkpoint.exists()
    assert record == json.loads(folder.record.read_text())
    assert folder.path.name == record["id"] == compute_run_id(resolve(FLAGS, TINY), record["data"]["fingerprint"])
    assert resolve({}, config_file=folder.path / "config.yaml") == resolve(FLAGS, TINY)
    assert (record["status"], record["config"]["steps"], record["condensation"]["steps"]) == ("done", 6, 6)
    assert len(record["condensation"]["losses"]) == 6
    assert all(map(math.isfinite, record["condensation"]["losses"]))
    assert record["plugins"]["parameterization"]["entry_point"] == "dd_plugins.parameterizations.hmn:HMN"
    assert {"torch", "python", "dd-plugins", "threads"} <= set(record["versions"])


def test_storage_in_the_record_is_what_the_file_holds(finished):
    _, folder, record = finished
    tensors, _ = read_tensors(folder.synthetic)
    storage = record["storage"]
    assert storage["elements"] == sum(t.numel() for t in tensors.values())
    assert storage["bytes"] == sum(t.numel() * t.element_size() for t in tensors.values())
    assert storage["budget"] == 1 * 10 * 1 * 8 * 8
    assert {entry["name"]: tuple(entry["shape"]) for entry in storage["ledger"]} == {
        name: tuple(t.shape) for name, t in tensors.items()
    }
    assert storage["elements"] <= storage["budget"]


def test_scores_carry_protocol_and_every_trial(finished):
    _, folder, record = finished
    (score,) = record["scores"]
    protocol = resolve(FLAGS, TINY).protocol
    assert (score["protocol"], score["protocol_hash"], score["network"]) == (protocol.name, protocol.hash, "convnet")
    lines = [json.loads(line) for line in folder.trials.read_text().splitlines()]
    assert [line["score"] for line in lines] == score["trials"]
    assert [line["trial"] for line in lines] == [0, 1]
    images = len(load_dataset("digits").test)
    for value in score["trials"]:
        assert value * images == pytest.approx(round(value * images), abs=1e-9)  # a count of test images


def test_yardsticks_stand_beside_and_are_cached(done, monkeypatch):
    out, _, record = done
    subset, whole = record["yardsticks"]
    assert (subset["name"], subset["elements"], subset["images_per_class"]) == ("random real", 640, [1] * 10)
    real = load_dataset("digits")
    assert whole["name"] == "whole training set, same updates"
    assert sum(whole["images_per_class"]) == len(real.train) + len(real.validation)
    assert len(list((out / "yardsticks").iterdir())) == 2
    monkeypatch.setattr("benchmark_adapters.runs.scoring.evaluate", lambda *_: pytest.fail("scored again"))
    assert run(out)["yardsticks"] == record["yardsticks"]


def test_a_yardstick_with_more_trials_than_asked_for_is_taken_and_one_with_less_goes_on(done, monkeypatch):
    out, _, record = done
    asked = []
    original = scoring.evaluate

    def counted(synthetic, protocol, cell, context):
        asked.append(protocol.trials - len(context.known))
        return original(synthetic, protocol, cell, context)

    monkeypatch.setattr(scoring, "evaluate", counted)

    def found(trials):
        config = resolve(FLAGS, [*TINY, f"protocol.trials={trials}"])
        device, reporter = torch.device("cpu"), Reporter(Console(quiet=True))
        return scoring.yardsticks(config, load_dataset("digits"), out, device, reporter, full_data=False)[0]["trials"]

    two = record["yardsticks"][0]["trials"]
    assert found(1) == two
    assert asked == []
    three = found(3)
    assert three[:2] == two
    assert asked == [1]
    assert found(2) == three


def test_warnings_are_shown_once_and_stand_in_every_log(tmp_path):
    said, plugin = Console(record=True, width=200, file=io.StringIO()), logging.getLogger("dd_plugins.made_up")
    outer, inner = tmp_path / "outer.txt", tmp_path / "inner.txt"
    with pipeline._logged_to(outer, Reporter(said)), pipeline._logged_to(inner, Reporter(said)):
        plugin.info("all is well")
        plugin.warning("look at this")
        plugin.error("it ends")
    plugin.warning("too late")
    assert said.export_text().split("\n") == ["look at this", ""]
    for file in (outer, inner):
        assert [line.split(": ")[-1] for line in file.read_text().splitlines()] == [
            "all is well", "look at this", "it ends",
        ]  # fmt: skip


def test_a_yardstick_that_another_process_scores_is_waited_for(done):
    folder = RunFolder(next((done[0] / "yardsticks").iterdir()))
    waited = []

    def read():
        with folder.locked("the reference score"):
            waited.append(time.monotonic())

    with folder.locked():
        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.2)
        assert not waited
        freed = time.monotonic()
    reader.join(timeout=10)
    assert waited[0] >= freed


def test_preview_opens(finished):
    with Image.open(finished[1].path / "preview.png") as image:
        image.load()
        assert image.width > 2 * 8  # columns of images, classes as rows
        assert image.height > 10 * 8


def test_the_set_is_rebuilt_from_its_file_alone(finished, tmp_path):
    _, folder, record = finished
    alone = tmp_path / "elsewhere.safetensors"
    alone.write_bytes(folder.synthetic.read_bytes())
    container = load_stored(alone)
    images = container.decode()
    assert images.shape == (sum(record["images_per_class"]), 1, 8, 8)
    assert torch.bincount(container.labels).tolist() == record["images_per_class"]
    assert torch.equal(images, load_stored(folder.synthetic).decode())


# ---- what is not done twice ----------------------------------------------------------------------------------------


def test_a_finished_run_is_only_read(done, no_condensing):
    out, folder, record = done
    before = folder.synthetic.stat().st_mtime_ns, folder.trials.read_bytes()
    assert run(out) == record
    assert (folder.synthetic.stat().st_mtime_ns, folder.trials.read_bytes()) == before


def test_a_finished_run_is_reported_and_none_of_its_files_is_written_again(done, no_condensing):
    out, folder, record = done

    def state():
        files = [path for path in folder.path.iterdir() if path.name != ".lock"]
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before, said = state(), io.StringIO()
    config = resolve(FLAGS, TINY)
    options = Options(out, torch.device("cpu"))
    assert pipeline.run(config, options, Reporter(Console(file=said, width=500))) == record
    assert said.getvalue() == f"already finished: {folder.path}\n"
    assert state() == before
    folder.failure.write_text('{"status": "error", "message": "x"}')  # the last attempt did not end well
    assert run(out) == record
    assert not folder.failure.exists()


def test_another_protocol_scores_the_same_images(done, no_condensing):
    out, folder, record = done
    before = folder.synthetic.stat().st_mtime_ns
    again = run(out, None, [*TINY, "protocol.train.epochs=3"])
    assert again["id"] == record["id"]
    assert [score["protocol"] for score in again["scores"]] == [
        record["scores"][0]["protocol"],
        resolve(FLAGS, [*TINY, "protocol.train.epochs=3"]).protocol.name,
    ]
    assert again["scores"][0] == record["scores"][0]
    assert folder.synthetic.stat().st_mtime_ns == before


def test_more_trials_keep_the_ones_that_are_done(done, no_condensing):
    out, folder, record = done
    again = run(out, None, [*TINY, "protocol.trials=3"])
    (score,) = again["scores"]
    assert score["trials"][:2] == record["scores"][0]["trials"]
    assert len(folder.trials.read_text().splitlines()) == len(score["trials"]) == 3


def test_the_same_run_elsewhere_is_bit_identical(finished, tmp_path):
    _, folder, record = finished
    again = run(tmp_path, checkpoint_seconds=0.0, chunk_size=None)
    assert (tmp_path / record["id"] / "synthetic.safetensors").read_bytes() == folder.synthetic.read_bytes()
    assert again["scores"][0]["trials"] == record["scores"][0]["trials"]


def test_a_torn_line_of_trials_is_scored_again(done):
    out, folder, record = done
    folder.record.unlink()
    content = folder.trials.read_bytes()
    folder.trials.write_bytes(content[: content.index(b"\n") + 12])
    assert run(out)["scores"][0]["trials"] == record["scores"][0]["trials"]


@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_the_norm_of_all_gradients_together_is_clipped(clip, tmp_path):
    flags = {"method": "rtp", "ipc": 5}
    own = ["objective.unroll=2", "network.width=8", "parameterization.lr=0.5", "optimizer.momentum=0"]
    small = [*own, "protocol.network.width=8", "protocol.train.epochs=1", "protocol.trials=1"]
    stored = []
    for steps in (0, 1):
        record = run(tmp_path, {**flags, "steps": steps}, [*small, f"optimizer.clip_norm={clip}"])
        stored.append(read_tensors(tmp_path / record["id"] / "synthetic.safetensors")[0])
    moved = sum(float((stored[1][name] - value).double().square().sum()) for name, value in stored[0].items()) ** 0.5
    if clip < 1:
        assert moved == pytest.approx(0.5 * clip, rel=1e-3)  # the rate times the largest norm that is allowed
    else:
        assert moved > 0.5 * 0.01


def test_the_number_of_threads_is_set_and_recorded(tmp_path, monkeypatch):
    seen, take = set(), Condensation.take_step

    def recording(self):
        seen.add(torch.get_num_threads())
        return take(self)

    monkeypatch.setattr(Condensation, "take_step", recording)
    settings = ("network.width=4", "steps=2", *PROTOCOL)
    words = [word for text in settings for word in ("--set", text)]
    before = torch.get_num_threads()
    assert command("run", "--method", "dm", *words, "--threads", "2", "--no-full-data", "--out", tmp_path) == 0
    (record,) = tmp_path.glob("*/record.json")
    assert json.loads(record.read_text())["condensation"]["threads"] == 2
    assert seen == {2}
    assert torch.get_num_threads() == before
