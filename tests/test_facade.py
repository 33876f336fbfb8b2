"""The public calls: the same results as the command, in scripts, threads and notebooks, without a disk."""

import hashlib
import json
import subprocess
import sys
import threading
from dataclasses import replace

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from scipy import stats
from tiny_runs import command

import dd_plugins as dd
from dd_plugins.api import DataError, NotEnoughMemory, SyntheticFileError, UnknownPluginError, UsageError
from dd_plugins.errors import Stopped
from dd_plugins.networks import build_network
from dd_plugins.seeds import seed_for
from dd_plugins.training import accuracy

QUICK = {"name": "quick", "network.width": 4, "train.epochs": 3}


@pytest.fixture(scope="module")
def real():
    return dd.load_dataset("digits")


@pytest.fixture(scope="module")
def distilled(real):
    return dd.distill(real, "dm", ipc=2, steps=3, settings={"network.width": 4})


def flags(settings):
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


@pytest.mark.parametrize(
    ("method", "choices"),
    [
        ("dm", {"steps": 3}),
        ("hmn", {"steps": 2}),
        (None, {"steps": 2, "parameterization": "idc", "objective": "dm"}),
        ("dm", {"steps": 2, "pruning": "random", "over_budget": 0.5}),
    ],
)
def test_a_call_gives_the_bytes_and_the_trials_that_the_command_gives(tmp_path, real, method, choices):
    settings = {"network.width": 4}
    if method == "hmn":
        settings |= {"parameterization.warm_start_steps": 3, "objective.network_updates": 2}
    made = dd.distill(real, method, ipc=2, seed=1, settings=settings, **choices)
    words = {"parameterization": "--param", "objective": "--objective", "pruning": "--prune"}
    given = [
        str(word) for key, value in choices.items() for word in (words.get(key, f"--{key.replace('_', '-')}"), value)
    ]
    given += ["--method", method] if method else []
    protocol = flags({f"protocol.{key}": value for key, value in QUICK.items() if key != "name"})
    where = ["--dataset", "digits", "--ipc", "2", "--seed", "1", "--out", tmp_path, "--no-full-data", "--device", "cpu"]
    assert command("run", *given, *where, *flags(settings), *protocol, "--set", "protocol.trials=2") == 0
    (record,) = tmp_path.glob("*/record.json")
    assert made.content == (record.parent / "synthetic.safetensors").read_bytes()
    score = dd.evaluate(made, real, QUICK, trials=2)
    assert dd.load(record.parent).content == made.content
    (entry,) = json.loads(record.read_text())["scores"]
    assert list(score.trials) == entry["trials"]
    assert score.protocol_hash == entry["protocol_hash"]


def test_a_set_is_what_its_file_says(tmp_path, distilled):
    distilled.save(tmp_path / "set.safetensors")
    again = dd.load(tmp_path / "set.safetensors")
    assert torch.equal(again.images, distilled.images)
    assert again.class_names == tuple(map(str, range(10)))
    assert again.history is None
    assert distilled.history.steps == len(distilled.history.losses) == 3
    assert again.storage.elements == 10 * 2 * 64
    assert again.ipc == 2
    assert repr(again) == "Distilled('pixel', digits, 20 images of 10 classes, 1,280 elements, 5,120 bytes, IPC 2)"


def test_a_data_set_of_the_images_is_in_pixel_values(distilled):
    dataset = distilled.as_dataset(lambda image: image * 2)
    image, label = dataset[13]
    expected = (distilled.images[13] * distilled.spec.std[0] + distilled.spec.mean[0]).clamp(0, 1)
    assert torch.allclose(image, expected * 2, atol=1e-6)
    assert label == 6
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=8))
    assert [len(labels) for _, labels in batches] == [8, 8, 4]
    with pytest.raises(IndexError, match="index 20 is out of range for 20 images"):
        dataset[20]


def test_a_score_has_the_mean_and_interval_that_scipy_gives():
    trials = (0.475, 0.489, 0.481)
    score = dd.Score("dm", trials, "dsa", "0" * 10, "convnet")
    low, high = stats.t.interval(0.95, 2, loc=sum(trials) / 3, scale=stats.sem(trials))
    assert score.mean == pytest.approx((low + high) / 2)
    assert score.interval == pytest.approx((high - low) / 2)
    assert str(score) == "48.2 ± 1.7 (n=3)"
    assert str(dd.Score("dm", (0.5,), "dsa", "0" * 10, "convnet")) == "50.0 (n=1)"


class Following(dd.Callback):
    """Notes events, and stops after some steps."""

    def __init__(self, stop_after=None):
        self.events, self.stop_after, self.steps = [], stop_after, 0

    def on_message(self, text):
        self.events.append(text)

    def on_job_start(self, name, total, done):
        self.events.append((name, total, done))

    def on_job_progress(self, name, done, total, note):
        if name == "condense":
            self.steps = done

    def should_stop(self):
        return self.stop_after is not None and self.steps >= self.stop_after


def test_a_callback_sees_the_jobs_and_does_not_change_the_result(real, distilled):
    following = Following()
    runtime = dd.Runtime(callback=following)
    again = dd.distill(real, "dm", ipc=2, steps=3, settings={"network.width": 4}, runtime=runtime)
    assert ("condense", 3, 0) in following.events
    assert following.steps == 3
    assert again.content == distilled.content


