"""dd-bench list: what is installed, read from metadata alone; and the settings of one plugin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

# What the settings of each kind begin with on the command line.
PREFIXES = {"dataset": "data"}

EPILOG = """
**Examples**

`dd-bench list` lists everything

`dd-bench list parameterization`

`dd-bench list parameterization hmn` shows its settings, for `--set parameterization.KEY=VALUE`
"""


def list_plugins(
    kind: Annotated[str | None, typer.Argument(help="parameterization, objective, dataset, network, ...")] = None,
    name: Annotated[str | None, typer.Argument(help="One of them: its settings are shown.")] = None,
) -> None:
    """List every installed plugin with its origin, version, status and one line about it; or one's settings."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from dd_plugins import registry
    from dd_plugins.errors import UsageError

    wanted = kind.removesuffix("s") if kind else None
    if wanted is not None and wanted not in registry.KINDS:
        raise UsageError(f"unknown kind {kind!r}; there are {', '.join(registry.KINDS)}")
    if wanted and name:
        _show_settings(wanted, name)
        return
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("kind", "name", "origin", "version", "status"):
        table.add_column(name, no_wrap=True)
    table.add_column("what it is", no_wrap=True, overflow="ellipsis", ratio=1)
    for each in [wanted] if wanted else registry.KINDS:
        for info in registry.list_plugins(each):
            status, line = info.status()
            style = {"broken": "red", "missing": "dim"}.get(status)
            table.add_row(each, info.spec, info.distribution, info.version, status, escape(line), style=style)
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)
    for place, why in registry.damaged_distributions():
        typer.echo(f"{place}: its entry points cannot be read, so its plugins are not listed ({why})")


def _show_settings(kind: str, name: str) -> None:
    """The first lines of a plugin's docstring, and all its settings."""
    import inspect

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from dd_plugins import registry

    cls = registry.load(kind, name)
    table = Table(box=None, pad_edge=False)
    table.add_column("setting", no_wrap=True)
    for column in ("default", "what it is"):
        table.add_column(column, overflow="fold")
    for key, default, about in _settings(cls.Config, PREFIXES.get(kind, kind)):
        table.add_row(*map(escape, (key, default, about)))
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(f"{name}: {(inspect.getdoc(cls) or '').partition(chr(10) * 2)[0]}", markup=False, highlight=False)
    console.print(table if table.row_count else "It has no settings.")


def _settings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    """Key, default and description of every setting, those of nested ones included."""
    from pydantic import BaseModel

    for key, field in model.model_fields.items():
        inner: Any = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _settings(inner, f"{prefix}.{key}")
            continue
        default = "(must be given)" if field.is_required() else _written(field.get_default(call_default_factory=True))
        choices = [str(choice) for choice in get_args(inner)] if get_origin(inner) is Literal else []
        about = [field.description or "", f"({', '.join(choices)})" if choices else ""]
        yield f"{prefix}.{key}", default, " ".join(filter(None, about))


def _written(value: Any) -> str:
    """A value as `--set` takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value)
