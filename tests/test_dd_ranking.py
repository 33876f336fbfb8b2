"""DD-Ranking as a benchmark: its own package where it is installed, and what goes in and comes out of it anywhere."""

import hashlib
import json
import math
import os
import sys
import time
from importlib.util import find_spec

import pytest
import torch
from tiny_runs import command, run

from benchmark_adapters.dd_ranking import DDRankingBenchmark, _three_channels
from benchmark_adapters.robustness import robust_score
from dd_plugins.api import DataSpec, RawData, StorageLedger, SyntheticSet, UsageError
from dd_plugins.api.benchmark import BenchmarkFailed, Cell, ScoreContext
from dd_plugins.datasets import build_real_data
from dd_plugins.seeds import make_generator

ELSEWHERE = os.environ.get("DD_PLUGINS_DDRANKING")  # an interpreter that has the package
HAS_PACKAGE = find_spec("ddranking") is not None or ELSEWHERE is not None
package = pytest.mark.skipif(not HAS_PACKAGE, reason="the extra ddranking is not installed")
SMALL = {
    "network": "MLP",
    "epochs": 20,
    "evaluations": 2,
    "lr": 0.01,
    "full_accuracy": 95.0,
    "final_epoch": True,
    "batch": 16,
    "python": ELSEWHERE,
}
SETS = [word for key, value in SMALL.items() for word in ("--set", f"benchmark.{key}={json.dumps(value)}")]
GOOD = DataSpec("ok", 5, (3, 8, 8), (0.5,) * 3, (0.2,) * 3)


def made_up(classes=5, shape=(1, 8, 8), each=20):
    labels = torch.arange(classes).repeat(each)
    noise = torch.randint(0, 60, (len(labels), *shape), generator=make_generator(0))
    images = (noise + (190 // classes) * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    names = tuple(map(str, range(classes)))
    return build_real_data("made-up", RawData(images, labels, images[:40], labels[:40], names))


def real_set(real, each=1):
    rows = torch.cat([rows[:each] for rows in real.train.class_rows()])
    images = real.train.images(rows)
    ledger = StorageLedger.of([("images", images)])
    return SyntheticSet("some real images", real.spec, images, real.train.labels[rows], ledger)


def scored(real, synthetic, ipc=1, folder=None, known=None, **settings):
    told = {}
    context = ScoreContext(
        real, torch.device("cpu"), known=known or {}, on_trial=told.__setitem__, folder=folder, full_accuracy=None
    )
    return DDRankingBenchmark({**SMALL, **settings}).score(synthetic, Cell("made-up", ipc, ""), context), told


def test_an_error_or_an_interrupt_ends_the_process_of_the_package(tmp_path):
    words = [sys.executable, "-c", "print('no JSON', flush=True); import time; time.sleep(60)"]
    context, begun = ScoreContext(made_up(), torch.device("cpu"), known={}), time.monotonic()
    with pytest.raises(BenchmarkFailed, match="not valid JSON"):
        DDRankingBenchmark(SMALL)._follow(words, context, 95.0, tmp_path / "words.txt")
    assert time.monotonic() - begun < 30


# ---- around the package --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recovery", "improvement"), [(0.0, 0.0), (1.0, -1.0), (0.0, 1.0), (0.3, 0.2)])
def test_the_robust_score_is_between_0_and_1(recovery, improvement):
    found = robust_score(recovery, improvement, 0.5)
    alpha = 0.5 * improvement - 0.5 * recovery
    expected = (math.exp(alpha) - 1 / math.e) / (math.e - 1 / math.e)
    assert found == pytest.approx(expected)
    assert 0 <= found <= 1
    assert robust_score(1.0, -1.0, 0.5) == pytest.approx(0.0)
    assert robust_score(-1.0, 1.0, 0.5) == pytest.approx(1.0)


def test_small_grey_images_become_colour_images_of_32_pixels():
    images = torch.randn(3, 1, 8, 8)
    found = _three_channels(images)
    assert found.shape == (3, 3, 32, 32)
    assert torch.equal(found[:, 0, ::4, ::4], images[:, 0])
    assert torch.equal(found[:, 2, 3::4, 1::4], images[:, 0])
    colour = torch.randn(2, 3, 64, 64)
    assert torch.equal(_three_channels(colour), colour)


@pytest.mark.parametrize(
    ("spec", "settings", "told"),
    [
        (DataSpec("few", 4, (3, 8, 8), (0.5,) * 3, (0.2,) * 3), {}, "4 classes are too few"),
        (DataSpec("two", 5, (2, 8, 8), (0.5,) * 2, (0.2,) * 2), {}, "images of 3 channels, not 2"),
        (
            DataSpec("ok", 5, (3, 8, 8), (0.5,) * 3, (0.2,) * 3),
            {"network": "ConvNet"},
            "the depth of a network: ConvNet-3",
        ),
        (DataSpec("ok", 5, (3, 8, 8), (0.5,) * 3, (0.2,) * 3), {"full_accuracy": None}, "--full-data first"),
    ],
)
def test_what_it_cannot_take_is_one_line(spec, settings, told):
    images = torch.zeros(spec.num_classes, *spec.image_shape)
    synthetic = SyntheticSet("x", spec, images, torch.arange(spec.num_classes), StorageLedger.of([]))
    with pytest.raises(UsageError, match=told) as caught:
        scored(made_up(), synthetic, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(HAS_PACKAGE, reason="the extra ddranking is installed")
def test_without_the_extra_it_says_what_to_install_before_anything_runs(tmp_path, capsys):
    words = ["run", "--param", "pixel", "--benchmark", "dd-ranking", "--out", tmp_path / "runs"]
    assert command(*words) == 2
    assert "dd-ranking needs the extra ddranking: pip install 'dd-plugins[ddranking]'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert command("list", "benchmarks") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "dd-ranking" in line)
    assert "missing" in line
    assert "pip install 'dd-plugins[ddranking]'" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "benchmark.epochs=5"], "no such benchmark scores the set; --benchmark NAME names one"),
        (["--benchmark", "native", "--set", "dd-ranking:benchmark.epochs=5"], "no such benchmark scores the set"),
        (["--benchmark", "dc"], "unknown benchmark 'dc'"),
        (["--benchmark", "native,dc"], "unknown benchmark 'dc'"),
        (["--benchmark", "dd-ranking", "--set", "benchmark.python=/no/python"], "benchmark.python = /no/python: no"),
        (["--benchmark", "dd-ranking", "--set", "benchmark.epoch=5"], "benchmark.epoch; did you mean epochs"),
    ],
)
def test_mistakes_are_told_before_anything_runs(words, told, tmp_path, capsys):
    assert command("run", "--param", "pixel", *words, "--out", tmp_path / "runs") == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# ---- the package ---------------------------------------------------------------------------------------------------


