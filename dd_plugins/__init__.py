"""dd-plugins: interchangeable parts for dataset distillation.

Example:
    >>> import dd_plugins as dd
    >>> real = dd.load_dataset("digits")
    >>> distilled = dd.distill(real, "dm", ipc=1, steps=2)
    >>> score = dd.evaluate(distilled, real, trials=1)

Importing the package imports nothing else: each name is imported when it is first used. Plugin authors import from
``dd_plugins.api``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dd_plugins._facade import create, distill, evaluate, load, load_dataset, prune, train
    from dd_plugins.api import DataSpec, DDPluginsError, RealData, StorageBudget
    from dd_plugins.engine.callbacks import Callback
    from dd_plugins.engine.checkpoints import MemoryCheckpointer
    from dd_plugins.engine.distilled import Distilled
    from dd_plugins.engine.runtime import Runtime
    from dd_plugins.engine.score import Score
    from dd_plugins.execution import Execution

__version__ = "0.1.0"

_HOMES = {
    "Callback": "dd_plugins.engine.callbacks",
    "DDPluginsError": "dd_plugins.api",
    "DataSpec": "dd_plugins.api",
    "Distilled": "dd_plugins.engine.distilled",
    "Execution": "dd_plugins.execution",
    "MemoryCheckpointer": "dd_plugins.engine.checkpoints",
    "RealData": "dd_plugins.api",
    "Runtime": "dd_plugins.engine.runtime",
    "Score": "dd_plugins.engine.score",
    "StorageBudget": "dd_plugins.api",
    "create": "dd_plugins._facade",
    "distill": "dd_plugins._facade",
    "evaluate": "dd_plugins._facade",
    "load": "dd_plugins._facade",
    "load_dataset": "dd_plugins._facade",
    "prune": "dd_plugins._facade",
    "train": "dd_plugins._facade",
}
__all__ = [
    "Callback",
    "DDPluginsError",
    "DataSpec",
    "Distilled",
    "Execution",
    "MemoryCheckpointer",
    "RealData",
    "Runtime",
    "Score",
    "StorageBudget",
    "create",
    "distill",
    "evaluate",
    "load",
    "load_dataset",
    "prune",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
