"""DC-BENCH as a benchmark, against a stand-in that knows what its documentation says: its layout, constants, output."""

import json
import sys
from importlib.util import find_spec

import pytest
import torch
from test_formats import exported, make_real
from tiny_runs import command

from benchmark_adapters.dc_bench import DCBench
from benchmark_adapters.formats.dc_bench import LAYOUTS
from dd_plugins.api import DataError, StorageLedger, SyntheticSet, UsageError
from dd_plugins.api.benchmark import BenchmarkFailed, Cell, ScoreContext
from dd_plugins.testing import check_plugin

# Reads a set as DC-BENCH does, and "trains" by comparing brightness with the labels.
EVALUATOR = """
import argparse, os, sys
import torch
sys.path.append(os.path.join(os.path.dirname(os.path.realpath(__file__)), ".."))
from networks.marker import NAME
parser = argparse.ArgumentParser()
for name in ("method", "gpu", "dataset", "model", "aug"):
    parser.add_argument(f"--{name}", default="")
for name in ("ipc", "num_eval", "epoch_eval_train"):
    parser.add_argument(f"--{name}", type=int)
parser.add_argument("--dsa", action="store_true")
args = parser.parse_args()
root = os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "distilled_results")
folder = f"{root}/DM/{args.dataset}/IPC{args.ipc}"
file = f"{folder}/res_DM_{args.dataset}_ConvNet_{args.ipc}ipc.pt"
images, labels = torch.load(file, weights_only=True)["data"][-1]
assert os.path.exists("data/cached/cifar-10-batches-py")
mean, std = torch.tensor((0.4914, 0.4822, 0.4465)).view(3, 1, 1), torch.tensor((0.2023, 0.1994, 0.2010)).view(3, 1, 1)
level = (images * std + mean).mean()
if args.model == "vgg":
    raise SyntaxError("vgg does not parse")
epochs = 1000 if args.dsa else args.epoch_eval_train
for epoch, value in ((0, 0.1), (epochs, float(level) + float(torch.rand(())) / 100)):
    told = "[time] Evaluate_00: epoch = %04d train time = 1 s train loss = 0.1 train acc = 0.9000, test acc = %.4f"
    print(told % (epoch, value))
print("DM: final acc is: %.2f +- 0.00, %s" % (100 * value, NAME))
"""


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "dc_benchmark"
    for name in ("evaluator", "networks", "data_loader", "data/cached/cifar-10-batches-py", "distilled_results/DM"):
        (root / name).mkdir(parents=True)
    (root / "evaluator/evaluator.py").write_text(EVALUATOR)
    (root / "networks/__init__.py").write_text("")
    (root / "networks/marker.py").write_text("NAME = 'the copy'\n")
    (root / "distilled_results/DM/mine.txt").write_text("mine")
    return root


def a_set(real, ipc=2):
    made = exported(real)
    stored = torch.zeros(ipc * real.spec.num_classes, *real.spec.image_shape)
    return SyntheticSet("x", real.spec, made.images, made.targets, StorageLedger.of([("memory", stored)]))


def scored(checkout, known=None, **settings):
    real, told = make_real(), {}
    context = ScoreContext(real, torch.device("cpu"), known=known or {}, on_trial=told.__setitem__)
    config = {"root": str(checkout), "evaluations": 2, **settings}
    return DCBench(config).score(a_set(real), Cell("cifar10", 2, ""), context), told


def test_its_evaluator_scores_the_set_on_a_copy(checkout):
    before = sorted(str(path) for path in checkout.rglob("*"))
    scores, told = scored(checkout)
    real = make_real()
    level = float(real.spec.denormalize(a_set(real).images).mean())
    assert all(level - 1e-3 <= trial <= level + 0.011 for trial in scores.trials)
    assert scores.trials[0] != scores.trials[1]  # seeds of their own
    assert scored(checkout)[0].trials == scores.trials
    assert (scores.benchmark, scores.metric, scores.network) == ("dc-bench", "accuracy", "convnet")
    assert scores.protocol == "dsa, 1000 epochs, method slot dm"
    assert told == dict(enumerate(scores.trials))
    assert sorted(str(path) for path in checkout.rglob("*")) == before
    again, more = scored(checkout, known={0: scores.trials[0]})
    assert again.trials == scores.trials
    assert list(more) == [1]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dsa": False}, "no augmentation, 300 epochs"),
        ({"dsa": False, "epochs": 7}, "no augmentation, 7 epochs"),
        ({"dsa": False, "epochs": 7, "aug": "autoaug"}, "autoaug, 1000 epochs"),
    ],
)
def test_the_shown_name_has_the_epochs(settings, told, checkout):
    assert scored(checkout, evaluations=1, **settings)[0].protocol == f"{told}, method slot dm"


def test_tiny_imagenet_is_not_offered(checkout):
    assert {cell.dataset for cell in DCBench().cells()} == {"cifar10", "cifar100"}
    real = make_real("tiny-imagenet", (3, 64, 64))
    with pytest.raises(UsageError, match="dc-bench does not score tiny-imagenet; it scores cifar10, cifar100"):
        DCBench({"root": str(checkout)}).score(
            a_set(real), Cell("tiny-imagenet", 2, ""), ScoreContext(real, torch.device("cpu"))
        )