@package
def test_its_numbers_follow_from_its_accuracies(tmp_path):
    real = made_up()
    scores, told = scored(real, real_set(real), folder=tmp_path)
    metrics = scores.metrics
    assert scores.benchmark == "dd-ranking"
    assert scores.metric == "LRS"
    for trial in range(2):
        own, drawn = metrics["accuracy"][trial], metrics["random"][trial]
        assert 0 < own <= 1
        assert metrics["HLR"][trial] == pytest.approx(0.95 - own)
        assert metrics["IOR"][trial] == pytest.approx(own - drawn)
        assert scores.trials[trial] == pytest.approx(robust_score(0.95 - own, own - drawn, 0.5))
        percent = 50 * (own - drawn) - 50 * (0.95 - own)
        package_own = (math.exp(percent) - math.exp(-1)) / (math.e - math.exp(-1))
        assert metrics["LRS_package"][trial] == pytest.approx(package_own, rel=1e-6)
    assert told == dict(enumerate(scores.trials))
    assert scores.extra["full_accuracy_source"] == "given"
    assert any("save_results" in patch for patch in scores.extra["patches"])
    assert set(scores.metrics) == {
        "HLR", "IOR", "IOR_decoded", "LRS_decoded", "LRS_package", "accuracy", "random", "random_decoded",
    }  # fmt: skip


@package
def test_the_same_set_gets_the_same_scores_and_goes_on_where_it_was(tmp_path):
    real = made_up()
    for name in "ab":
        (tmp_path / name).mkdir()
    first, _ = scored(real, real_set(real), folder=tmp_path / "a")
    scored(real, real_set(real), folder=tmp_path / "b")
    (file,) = (tmp_path / "b").glob("dd-ranking-*.jsonl")
    one, other = file.read_text().splitlines()
    file.write_text(f"{one}\n{other[:40]}")  # the second evaluation was cut off
    again, told = scored(real, real_set(real), folder=tmp_path / "b")
    assert again.trials == first.trials
    assert again.metrics == first.metrics
    assert list(told) == [1]


@package
def test_random_images_are_drawn_at_the_budget_and_at_the_decoded_number(tmp_path):
    real = made_up()
    scores, _ = scored(real, real_set(real, each=6), ipc=1, evaluations=1)
    assert scores.metrics["IOR"] != scores.metrics["IOR_decoded"]
    same, _ = scored(real, real_set(real, each=1), ipc=1, evaluations=1)
    assert set(same.metrics) == set(scores.metrics)


def on_scale(exponent):
    return (math.exp(exponent) - math.exp(-1)) / (math.e - math.exp(-1))


