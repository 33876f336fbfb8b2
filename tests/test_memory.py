"""Memory: what does not fit is refused by arithmetic, before it is allocated, and estimates agree with tensors."""

import json
import resource
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import PARTS, PROTOCOL, command, start

from benchmark_adapters.runs.compare import Contender, compare
from benchmark_adapters.runs.parts import Options, load_real
from benchmark_adapters.runs.store import RunFolder
from benchmark_adapters.yardsticks import random_subset
from dd_plugins import registry
from dd_plugins.api import DataSpec, NotEnoughMemory, OutOfMemory, StorageBudget, SyntheticFileError, memory
from dd_plugins.api.benchmark import Cell, ScoreContext
from dd_plugins.api.memory import available_memory, control_group_memory, in_units, require_memory, shapes_only
from dd_plugins.api.stored import StoredHeader, write_stored
from dd_plugins.engine import evaluation
from dd_plugins.engine.condensation import build_optimizer
from dd_plugins.engine.config import resolve
from dd_plugins.engine.memory import estimate_memory
from dd_plugins.engine.networks import NetworkFactory
from dd_plugins.engine.parts import build_container
from dd_plugins.engine.protocols import load_protocol
from dd_plugins.errors import allocator_errors, is_out_of_memory
from dd_plugins.execution import parallel_map
from dd_plugins.networks import build_network, network_bytes
from dd_plugins.parameterizations.pixel import Pixel

SPEC = DataSpec("made up", 10, (3, 32, 32), (0.5,) * 3, (0.25,) * 3)
CONTAINERS = ("pixel", "idc", "haba", "rtp", "hmn", "glad")


def one_line(capsys, *words, code=2):
    begun = time.process_time()
    assert command(*words) == code
    assert time.process_time() - begun < 30
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("ipc", [300_000_000, 10**18])
def test_budgets_beyond_the_machine_are_refused_at_once(container, ipc, tmp_path, capsys):
    line = one_line(capsys, "run", "--param", container, "--ipc", ipc, "--dry-run", "--out", tmp_path / "runs")
    assert "of memory would be needed (data " in line or "larger than any memory" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("network.width=10000000", "networks and real batches "),
        ("protocol.network.width=10000000", "networks "),
        ("network.width=4611686018427387904", "larger than any memory"),
        ("parameterization.warm_start_batch=1000000000000", "real batches "),
        ("objective.pool=1000000000000", "networks and real batches "),
        ("objective.batch_real=1000000000000", "networks and real batches "),
        ("objective.network_batch=1000000000000", "networks and real batches "),
        ("protocol.trials=1000000000000", "protocol.trials = 1000000000000"),
        ("protocol.train.batch_size=1000000000000000000000", "expected an integer of 64 bits"),
        ("optimizer.milestones=[0.5, 99999999999999999999]", "expected an integer of 64 bits"),
    ],
)
def test_sizes_beyond_the_machine_are_refused_at_once(setting, told, capsys):
    assert told in one_line(capsys, "run", "--param", "hmn", "--dry-run", "--set", setting)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--param", "idc", "--set", "parameterization.factor=1000000000"), "would leave its last tiles empty"),
        (("--param", "idc", "--set", "parameterization.factor=1000000"), "would leave its last tiles empty"),
        (("--method", "haba", "--ipc", 5, "--set", "parameterization.published_size=true",
          "--set", "parameterization.hallucinators=1000000000"), "decoded images "),
        (("--method", "h-pd", "--set", "parameterization.samples=1000000000000"), "real batches "),
        (("--method", "dm", "--set", "objective.batch_real=1000000000000"), "networks and real batches "),
        (("--method", "mtt", "--set", "objective.syn_steps=1000000000000"), "networks and real batches "),
        (("--method", "mtt", "--set", "objective.experts=1000000000000"), "objective.experts = 1000000000000"),
        (("--method", "rtp", "--set", "objective.unroll=1000000000000"), "networks and real batches "),
        (("--method", "cafe", "--set", "objective.batch_real=1000000000000"), "networks and real batches "),
        (("--param", "pixel", "--ipc", 20, "--prune", "aum", "--set", "pruning.networks=1000000000000"), "networks "),
        (("--param", "pixel", "--ipc", 100_000_000, "--over-budget", 1), "decoded images "),
        (("--param", "pixel", "--set", "network.depth=1000000000", "--set", "network.pooling=none"), "layers"),
        (("--param", "pixel", "--chunk", 10**21), "--chunk"),
    ],
)  # fmt: skip
def test_settings_of_every_part_are_counted(words, told, capsys):
    assert told in one_line(capsys, "run", *words, "--dry-run", "--device", "cpu")