def test_what_it_needs_is_said_before_anything_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "einops" else find_spec(name))
    monkeypatch.setattr(
        "dd_plugins.api.benchmark.find_spec", lambda name: None if name == "einops" else find_spec(name)
    )
    assert command("run", "--param", "pixel", "--benchmark", "dc-bench", "--out", tmp_path / "runs") == 2
    error = capsys.readouterr().err
    assert "dc-bench needs the extra einops: pip install 'dd-plugins[einops]'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    assert command("list", "benchmarks") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "dc-bench" in line)
    assert "missing" in line
    assert "pip install 'dd-plugins[einops]'" in line
    assert not DCBench({"python": sys.executable}).missing()
    with pytest.raises(UsageError, match="python = /no/python: no such program"):
        DCBench({"python": "/no/python"}).missing()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "side", "ipc"), [("cifar10", 32, 2), ("tiny-imagenet", 64, 50)])
def test_what_it_exports_it_loads_again(name, side, ipc, layout, tmp_path):
    made = a_set(make_real(name, (3, side, side)), ipc)
    benchmark = DCBench({"layout": layout})
    written = benchmark.export(made, tmp_path)
    assert {path.parent.name for path in written} == {f"IPC{ipc}"}
    about = json.loads(written[-1].read_text())
    assert (about["name"], about["storage"]["elements"]) == ("x", made.ledger.elements)
    found = benchmark.load(tmp_path, Cell(name, ipc, "convnet"))
    assert (found.name, found.data) == ("x", made.data)
    assert torch.equal(found.targets, made.targets)
    torch.testing.assert_close(found.images, made.images, atol=2e-6, rtol=0)
    with pytest.raises(DataError, match="IPC7: no such file or folder"):
        benchmark.load(tmp_path, Cell(name, 7, "convnet"))
    with pytest.raises(UsageError, match="does not know the data set digits"):
        benchmark.load(tmp_path, Cell("digits", ipc, "convnet"))


def test_a_published_set_loads_in_its_own_space(tmp_path):
    images, targets = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(10)
    folder = tmp_path / "distilled_results/DM/CIFAR10/IPC1"
    folder.mkdir(parents=True)
    torch.save({"data": [[images, targets]]}, folder / "res_DM_CIFAR10_ConvNet_1ipc.pt")
    found = DCBench().load(tmp_path, Cell("cifar10", 1, "convnet"))
    assert torch.equal(found.images, images)
    assert torch.equal(found.targets, targets)
    assert (found.name, found.data.mean, found.data.std) == ("dm", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert (found.data.num_classes, found.data.image_shape) == (10, (3, 32, 32))
    assert found.ledger.elements == images.numel()


def test_the_check_of_exports_runs_without_a_checkout():
    (result,) = [result for result in check_plugin(DCBench) if result.check.name == "export_is_read_back"]
    assert (result.status, result.reason) == ("passed", "")


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"root": None}, UsageError, "--set benchmark.root=FOLDER"),
        ({"root": "/no/such/folder"}, UsageError, "no checkout of DC-BENCH, for there is no evaluator/evaluator.py"),
        ({"data": "/no/such/folder"}, UsageError, "no folder of real data"),
        ({"model": "vgg"}, BenchmarkFailed, "dc-bench failed: SyntaxError: vgg does not parse"),
        ({"layout": "tm"}, BenchmarkFailed, "dc-bench failed: FileNotFoundError"),
    ],
)
def test_what_goes_wrong_is_one_line(settings, error, told, checkout):
    with pytest.raises(error, match=told) as caught:
        scored(checkout, **settings)
    assert "\n" not in str(caught.value)


def test_the_command_puts_its_numbers_into_the_record(checkout, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    real = make_real()
    from benchmark_adapters.formats import load_format

    load_format("dc-bench").write(exported(real), tmp_path / "published")
    pictures = tmp_path / "data/cifar10"
    from PIL import Image

    for split, rows in (("train", range(40)), ("test", range(40, 48))):
        for row in rows:
            folder = pictures / split / f"class {row % 4}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(row)).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{row}.png")
    words = ["import", tmp_path / "published", "--from", "dc-bench", "--dataset", f"folder:{pictures}"]
    assert command(*words, "--out", tmp_path / "runs") == 0
    run = capsys.readouterr().out.split()[1].rstrip(":")
    words = ["eval", run, "--benchmark", "dc-bench", "--set", f"benchmark.root={checkout}", "--device", "cpu"]
    words += ["--set", f"benchmark.python={sys.executable}"]
    assert command(*words, "--set", "benchmark.evaluations=2", "--out", tmp_path / "runs") == 0
    assert "dc-bench" in capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "runs" / run / "record.json").read_text())["benchmarks"]
    assert len(entry["trials"]) == 2
    assert entry["protocol"] == "dsa, 1000 epochs, method slot dm"
