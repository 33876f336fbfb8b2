"""What holds for every subcommand and every option: names in any case, no empty values, errors in one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from benchmark_adapters import signals
from dd_plugins import registry
from dd_plugins.errors import DDPluginsError, UsageError
from dd_plugins.names import FLAGS, canonical, matches, near, suggestion

NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)

# The base of all errors in how the command was called; typer has no public name for it.
CallError: Any = typer.BadParameter.__base__


class UnwritableError(DDPluginsError):
    """A folder that an option names cannot be written to."""


class Commands(TyperGroup):
    """The subcommands: found in any case. Trusts the code that the arguments name, and reports an interrupt."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the arguments; plugins named ``module:Class`` among them may be imported."""
        registry.add_trusted(registry.classes_named_in(args))
        return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A subcommand by name."""
        return super().get_command(ctx, canonical(cmd_name, self.commands))

    def invoke(self, ctx: Any) -> Any:
        """Runs the subcommand; typer alone would end without a word when interrupted."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            from benchmark_adapters.cli.output import complain

            complain(str(error) or "interrupted; the same command continues")
            raise typer.Exit(signals.exit_code(error)) from None


class Command(TyperCommand):
    """One subcommand; refuses empty values before anything is imported or run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the arguments.

        Raises:
            UsageError: If an option or an argument is given as an empty text, or as commas alone; if there are more
                arguments than expected, with the options that take such names.
        """
        if not ctx.resilient_parsing:
            given, rest, _ = self.make_parser(ctx).parse_args(args=list(args))
            params = () if given.get("help") else self.get_params(ctx)
            for param in params:
                value = given.get(param.name)
                for each in value if isinstance(value, list | tuple) else (value,):
                    if isinstance(each, str) and not each.strip(", \t\r\n"):
                        option = param.param_type_name == "option"
                        flag = param.opts[0] if option else (param.metavar or str(param.name)).upper()
                        raise UsageError(f"{flag} {each!r}: expected a value, but it is empty")
            if rest and params:
                raise UsageError(f"unexpected extra argument {rest[0]!r}{suggestion(_as_options(rest[0], params))}")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the subcommand.

        Raises:
            UnwritableError: If a file below a folder that an option names cannot be written; names the option.
        """
        try:
            return super().invoke(ctx)
        except OSError as error:
            flag = _option_of(error.filename, ctx.params, self.get_params(ctx))
            if error.errno not in NOT_WRITABLE or flag is None:
                raise
            where = f"{error.filename}: {error.strerror}"
            raise UnwritableError(f"{where}; choose a folder that can be written to with {flag}") from None


def _as_options(name: str, params: Sequence[Any]) -> list[str]:
    """The options of a command that take this name: ``--param hmn``, ``--method hmn``."""
    flags = {flag for param in params for flag in param.opts}
    return [FLAGS[kind].format(found) for kind, found in _kinds_of(name) if FLAGS[kind].split()[0] in flags]


def _kinds_of(name: str) -> Iterator[tuple[str, str]]:
    """The kinds of plugins that have a name, with its canonical spelling."""
    for kind in FLAGS:
        yield from ((kind, found) for found in matches(name, [info.spec for info in registry.list_plugins(kind)]))


def _option_of(file: Any, values: Mapping[str, Any], params: Sequence[Any]) -> str | None:
    """The option whose folder holds a file; None if there is none."""
    for param in params:
        folder = values.get(param.name)
        if isinstance(folder, Path) and isinstance(file, str) and param.param_type_name == "option":
            place = Path(file).absolute()
            if place.is_relative_to(folder.absolute()) or folder.absolute().is_relative_to(place):
                return str(param.opts[0])
    return None


def one_line(error: Any) -> str:
    """What is wrong with a call, and what may have been meant."""
    ctx = getattr(error, "ctx", None)
    if type(error).__name__ != "NoSuchOption" or ctx is None:
        message = " ".join(error.format_message().split())
        return message[:1].lower() + message[1:]
    option = str(error.option_name)
    flags = [flag.lstrip("-") for param in ctx.command.get_params(ctx) for flag in param.opts]
    hint = suggestion(f"--{flag}" for flag in near(option.lstrip("-"), flags))
    settings = "; settings are given by --set KEY=VALUE (dd-bench list KIND NAME shows them)" if "set" in flags else ""
    return f"no such option {option}{hint or settings}"
