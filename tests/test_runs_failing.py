"""What a run refuses, and what is left when it fails."""

import errno
import importlib
import json
import math
import os
import resource
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_runs import FLAGS, OBJECTIVE, PARTS, PROTOCOL, TINY, WORDS, command, run, start

from benchmark_adapters.runs.identity import compute_run_id
from benchmark_adapters.runs.store import RunFolder
from dd_plugins.api import (
    DifferentiableObjective,
    DivergedError,
    Match,
    MatchingObjective,
    PluginContractError,
    ResumeMismatch,
    RunLocked,
    StorageBudgetExceeded,
    read_stored,
    read_tensors,
    write_tensors,
)
from dd_plugins.api.stored import write_stored
from dd_plugins.datasets import load_dataset
from dd_plugins.engine.config import resolve
from dd_plugins.parameterizations.pixel import Pixel


class NanAtThree(DifferentiableObjective):
    """Diverges at step 3."""

    api_version = 2

    def loss(self, images, targets, step):
        return images.square().mean() * (math.nan if step == 3 else 1)


class InfiniteGradient(MatchingObjective):
    """A finite loss whose gradient is not."""

    api_version = 2

    def match(self, images, targets, step):
        return Match(images.mean(), torch.full_like(images, math.inf if step == 2 else 0.0))


class Faulty(DifferentiableObjective):
    """Raises an error of its own."""

    api_version = 2

    def loss(self, images, targets, step):
        raise ZeroDivisionError("a plugin's own fault")


class Breaks(Pixel):
    """Becomes infinite behind the last step, where no loss tells."""

    api_version = 2
    calls = 0

    def project(self):
        Breaks.calls += 1
        with torch.no_grad():
            self.images[0, 0, 0, 0] = math.inf if Breaks.calls == 6 else 0


class Greedy(Pixel):
    """Takes twice its budget."""

    api_version = 2

    @classmethod
    def plan(cls, data, budget, config, cost):
        plan = super().plan(data, budget, config, cost)
        return replace(plan, counts=tuple(2 * count for count in plan.counts))


class Replaces(Pixel):
    """Allocates anew in reset."""

    api_version = 2

    def reset(self, generator, real):
        super().reset(generator, real)
        self.images = torch.nn.Parameter(self.images.detach().clone())


def _own(cls):
    return f"{__name__}:{cls.__name__}"


@pytest.fixture
def done(tmp_path):
    record = run(tmp_path)
    return tmp_path, RunFolder(tmp_path / record["id"]), record


@pytest.mark.parametrize("claimed", [640, 1280])
def test_a_file_over_its_budget_is_refused_whatever_its_header_claims(done, claimed, capsys):
    out, folder, _ = done
    header, _ = read_stored(folder.synthetic)
    made = type(header)("pixel", {}, header.data, type(header.budget)(claimed), (2,) * 10)
    write_stored(folder.synthetic, {"images": torch.zeros(20, 1, 8, 8)}, made)
    folder.mark("condense", sha256=folder.digest())  # as if the condensation had stored it
    expected = r"stores 1280 elements in 5120 bytes, but the budget is 640 elements in 2560 bytes \(\+640 elements\)"
    with pytest.raises(StorageBudgetExceeded, match=expected):
        run(out)
    assert command("eval", folder.path.name, "--out", out) == 1
    assert "budget is 640 elements" in capsys.readouterr().err


def test_a_container_over_its_budget_is_refused_before_it_is_learned(tmp_path, capsys):
    words = ["run", "--param", _own(Greedy), "--steps", 6, *(f"--set={text}" for text in [*PARTS[:1], *PROTOCOL])]
    assert command(*words, "--out", tmp_path, "--device", "cpu") == 1
    assert "stores 1280 elements in 5120 bytes, but the budget is 640" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_set_in_the_place_of_the_stored_one_is_not_scored(done, capsys):
    out, folder, record = done
    other = run(out, {"seed": 1})
    stored = folder.synthetic.read_bytes()
    folder.synthetic.write_bytes((out / other["id"] / folder.synthetic.name).read_bytes())
    for words in ([*WORDS, "--set", "protocol.train.epochs=4"], ["eval", folder.path]):
        assert command(*words, "--out", out) == 2
        assert f"{folder.synthetic} is not the set that this run stored" in capsys.readouterr().err
    assert json.loads(folder.record.read_text()) == record
    folder.synthetic.write_bytes(stored)
    assert run(out)["scores"] == record["scores"]


def test_a_set_that_is_made_anew_is_scored_anew(done):
    out, folder, record = done
    folder.synthetic.unlink()
    key = f"{record['scores'][0]['protocol_hash']}/convnet"
    folder.trials.write_text("".join(json.dumps({"key": key, "trial": k, "score": 0.999}) + "\n" for k in range(2)))
    again = run(out)
    assert again["scores"][0]["trials"] == record["scores"][0]["trials"]
    assert again["condensation"]["sha256"] == record["condensation"]["sha256"] == folder.digest()
    assert again["condensation"]["finished"] >= record["condensation"]["finished"]
    assert set(folder.known_trials(key).values()) == set(record["scores"][0]["trials"])