@pytest.mark.parametrize(
    "words",
    [("--steps", 10**15), ("--set", "protocol.train.epochs=1000000000000"), ("--chunk", 10**12)],
)
def test_long_runs_are_no_large_ones(words, capsys):
    assert command("run", "--param", "pixel", *words, "--dry-run", "--device", "cpu") == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("prepare", "--method", "mtt", "--set", "objective.training_epochs=1000000000000"), "epochs "),
        (("prepare", "--method", "mtt", "--set", "network.width=10000000"), "network "),
        (("profile", "--param", "pixel", "--ipc", 300_000_000), "decoded images "),
        (("run", "--method", "glad", "--set", "parameterization.recipe.width=100000"), "networks of the prior "),
    ],
)
def test_other_commands_refuse_at_once(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "available_memory", lambda device: 2**30)
    out = () if words[0] == "profile" else ("--out", tmp_path)
    assert command(*words, *out, "--device", "cpu") == 2
    assert told in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_comparison_whose_methods_all_failed_ends(capsys):
    assert command("compare", "--methods", "dc,dm", "--runs", 10**12, "--ipc", 300_000_000, "--device", "cpu") == 1
    assert len([line for line in capsys.readouterr().err.splitlines() if " failed: " in line]) == 2


def test_trials_together_are_counted(monkeypatch):
    """On a GPU all trials are trained together; here as if there was one."""
    real = load_real(resolve({"parameterization": "pixel"}), Options(None, torch.device("cpu")))
    protocol = load_protocol("quick").model_copy(update={"trials": 10**6})
    monkeypatch.setattr(evaluation, "networks_at_once", lambda *_: 10**9)
    context = ScoreContext(real, torch.device("cpu"))
    with pytest.raises(NotEnoughMemory, match="1,000,000 networks"):
        evaluation.evaluate(random_subset(real, 1, 0, real.device), protocol, Cell("digits", 1, "convnet"), context)


def test_allocators_are_recognised():
    caught = []
    for allocate in (lambda: torch.empty(2**50), lambda: np.empty(2**50), lambda: bytearray(2**60)):
        with pytest.raises((RuntimeError, MemoryError)) as error:
            allocate()
        caught.append(error.value)
    assert all(map(is_out_of_memory, caught))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_estimate_is_what_the_tensors_take(container, optimizer):
    sets = ["network.width=8", f"optimizer.name={optimizer}"]
    config = resolve({"parameterization": container, "ipc": 3, "objective": "dm"}, sets)
    real = load_real(config, Options(None, torch.device("cpu")))
    phases = estimate_memory(config, real).phases
    made = build_container(config, real)
    held = {value.untyped_storage().data_ptr(): value.nbytes for value in (*made.parameters(), *made.buffers())}
    assert phases["condensation"]["container"] == sum(held.values())
    stored = phases["the check of the stored set"]
    assert stored["container"] == 2 * phases["condensation"]["container"]
    assert stored["decoded images"] == 2 * made.decode().nbytes == 2 * phases["evaluation"]["decoded images"]
    assert phases["condensation"]["data"] == real.train.pixels.nbytes
    network = NetworkFactory.of(config.network, real)(0)
    weights = sum(p.nbytes for p in network.parameters())
    assert (
        phases["condensation"]["networks and real batches"]
        == weights + config.objective.settings["batch_real"] * 10 * 64 * 4
    )
    scored = config.protocol.network
    scored = build_network(scored.name, real.spec.image_shape, 10, scored.settings, seed=0)
    assert phases["evaluation"]["networks"] == 3 * sum(p.nbytes for p in scored.parameters())
    if container != "glad":  # which learns latents first
        learning = build_optimizer(made, config.optimizer)
        for parameter in made.parameters():
            parameter.grad = torch.ones_like(parameter)
        learning.step()
        states = [v for state in learning.state.values() for v in state.values() if torch.is_tensor(v) and v.dim()]
        taken = sum(v.nbytes for v in states) + sum(p.grad.nbytes for p in made.parameters())
        assert stored["optimizer state"] == sum(v.nbytes for v in states)
        assert phases["condensation"]["gradients and optimizer state"] == taken


def test_without_steps_nothing_is_learned():
    config = resolve({"parameterization": "pixel", "steps": 0})
    estimate = estimate_memory(config, load_real(config, Options(None, torch.device("cpu"))))
    assert "condensation" not in estimate.phases
    assert estimate.phases["the check of the stored set"]["optimizer state"] == 0
    assert estimate.total == max(sum(held.values()) for held in estimate.phases.values())


