"""Entry of the command: errors become one line and an exit code."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from benchmark_adapters import signals
from benchmark_adapters.cli import check as check_command
from benchmark_adapters.cli import compare as compare_command
from benchmark_adapters.cli import convert_prior as convert_prior_command
from benchmark_adapters.cli import eval as eval_command
from benchmark_adapters.cli import exchange, listing, show
from benchmark_adapters.cli import experts as experts_command
from benchmark_adapters.cli import new as new_command
from benchmark_adapters.cli import plot as plot_command
from benchmark_adapters.cli import profile as profile_command
from benchmark_adapters.cli import prune as prune_command
from benchmark_adapters.cli import prune_study as prune_study_command
from benchmark_adapters.cli import run as run_command
from benchmark_adapters.cli import table as table_command
from benchmark_adapters.cli import train_prior as train_prior_command
from benchmark_adapters.cli import yardsticks as yardsticks_command
from benchmark_adapters.cli.memory import keep_freed_memory
from dd_plugins import __version__, registry
from dd_plugins.errors import DDPluginsError


class _Commands(TyperGroup):
    """Trusts the code that its arguments name, and reports that an interrupted command continues."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        registry.add_trusted(registry.classes_named_in(args))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            _complain(str(error) or "interrupted; the same command continues")
            raise typer.Exit(signals.exit_code(error)) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dd-plugins {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    name="dd-bench",
    help="Distil a data set, score the result, compare fairly.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command("run", epilog=run_command.EPILOG)(run_command.run)
app.command("compare", epilog=compare_command.EPILOG)(compare_command.compare)
app.command("eval", epilog=eval_command.EPILOG)(eval_command.evaluate)
app.command("experts", epilog=experts_command.EPILOG)(experts_command.experts)
app.command("train-prior", epilog=train_prior_command.EPILOG)(train_prior_command.train_prior)
app.command("convert-prior", epilog=convert_prior_command.EPILOG)(convert_prior_command.convert_prior)
app.command("plot", epilog=plot_command.EPILOG)(plot_command.plot)
app.command("profile", epilog=profile_command.EPILOG)(profile_command.profile)
app.command("prune", epilog=prune_command.EPILOG)(prune_command.prune)
app.command("prune-study", epilog=prune_study_command.EPILOG)(prune_study_command.prune_study)
app.command("yardsticks", epilog=yardsticks_command.EPILOG)(yardsticks_command.yardsticks)
app.command("export", epilog=exchange.EXPORT_EPILOG)(exchange.export_run)
app.command("import", epilog=exchange.IMPORT_EPILOG)(exchange.import_run)
app.command("check", epilog=check_command.EPILOG)(check_command.check)
app.command("new", epilog=new_command.EPILOG)(new_command.new)
app.command("list", epilog=listing.EPILOG)(listing.list_plugins)
app.command("show", epilog=show.EPILOG)(show.show)
app.command("table", epilog=table_command.EPILOG)(table_command.table)


def run() -> None:
    """Runs the command.

    Exit codes: 0 done, 1 failed while running, 2 not possible as asked, 3 a check failed, 130 interrupted (143 by
    SIGTERM, 129 by SIGHUP).
    """
    # Threads that wait for work should sleep: spinning ones slow small networks down many times on a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None if it was closed
            stream.reconfigure(errors="backslashreplace")  # of paths, and of what another encoding does not have
    try:
        os.getcwd()
    except FileNotFoundError:  # libraries would end the process where they look for it
        _complain("the current folder was removed; change to another one")
        sys.exit(2)
    try:
        with signals.raising():
            app()
    except DDPluginsError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}")
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not registry.is_out_of_memory(error):
            raise
        _complain("the device ran out of memory; --chunk and smaller batches (--set) need less")
        sys.exit(1)


def _complain(text: str) -> None:
    typer.echo(f"dd-bench: {text}", err=True)
