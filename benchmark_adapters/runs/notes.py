"""What a user should know about a run before it starts: settings without effect, borrowed settings, few real images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dd_plugins import registry
from dd_plugins.api import Parameterization, RealData, UsageError
from dd_plugins.datasets import find_conventions, split_spec
from dd_plugins.engine.config import RunConfig
from dd_plugins.engine.keys import flatten
from dd_plugins.engine.methods import load_method
from dd_plugins.names import quoted

SHOWN = 10  # classes that a warning names


def data_warnings(config: RunConfig, real: RealData, counts: Sequence[int] = ()) -> list[str]:
    """Warnings about the use of the data set, one line each.

    Args:
        config: The run.
        real: Its data set.
        counts: Synthetic images of each class, if they are known.
    """
    return [line for line in (general_settings(config, real), few_images(real, config.ipc, counts)) if line]


def few_images(real: RealData, ipc: int, counts: Sequence[int] = ()) -> str:
    """A warning if classes have fewer training images than the budget or the synthetic set; empty if none has.

    Args:
        real: The data set.
        ipc: The budget in images per class.
        counts: Synthetic images of each class; empty: there are none, and the random reference alone is drawn.
    """
    sizes = real.train.class_sizes()
    synthetic = list(counts) or [ipc] * len(sizes)
    few = [label for label, size in enumerate(sizes) if size < max(ipc, synthetic[label])]
    if not few:
        return ""
    for_budget = any(size < ipc for size in sizes)
    decoded = max(synthetic[label] for label in few)
    asked = [f"an IPC of {ipc}"] if for_budget else []
    asked += [f"the {decoded} images decoded per class"] if decoded > ipc else []
    listed = ", ".join(f"{quoted(real.class_names[label])} ({sizes[label]})" for label in few[:SHOWN])
    listed += f" and {len(few) - SHOWN} more" if len(few) > SHOWN else ""
    effects = ["a set that is initialized with training images repeats them"] if counts else []
    effects += ["'random real' has no more than there are"] if for_budget else []
    effects += ["the budget exceeds the whole training split"] if ipc * len(sizes) > len(real.train) else []
    return (
        f"{len(few)} of {len(sizes)} classes {'has' if len(few) == 1 else 'have'} fewer training images (validation "
        f"images not counted) than {' or '.join(asked)}: {listed}; "
        f"{', '.join(effects)}"
    )


def check_subset(real: RealData, ipc: int) -> None:
    """Refuses a random subset that no class has enough training images for: it would be the whole training split.

    Raises:
        UsageError: If ``ipc`` is larger than every class.
    """
    largest = max(real.train.class_sizes())
    if ipc > largest:
        raise UsageError(
            f"--ipc {ipc}: expected at most {largest}, the training images of the largest class of {real.spec.name}; "
            f"--full-data scores the whole training set"
        )


def general_settings(config: RunConfig, real: RealData) -> str:
    """A warning if a data set looks like a known one whose settings are not applied; empty otherwise.

    It does if the last part of its path is the name of a data set that has as many classes and images of this shape.
    """
    _, argument = split_spec(config.dataset)
    if not argument or config.data.get("as"):
        return ""
    installed = [info.spec for info in registry.list_plugins("dataset")]
    name = next((each for each in installed if _letters(each) == _letters(Path(argument).name)), None)
    if name is None:
        return ""
    try:
        known = find_conventions(name, config.data)
    except UsageError:
        return ""
    if (known.num_classes, known.image_shape) != (real.spec.num_classes, real.spec.image_shape):
        return ""
    method = load_method(config.method)
    own = method.values(name, config.ipc) != method.values(config.dataset, config.ipc)
    return (
        f"{quoted(config.dataset)} is not known by name: general settings{f' of {method.name}' if own else ''} and its "
        f"own mean and standard deviation are used; --set data.as={name} applies those of {name}"
    )


def _letters(name: str) -> str:
    """A name without case and punctuation: ``CIFAR-10`` is ``cifar10``."""
    return "".join(filter(str.isalnum, name.casefold()))


def idle_rate(config: RunConfig, container: Parameterization) -> str:
    """A warning about a learning rate that was set and that no tensor takes; empty if there is none."""
    rate, default = config.optimizer.lr, type(config.optimizer)().lr
    if rate == default or not all("lr" in group for group in container.parameter_groups()):
        return ""
    name = config.parameterization.name
    return f"optimizer.lr = {rate} has no effect: {name} sets the rates of its tensors (parameterization.*lr)"


def lent_settings(config: RunConfig) -> str:
    """A note if a method has settings for other IPCs only; empty if it has some for this one, or needs none."""
    found, method = flatten(config.model_dump(mode="json")), load_method(config.method)
    nearest, lent = method.borrowed(config.known_as, config.ipc)
    values = method.values(config.known_as, config.ipc)
    taken = [f"{key}={values[key]}" for key in lent if found.get(key) == values[key]]
    if not taken:
        return ""
    return f"{method.name} has no settings for IPC {config.ipc}; those of IPC {nearest} are taken: {', '.join(taken)}"
