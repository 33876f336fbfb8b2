"""Memory: what does not fit is refused by arithmetic, before it is allocated, and estimates agree with tensors."""

import resource
import time

import numpy as np
import pytest
import torch
from tiny_runs import PARTS, PROTOCOL, command, start

from benchmark_adapters.runner.compare import Contender, compare
from benchmark_adapters.runner.config import resolve
from benchmark_adapters.runner.memory import estimate_memory
from benchmark_adapters.runner.parts import Options, build_container, load_real
from dd_plugins import registry
from dd_plugins.api import DataSpec, NotEnoughMemory, StorageBudget, SyntheticFileError, read_stored
from dd_plugins.api.memory import available_memory, in_units, require_memory
from dd_plugins.api.stored import write_stored
from dd_plugins.errors import is_out_of_memory
from dd_plugins.networks import build_network, network_bytes

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
    assert "of memory would be needed (budget " in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("network.width=10000000", "networks "),
        ("protocol.network.width=10000000", "networks "),
        ("network.width=4611686018427387904", "larger than any memory"),
        ("protocol.trials=1000000000000", "protocol.trials = 1000000000000"),
        ("protocol.train.batch_size=1000000000000000000000", "expected an integer of 64 bits"),
        ("optimizer.milestones=[0.5, 99999999999999999999]", "expected an integer of 64 bits"),
    ],
)
def test_sizes_beyond_the_machine_are_refused_at_once(setting, told, capsys):
    assert told in one_line(capsys, "run", "--param", "hmn", "--dry-run", "--set", setting)


def test_a_batch_that_no_allocator_gives_ends_in_one_line(tmp_path, capsys):
    words = ["run", "--method", "dm", "--set", "objective.batch_real=1000000000000", "--out", tmp_path]
    sets = [f"--set={text}" for text in [*PARTS[:1], *PROTOCOL]]
    assert command(*words, *sets, "--device", "cpu") == 1
    assert "ran out of memory" in capsys.readouterr().err.strip().splitlines()[-1]


def test_allocators_are_recognised():
    caught = []
    for allocate in (lambda: torch.empty(2**50), lambda: np.empty(2**50), lambda: bytearray(2**60)):
        with pytest.raises((RuntimeError, MemoryError)) as error:
            allocate()
        caught.append(error.value)
    assert all(map(is_out_of_memory, caught))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_estimate_is_what_the_tensors_take(container):
    config = resolve({"parameterization": container, "ipc": 3, "objective": "dm"}, ["network.width=8"])
    real = load_real(config, Options(None, torch.device("cpu")))
    made = build_container(config, real)
    found = estimate_memory(config, real, made)
    stored = sum(value.nbytes for value in made.state_dict().values())
    learned = sum(parameter.nbytes for parameter in made.parameters())
    states = 2 if config.optimizer.name == "adam" else 1
    images = made.decode()
    assert found["container"] == stored + learned * (1 + states)
    assert found["decoded images"] == images.nbytes + made.labels.nbytes
    assert found["data"] >= real.train.pixels.nbytes


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


@pytest.mark.parametrize("counts", [[10**18] * 10, [10**9] * 10])
def test_a_stored_set_that_claims_too_much_is_refused(tmp_path, counts):
    cls = registry.load("parameterization", "pixel")
    file = tmp_path / "synthetic.safetensors"
    cls(SPEC, StorageBudget.for_ipc(SPEC, 1)).save(file, "pixel")
    header, tensors = read_stored(file)
    from dataclasses import replace

    write_stored(file, tensors, replace(header, counts=tuple(counts), budget=StorageBudget(10**30)))
    with pytest.raises(SyntheticFileError, match="of memory would be needed"):
        cls.load(file)


def test_comparisons_report_a_lack_of_memory_in_one_line(tmp_path, monkeypatch):
    from rich.console import Console

    from benchmark_adapters.runner import compare as runner
    from benchmark_adapters.runner.progress import Reporter

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
