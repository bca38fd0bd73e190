"""The page around it: style for light, dark and paper, a table that sorts, small pieces of HTML. All of it inline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path


@dataclass(frozen=True)
class Cell:
    """What a cell shows, what it is sorted by (None: last), and its class."""

    text: str
    value: float | str | None = None
    name: str = ""


def number(value: float | None, pattern: str = "{:.1f}") -> Cell:
    """A number's cell; a dash where there is none."""
    return Cell("–") if value is None else Cell(pattern.format(value), value)


def table(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[Cell]]) -> str:
    """A table with (heading, explanation) for each column, which sorts by a click on a heading.

    Numbers stand to the right.
    """
    words = [any(isinstance(row[i].value, str) for row in rows) for i in range(len(heads))]
    top = "".join(
        f'<th{_class("words" if left else "")} title="{escape(why)}">{escape(head)}</th>'
        for (head, why), left in zip(heads, words)
    )
    lines = []
    for row in rows:
        cells = []
        for cell, left in zip(row, words):
            value = "" if cell.value is None else escape(str(cell.value))
            name = " ".join(filter(None, (cell.name, "words" if left else "")))
            cells.append(f'<td data-v="{value}"{_class(name)}>{escape(cell.text)}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    inside = f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table class="sorts">{inside}</table></div>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def figure(drawn: str, title: str, text: str = "", *, wide: bool = False) -> str:
    """A plot with its title and a line on what it shows; nothing where nothing is drawn."""
    if not drawn:
        return ""
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}><figcaption><b>{escape(title)}</b> {escape(text)}</figcaption>{drawn}</figure>"


def prose(text: str) -> str:
    """Text, with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def card(value: str, what: str) -> str:
    """A figure of the summary."""
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(what)}</span></div>'


def page(title: str, body: str) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="generator" content="lowbit">'
        f"<title>{escape(title)}</title><style>{_beside('page.css')}</style></head>\n"
        f"<body>\n{body}\n<script>{_beside('page.js')}</script>\n</body></html>\n"
    )


def _beside(name: str) -> str:
    """The text of a file beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