@pytest.mark.parametrize("damage", ["{}", "[]", '{"name": "x", "data": {}, "scores": []}'])
def test_json_that_is_no_record_is_told_in_one_line(done, damage, capsys):
    out, folder, _ = done
    (yardstick, *_) = (out / "yardsticks").glob("*/record.json")
    for file, commands in (
        (folder.record, (WORDS, ["show", folder.path], ["eval", folder.path])),
        (yardstick, (WORDS, ["eval", folder.path])),
    ):
        good = file.read_bytes()
        file.write_text(damage)
        for words in commands:
            assert command(*words, "--out", out) == 2
            error = capsys.readouterr().err
            assert f"{file} is no record" in error
            assert error.count("\n") == 1
        file.write_bytes(good)


def test_two_processes_in_one_folder(done, capsys):
    out, folder, _ = done
    with folder.locked():
        with pytest.raises(RunLocked, match="in use by another process"):
            run(out)
        assert command("eval", folder.path, "--out", out) == 2
        assert "in use by another process" in capsys.readouterr().err
    assert run(out)["status"] == "done"


def test_checkpoint_of_another_run(tmp_path):
    with pytest.raises(DivergedError):
        run(tmp_path, {"objective": _own(NanAtThree)}, [*PARTS, *PROTOCOL])
    (left,) = tmp_path.glob("*/condense.safetensors")
    other = tmp_path / compute_run_id(resolve(FLAGS, TINY), load_dataset("digits").spec.fingerprint)
    other.mkdir()
    (other / left.name).write_bytes(left.read_bytes())
    with pytest.raises(ResumeMismatch, match=f"belongs to run {left.parent.name}, not to {other.name}"):
        run(tmp_path)
    (other / left.name).write_bytes(left.read_bytes()[:-9])
    with pytest.raises(ResumeMismatch, match="is damaged; remove it to begin again"):
        run(tmp_path)


def test_a_checkpoint_that_lacks_something(tmp_path):
    with pytest.raises(DivergedError):
        run(tmp_path, {"objective": _own(NanAtThree)}, [*PARTS, *PROTOCOL])
    (left,) = tmp_path.glob("*/condense.safetensors")
    tensors, metadata = read_tensors(left)
    name = next(name for name in tensors if name.startswith("container."))
    write_tensors(left, {key: value for key, value in tensors.items() if key != name}, metadata)
    with pytest.raises(ResumeMismatch, match=r"does not fit this run .*; remove it to begin again"):
        run(tmp_path, {"objective": _own(NanAtThree)}, [*PARTS, *PROTOCOL])


def test_nan_stops_at_its_step_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    words = ["--objective", _own(NanAtThree), "--steps", 6, *(f"--set={text}" for text in [*PARTS, *PROTOCOL])]
    assert command("run", *words, "--out", tmp_path, "--checkpoint-seconds", 0, "--device", "cpu") == 1
    message = capsys.readouterr().err
    assert message.startswith(
        "dd-bench: NaN or infinite loss at step 3; smaller learning rates may help (last finite loss: "
    )
    assert message.count("\n") == 1
    (checkpoint,) = tmp_path.glob("*/condense.safetensors")
    assert str(checkpoint) in message
    tensors, metadata = read_tensors(checkpoint)
    assert json.loads(metadata["dd_plugins.checkpoint"])["step"] == 3
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values() if value.is_floating_point())
    assert not (checkpoint.parent / "synthetic.safetensors").exists()
    assert "NaN or infinite loss at step 3" in (checkpoint.parent / "log.txt").read_text()


def test_an_infinite_gradient_stops_too(tmp_path):
    with pytest.raises(DivergedError, match="step 2"):
        run(tmp_path, {"objective": _own(InfiniteGradient)}, [*PARTS, *PROTOCOL])


def test_what_breaks_behind_the_last_step_is_not_stored(tmp_path):
    Breaks.calls = 0
    with pytest.raises(DivergedError, match=r"in images after step 5"):
        run(tmp_path, {"parameterization": _own(Breaks)}, [*PARTS[:1], *OBJECTIVE, *PROTOCOL])
    assert not list(tmp_path.glob("*/synthetic.safetensors"))


def test_a_container_that_allocates_in_reset_is_learned(tmp_path):
    settings = [*PARTS[:1], *OBJECTIVE, *PROTOCOL, "parameterization.clamp=false"]
    runs = [run(tmp_path, {"parameterization": name}, settings)["id"] for name in (_own(Replaces), "pixel")]
    first, second = (read_tensors(tmp_path / name / "synthetic.safetensors")[0]["images"] for name in runs)
    assert torch.equal(first, second)


