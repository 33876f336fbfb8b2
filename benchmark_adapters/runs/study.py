"""The controls of a pruning: other scores and selectors, other shares over the budget, and no pruning at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmark_adapters.runs.compare import Contender
from dd_plugins.api import UsageError
from dd_plugins.engine.config import OVER_BUDGET, RunConfig
from dd_plugins.engine.keys import flatten

PLAIN = "no pruning"
PRUNED = "aum"
# Everything at the same final budget, from the same larger set.
CONTROLS: Mapping[str, tuple[str, ...]] = {
    PRUNED: ("pruning.name=aum",),
    "hard only": ("pruning.name=aum", "pruning.selector=keep-easy"),
    "easy only": ("pruning.name=aum", "pruning.selector=keep-hard"),
    "random": ("pruning.name=random",),
    "el2n, double-end": ("pruning.name=el2n", "pruning.selector=double-end"),
    "forgetting, double-end": ("pruning.name=aum", "pruning.score=forgetting"),
    "ccs": ("pruning.name=ccs",),
}
DROPPED = ("seed", "pruning", "over_budget", "pruning_trials")
FIXED = ("pruning", "pruning.name", "pruning.score", "pruning.selector", "over_budget", "seed")  # what rows differ in


def common(config: RunConfig) -> dict[str, Any]:
    """What all runs of a study have in common: everything of ``config`` but its pruning and its seed."""
    flat = flatten(config.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if key.partition(".")[0] not in DROPPED}


def contenders(rates: Sequence[float], grid: Sequence[float], assignments: Sequence[str]) -> list[Contender]:
    """One row of the study each.

    Args:
        rates: Shares over the budget; the controls are made at `OVER_BUDGET`, or at the first rate if it is none.
        grid: The shares beta that are tried on the validation split.
        assignments: For all runs.

    Raises:
        UsageError: If an assignment is for what the rows differ in.
    """
    rates = list(dict.fromkeys(rates))
    for text in assignments:
        if text.partition("=")[0].strip() in FIXED:
            raise UsageError(f"--set {text}: the rows of a study differ in just that")
    main = OVER_BUDGET if OVER_BUDGET in rates else next((rate for rate in rates if rate), OVER_BUDGET)
    tried = f"pruning.grid={list(grid)}"

    def pruned(name: str, parts: Sequence[str], rate: float) -> Contender:
        first, *others = parts
        others_own = [text for text in assignments if not text.startswith("pruning")]
        own = [text for text in assignments if text.startswith("pruning")]
        flags = {"pruning": first.partition("=")[2], "over_budget": rate}
        return Contender(name, flags, (*others_own, tried, *others, *own))

    plain = tuple(text for text in assignments if not text.startswith("pruning"))
    made = [Contender(PLAIN, {}, plain)]
    made += [pruned(name, parts, main) for name, parts in CONTROLS.items()]
    made.append(Contender(f"over budget by {100 * main:g}%, not pruned", {"over_budget": main}, plain))
    rest = [rate for rate in rates if rate and rate != main]
    return made + [pruned(f"{PRUNED}, {100 * rate:g}% over", CONTROLS[PRUNED], rate) for rate in rest]
