"""Labels as files hold them (integers, strings, booleans) to classes from 0 on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dd_plugins.api import DataError
from dd_plugins.api.faults import shortened
from dd_plugins.api.messages import first_of

LONGEST = 200  # characters of a class name; longer strings are texts, such as captions

Label = int | str | bool


class Classes(NamedTuple):
    """Labels of both splits as int64 ``(N,)``, the names of the classes, and what was changed."""

    train: Tensor
    test: Tensor | None
    names: list[str]
    notes: list[str]


def encode_labels(train: Sequence[Label], test: Sequence[Label] | None, names: Sequence[str], where: str) -> Classes:
    """Numbers the classes.

    With ``names``, labels are positions in them, and names without an image are left out. Without, the classes are
    the sorted values of the training labels: integers 0 to K-1 stay as they are.

    Args:
        train: Labels of the training images.
        test: Labels of the test images, or None if there are none.
        names: Names of the classes as the files declare them; may be empty.
        where: The data set, for messages.

    Raises:
        DataError: If a label has no name, or a test label does not occur in train.
    """
    found = set(train)
    if not found:
        raise DataError(f"{where}: expected labels, but there are none")
    if names and all(isinstance(value, int) for value in [*found, *(test or ())]):
        _check_named(Counter([*train, *(test or ())]), len(names), where)
        values: list[Label] = sorted(found | set(test or ()))
        chosen = [names[int(value)] for value in values]
    else:
        if len({type(value) for value in found}) > 1:
            raise DataError(f"{where}: expected labels of one type, but found integers and strings")
        values = sorted(found)
        if long := [text for text in values if len(str(text)) > LONGEST]:
            raise DataError(
                f"{where}: expected labels of at most {LONGEST} characters, but found {shortened(str(long[0]))}"
            )
        chosen = [str(value) for value in values]
        _check_known(Counter(test or ()), found, where)
    numbers = {value: number for number, value in enumerate(values)}
    encoded = [torch.tensor([numbers[value] for value in split], dtype=torch.int64) for split in (train, test or ())]
    return Classes(encoded[0], encoded[1] if test is not None else None, chosen, _notes(values, chosen, names))


def _notes(values: list[Label], chosen: list[str], names: Sequence[str]) -> list[str]:
    if not isinstance(values[0], int) or values == list(range(max(len(names), len(values)))):
        return []
    if names:
        return [f"{len(names) - len(values)} of the {len(names)} classes have no images and are left out"]
    return [f"labels are not 0 to {len(values) - 1}; they are numbered in sorted order: {first_of(chosen, ', ')}"]


def _check_named(counts: Counter[Label], total: int, where: str) -> None:
    wrong = sorted(int(value) for value in counts if not 0 <= int(value) < total)
    if wrong:
        listed = first_of([f"{value} ({counts[value]} images)" for value in wrong], ", ")
        raise DataError(
            f"{where}: expected labels from 0 to {total - 1} for its {total} class names, but found {listed}"
        )


def _check_known(counts: Counter[Label], known: set[Label], where: str) -> None:
    unknown = [value for value in counts if value not in known]
    if unknown:
        listed = first_of([f"{value!r} ({counts[value]} images)" for value in sorted(unknown, key=str)], ", ")
        raise DataError(f"{where}: expected the test labels to occur in train, but these do not: {listed}")
