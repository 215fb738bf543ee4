"""What is written while something goes on: bars, single lines, and text that fits a terminal.

Bars are for a person who looks on, in a terminal or a notebook; a pipe and a log file get none.
"""

import shutil
import sys
import textwrap
from collections.abc import Iterable

from tqdm import tqdm

WIDTH = 79  # columns: a terminal has 80, and some break the line when the last one is used
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Whether bars and lines on the way are left out from now on, as `--quiet` asks."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether they are left out."""
    return _quiet


def is_watched() -> bool:
    """Whether somebody looks on while it goes on: standard error is a terminal, or a notebook shows it."""
    return not _quiet and (sys.stderr.isatty() or "ipykernel" in type(sys.stderr).__module__)


def bar(steps: Iterable | None = None, shown: bool = True, **options) -> tqdm:
    """tqdm's bar for `steps`, no wider than a terminal of 80 columns; none where nobody looks on."""
    columns = min(WIDTH, shutil.get_terminal_size().columns)
    layout = "{desc} {n_fmt}/{total_fmt}|{bar}| {elapsed}<{remaining}{postfix}"
    # A terminal of unknown size, as in some containers, has 0 rows, where tqdm shows nothing.
    return tqdm(steps, disable=not (shown and is_watched()), ncols=columns, nrows=20, bar_format=layout, **options)


def say(text: str) -> None:
    """A line on standard error, above a bar if there is one."""
    if not _quiet:
        tqdm.write(text, file=sys.stderr)


def readable(text: str) -> str:
    """A model's text with characters that a terminal would obey, or not show, written as \\x1b; line breaks stay."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def wrapped(text: str, first: str = "", width: int = WIDTH) -> str:
    """Lines of at most `width` columns, each as far to the right as the text after `first`, which begins the first."""
    indent = " " * len(first)
    lines: list[str] = []
    for line in readable(text).strip().split("\n"):
        begin = indent if lines else first
        parts = textwrap.wrap(line, width - len(indent), break_on_hyphens=False) or [""]
        lines += [((indent if place else begin) + part).rstrip() for place, part in enumerate(parts)]
    return "\n".join(lines)
