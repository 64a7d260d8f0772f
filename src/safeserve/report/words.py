"""Words that come from files, made harmless for a line of text, of Markdown, of LaTeX, or of a drawing."""

from __future__ import annotations

import re
import unicodedata

from safeserve.core.runs import readable

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|&~#])|:(?=//)")
_LATEX = {char: "\\" + char for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "–": "--",
    "→": r"$\to$",
}
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def one_line(text: str) -> str:
    """The text on one line: control, direction and half characters become spaces, and spaces one space."""
    shown = (" " if unicodedata.category(c) in _INVISIBLE else c for c in readable(text))
    return " ".join("".join(shown).split())


def markdown(text: str) -> str:
    """The text as Markdown that shows it and nothing else: no markup, links, HTML or table borders."""
    return _MARKDOWN.sub(lambda match: "\\" + match.group(), one_line(text))


def code(text: str) -> str:
    """The text as a Markdown code span, also in a table."""
    shown = one_line(text).replace("`", "'").replace("|", "\\|")
    return f"`{shown}`" if shown else "–"


def latex(text: str) -> str:
    """The text as LaTeX that shows it and nothing else."""
    return "".join(_LATEX.get(char, char) for char in one_line(text))
