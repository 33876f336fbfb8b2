"""dd-bench new: a small, complete plugin to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark_adapters.cli.output import say

EPILOG = """
**Examples**

`dd-bench new parameterization lowrank` writes dd-lowrank/: the class, its package, its test, a README

`dd-bench new method sharp` writes dd-sharp/: a YAML file of settings, its package, its test, a README

`dd-bench new objective mean-features --to plugins`
"""
COMMON = "common"  # the folder of templates that all kinds share
# The file that each template becomes.
TARGETS = {
    "plugin.py.txt": "{module}.py",
    "plugin.yaml.txt": "{module}/{name}.yaml",
    "init.py.txt": "{module}/__init__.py",
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
    "test_conformance.py.txt": "tests/test_conformance.py",
}
USAGE = "usage.txt"  # what a README suggests to try, and the option that takes the plugin


def kinds() -> list[str]:
    """The kinds that there are templates for."""
    from importlib.resources import files

    folders = (files("benchmark_adapters") / "templates").iterdir()
    return sorted(folder.name for folder in folders if folder.is_dir() and folder.name != COMMON)


def new(
    kind: Annotated[str, typer.Argument(help="parameterization, objective, method, ...", autocompletion=kinds)],
    name: Annotated[str, typer.Argument(help="Its name: small letters, digits, dashes.")],
    to: Annotated[Path, typer.Option("--to", help="Folder in which the package's folder is made.")] = Path(),
) -> None:
    """Write a small package with one plugin: a class or file that works, its entry point, its conformance test."""
    from importlib.resources import files
    from string import Template

    from dd_plugins.api import staged
    from dd_plugins.names import choose

    kind = choose("kind", kind, kinds())
    words = _words(kind, name)
    folders = [files("benchmark_adapters") / "templates" / part for part in (COMMON, kind)]
    templates = {file.name: file.read_text(encoding="utf-8") for folder in folders for file in folder.iterdir()}
    words["try_it"], words["flag"] = Template(templates.pop(USAGE)).substitute(words).splitlines()
    folder = to / words["distribution"]
    with staged(folder) as written:
        for template, text in sorted(templates.items()):
            target = TARGETS[template].format(**words)
            path = written / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(text).substitute(words), encoding="utf-8")
            say(folder / target)
    say(f"next: cd {folder} && pip install -e . && dd-bench check {name}")


def _words(kind: str, name: str) -> dict[str, str]:
    """What is inserted into the templates.

    Raises:
        UsageError: If a plugin cannot have this name.
    """
    import keyword
    import re

    from dd_plugins import registry
    from dd_plugins.errors import UsageError

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(f"{name!r} is no name for a plugin: small letters and digits, joined by single dashes")
    for each in registry.KINDS:
        if any(info.name == name and info.distribution == registry.OWN for info in registry.list_plugins(each)):
            raise UsageError(f"{name} is the name of a built-in {each}, and those are reserved")
    distribution, class_name = f"dd-{name}", "".join(part.capitalize() for part in name.split("-"))
    if keyword.iskeyword(class_name) or distribution == registry.OWN:
        raise UsageError(f"{name!r} cannot be a plugin's name: {class_name} or {distribution} means something else")
    module = f"dd_{name.replace('-', '_')}"
    return {"name": name, "kind": kind, "module": module, "class_name": class_name, "distribution": distribution}