@package
@pytest.mark.parametrize("each", [1, 3])
def test_soft_labels_recover_by_hard_ones_and_improve_by_soft_ones(each, tmp_path):
    real = made_up()
    scores, told = scored(real, real_set(real, each), folder=tmp_path, score="soft", teacher_epochs=2)
    assert scores.metric == "LRS"
    for trial, score in enumerate(scores.trials):
        found = {name: trials[trial] for name, trials in scores.metrics.items()}
        assert found["HLR"] == pytest.approx(0.95 - found["accuracy_hard"])
        assert found["IOR"] == pytest.approx(found["accuracy"] - found["random"])
        assert score == pytest.approx(on_scale((found["IOR"] - found["HLR"]) / 2))
        assert found["LRS_package"] == pytest.approx(on_scale(50 * (found["IOR"] - found["HLR"])), rel=1e-6)
        assert found["LRS_decoded"] == pytest.approx(
            on_scale((found["accuracy"] - found["random_decoded"] - found["HLR"]) / 2)
        )
    assert told == dict(enumerate(scores.trials))
    (teacher,) = tmp_path.rglob("ckpt_best.pt")
    assert scores.extra["teacher_sha256"] == hashlib.sha256(teacher.read_bytes()).hexdigest()
    assert scores.extra["teacher"] == "trained here, 2 epochs"
    before = teacher.stat().st_mtime_ns
    for kept in tmp_path.glob("*.jsonl"):
        kept.unlink()
    again, _ = scored(real, real_set(real, each), folder=tmp_path, score="soft", teacher_epochs=2)
    assert again.metrics == scores.metrics
    assert teacher.stat().st_mtime_ns == before


@package
@pytest.mark.parametrize("each", [1, 3])
def test_the_augmentation_score_follows_from_four_accuracies(each, tmp_path):
    real = made_up()
    settings = {"score": "ars", "weight": 0.25, "full_accuracy": None}
    scores, _ = scored(real, real_set(real, each), folder=tmp_path, **settings)
    assert scores.metric == "ARS"
    for trial, score in enumerate(scores.trials):
        found = {name: trials[trial] for name, trials in scores.metrics.items()}
        augmented, plain = found["accuracy"] - found["random"], found["plain"] - found["random_plain"]
        assert (found["IOR"], found["IOR_plain"]) == pytest.approx((augmented, plain))
        assert score == pytest.approx(on_scale(0.25 * augmented + 0.75 * plain))
        pairs = (("accuracy", "random_decoded"), ("plain", "random_decoded_plain"))
        decoded = [found[name] - found[drawn] for name, drawn in pairs]
        assert found["ARS_decoded"] == pytest.approx(on_scale(0.25 * decoded[0] + 0.75 * decoded[1]))
        assert found["ARS_package"] == pytest.approx(on_scale(50 * augmented + 50 * plain), rel=1e-6)


def test_more_random_images_than_a_class_has_are_refused_ahead():
    real = made_up(each=6)
    with pytest.raises(UsageError, match="as many random images as are decoded: a class has only"):
        scored(real, real_set(real), ipc=50)


@package
def test_a_teacher_that_is_not_there_is_one_line(tmp_path):
    real = made_up()
    with pytest.raises(BenchmarkFailed, match=r"MLP.ckpt_best\.pt is not there"):
        scored(real, real_set(real), folder=tmp_path, score="soft", teacher_dir=str(tmp_path / "theirs"))


@pytest.mark.parametrize("score", ["soft", "ars"])
def test_unequal_classes_are_told_where_the_package_cannot_take_them(score):
    real = made_up()
    whole = real_set(real, 2)
    part = SyntheticSet("uneven", whole.data, whole.images[1:], whole.targets[1:], whole.ledger)
    with pytest.raises(UsageError, match=r"as many images of every class; benchmark\.score=hard takes any"):
        scored(real, part, score=score)


@package
def test_a_run_carries_native_and_dd_ranking_scores_in_one_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    record = run(tmp_path)
    assert command("eval", record["id"], "--benchmark", "dd-ranking", *SETS, "--out", tmp_path, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "native" in printed
    assert "dd-ranking" in printed
    found = json.loads((tmp_path / record["id"] / "record.json").read_text())
    (entry,) = found["benchmarks"]
    assert entry["metric"] == "LRS"
    assert len(entry["trials"]) == 2
    assert found["scores"] == record["scores"]


@package
def test_a_failure_of_the_package_is_one_line(tmp_path, capsys):
    record = run(tmp_path)
    words = ["eval", record["id"], "--benchmark", "dd-ranking", *SETS, "--set", "benchmark.network=Transformer-1"]
    assert command(*words, "--out", tmp_path, "--device", "cpu") == 1
    error = capsys.readouterr().err
    assert "dd-ranking failed: " in error
    assert "Traceback" not in error
