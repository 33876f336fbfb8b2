"""Names with markup, control characters and separators are shown as they are, in every format."""

import csv
import io
import json
import logging

import matplotlib
import pytest
from committed import committed_records
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console
from tiny_runs import command

from benchmark_adapters import escape
from benchmark_adapters.cli.progress import Reporter
from benchmark_adapters.report import comparison
from benchmark_adapters.runs.pipeline import _LineFormatter
from dd_plugins.errors import one_line

NASTY = "a|b\n<b>c</b> [red]d[/red] :warning: \x1b[31me\x1b[0m $x_1^2$ \\textbf{f} & g % #~ `h` *i* [j](k) \r\t\u202el"


@given(st.text(st.characters(exclude_categories=())))
def test_plain_text_is_one_printable_line(text):
    shown = one_line(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")
    assert shown == text or not text.isprintable()


@given(st.text(st.characters(exclude_categories=("Cc", "Cs"))))
def test_rich_shows_a_name_as_it_is(text):
    console = Console(file=io.StringIO(), width=10_000, force_terminal=False)
    console.print(escape.rich_text(text))
    assert console.file.getvalue().removesuffix("\n") == one_line(text).rstrip()


def _unescaped(line):
    """The cells of a row of a Markdown table, as GitHub splits them: at bars without a backslash before them."""
    cells, cell, escaped = [], "", False
    for char in line.strip()[1:-1]:
        if char == "|" and not escaped:
            cells.append(cell.strip())
            cell = ""
            continue
        cell += char
        escaped = char == "\\" and not escaped
    return [*cells, cell.strip()]


@given(st.lists(st.text(st.characters(exclude_categories=("Zs",)), min_size=1), min_size=2, max_size=2))
def test_a_markdown_table_keeps_its_cells(names):
    text = comparison.markdown(["left", "right"], [names])
    header, rule, row = text.splitlines()
    assert len(_unescaped(header)) == len(_unescaped(rule)) == 2
    assert _unescaped(row) == [escape.markdown(name) for name in names]
    assert "<" not in row
    assert "](" not in row


def test_markdown_leaves_ordinary_names_alone():
    for name in ("hmn + idc (memory_lr 0.03)", "quick[epochs=5,width=8]", "48.2 +- 0.6", "h-pd, aum, 30% kept"):
        assert escape.markdown(name) == name


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
def test_csv_is_read_back_with_one_row_a_line(name):
    text = comparison.as_csv(["method", "n"], [[name, "1"]])
    assert [*csv.reader(io.StringIO(text))] == [["method", "n"], [one_line(name), "1"]] or "+-" in name
    assert len(text.split("\n")) == 2


def test_latex_escapes_every_special_character():
    special = r"\{}$&#%_^~"
    written = escape.latex(special)
    commands = (r"\textbackslash{}", r"\{", r"\}", r"\$", r"\&", r"\#", r"\%", r"\_", r"\textasciicircum{}")
    assert written == "".join([*commands, r"\textasciitilde{}"])
    assert escape.latex("48.2 +- 0.6") == r"48.2 $\pm$ 0.6"
    assert escape.latex("[2pt] name").startswith("{[}")


@pytest.mark.parametrize("text", ["$x_1", r"$\frac{1$ and $}$", "$$", "$x$", r"\$", "_hidden"])
def test_matplotlib_draws_a_name_literally(text):
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([0, 1], label=escape.plot_text(text))
    axes.set_title(escape.plot_text(text))
    legend = axes.legend()
    figure.canvas.draw()
    assert len(legend.get_texts()) == 1
    assert not matplotlib.cbook.is_math_text(escape.plot_text(text))


def test_messages_and_logs_are_single_lines(capsys):
    Reporter(Console(width=40)).on_message(f"{NASTY}\udcff")
    assert capsys.readouterr().out == one_line(NASTY) + "\\udcff\n"
    record = logging.LogRecord("x", logging.INFO, "f", 1, "%s", ("a\nERROR forged",), None)
    assert _LineFormatter("%(message)s").format(record) == r"a\nERROR forged"


def test_a_progress_bar_takes_any_name():
    console = Console(file=io.StringIO(), force_terminal=True, width=300)
    with Reporter(console).job("[red]name[/oops]\x1b[2J", 2) as job:
        job.update(1, "[/note]")
    shown = console.file.getvalue()
    assert "[red]name[/oops]\\x1b[2J" in shown
    assert "[/note]" in shown


@pytest.fixture
def nasty_run(tmp_path):
    """A record whose every text is nasty, in the folder of a run."""
    record = next(r for r in committed_records() if r["data"]["name"] == "digits" and r["config"]["method"] == "hmn")
    record = json.loads(json.dumps(record))
    record["name"] = record["data"]["name"] = NASTY
    for entry in [*record["scores"], *record["yardsticks"]]:
        entry["protocol"] = NASTY
    for entry in record["storage"]["ledger"]:
        entry["name"] = entry["dtype"] = NASTY
    folder = tmp_path / "runs" / record["id"]
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text("method: hmn\n")
    return folder


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "latex"])
def test_tables_of_a_record_with_such_names(form, nasty_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "3000")
    assert command("table", nasty_run, "--format", form) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    if form == "table":
        assert "[red]d[/red] :warning: \\x1b[31me" in out
    rows = [line for line in out.splitlines() if "d[/red]" in line]
    learned = [line for line in rows if "textbf" in line]
    assert learned
    if form == "csv":
        header, *cells = csv.reader(io.StringIO(out))
        assert {len(row) for row in cells} == {len(header)}
        assert cells[0][0].startswith(one_line(NASTY))
    if form == "markdown":
        header, _, *lines = out.splitlines()
        assert {len(_unescaped(line)) for line in lines} == {len(_unescaped(header))}


def test_show_of_a_record_with_such_names(nasty_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "3000")
    assert command("show", nasty_run) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[red]d[/red] :warning: \\x1b[31me" in out


def test_a_curve_of_a_record_with_such_names(nasty_run, tmp_path, capsys, recwarn):
    assert command("plot", nasty_run, "--to", tmp_path / "curve.svg") == 0
    assert "curve.svg" in capsys.readouterr().out
    assert (tmp_path / "curve.svg").stat().st_size


def test_errors_escape_what_they_repeat_and_are_bounded(capsys):
    assert command("run", "--param", NASTY) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "\x1b" not in error
    assert command("run", "--set", f"{'x' * 1_000_000}") == 2
    assert len(capsys.readouterr().err) < 2200
    assert command("\x1b[31m[red]") == 2
    assert "\x1b" not in capsys.readouterr().err
