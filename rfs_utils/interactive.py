"""Figures that the reader can change. Each is one piece of HTML without anything from outside.

They work wherever a notebook's output runs scripts: JupyterLab, Colab, and the site. Elsewhere, GitHub's view for one,
their controls stay empty, so no argument of the text rests on them alone.
"""

from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.display import HTML

FIGURES = files(__package__) / "figures"


def group_figure(methods: bool = False) -> "HTML":
    """GRPO's advantages of eight rollouts under rewards that the reader sets; with `methods`, other methods' too."""
    html = figure_html("group")
    return _show(html if methods else html.replace("<label>Method", "<label hidden>Method"))


def clip_figure() -> "HTML":
    """PPO's objective of one token under a ratio and limits that the reader moves; `clipped_objective`."""
    return _show(figure_html("clip"))


def figure_html(name: str) -> str:
    """The HTML of a figure, "group" or "clip", with its style."""
    style = (FIGURES / "figure.css").read_text(encoding="utf-8")
    return f"<style>\n{style}</style>\n" + (FIGURES / f"{name}.html").read_text(encoding="utf-8")


def _show(html: str) -> "HTML":
    from IPython.display import HTML

    return HTML(html)