class Reads(Pixel):
    """A container that reads a tensor while it is built, as a third party's may: it has no shape without content."""

    api_version = 2

    def build(self):
        super().build()
        self.most = int(torch.tensor(self.counts).max())


def test_what_cannot_be_sized_is_built_as_ever(tmp_path):
    registry.add_trusted([f"{__name__}:Reads"])
    config = resolve({"parameterization": f"{__name__}:Reads", "objective": "dm"})
    real = load_real(config, Options(None, torch.device("cpu")))
    assert estimate_memory(config, real).phases["evaluation"]["decoded images"] == 0
    made = build_container(config, real)
    made.save(tmp_path / "set.safetensors")
    assert torch.equal(Reads.load(tmp_path / "set.safetensors").decode(), made.decode())


@pytest.mark.parametrize("container", [*CONTAINERS, "real"])
def test_shapes_are_those_of_real_containers(container):
    cls = registry.load("parameterization", container)
    budget = StorageBudget.ipc(SPEC, 4)
    with shapes_only(container):
        sized = cls(SPEC, budget)
    made = cls(SPEC, budget)
    shapes = [{name: (value.shape, value.dtype) for name, value in one.state_dict().items()} for one in (sized, made)]
    assert shapes[0] == shapes[1]
    assert all(value.is_meta for value in (*sized.parameters(), *sized.buffers()))
    assert not any(value.is_meta for value in (*made.parameters(), *made.buffers()))


@pytest.mark.parametrize("name", [i.name for i in registry.list_plugins("network") if i.distribution == registry.OWN])
def test_a_network_is_counted_without_being_built(name):
    network = build_network(name, SPEC.image_shape, 10, seed=0)
    assert network_bytes(name, SPEC.image_shape, 10) == sum(
        tensor.nbytes for tensor in (*network.parameters(), *network.buffers())
    )


def test_counting_a_network_draws_no_number():
    before = torch.get_rng_state()
    network_bytes("convnet", (3, 16, 16), 7, {"width": 5})
    assert torch.equal(before, torch.get_rng_state())


def hostile(**changes):
    """A header that is changed, with the tensors of a set of one pixel image per class."""
    header = StoredHeader("pixel", {}, SPEC, StorageBudget.ipc(SPEC, 1), (1,) * 10)
    return replace(header, **changes), {"images": torch.zeros(10, 3, 32, 32)}


HUGE = replace(SPEC, image_shape=(3, 2**20, 2**20))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"counts": (10**18,) * 10}, "should be torch.float32 .10000000000000000000, 3, 32, 32"),
        ({"counts": (10**30,) * 10}, "should be torch.float32 .10000000000000000000000000000000, 3"),
        ({"counts": (10**9,) * 10}, "should be torch.float32 .10000000000, 3, 32, 32"),
        ({"data": HUGE}, "should be torch.float32 .10, 3, 1048576, 1048576"),
        ({"plugin": "hmn", "budget": StorageBudget(10**30)}, "the file holds nothing"),
        ({"plugin": "hmn", "config": {"instance_channels": 10**9}, "budget": StorageBudget(10**18)}, "holds nothing"),
        ({"plugin": "idc", "config": {"factor": 10**6}, "counts": (10**12,) * 10}, "last tiles empty"),
        ({"plugin": "haba", "config": {"hallucinators": 10**9, "grey": False}, "counts": (10**9,) * 10}, "holds"),
    ],
)
def test_a_stored_set_that_claims_too_much_is_refused(tmp_path, changes, told):
    file = tmp_path / "synthetic.safetensors"
    header, tensors = hostile(**changes)
    write_stored(file, tensors, header)
    before = peak()
    with pytest.raises(SyntheticFileError, match=told):
        registry.load("parameterization", header.plugin).load(file)
    assert peak() - before < 2**29


