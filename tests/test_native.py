"""The native benchmark: HLR, IOR, LRS and ARS from accuracies, by closed forms; which sets are trained on, and once."""

import json
from math import e, exp

import pytest
import torch
from tiny_runs import command, run

from benchmark_adapters import native
from benchmark_adapters.dc_bench import DCBench
from benchmark_adapters.native import NativeBenchmark
from benchmark_adapters.robustness import augmentation_score
from dd_plugins.api import ConfigError, StorageLedger, SyntheticSet, UsageError
from dd_plugins.api.benchmark import Cell, ScoreContext
from dd_plugins.datasets import load_dataset
from dd_plugins.engine.evaluation import evaluate
from dd_plugins.engine.protocols import Protocol, load_protocol

CPU = torch.device("cpu")
CELL = Cell("digits", 1, "")


@pytest.fixture(scope="module")
def real():
    return load_dataset("digits")


def protocol(**train):
    values = {"epochs": 2, "batch_size": 8, "augmentation": "dsa", **train}
    return Protocol.model_validate(
        {"name": "tiny", "network": {"name": "convnet", "width": 4}, "train": values, "trials": 2}
    )


def synthetic(real, per_class=3):
    images = torch.cat([real.train.images(rows[-per_class:]) for rows in real.train.class_rows()])
    labels = torch.arange(10).repeat_interleave(per_class)
    return SyntheticSet("made", real.spec, images, labels, StorageLedger.of([("images", images)]))


@pytest.fixture
def told(monkeypatch):
    """Trainings are not done; their accuracies depend on how many images there are, and on the augmentation."""
    seen = []

    def found(chosen, scored, cell, context):
        seen.append((len(chosen.targets), scored.train.augmentation))
        at = {10: 0.5, 30: 0.7, 1442: 0.9}[len(chosen.targets)] - (0.2 if scored.train.augmentation == "none" else 0)
        at += 0.05 if chosen.name == "made" else 0
        return (at, at + 0.01)

    monkeypatch.setattr(native, "evaluate", found)
    return seen


def test_all_scores_follow_from_the_accuracies(real, told):
    scored = NativeBenchmark({"protocol": protocol()}).score(synthetic(real), CELL, ScoreContext(real, CPU))
    assert scored.trials == pytest.approx((0.75, 0.76))
    assert (scored.protocol_hash, scored.metric, scored.network) == (protocol().hash, "accuracy", "convnet")
    found = {name: trials[0] for name, trials in scored.metrics.items()}
    scale = lambda x: (exp(x) - 1 / e) / (e - 1 / e)  # noqa: E731
    assert found == pytest.approx(
        {
            "random": 0.5,
            "random_decoded": 0.7,
            "IOR": 0.25,
            "IOR_decoded": 0.05,
            "HLR": 0.15,
            "LRS": scale((0.25 - 0.15) / 2),
            "LRS_decoded": scale((0.05 - 0.15) / 2),
            "plain": 0.55,
            "random_plain": 0.3,
            "ARS": scale((0.25 + 0.25) / 2),
        }
    )
    assert sorted(told) == [(10, "dsa"), (10, "none"), (30, "dsa"), (30, "dsa"), (30, "none"), (1442, "dsa")]


def test_weights_are_those_asked_for(real, told):
    settings = {"protocol": protocol(), "weight": 0.25, "augmentation_weight": 0.75, "full_accuracy": 80.0}
    scored = NativeBenchmark(settings).score(synthetic(real), CELL, ScoreContext(real, CPU))
    assert scored.metrics["HLR"] == pytest.approx((0.05, 0.04))
    assert scored.metrics["LRS"][0] == pytest.approx((exp(0.25 * 0.25 - 0.75 * 0.05) - exp(-1)) / (exp(1) - exp(-1)))
    assert scored.metrics["ARS"][0] == pytest.approx(augmentation_score(0.25, 0.25, 0.75))
    assert scored.extra["full_accuracy_source"] == "given"
    assert all(size != 1442 for size, _ in told)


def test_what_is_not_known_is_absent(real, told, monkeypatch):
    monkeypatch.setattr(native, "LARGE", 100)
    plain = NativeBenchmark({"protocol": protocol(augmentation="none")})
    scored = plain.score(synthetic(real), CELL, ScoreContext(real, CPU))
    assert set(scored.metrics) == {"random", "random_decoded", "IOR", "IOR_decoded"}
    full = {"full_accuracy": 0.9, "full_source": "whole"}
    matching = ScoreContext(real, CPU, **full, full_hash=scored.protocol_hash)
    assert plain.score(synthetic(real), CELL, matching).metrics["HLR"] == pytest.approx((0.35, 0.34))
    other = plain.score(synthetic(real), CELL, ScoreContext(real, CPU, **full, full_hash="another"))
    assert "HLR" not in other.metrics
    assert other.extra["full_accuracy_source"] == "not known under this protocol"


@pytest.mark.parametrize(("augmented", "plain", "score"), [(1.0, 1.0, 1.0), (-1.0, -1.0, 0.0)])
def test_the_augmentation_score_goes_from_0_to_1(augmented, plain, score):
    assert augmentation_score(augmented, plain, 0.3) == pytest.approx(score)


def test_trials_are_the_evaluators_and_random_images_are_scored_like_the_set(real):
    chosen, context = synthetic(real), ScoreContext(real, CPU)
    scored = NativeBenchmark({"protocol": protocol()}).score(chosen, CELL, context)
    assert scored.trials == evaluate(chosen, protocol(), CELL, context)
    at_budget = native.random_subset(real, 1, 0, CPU)
    assert scored.metrics["random"] == evaluate(at_budget, protocol(), CELL, context)
    assert sorted(at_budget.targets.tolist()) == list(range(10))