def test_a_stopped_call_goes_on_from_memory_bit_by_bit(real, distilled):
    kept, arguments = dd.MemoryCheckpointer(), {"ipc": 2, "steps": 3, "settings": {"network.width": 4}}
    with pytest.raises(Stopped, match="step 2 of 3"):
        dd.distill(real, "dm", **arguments, runtime=dd.Runtime(callback=Following(2), checkpointer=kept))
    following = Following()
    again = dd.distill(real, "dm", **arguments, runtime=dd.Runtime(callback=following, checkpointer=kept))
    assert "continuing at step 2 of 3" in following.events
    assert again.content == distilled.content


def test_it_works_in_a_thread_and_leaves_the_process_as_it_was(real, distilled):
    before = torch.get_num_threads(), torch.random.get_rng_state()
    made = []
    arguments = {"ipc": 2, "steps": 3, "settings": {"network.width": 4}}
    worker = threading.Thread(target=lambda: made.append(dd.distill(real, "dm", **arguments)))
    worker.start()
    worker.join(120)
    assert made[0].content == distilled.content
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_a_share_of_a_set_is_kept(real, distilled):
    smaller = dd.prune(distilled, real, {"name": "random"}, keep=0.5)
    assert smaller.container.counts == (1,) * 10
    assert smaller.pruning.images == (20, 10)
    assert torch.equal(smaller.images, distilled.images[smaller.pruning.kept])
    assert smaller.ipc == 2


def test_a_network_of_ones_own_is_trained_as_the_evaluator_trains_one(real, distilled):
    network = build_network("convnet", (1, 8, 8), 10, {"width": 4}, seed=seed_for("eval", 1))
    assert dd.train(network, distilled, QUICK, seed=1) is network
    expected = dd.evaluate(distilled, real, QUICK, trials=2).trials[1]
    assert accuracy(network, real.test.images(), real.test.labels) == expected


def test_parts_are_created_by_name(real):
    container = dd.create("parameterization", "rtp", real.spec, dd.StorageBudget.ipc(real.spec, 10), bases=3)
    assert len(container.bases) == 3
    network = dd.create("network", "convnet", real.spec, 0, width=4)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda real, _: dd.distill(real, "hmnn"), UnknownPluginError, "did you mean hmn"),
        (lambda real, _: dd.distill(real, "dm", objective={"lr": 1}), UsageError, "objective = .*expected a name"),
        (lambda real, _: dd.distill(real, "dm", settings={"lr": 0.1}), UsageError, "optimizer.lr"),
        (lambda real, _: dd.distill(real, "hmn", ipc=10**9), NotEnoughMemory, "GiB|TiB|memory"),
        (lambda real, made: dd.evaluate(made, real, "dsaa"), UnknownPluginError, "did you mean dsa"),
        (lambda real, made: dd.evaluate(made, real, QUICK, network="convnett"), UnknownPluginError, "convnet"),
        (lambda real, made: dd.prune(made, real, "aum", keep=0), UsageError, "above 0 and at most 1"),
        (lambda real, made: dd.prune(made, real, "aum", steps=3), UsageError, "network and protocol"),
        (lambda *_: dd.load("/no/such/file"), SyntheticFileError, "no such file|No such file"),
        (lambda *_: dd.load(b"1234"), SyntheticFileError, "4 bytes"),
        (lambda *_: dd.Execution(threads=0), UsageError, "at least 1"),
    ],
)
def test_mistakes_are_one_clear_line(real, distilled, call, error, message):
    with pytest.raises(error, match=message) as raised:
        call(real, distilled)
    assert "\n" not in raised.value.summary


def test_other_data_than_the_set_was_made_from_is_refused(distilled, real):
    other = replace(real, spec=replace(real.spec, fingerprint="f" * 16))
    with pytest.raises(DataError, match="fingerprint"):
        dd.evaluate(distilled, other, QUICK)


NO_DISK = """
import sys
import torch, sklearn.datasets, scipy.stats  # libraries may look for caches while they are imported
import dd_plugins as dd
from dd_plugins import _facade

real = dd.load_dataset("digits")

def refuse(event, arguments):
    writes = event == "open" and arguments[1] is not None and set(str(arguments[1])) & set("wax+")
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink"):
        raise PermissionError(30, f"read-only: {event} {arguments}")

sys.addaudithook(refuse)
made = dd.distill(real, "dm", ipc=2, steps=3, settings={"network.width": 4})
score = dd.evaluate(made, real, {"name": "quick", "network.width": 4, "train.epochs": 3}, trials=1)
import hashlib
print(hashlib.sha256(made.content).hexdigest(), len(score.trials))
"""


def test_it_works_without_a_writable_disk(distilled):
    out = subprocess.run([sys.executable, "-c", NO_DISK], capture_output=True, text=True, check=False)
    assert out.stdout.split() == [hashlib.sha256(distilled.content).hexdigest(), "1"], out.stderr[-2000:]


def test_it_works_in_a_notebook(tmp_path):
    cells = [
        "import dd_plugins as dd\nreal = dd.load_dataset('digits')",
        "distilled = dd.distill(real, 'dm', ipc=1, steps=2, settings={'network.width': 4})\ndistilled",
        "dd.evaluate(distilled, real, {'name': 'quick', 'network.width': 4, 'train.epochs': 2}, trials=2)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [cell["outputs"][-1]["data"] for cell in notebook.cells[1:]]
    assert "10 decoded" in shown[0]["text/html"]
    assert "data:image/png;base64," in shown[0]["text/html"]
    assert "trial 1" in shown[1]["text/html"]
    assert "(n=2)" in shown[1]["text/plain"]


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, dd_plugins; dir(dd_plugins); print(any(m in sys.modules for m in ('torch', 'numpy', 'pydantic')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"
    assert set(dd.__all__) <= set(dir(dd))
    assert all(getattr(dd, name) is not None for name in dd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        dd.distil  # noqa: B018