def test_a_plugins_own_fault_keeps_its_traceback_and_names_the_plugin(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught:
        run(tmp_path, {"objective": _own(Faulty)}, [*PARTS, *PROTOCOL])
    assert any(_own(Faulty) in note for note in caught.value.__notes__)
    assert caught.traceback[-1].name == "loss"


# ---- folders that are removed or replaced ---------------------------------------------------------------------------


def _replace(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".lock").write_bytes(b"")


@pytest.mark.parametrize(
    ("at", "change", "said"),
    [
        ("dd_plugins.engine.condensation.checked_match", shutil.rmtree, "was removed while this command was writing"),
        ("dd_plugins.engine.condensation.checked_match", _replace, "was replaced while this command was writing"),
        ("benchmark_adapters.runs.scoring.evaluate", shutil.rmtree, "was removed while this command was writing"),
        (
            "benchmark_adapters.runs.scoring.evaluate",
            lambda folder: (folder / ".lock").unlink(),
            ".lock was removed while",
        ),
    ],
)
def test_a_run_folder_that_is_removed_while_it_is_used_ends_the_run(tmp_path, capsys, monkeypatch, at, change, said):
    place, _, name = at.rpartition(".")
    module, changed = importlib.import_module(place), []
    original = getattr(module, name)

    def changing(*words, **named):
        if not changed:
            (config,) = tmp_path.glob("*/config.yaml")
            changed.append(config.parent)
            change(config.parent)
        return original(*words, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, changing)
        assert command(*WORDS, "--out", tmp_path) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"dd-bench: {changed[0]}")
    assert said in error
    assert error.count("\n") == 1
    left = {path.name for path in changed[0].iterdir()} if changed[0].exists() else set()
    assert "record.json" not in left
    assert change is not shutil.rmtree or not left
    assert run(tmp_path)["status"] == "done"


# ---- no room left --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("good", [2, 4, 7])
def test_no_space_left_keeps_the_checkpoint_before(tmp_path, capsys, monkeypatch, good):
    reference, _ = run(tmp_path / "reference"), capsys.readouterr()
    real_fsync, written = os.fsync, []

    def fsync(descriptor):
        written.append(descriptor)
        if len(written) > good:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert command(*WORDS, "--checkpoint-seconds", 0, "--out", tmp_path) == 1
    error = capsys.readouterr().err
    assert error.startswith("dd-bench: ")
    assert "No space left on device" in error
    assert error.count("\n") == 1
    (checkpoint,) = tmp_path.glob("*/condense.safetensors")
    assert (
        json.loads(read_tensors(checkpoint)[1]["dd_plugins.checkpoint"])["step"] == good - 2
    )  # config.yaml, then step 0
    assert not list(checkpoint.parent.glob(".*.tmp"))
    again = run(tmp_path)
    name = f"{reference['id']}/synthetic.safetensors"
    assert (tmp_path / name).read_bytes() == (tmp_path / "reference" / name).read_bytes()
    assert again["scores"][0]["trials"] == reference["scores"][0]["trials"]


@pytest.mark.parametrize("limit", [100, 4000])
def test_a_process_that_may_not_write_more_says_so_in_one_line(tmp_path, limit):
    process = start(
        *WORDS, "--out", tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    assert error.startswith("dd-bench: ")
    assert error.endswith(f"{'config.yaml' if limit == 100 else 'condense.safetensors'}: File too large\n")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*/*.safetensors"))


def test_a_folder_of_runs_that_is_a_file(tmp_path, capsys):
    (tmp_path / "runs").write_text("")
    assert command(*WORDS, "--out", tmp_path / "runs") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"dd-bench: {tmp_path / 'runs'}")
    assert error.count("\n") == 1


class Forgetful(Pixel):
    """Keeps a part of its images outside what is stored."""

    api_version = 2

    def reset(self, generator, real):
        super().reset(generator, real)
        self.shift = 1.0

    def _decode(self, index):
        return super()._decode(index) + getattr(self, "shift", 0.0)


def test_a_container_whose_file_gives_other_images_is_no_result(tmp_path):
    with pytest.raises(PluginContractError, match=r"other images.*must be an nn\.Parameter or a buffer"):
        run(tmp_path, {"method": "pixel", "parameterization": f"{__name__}:Forgetful"}, [*OBJECTIVE, *PROTOCOL])
    assert not list(tmp_path.rglob("synthetic.safetensors"))


class Lost(Forgetful):
    """Needs what only its reset makes."""

    api_version = 2

    def _decode(self, index):
        return Pixel._decode(self, index) + self.shift


def test_a_container_that_cannot_decode_from_its_file_is_told_why(tmp_path):
    with pytest.raises(PluginContractError, match=r"AttributeError: .*shift.*must be an nn\.Parameter or a buffer"):
        run(tmp_path, {"method": "pixel", "parameterization": f"{__name__}:Lost"}, [*OBJECTIVE, *PROTOCOL])
    assert not list(tmp_path.rglob("synthetic.safetensors"))
