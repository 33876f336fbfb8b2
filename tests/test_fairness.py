"""What keeps results apart that must not be mixed up, and choices away from the test set."""

from dataclasses import replace

import pytest
import torch
from made_up import make_real, make_spec
from tiny_runs import TINY, command, run

from benchmark_adapters.runs.store import RunFolder
from dd_plugins.api import (
    ConfigError,
    DifferentiableObjective,
    RawData,
    Stage,
    Staged,
    StorageBudget,
    StorageLedger,
    SyntheticSet,
)
from dd_plugins.api.benchmark import Cell, ScoreContext
from dd_plugins.datasets import build_real_data
from dd_plugins.engine.condensation import Condensation
from dd_plugins.engine.config import OptimizerConfig, resolve
from dd_plugins.engine.evaluation import evaluate
from dd_plugins.engine.methods import choose_method
from dd_plugins.engine.protocols import Protocol
from dd_plugins.parameterizations.hmn import HMN
from dd_plugins.parameterizations.pixel import Pixel
from dd_plugins.seeds import make_generator


@pytest.mark.parametrize("change", [{"mean": (0.5,)}, {"std": (0.1,)}, {"mirror": False}])
def test_the_same_pixels_in_another_model_space_are_other_data(change):
    labels = torch.arange(2).repeat(6)
    images = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=make_generator(0))
    raw = RawData(images, labels, images, labels, ("a", "b"), mean=(0.4,), std=(0.2,))
    fingerprints = {build_real_data("x", each, "cpu", "x").spec.fingerprint for each in (raw, replace(raw, **change))}
    assert len(fingerprints) == 2


def test_a_choice_is_made_without_the_test_set():
    real = make_real()
    blind = replace(real, test=None)
    images, labels = real.train.images(), real.train.labels
    synthetic = SyntheticSet("x", real.spec, images, labels, StorageLedger.of([("images", images)]))
    values = {"name": "p", "network": {"name": "convnet", "width": 8, "depth": 2}, "train": {"epochs": 4}, "trials": 1}
    protocol = Protocol.model_validate({**values, "split": "validation"})
    (accuracy,) = evaluate(synthetic, protocol, Cell("x", 1, "convnet"), ScoreContext(blind, torch.device("cpu")))
    assert accuracy * len(real.validation) == pytest.approx(round(accuracy * len(real.validation)))
    assert protocol.hash != Protocol.model_validate(values).hash


def test_a_validation_score_tells_so_by_its_protocols_name():
    assert resolve({}, ["protocol.split=validation"]).protocol.name == "quick[split=validation]"


class TwoStages(Staged, Pixel):
    """Pixels in two stages of unequal length."""

    api_version = 2

    def stages(self):
        return (Stage("first", 0.3), Stage("second", 0.7))


class TowardsZero(DifferentiableObjective):
    """A loss with nothing random in it."""

    api_version = 2

    def loss(self, images, targets, step):
        return images.square().sum()


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_staged_run_resumes_bit_by_bit_wherever_it_was_cut(tmp_path, cut):
    def condensation(folder):
        spec = make_spec()
        container = TwoStages(spec, StorageBudget.ipc(spec, 1), {"init": "noise"})
        container.reset(make_generator(0), None)
        objective = TowardsZero(spec)
        objective.prepare(None, container.labels, None)
        checkpointer = RunFolder(folder).checkpointer("id")
        return Condensation(container, objective, OptimizerConfig(schedule="cosine"), 10, checkpointer)

    undisturbed = condensation(tmp_path / "whole")
    assert undisturbed.run()
    first = condensation(tmp_path / "cut")
    assert not first.run(stop=lambda: first.step == cut)
    second = condensation(tmp_path / "cut")
    assert second.resume()
    assert second.run()
    assert torch.equal(undisturbed.parameterization.images, second.parameterization.images)


def test_decoding_without_a_graph_is_chunked(monkeypatch):
    monkeypatch.setattr("dd_plugins.api.decoding.DECODE_CHUNK", 3)
    spec = make_spec()
    container = HMN(spec, StorageBudget.ipc(spec, 5), {"init": "noise"})
    container.reset(make_generator(0), None)
    seen, decode = [], container._decode
    monkeypatch.setattr(container, "_decode", lambda index: seen.append(len(index)) or decode(index))
    container.decode()
    assert max(seen) == 3
    assert sum(seen) == len(container.labels)


@pytest.mark.parametrize(
    "assignment", ["optimizer.betas=[2,3]", "parameterization.widths=[0,0]", "parameterization.widths=[-1,3]"]
)
def test_values_out_of_range_are_refused_by_their_path(assignment):
    with pytest.raises(ConfigError, match=assignment.partition("=")[0].replace(".", r"\.")):
        resolve({"method": "hmn"}, [assignment])


def test_a_mistake_in_the_protocol_is_found_before_the_condensation(tmp_path):
    with pytest.raises(ConfigError, match="unknown augmentation foo"):
        run(tmp_path, assignments=[*TINY, "protocol.train.strategy=foo"])
    assert not list(tmp_path.glob("*/condense.safetensors"))


def test_a_container_that_no_method_names_gets_the_settings_of_hmn():
    assert choose_method(None, "my_module:MyClass", None).name == "hmn"
    assert choose_method(None, "pixel", "dsa").name == "dsa"


def test_settings_of_the_data_set_are_reachable(tmp_path, capsys):
    words = ["run", "--param", "pixel", "--dataset", "digits", "--set", "data.size=3", "--out", tmp_path]
    assert command(*words) == 2
    assert "data.size" in capsys.readouterr().err


def test_a_table_leaves_out_folders_that_are_no_runs(tmp_path, capsys):
    run(tmp_path, {"parameterization": "hmn"})
    assert command("table", *sorted(path for path in tmp_path.iterdir() if path.is_dir())) == 0
    assert "hmn + idc" in capsys.readouterr().out
