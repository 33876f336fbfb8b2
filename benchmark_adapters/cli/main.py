"""Entry of the command: errors become one line and an exit code."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from benchmark_adapters import signals
from benchmark_adapters.cli import check as check_command
from benchmark_adapters.cli import compare as compare_command
from benchmark_adapters.cli import convert_prior as convert_prior_command
from benchmark_adapters.cli import eval as eval_command
from benchmark_adapters.cli import exchange, listing, show
from benchmark_adapters.cli import new as new_command
from benchmark_adapters.cli import plot as plot_command
from benchmark_adapters.cli import prepare as prepare_command
from benchmark_adapters.cli import profile as profile_command
from benchmark_adapters.cli import prune as prune_command
from benchmark_adapters.cli import prune_study as prune_study_command
from benchmark_adapters.cli import run as run_command
from benchmark_adapters.cli import table as table_command
from benchmark_adapters.cli import yardsticks as yardsticks_command
from benchmark_adapters.cli.commands import CallError, Command, Commands, one_line
from benchmark_adapters.cli.memory import keep_freed_memory
from benchmark_adapters.cli.output import complain
from dd_plugins import __version__
from dd_plugins.errors import OUT_OF_MEMORY, DDPluginsError, is_out_of_memory


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dd-plugins {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
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


app.command("run", cls=Command, epilog=run_command.EPILOG)(run_command.run)
app.command("compare", cls=Command, epilog=compare_command.EPILOG)(compare_command.compare)
app.command("eval", cls=Command, epilog=eval_command.EPILOG)(eval_command.evaluate)
app.command("prepare", cls=Command, epilog=prepare_command.EPILOG)(prepare_command.prepare)
app.command("convert-prior", cls=Command, epilog=convert_prior_command.EPILOG)(convert_prior_command.convert_prior)
app.command("plot", cls=Command, epilog=plot_command.EPILOG)(plot_command.plot)
app.command("profile", cls=Command, epilog=profile_command.EPILOG)(profile_command.profile)
app.command("prune", cls=Command, epilog=prune_command.EPILOG)(prune_command.prune)
app.command("prune-study", cls=Command, epilog=prune_study_command.EPILOG)(prune_study_command.prune_study)
app.command("yardsticks", cls=Command, epilog=yardsticks_command.EPILOG)(yardsticks_command.yardsticks)
app.command("export", cls=Command, epilog=exchange.EXPORT_EPILOG)(exchange.export_run)
app.command("import", cls=Command, epilog=exchange.IMPORT_EPILOG)(exchange.import_run)
app.command("check", cls=Command, epilog=check_command.EPILOG)(check_command.check)
app.command("new", cls=Command, epilog=new_command.EPILOG)(new_command.new)
app.command("list", cls=Command, epilog=listing.EPILOG)(listing.list_plugins)
app.command("show", cls=Command, epilog=show.EPILOG)(show.show)
app.command("table", cls=Command, epilog=table_command.EPILOG)(table_command.table)


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
        complain("the current folder was removed; change to another one")
        sys.exit(2)
    try:
        with signals.raising():
            sys.exit(app(standalone_mode=False) or 0)
    except CallError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            complain(one_line(error))
        sys.exit(error.exit_code)
    except DDPluginsError as error:
        complain(error.summary, error.details)
        sys.exit(error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}")
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        complain(OUT_OF_MEMORY)
        sys.exit(1)
