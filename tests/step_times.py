"""Times a matching step of every method beside the naive step of the same method (`naive.py`), in one run.

    python tests/step_times.py
    python tests/step_times.py --methods dsa --dataset cifar10 --ipc 10 --set network.width=128 --repeat 3

Three processes take the same steps in turn: ``script`` is the naive step as a script runs it, with the memory
allocator as it comes; ``naive`` the same step with the allocator that `dd-bench` sets; ``ours`` the package's. All
must agree on the loss. What trains the networks between steps is shared code and is left out where a method's settings
allow it. Times are medians; ratios are to ours, taken turn by turn. The naive unroll of ``rtp`` holds the graph of all
its steps; ``--set rtp:objective.unroll=10`` keeps it within memory.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmark_adapters.cli.memory import keep_freed_memory

NO_TRAINING = {
    "dc": ("objective.inner=0",),
    "dsa": ("objective.inner=0",),
    "cafe": ("objective.loops=fixed", "objective.inner=0"),
    "idc": ("objective.network_updates=0", "objective.max_updates=0"),
    "hmn": ("objective.network_updates=0", "objective.max_updates=0"),
    "mtt": ("objective.experts=1", "objective.training_epochs=4", "objective.max_start_epoch=1"),
    "haba": ("objective.experts=1", "objective.training_epochs=4", "objective.max_start_epoch=1"),
}
METHODS = ("dc", "dsa", "dm", "cafe", "mtt", "idc", "haba", "rtp", "hmn")
SIDES = ("script", "naive", "ours")


def main():
    options = arguments()
    print(f"{'method':8}{'script ms':>12}{'naive ms':>12}{'ours ms':>12}{'script/ours':>13}{'naive/ours':>12}")
    for method in options.methods.split(","):
        seconds = times(method, options)
        medians = "".join(f"{1000 * statistics.median(own):12.1f}" for own in seconds)
        ratios = [statistics.median(a / b for a, b in zip(own, seconds[2], strict=True)) for own in seconds[:2]]
        print(f"{method:8}{medians}{ratios[0]:13.2f}{ratios[1]:12.2f}", flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--ipc", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("--device", default=None)
    return parser.parse_args()


def times(method, options):
    """For each side the seconds of its steps.

    Raises:
        EOFError: If a side ended, for instance because memory ran out.
    """
    processes, pipes = [], []
    for side in SIDES:
        pipe, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(target=take_steps, args=(side, method, options, theirs), daemon=True)
        process.start()
        theirs.close()
        pipe.recv()  # ready: one after the other, so that only the first trains experts
        processes.append(process)
        pipes.append(pipe)
    found = tuple([] for _ in SIDES)
    for turn in range(options.repeat + 1):
        losses = []
        for seconds, pipe in zip(found, pipes, strict=True):
            pipe.send("step")
            taken, loss = pipe.recv()
            losses.append(loss)
            if turn:  # the first step warms up
                seconds.append(taken)
        if not turn and max(losses) - min(losses) > 1e-3 * abs(losses[0]):
            raise RuntimeError(f"{method}: the losses are {losses}")
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.close()
        process.join()
    return found


def take_steps(side, method, options, pipe):
    """One side's process: a step whenever the other end asks for one."""
    if side != "script":
        keep_freed_memory()  # before torch is there, hence the imports down here
    import torch
    from naive import match

    from benchmark_adapters.runs.compare import split_assignments
    from benchmark_adapters.runs.parts import Options, load_real
    from benchmark_adapters.runs.system import choose_device
    from dd_plugins.api import Match
    from dd_plugins.engine.callbacks import Callback
    from dd_plugins.engine.config import resolve
    from dd_plugins.engine.distillation import start
    from dd_plugins.engine.parts import build_parts
    from dd_plugins.execution import Execution

    flags = {"method": method, "dataset": options.dataset, "ipc": options.ipc}
    common, single = split_assignments(options.methods.split(","), options.assignments)
    config = resolve(flags, [*NO_TRAINING.get(method, ()), *common, *single.get(method, ())])
    with tempfile.TemporaryDirectory() as folder:
        where = Options(Path(folder), choose_device(options.device), options.data_root)
        real = load_real(config, where)
        with Execution().for_data(real.spec).scope():
            run = start(build_parts(config, real), where.runtime(Callback()))
            objective = run.objective
            if side != "ours":
                objective.match = lambda images, targets, step: Match(*match(objective, images, targets, step))
            pipe.send("ready")
            while True:
                try:
                    pipe.recv()
                except EOFError:
                    return
                begun = time.perf_counter()
                loss = run.take_step()
                if where.device.type == "cuda":
                    torch.cuda.synchronize(where.device)
                pipe.send((time.perf_counter() - begun, loss))
                run.step += 1


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(main())
