"""Runs of a second: the embedded digits, six steps, small networks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmark_adapters.cli import main
from benchmark_adapters.cli.progress import Reporter
from benchmark_adapters.runs import pipeline
from benchmark_adapters.runs.parts import Options
from dd_plugins import registry
from dd_plugins.engine.config import resolve

PARTS = ["network.width=8", "parameterization.warm_start_steps=5"]
OBJECTIVE = ["objective.network_updates=1", "objective.max_updates=10", "objective.batch_real=8"]
PROTOCOL = ["protocol.network.width=8", "protocol.train.epochs=5", "protocol.trials=2"]
TINY = [*PARTS, *OBJECTIVE, *PROTOCOL]
FLAGS = {"method": "hmn", "steps": 6}
WORDS = ["run", "--param", "hmn", "--steps", "6", "--device", "cpu", *(f"--set={text}" for text in TINY)]


def run(out, flags=None, assignments=TINY, **options):
    """Makes a run in this process, as the command does, and returns its record as JSON has it."""
    registry.add_trusted(registry.classes_named_in([*map(str, (flags or {}).values()), *assignments]))
    config = resolve({**FLAGS, **(flags or {})}, assignments)
    record = pipeline.run(config, Options(out, torch.device("cpu"), **options), Reporter(Console(quiet=True)))
    return json.loads(json.dumps(record))


def command(*words):
    """The command in this process: its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dd-bench", *map(str, words)])
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr("benchmark_adapters.cli.main.keep_freed_memory", lambda: None)
        try:
            main.run()
        except SystemExit as ended:
            return ended.code or 0
    return 0


def start(*words, **options):
    """The command in a process of its own, on one thread, as a user starts it."""
    script = Path(sys.executable).with_name("dd-bench")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([script, *map(str, words)], env=environment, **pipes, **options)
