"""Two runs as one page: what both came to, where their settings differ, their curves on top of each other, and the
answers of both to the problems that they share, side by side."""

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from ..files import write_atomically
from ..plots import Line, Metrics, curves
from .doctor import examine
from .page import (
    Shown,
    about,
    columns_of,
    format_cards,
    format_findings,
    format_rollouts,
    panel,
    read_shown,
    result_rows,
    select,
    spread,
    summary,
    whole_page,
)

LETTERS, DASH = ("A", "B"), "–"
ABOUT_CURVES = (
    "Thin: each step. Thick: their mean over a tenth of the run. With points: held-out problems. The values stand "
    "below a curve when the pointer is on it, or when the arrow keys move along it."
)
ABOUT_ROLLOUTS = (
    "Each box is a problem with the answers that the runs have sampled and kept, those of both where both were asked. "
    "Coloured by surprise, a token is the stronger marked the less likely it was when it was drawn; coloured by "
    "advantage, an answer is green that was reinforced and orange that was discouraged."
)


def write_report(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write a page that compares two runs; returns its path.

    ValueError, before anything is written, when one is no run or damaged, both are the same, or `out` is no page.
    """
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"cannot write {out}: the name of a page must end in .html")
    places = [Path(folder).resolve() for folder in folders]
    if out.resolve() in [place / "report.html" for place in places]:
        raise ValueError(f"{out} is the page of one run; choose another name")
    if places[0] == places[1]:
        raise ValueError(f"{folders[0]} and {folders[1]} are the same run; expected two")
    runs = [read_shown(folder) for folder in folders]
    names = [f"{letter}: {run.folder}" for letter, run in zip(LETTERS, runs, strict=True)]
    columns = dict.fromkeys(column for run in runs for column in columns_of(run.metrics))
    parts = [
        *(f"<p><b>{escape(name)}</b><br>{result(run)}</p>" for name, run in zip(names, runs, strict=True)),
        format_results(runs),
        *warnings(runs),
        format_differences(runs),
        f"<h2>Curves</h2><p>{ABOUT_CURVES}</p>",
        f"<div>{format_legend(names)}<div class='curves'>",
        *(overlaid([run.metrics for run in runs], column) for column in columns),
        "</div></div>",
        format_answers([run.records for run in runs]),
    ]
    write_atomically(out, whole_page("Two training runs", parts).encode())
    return out


def result(run: Shown) -> str:
    """A run in a sentence."""
    return about(run.result) if run.result else "This run is not finished."


def format_results(runs: Sequence[Shown]) -> str:
    """The tables of both runs as one; a dash is what was not measured."""
    head = "".join(f"<th colspan='2'>{letter}</th>" for letter in LETTERS)
    lines = ""
    for (name, first), (_, second) in zip(*(result_rows(run.result) for run in runs), strict=True):
        if any(values := [*first, *second]):
            lines += f"<tr><td>{name}</td>{''.join(f'<td>{value or DASH}</td>' for value in values)}</tr>"
    if not lines:
        return ""
    when = 2 * "<th>before</th><th>after</th>"
    return f"<table class='two'><tr><th></th>{head}</tr><tr><th></th>{when}</tr>{lines}</table>"


def warnings(runs: Sequence[Shown]) -> list[str]:
    """What `rfs doctor` says of each run."""
    found = [examine(run.folder, run.result) if run.config else [] for run in runs]
    return [format_findings(findings, f"Warnings, {letter}") for letter, findings in zip(LETTERS, found, strict=True)]


def format_differences(runs: Sequence[Shown]) -> str:
    """The settings in which the runs differ, but for the folder."""
    settings = []
    for run in runs:
        if run.config is None:
            return f"<h2>Settings</h2><p>{escape(str(run.folder))} has no config.toml with its settings.</p>"
        settings.append(asdict(run.config))
    first, second = settings
    names = [name for name in first if first[name] != second[name] and name != "out"]
    if not names:
        return "<h2>Settings</h2><p>The settings of both runs are the same.</p>"
    shown = [[name, *(DASH if of[name] is None else str(of[name]) for of in (first, second))] for name in names]
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in shown)
    head = "".join(f"<th>{letter}</th>" for letter in ("", *LETTERS))
    return f"<h2>Settings that differ</h2><table class='settings'><tr>{head}</tr>{rows}</table>"


# ------------------------------------------------------------------ curves


def css(letter: str) -> str:
    """The class of what belongs to a run."""
    return f"run-{letter.lower()}"


def format_legend(names: Sequence[str]) -> str:
    """How each run is drawn."""
    items = [
        f"<span><svg viewBox='0 0 50 12' aria-hidden='true'><polyline class='{css(letter)}' points='0,6 50,6'/>"
        f"<circle class='{css(letter)}' cx='25' cy='6' r='3'/></svg>{escape(name)}</span>"
        for letter, name in zip(LETTERS, names, strict=True)
    ]
    return f"<p class='legend'>{''.join(items)}</p>"


def overlaid(both: Sequence[Metrics], column: str) -> str:
    """A metric of both runs as one small picture; nothing when neither has a value."""
    lines: list[tuple[str, str, Line]] = []
    for letter, metrics in zip(LETTERS, both, strict=True):
        each, smooth, _, held_out = curves(metrics, column)
        lines += [
            (f"{'thin' if smooth[0] else 'smooth'} {css(letter)}", f"{letter} each", each),
            (f"smooth {css(letter)}", f"{letter} mean", smooth),
            (f"held {css(letter)}", f"{letter} held-out", held_out),
        ]
    return panel(column, lines)


# ------------------------------------------------------------------ rollouts


Side = tuple[int, str, list[dict]]  # a step, a run's letter, and its answers to one problem at this step


def format_answers(both: Sequence[list[dict]]) -> str:
    """The answers of both runs by problem, in the order of steps, those first that both runs were asked."""
    problems: dict[tuple[str, str], list[Side]] = {}
    for letter, records in zip(LETTERS, both, strict=True):
        for (step, *problem), group in groupby(records, key=itemgetter("step", "problem", "answer")):
            problems.setdefault(tuple(problem), []).append((step, letter, list(group)))
    if not problems:
        return ""
    boxes = sorted((sorted(sides, key=itemgetter(0, 1)) for sides in problems.values()), key=first_and_shared)
    text = f"{ABOUT_ROLLOUTS} The runs share {sum(map(is_shared, boxes))} of {len(boxes)} problems."
    which = {"all": "both", "shared": "both, shared problems", "A": "A", "B": "B"}
    shown = [format_problem(number, sides) for number, sides in enumerate(boxes)]
    return format_rollouts(text, [*both[0], *both[1]], shown, select("run", "Run", which))


def is_shared(sides: Sequence[Side]) -> bool:
    """Whether both runs were asked a problem."""
    return len({letter for _, letter, _ in sides}) == 2


def first_and_shared(sides: Sequence[Side]) -> tuple[int, bool]:
    """The place of a problem among others: by its first step, and there those that are shared first."""
    return sides[0][0], not is_shared(sides)


def format_problem(number: int, sides: Sequence[Side]) -> str:
    """One problem and the answers of each run at each step."""
    first, shared = sides[0][2][0], " shared" if is_shared(sides) else ""
    blocks = "".join(
        f"<div class='side {letter.lower()}' data-run='{letter}{shared}' data-step='{step}'>"
        f"<h4>{letter} · {summary(group)}</h4>{format_cards(group)}</div>"
        for step, letter, group in sides
    )
    return f"""<section class='group' data-number='{number}' data-step='{sides[0][0]}'
 data-spread='{max(spread(group) for *_, group in sides)}'>
<header><h3>{escape(first["problem"])}</h3><p>expected {escape(first["answer"])}</p></header>
<div class='sides'>{blocks}</div>
</section>
"""
