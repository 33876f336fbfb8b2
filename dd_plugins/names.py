"""Names as users type them: matched ignoring case, with suggestions for those that match nothing."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping

from dd_plugins.errors import AmbiguousPluginError, UnknownPluginError

LONGEST = 80  # characters of a name that an error message repeats


def matches(name: str, known: Iterable[str]) -> list[str]:
    """The known names that are equal to ``name``, or else those that differ from it only by case."""
    unique = dict.fromkeys(known)
    return [name] if name in unique else [each for each in unique if each.casefold() == name.casefold()]


def canonical(name: str, known: Iterable[str]) -> str:
    """The one known name that matches; ``name`` itself if none or several do."""
    found = matches(name, known)
    return found[0] if len(found) == 1 else name


def near(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The known names most similar to ``name``, the most similar first; ``distribution/`` may be left out."""
    ordered = sorted(known, key=lambda each: "/" not in each)  # of equal names the one without a distribution counts
    folded = {form.casefold(): each for each in ordered for form in (each, each.rpartition("/")[2])}
    found = difflib.get_close_matches(name.casefold(), folded, n=limit, cutoff=0.6)
    return list(dict.fromkeys(folded[each] for each in found))


def suggestion(choices: Iterable[str]) -> str:
    """``; did you mean a or b?``, empty without choices."""
    text = " or ".join(choices)
    return f"; did you mean {text}?" if text else ""


def quoted(name: object) -> str:
    """The value as Python writes it, long ones cut."""
    text = repr(name)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


def choose(what: str, name: str, known: Collection[str], others: Mapping[str, Collection[str]] | None = None) -> str:
    """The known name that ``name`` stands for.

    Args:
        what: What is named, for messages, such as ``method``.
        name: As the user typed it.
        known: All names.
        others: For each other kind of name those that there are: ``{"objective": ["dc", "dsa"]}``.

    Raises:
        UnknownPluginError: If none matches; suggests similar names, and the kind that has this one.
        AmbiguousPluginError: If several differ from it only by case.
    """
    found = matches(name, known)
    if len(found) > 1:
        raise AmbiguousPluginError(f"more than one {what} is named {quoted(name)}, ignoring case: {', '.join(found)}")
    if not found:
        raise UnknownPluginError(unknown(what, name, known, others or {}))
    return found[0]


# How the command takes a name of each kind.
FLAGS = {
    "parameterization": "--param {}",
    "objective": "--objective {}",
    "pruning": "--prune {}",
    "score": "--set pruning.score={}",
    "selector": "--set pruning.selector={}",
    "dataset": "--dataset {}",
    "network": "--network {}",
    "benchmark": "--benchmark {}",
    "format": "--to {}",
    "method": "--method {}",
    "protocol": "--protocol {}",
}


def unknown(what: str, name: str, known: Collection[str], others: Mapping[str, Collection[str]]) -> str:
    """The message about a name that nothing has: where it belongs, else similar names, and all names."""
    elsewhere = [(kind, found[0]) for kind, names in others.items() if (found := matches(name, names))]
    hints = [
        f"{here} is {_article(kind)} {kind}: {FLAGS.get(kind, f'dd-bench list {kind} {{}}').format(here)}"
        for kind, here in elsewhere
    ]
    hint = f"; {', '.join(hints)}" if hints else suggestion(near(name, known))
    return f"unknown {what} {quoted(name)}{hint} (installed: {', '.join(sorted(known)) or 'none'})"


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"
