"""DC-BENCH as a benchmark: its own evaluator, from a user's checkout, on a copy, in a process of its own.

Source:
    justincui03/dc_benchmark at 2a57711: ``evaluator/evaluator.py``, which works unmodified; ``evaluator_main.py`` does
    not. Scores are accuracies of the last epoch; it counts epochs from 0, so that it trains one more than the number.
Deviations:
    One process an evaluation, so that each has a seed of its own (it has none) and an interrupted score goes on.
    The set takes the place of one of the methods that it knows; reports name that place.
    Tiny-ImageNet is exported and loaded, but not scored: its code reads the real images from a fixed path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from benchmark_adapters.formats.dc_bench import NAMES, DCBenchFormat, described
from dd_plugins.api import (
    DataSpec,
    PluginConfig,
    StorageBudget,
    StorageLedger,
    SyntheticSet,
    UsageError,
    temporary_folder,
)
from dd_plugins.api.benchmark import Benchmark, BenchmarkFailed, Cell, ScoreContext, Scores
from dd_plugins.api.format import Exported

COPIED = ("evaluator", "networks", "data_loader")
ENTRY = Path("evaluator") / "evaluator.py"
AUGMENTED_EPOCHS = 1000  # whatever was asked for, wherever images are augmented
SCORED = ("cifar10", "cifar100")
TESTED = re.compile(r"Evaluate_\d+: epoch = *(\d+).*?test acc = *([0-9.]+)")
# For its process alone, which seeds nothing itself; Python imports a sitecustomize before anything else.
SEEDS = """import os, random
import numpy, torch
seed = int(os.environ["DC_BENCH_SEED"])
random.seed(seed), numpy.random.seed(seed), torch.manual_seed(seed)
"""


class DCBench(Benchmark):
    """DC-BENCH's accuracy: its own evaluator, from a checkout of yours, run on a copy."""

    api_version = 2
    needs = "einops"

    class Config(PluginConfig):
        """Settings of DC-BENCH."""

        root: str | None = Field(None, description="its checkout")
        data: str | None = Field(None, description="folder of CIFAR as torchvision keeps it; None: the checkout's own")
        layout: Literal["dc", "dsa", "dm", "tm", "random", "kmeans"] = Field(
            "dm", description="the method whose place the set takes"
        )
        model: str = Field("convnet", description="its name of the network")
        dsa: bool = Field(True, description="differentiable siamese augmentation; then 1000 epochs")
        aug: Literal["autoaug", "randaug", "imagenet_aug", "cifar_aug"] | None = Field(
            None, description="another augmentation, without dsa"
        )
        epochs: int = Field(300, ge=1, description="epochs without augmentation")
        evaluations: int = Field(5, ge=1, description="networks trained on the set")
        python: str | None = Field(None, description="an interpreter that has what it needs; None: this one")

    config: Config

    def missing(self) -> bool:
        """What its networks import, unless another interpreter is named that has it."""
        if self.config.python is not None and shutil.which(self.config.python) is None:
            raise UsageError(f"benchmark.python = {self.config.python}: no such program")
        return self.config.python is None and super().missing()

    def cells(self) -> Sequence[Cell]:
        """Its data sets and budgets."""
        return [Cell(name, ipc, self.config.model) for name in SCORED for ipc in (1, 10, 50)]

    def score(self, synthetic: SyntheticSet, cell: Cell, context: ScoreContext) -> Scores:
        """Accuracy of the last epoch of every evaluation.

        Raises:
            UsageError: If there is no checkout, or it does not know the data set.
            BenchmarkFailed: If its code fails, with the last line of its own words.
        """
        config, root, name = self.config, self._root(), synthetic.data.name
        if name not in SCORED:
            raise UsageError(f"dc-bench does not score {name}; it scores {', '.join(SCORED)}")
        known = dict(context.known)
        with temporary_folder() as work:
            self._prepare(work, root, synthetic, cell, context)
            for trial in (trial for trial in range(config.evaluations) if trial not in known):
                known[trial] = self._run(work, cell, NAMES[name], trial)
                if context.on_trial:
                    context.on_trial(trial, known[trial])
        augmented = "dsa" if config.dsa else config.aug
        epochs = AUGMENTED_EPOCHS if augmented else config.epochs
        protocol = f"{augmented or 'no augmentation'}, {epochs} epochs, method slot {config.layout}"
        trials = tuple(known[trial] for trial in range(config.evaluations))
        return Scores("dc-bench", protocol, self.key(), "accuracy", trials, config.model)

    def export(self, synthetic: SyntheticSet, folder: Path) -> list[Path]:
        """Writes a set where its evaluator looks for it below a checkout.

        The IPC in names is that of the elements that were stored, rounded, at least 1; decoded images may be more.
        """
        data = synthetic.data
        ipc = max(1, round(synthetic.ledger.elements / StorageBudget.ipc(data, 1).elements))
        return self._write(synthetic, _numbers(data), ipc, folder)

    def load(self, folder: Path, cell: Cell) -> SyntheticSet:
        """Reads the set of a cell from where its evaluator looks for it below a checkout.

        It comes in the model space that ``bundle.json`` tells of, else in DC-BENCH's own. Its ledger lists the images.

        Raises:
            DataError: If it is missing or damaged, or not the one that was exported.
        """
        form = DCBenchFormat({"layout": self.config.layout})
        place = form.place(folder, cell.dataset, cell.ipc)
        data, name = described(place, cell.dataset)
        found = form.read_as(place, data, _numbers(data))
        ledger = StorageLedger.of([("images", found.images)])
        return SyntheticSet(name or self.config.layout, data, found.images, found.targets, ledger)

    def _write(self, synthetic: SyntheticSet, names: tuple[str, ...], ipc: int, folder: Path) -> list[Path]:
        stored = {"elements": synthetic.ledger.elements, "bytes": synthetic.ledger.nbytes}
        notes = {"name": synthetic.name, "storage": stored}
        exported = Exported(synthetic.images, synthetic.targets, synthetic.data, names, ipc, notes)
        return DCBenchFormat({"layout": self.config.layout}).write(exported, folder)

    def _root(self) -> Path:
        if self.config.root is None:
            raise UsageError("dc-bench scores with a checkout of its repository: --set benchmark.root=FOLDER")
        root = Path(self.config.root).expanduser()
        if not (root / ENTRY).is_file():
            raise UsageError(f"benchmark.root = {root}: no checkout of DC-BENCH, for there is no {ENTRY}")
        return root

    def _prepare(self, work: Path, root: Path, synthetic: SyntheticSet, cell: Cell, context: ScoreContext) -> None:
        """A copy of its code, the set where it looks for it, and the data where it looks for them."""
        data = Path(self.config.data).expanduser() if self.config.data else root / "data" / "cached"
        if not data.is_dir():
            raise UsageError(f"{data}: no folder of real data; --set benchmark.data=FOLDER names it")
        self._write(synthetic, context.real.class_names, cell.ipc, work)
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, work / name)
        (work / "data").mkdir()
        (work / "data" / "cached").symlink_to(data.resolve())
        (work / "seeds").mkdir()
        (work / "seeds" / "sitecustomize.py").write_text(SEEDS)

    def _run(self, work: Path, cell: Cell, dataset: str, trial: int) -> float:
        config = self.config
        words = [config.python or sys.executable, str(ENTRY), "--method", config.layout, "--gpu", "0"]
        words += ["--dataset", dataset, "--model", config.model, "--ipc", str(cell.ipc), "--num_eval", "1"]
        words += ["--epoch_eval_train", str(config.epochs)]
        words += ["--dsa"] if config.dsa else ["--aug", config.aug] if config.aug else []
        paths = os.pathsep.join(filter(None, [str(work / "seeds"), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": paths, "DC_BENCH_SEED": str(trial)}
        done = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
        tested = TESTED.findall(done.stdout)
        if done.returncode or not tested:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
            raise BenchmarkFailed(f"dc-bench failed: {said[-1]}")
        return float(tested[-1][1])


def _numbers(data: DataSpec) -> tuple[str, ...]:
    """Names of classes where nobody tells better ones."""
    return tuple(str(label) for label in range(data.num_classes))