def test_random_images_as_many_as_decoded_are_all_of_a_class_that_has_fewer(real, monkeypatch):
    sizes, drawn = real.train.class_sizes(), []
    draw = native.random_subset

    def watched(*given):
        drawn.append(draw(*given))
        return drawn[-1]

    monkeypatch.setattr(native, "random_subset", watched)
    decoded = min(sizes) + 2  # more than some classes have, and fewer than others
    assert max(sizes) > decoded
    images, labels = torch.zeros(10 * decoded, 1, 8, 8), torch.arange(10).repeat_interleave(decoded)
    chosen = SyntheticSet("x", real.spec, images, labels, StorageLedger.of([("images", images)]))
    scored = NativeBenchmark({"protocol": protocol()}).score(chosen, CELL, ScoreContext(real, CPU))
    found = [torch.bincount(each.targets).tolist() for each in drawn]
    assert found == [[1] * 10, [min(decoded, size) for size in sizes]]
    assert scored.extra["decoded_per_class"] == decoded


def test_trainings_on_other_sets_are_kept_and_belong_to_their_pixels(real, tmp_path, monkeypatch):
    benchmark, context = NativeBenchmark({"protocol": protocol()}), ScoreContext(real, CPU, folder=tmp_path)
    first = benchmark.score(synthetic(real), CELL, context)
    trained = []
    whole = native.evaluate

    def watched(chosen, scored, cell, context):
        if set(range(scored.trials)) - set(context.known):
            trained.append((len(chosen.targets), scored.train.augmentation))
        return whole(chosen, scored, cell, context)

    monkeypatch.setattr(native, "evaluate", watched)
    kept = tmp_path / f"native-{protocol().hash}.jsonl"
    kept.write_text(kept.read_text() + '{"set": "cut o')
    assert benchmark.score(synthetic(real), CELL, context).metrics == first.metrics
    assert trained == [(30, "dsa")]  # the set itself: whoever asks for a score keeps its trials
    trained.clear()
    NativeBenchmark({"protocol": protocol(), "seed": 1}).score(synthetic(real), CELL, context)
    assert trained == [(30, "dsa"), (10, "dsa"), (30, "dsa"), (10, "none")]
    trained.clear()
    NativeBenchmark({"protocol": protocol(), "seed": 1}).score(synthetic(real), CELL, context)
    assert trained == [(30, "dsa")]  # what was appended behind the line that was cut off is there


def test_protocols_by_name_or_whole(real):
    assert NativeBenchmark({"protocol": "quick"}).config.protocol == load_protocol("quick")
    assert NativeBenchmark({"protocol": {"name": "quick"}}).config.protocol == load_protocol("quick")
    with pytest.raises(ConfigError, match="name of a protocol alone"):
        NativeBenchmark({"protocol": {"name": "quick", "trials": 1}})
    with pytest.raises(UsageError, match="unknown protocol"):
        NativeBenchmark({"protocol": "quik"})


def test_a_run_is_scored_by_its_own_protocol_and_the_numbers_stand_in_its_record(tmp_path, capsys):
    record = run(tmp_path)
    words = ["eval", record["id"], "--out", tmp_path, "--device", "cpu", "--benchmark", "native"]
    assert command(*words, "--set", "native:benchmark.weight=0.3") == 0
    assert "ARS" in capsys.readouterr().out
    saved = json.loads((tmp_path / record["id"] / "record.json").read_text())
    (entry,) = saved["benchmarks"]
    assert entry["trials"] == saved["scores"][0]["trials"]
    assert entry["protocol_hash"] == saved["scores"][0]["protocol_hash"]
    (whole,) = [y["trials"] for y in saved["yardsticks"] if y["name"].startswith("whole")]
    assert entry["metrics"]["HLR"] == pytest.approx([f - t for f, t in zip(whole, entry["trials"], strict=True)])
    assert "ARS" in shown(tmp_path, record, capsys)
    assert entry["settings"]["weight"] == 0.3
    for _ in range(2):  # with other weights beside it, and the second time in its place
        assert command(*words) == 0
        found = json.loads((tmp_path / record["id"] / "record.json").read_text())["benchmarks"]
        assert [each["settings"]["weight"] for each in found] == [0.3, 0.5]


def shown(out, record, capsys):
    assert command("show", record["id"], "--out", out) == 0
    return capsys.readouterr().out


def test_the_commands_protocol_is_followed(tmp_path, capsys):
    record = run(tmp_path)
    words = ["eval", record["id"], "--out", tmp_path, "--device", "cpu", "--benchmark", "native", "--trials", "1"]
    assert command(*words, "--set", "protocol.train.epochs=3", "--network", "mlp") == 0, capsys.readouterr().err
    (entry,) = json.loads((tmp_path / record["id"] / "record.json").read_text())["benchmarks"]
    assert len(entry["trials"]) == 1
    assert "epochs=3" in entry["protocol"]
    assert entry["network"] == "mlp"


@pytest.mark.parametrize("names", ["dc-bench", "native,dc-bench"])
@pytest.mark.parametrize("idle", [("--trials", "1"), ("--protocol", "dsa"), ("--set", "protocol.train.epochs=3")])
def test_what_a_benchmark_does_not_follow_is_refused(names, idle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(DCBench, "missing", lambda self: False)
    words = ["eval", "any", "--out", tmp_path, "--benchmark", names, *idle]
    assert command(*words) == 2
    assert "takes no protocol, network or number of trials" in capsys.readouterr().err