@pytest.mark.parametrize("container", ["rtp", "idc"])
def test_a_stored_set_that_decodes_to_too_much_is_refused(tmp_path, container):
    """Its tensors are as the header says, and small; what they decode to is not."""
    if container == "rtp":
        tensors = {"bases": torch.zeros(1, 3), "coefficients": torch.zeros(10, 1)}
        header, _ = hostile(plugin="rtp", config={"bases": 1, "downsample": 2**20}, data=HUGE)
    else:
        tensors = {"images": torch.zeros(10, 3, 512, 512)}
        wide = replace(SPEC, image_shape=(3, 512, 512))
        header, _ = hostile(plugin="idc", config={"factor": 512}, data=wide, counts=(512**2,) * 10)
    file = tmp_path / "synthetic.safetensors"
    write_stored(file, tensors, header)
    with pytest.raises(SyntheticFileError, match=r"decoded images .* are available"):
        registry.load("parameterization", container).load(file)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_an_allocator_that_gives_up_keeps_the_checkpoint(tmp_path, monkeypatch, capsys):
    """The third step asks for more than there is; the same command continues."""
    sets = [f"--set={text}" for text in [*PARTS[:1], *PROTOCOL]]
    words = ["run", "--param", "pixel", "--objective", "dm", "--steps", 4, "--checkpoint-seconds", 0, *sets]
    words += ["--device", "cpu", "--no-full-data", "--out", tmp_path]
    matched = registry.load("objective", "dm").match

    def match(self, images, targets, step):
        if step == 2:
            torch.empty(2**50)
        return matched(self, images, targets, step)

    with monkeypatch.context() as patched:
        patched.setattr(registry.load("objective", "dm"), "match", match)
        assert command(*words) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("dd-bench: the device ran out of memory")
    (folder,) = [path for path in tmp_path.iterdir() if (path / "config.yaml").exists()]
    assert json.loads((folder / "failure.json").read_text())["error"] == "OutOfMemory"
    assert RunFolder(folder).checkpoint.exists()
    assert command(*words) == 0


def test_a_stored_set_is_kept_when_memory_is_short_for_its_check(tmp_path, monkeypatch, capsys):
    from benchmark_adapters.runs import pipeline

    monkeypatch.setattr(pipeline, "load_stored", lambda _: torch.empty(2**50))
    sets = [f"--set={text}" for text in [*PARTS[:1], *PROTOCOL]]
    assert command("run", "--param", "pixel", "--objective", "dm", "--steps", 1, *sets, "--out", tmp_path) == 1
    assert "ran out of memory" in capsys.readouterr().err
    assert list(tmp_path.glob("*/synthetic.safetensors"))


def test_errors_of_threads_are_recognised():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(OutOfMemory), allocator_errors():
            parallel_map(lambda size: torch.empty(size), [1, 2**50])
    finally:
        torch.set_num_threads(before)


def test_control_groups_of_both_versions(tmp_path):
    """Two levels of version 2, the inner one with less left; and version 1, whose path is another host's."""
    for folder, limit, used, cached in (
        ("", "max", 500, 0),
        ("job", "1000", "400", 50),
        ("job/step", "700", "600", 30),
    ):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        (place / "memory.max").write_text(f"{limit}\n")
        (place / "memory.current").write_text(f"{used}\n")
        (place / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 0\n")
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    assert sorted(control_group_memory(tmp_path, own)) == [130, 650]
    first = tmp_path / "memory"
    first.mkdir()
    (first / "memory.limit_in_bytes").write_text("800\n")
    (first / "memory.usage_in_bytes").write_text("300\n")
    (first / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 7\ntotal_active_file 3\n")
    own.write_text("4:cpu:/\n3:memory,hugetlb:/elsewhere/job\n")
    assert control_group_memory(tmp_path, own) == [510]
    assert control_group_memory(tmp_path, tmp_path / "none") == []


def test_comparisons_report_a_lack_of_memory_in_one_line(tmp_path, monkeypatch):
    from rich.console import Console

    from benchmark_adapters.cli.progress import Reporter
    from benchmark_adapters.runs import compare as runner

    def fail(*_):
        torch.empty(2**50)

    monkeypatch.setattr(runner, "run", fail)
    options = Options(tmp_path, torch.device("cpu"))
    found = compare([Contender("dm", {"method": "dm"})], {}, 1, options, Reporter(Console(quiet=True)))
    assert "ran out of memory" in found.failures["dm"]
    assert "\n" not in found.failures["dm"]


def test_the_limit_of_the_address_space_counts(tmp_path):
    """A machine of 8 GiB of address space: what would fit without the limit is refused."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))

    words = ["run", "--param", "pixel", "--dry-run", "--ipc", "3000000", "--out", tmp_path]
    process = start(*words, preexec_fn=limit)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 2, error
    assert "would be needed" in error.strip().splitlines()[-1]


def test_require_memory_adds_its_parts():
    half = available_memory() // 2
    require_memory({"one": half})
    with pytest.raises(NotEnoughMemory, match=r"one .* GiB, two .* TiB"):
        require_memory({"one": half, "two": 2**43})


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (2**60, "10^18 B"), (10**30, "10^30 B")],
)
def test_units(nbytes, shown):
    assert in_units(nbytes) == shown


def test_the_plan_has_an_estimate(capsys):
    assert command("run", "--param", "hmn", "--dry-run", "--device", "cpu") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "memory: at least " in shown
    assert "(data " in shown
