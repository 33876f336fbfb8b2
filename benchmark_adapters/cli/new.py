"""dd-bench new: a small, complete plugin to begin with."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmark_adapters.cli.output import say

EPILOG = """
**Examples**

`dd-bench new parameterization lowrank` writes dd-lowrank/: the class, its package, its test, a README

`dd-bench new objective mean-features --to plugins`
"""


class Kind(StrEnum):
    """What there is a template for."""

    parameterization = "parameterization"
    objective = "objective"
    network = "network"
    pruning = "pruning"


# What a README says to try, and the option that takes the plugin.
TRY = {
    "parameterization": ("dd-bench run --param {name} --ipc 2", "dd-bench run --param"),
    "objective": ("dd-bench run --param pixel --objective {name}", "dd-bench run --param pixel --objective"),
    "network": ("dd-bench run --param hmn --set protocol.network.name={name}", "dd-bench check --kind network"),
    "pruning": ("dd-bench run --param hmn --ipc 10 --prune {name}", "dd-bench run --param hmn --ipc 10 --prune"),
}


def new(
    kind: Annotated[Kind, typer.Argument(help="What the plugin is.")],
    name: Annotated[str, typer.Argument(help="Its name: small letters, digits, dashes.")],
    to: Annotated[Path, typer.Option("--to", help="Folder in which the package's folder is made.")] = Path(),
) -> None:
    """Write a small package with one plugin: a class that works, its entry point, its conformance test."""
    import keyword
    import re
    from importlib.resources import files
    from string import Template

    from dd_plugins import registry
    from dd_plugins.api import staged
    from dd_plugins.errors import UsageError

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(f"{name!r} is no name for a plugin: small letters and digits, joined by single dashes")
    for each in registry.KINDS:
        if any(info.name == name and info.distribution == registry.OWN for info in registry.list_plugins(each)):
            raise UsageError(f"{name} is the name of a built-in {each}, and those are reserved")
    folder = to / f"dd-{name}"
    module = f"dd_{name.replace('-', '_')}"
    class_name = "".join(part.capitalize() for part in name.split("-"))
    if keyword.iskeyword(class_name) or folder.name == registry.OWN:
        raise UsageError(f"{name!r} cannot be a plugin's name: {class_name} or {folder.name} means something else")
    try_it, flag = TRY[kind.value]
    words = {"name": name, "kind": kind.value, "module": module, "class_name": class_name, "flag": flag}
    words["try_it"] = try_it.format(name=name)
    templates = files("benchmark_adapters") / "templates"
    with staged(folder) as written:
        for source, target in {
            f"{kind.value}/plugin.py.txt": f"{module}.py",
            "common/setup.py.txt": "setup.py",
            "common/README.md.txt": "README.md",
            "common/test_conformance.py.txt": "tests/test_conformance.py",
        }.items():
            text = Template((templates / source).read_text(encoding="utf-8")).substitute(words)
            path = written / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            say(folder / target)
    say(f"next: cd {folder} && pip install -e . && dd-bench check {name}")
