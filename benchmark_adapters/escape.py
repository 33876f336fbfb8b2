"""Text of unknown origin (names, paths, docstrings) made harmless, one function for each place where it is shown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dd_plugins.errors import one_line

if TYPE_CHECKING:
    from rich.text import Text

_MARKDOWN = re.compile(r"[\\`*<>|$&]|(?<!\w)_|_(?!\w)|(?<=\])\(")
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "+-": r"$\pm$",
}
_LATEX_SPECIAL = re.compile("|".join(map(re.escape, sorted(_LATEX, key=len, reverse=True))))
_HTML = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def rich_text(text: object, style: str = "") -> Text:
    """For rich's tables and lines: neither markup nor emoji codes are interpreted."""
    from rich.text import Text

    return Text(one_line(text), style)


def markdown(text: object) -> str:
    """A cell of a Markdown table, or a part of a line: no markup, no HTML, no end of the cell."""
    return _MARKDOWN.sub(lambda found: _HTML.get(found[0], f"\\{found[0]}"), one_line(text))


def latex(text: object) -> str:
    """A cell of a LaTeX table; ``+-`` becomes the sign for it."""
    written = _LATEX_SPECIAL.sub(lambda found: _LATEX[found[0]], one_line(text))
    return f"{{[}}{written[1:]}" if written.startswith("[") else written  # \\[ would be an argument of the line break


def plot_text(text: object) -> str:
    """For matplotlib: no formulas between dollars, and no leading underscore, which hides a label from the legend."""
    shown = one_line(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
