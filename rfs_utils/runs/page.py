"""A run as one web page without any outside file: what it came to, curves, and rollouts by problem, token by token.

What a model wrote is text here and nothing else: every character goes through `html.escape`.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from html import escape
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from ..engine.config import TrainConfig, read_config
from ..files import read_fields, write_text
from ..grading import extract_final_candidate, grade_answer
from ..plots import METRICS, Line, Metrics, curves
from .doctor import Finding, examine
from .folder import RESULT, read_run
from .samples import format_reward, read_samples

FIGURES = files("rfs_utils") / "figures"
ABOUT_CURVES = (
    "Thin: each step. Thick: their mean over a tenth of the run. Dashed: held-out problems. The values stand below a "
    "curve when the pointer is on it, or when the arrow keys move along it."
)


class Shown(NamedTuple):
    """What a page shows of a run; `result` is empty and `config` None where the run has none."""

    folder: Path
    metrics: dict[str, list[float | None]]
    result: dict
    config: TrainConfig | None
    records: list[dict]


def write_page(folder: str | Path, result: dict | None = None, refresh: int = 0) -> Path:
    """Write report.html for a run that has metrics; returns its path. ValueError when there is nothing to show.

    `result` is what result.json holds, or will hold (default: what is in it, if it is there). With `refresh`, a
    browser reads the page again after so many seconds.
    """
    run = read_shown(folder, result)
    parts = [
        format_result(run.result),
        "" if refresh or run.config is None else format_findings(examine(run.folder, run.result)),
        "" if run.config is None else format_settings(run.config, run.folder),
        f"<h2>Curves</h2><p>{ABOUT_CURVES}</p>",
        "<div class='curves'>",
        *(curve(run.metrics, column) for column in columns_of(run.metrics)),
        "</div>",
        format_samples(run.records),
    ]
    write_text(run.folder / "report.html", whole_page(f"Training run {run.folder.name}", parts, refresh))
    return run.folder / "report.html"


def read_shown(folder: str | Path, result: dict | None = None) -> Shown:
    """Read what a page shows of a run; ValueError when it has no metrics, or one of its files is damaged."""
    folder = Path(folder)
    if not (folder / "metrics.csv").is_file():
        raise ValueError(f"{folder} is not the folder of a run; expected metrics.csv in it")
    metrics, config = read_run(folder), None
    if result is None:
        result = read_fields(folder / "result.json", RESULT) if (folder / "result.json").is_file() else {}
    if (folder / "config.toml").is_file():
        config = TrainConfig(**read_config(folder / "config.toml"))
    return Shown(folder, with_result(metrics, result), result, config, read_samples(folder))


def whole_page(title: str, parts: Sequence[str], refresh: int = 0) -> str:
    """A page of these parts under its title, with style and script in it."""
    return "\n".join([
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<style>{(FIGURES / 'report.css').read_text(encoding='utf-8')}</style></head>",
        f"<body data-refresh='{refresh}'><main><h1>{escape(title)}</h1>",
        *parts,
        f"</main><script>{(FIGURES / 'report.js').read_text(encoding='utf-8')}</script></body></html>\n",
    ])  # fmt: skip


def columns_of(metrics: Metrics) -> list[str]:
    """The columns that get a curve: the usual ones, and each of several rewards."""
    more = [name for name in metrics if name.startswith("reward_") and name not in (*METRICS, "reward_std")]
    return [*METRICS, *more]


def with_result(metrics: Metrics, result: dict) -> dict[str, list[float | None]]:
    """The metrics with the final evaluation, of all held-out problems, as that of the last step."""
    columns = {name: list(values) for name, values in metrics.items()}
    if result and result["steps"] in columns["step"]:
        place = columns["step"].index(result["steps"])
        for name, key in (("eval_accuracy", "accuracy_after"), ("eval_tokens", "tokens_after")):
            columns.setdefault(name, [None] * len(columns["step"]))[place] = result[key]
    return columns


def format_result(result: dict) -> str:
    """What the run came to, as a table."""
    if not result:
        return "<p>This run is not finished.</p>"
    rows = "".join(
        f"<tr><td>{name}</td><td>{before}</td><td>{after}</td></tr>"
        for name, (before, after) in result_rows(result)
        if None not in (before, after)
    )
    return f"<p>{about(result)}</p><table><tr><th></th><th>before</th><th>after</th></tr>{rows}</table>"


def about(result: dict) -> str:
    """Which run it was, and how long it took."""
    which = f"{result['model']}, method {result['method']}, seed {result['seed']}"
    early = f" It ended early: {result['ended_early']}." if result.get("ended_early") else ""
    return escape(f"{which}: {result['steps']} steps in {result['seconds']:.1f} s.{early}")


def result_rows(result: dict) -> list[tuple[str, list[str | None]]]:
    """The lines of a table of results, each with its values before and after, None where they were not measured."""

    def values(name: str, form: str) -> list[str | None]:
        found = (result.get(f"{name}_{when}") for when in ("before", "after"))
        return [None if value is None else format(value, form) for value in found]

    return [
        ("held-out accuracy", values("accuracy", ".1%")),
        ("response tokens", values("tokens", ".1f")),
        ("harder levels, never trained on", values("harder_accuracy", ".1%")),
    ]


def format_findings(findings: Sequence[Finding], title: str = "Warnings") -> str:
    """What may have gone wrong, as `rfs doctor` says it."""
    if not findings:
        return ""
    items = "".join(
        f"<li><b>{escape(finding.says)}</b>Seen: {escape(finding.evidence)}<br>Try: {escape(finding.advice)}</li>"
        for finding in findings
    )
    return f"<h2>{title}</h2><ul class='findings'>{items}</ul>"


def format_settings(config: TrainConfig, folder: Path) -> str:
    """The settings that differ from the usual ones, all of them, and how to train the same again."""
    usual = asdict(TrainConfig())
    changed = {name: value for name, value in asdict(config).items() if value != usual[name] and name != "out"}
    rows = "".join(f"<tr><td>{name}</td><td>{escape(str(value))}</td></tr>" for name, value in changed.items())
    every = "\n".join(f"{name} = {value!r}" for name, value in asdict(config).items() if value is not None)
    command = f"rfs train --config {folder}/config.toml --out {folder}-again"
    return (
        f"<details open><summary>Settings and command</summary><p>The same again: <code>{escape(command)}</code></p>"
        + (f"<table class='settings'>{rows}</table>" if rows else "<p>All settings have their usual values.</p>")
        + f"<details><summary>All settings</summary><pre>{escape(every)}</pre></details></details>"
    )


def curve(metrics: Metrics, column: str) -> str:
    """One metric as a small picture, like a panel of `plot_training`; nothing when it has no values."""
    each, smooth, _, held_out = curves(metrics, column)
    kind = "faint" if smooth[0] else "each"
    return panel(column, [(kind, "each", each), ("smooth", "mean", smooth), ("held", "held-out", held_out)])


def panel(column: str, lines: Sequence[tuple[str, str, Line]]) -> str:
    """A picture of lines of one metric, each with its class and name; nothing when all are empty."""
    title, tells = METRICS.get(column, (column.removeprefix("reward_"), "mean of this reward"))
    lines = [(kind, name, line) for kind, name, line in lines if line[0]]
    if not lines:
        return ""
    xs, ys = ([x for *_, line in lines for x in line[part]] for part in (0, 1))
    first, last, low, high = min(xs), max(xs), min(0.0, *ys), max(0.0, *ys)
    high = high if high > low else 1.0
    width, height, left = 300, 110, 56

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        return left + across * (width - left - 8), 6 + (height - 12) * (1 - (y - low) / (high - low))

    def polyline(kind: str, line: Line) -> str:
        placed = [place(x, y) for x, y in zip(*line, strict=True)]
        most = 1 if {"smooth", "thin"} & set(kind.split()) else 29  # points of a line that has dots
        dots = [f"<circle class='{kind}' cx='{x:.1f}' cy='{y:.1f}' r='2.5'/>" for x, y in placed if len(placed) <= most]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        return f"<polyline class='{kind}' points='{points}'/>{''.join(dots)}"

    axis = place(first, low)[1]
    points = escape(json.dumps({name: rounded(line) for _, name, line in lines}))
    frame = json.dumps([first, last, left, width - 8])
    said = [f"{name} {ends(line)}" if len(lines) > 1 else ends(line) for _, name, line in lines]
    label = f"{title}: {'; '.join(said)}"
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{tells}</figcaption>"
        f"<svg viewBox='0 0 {width} {height + 16}' role='img' aria-label='{escape(label)}' tabindex='0' "
        f"data-lines='{points}' data-frame='{frame}'>"
        f"<line x1='{left}' x2='{width - 8}' y1='{axis:.1f}' y2='{axis:.1f}'/>"
        f"<text x='{left - 4}' y='14' text-anchor='end'>{short_number(high)}</text>"
        f"<text x='{left - 4}' y='{axis:.1f}' text-anchor='end'>{short_number(low)}</text>"
        f"<text x='{left}' y='{height + 13}'>step {first:.0f}</text>"
        f"<text x='{width - 8}' y='{height + 13}' text-anchor='end'>{last:.0f}</text>"
        f"<line class='cursor' x1='-9' x2='-9' y1='6' y2='{height - 6}'/>"
        f"{''.join(polyline(kind, line) for kind, _, line in lines)}</svg><output></output></figure>"
    )


def ends(line: Line) -> str:
    """Where a line begins and ends, in words."""
    (x0, *_, x1), (y0, *_, y1) = (2 * part for part in line)
    return f"from {y0:.3g} at step {x0:.0f} to {y1:.3g} at step {x1:.0f}"


def rounded(line: Line) -> Line:
    """A line in few digits, for the page's script."""
    return [float(f"{x:.12g}") for x in line[0]], [float(f"{y:.5g}") for y in line[1]]


def short_number(value: float) -> str:
    """Three digits, and no powers of ten for large numbers."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# ------------------------------------------------------------------ rollouts

KINDS = {  # what can be shown alone
    "all": "all", "right": "right", "wrong": "wrong", "unboxed": "without a result", "good": "reinforced",
    "bad": "discouraged",
}  # fmt: skip


ABOUT_ROLLOUTS = (
    "Each box is a problem with its group of sampled answers. Coloured by surprise, a token is the stronger marked the "
    "less likely it was when it was drawn; coloured by advantage, an answer is green that was reinforced and orange "
    "that was discouraged."
)


def format_samples(records: list[dict]) -> str:
    """The kept rollouts by problem, with the controls that find, sort and colour them."""
    if not records:
        return ""
    groups = [list(group) for _, group in groupby(records, key=lambda record: (record["step"], record["problem"]))]
    boxes = [format_group(number, group) for number, group in enumerate(groups)]
    return format_rollouts(ABOUT_ROLLOUTS, records, boxes)


def format_rollouts(text: str, records: list[dict], boxes: Sequence[str], more: str = "") -> str:
    """The boxes of rollouts below the controls; `more` is another control."""
    steps = {str(step): str(step) for step in sorted({record["step"] for record in records})}
    return f"""<h2>Rollouts</h2>
<p>{text}</p>
<div class='controls'>
{more}
{select("step", "Step", {"all": "all"} | steps)}
{select("kind", "Show", KINDS)}
<label>Search <input id='search' type='search'></label>
{select("order", "Sort by", {"step": "step", "spread": "spread", "reward": "reward", "length": "length"})}
{select("colour", "Colour", {"logp": "by surprise", "advantage": "by advantage"})}
<output id='shown'></output>
</div>
<div id='rollouts' class='by-logp'>
{"".join(boxes)}
</div>"""


def select(name: str, label: str, options: dict[str, str]) -> str:
    """A control to choose one of several values."""
    choices = "".join(f"<option value='{value}'>{text}</option>" for value, text in options.items())
    return f"<label>{label} <select id='{name}'>{choices}</select></label>"


def format_group(number: int, group: list[dict]) -> str:
    """One problem and the answers to it."""
    first = group[0]
    return f"""<section class='group' data-number='{number}' data-step='{first["step"]}' data-spread='{spread(group)}'>
<header><h3>{summary(group)}</h3><p>{escape(first["problem"])}</p><p>expected {escape(first["answer"])}</p></header>
{format_cards(group)}
</section>
"""


def rewards_of(group: list[dict]) -> list[float]:
    """The rewards of the answers that were judged."""
    return [record["reward"] for record in group if record["reward"] is not None]


def spread(group: list[dict]) -> float:
    """How much the rewards of a group differ: their standard deviation."""
    return statistics.pstdev(rewards_of(group) or [0.0])


def summary(group: list[dict]) -> str:
    """What a group of answers came to."""
    right, rewards = sum(judge(record)[1] == "right" for record in group), rewards_of(group)
    mean = f"mean reward {statistics.fmean(rewards):.3g}" if rewards else "not judged"
    return f"step {group[0]['step']} · {right} of {len(group)} right · {mean}"


def format_cards(group: list[dict]) -> str:
    """The answers of a group, as cards."""
    return "\n".join(format_rollout(place, record) for place, record in enumerate(group))


@cache
def _is_right(given: str, answer: str) -> bool:
    return bool(grade_answer(given, answer))


def judge(record: dict) -> tuple[str | None, str]:
    """The result that an answer gives, None where it has no box, and whether it is right, wrong or unboxed."""
    given = extract_final_candidate("".join(record["tokens"]), fallback=None)
    if not given:
        return None, "unboxed"
    return given, "right" if _is_right(given, record["answer"]) else "wrong"


def format_rollout(number: int, record: dict) -> str:
    """One rollout as a card."""
    advantage = record["advantage"]
    sign = "good" if advantage > 0 else "bad" if advantage < 0 else "even"
    given, kind = judge(record)
    result = "no result" if given is None else f"{'✓' if kind == 'right' else '✗'} {escape(given)}"
    parts = "".join(f" · {escape(name)} {format_part(value)}" for name, value in record.get("parts", {}).items())
    reward = "-Infinity" if record["reward"] is None else record["reward"]  # to be sorted by
    spans = "".join(
        f"<span style='--u:{min(100, round(-20 * logp))}' title='probability {math.exp(logp):.1%}'>"
        f"{escape(token)}</span>"
        for token, logp in zip(record["tokens"], record["logps"], strict=True)
    )
    return (
        f"<article class='rollout {sign}' style='--s:{min(70, round(30 * abs(advantage)))}' data-number='{number}' "
        f"data-kind='{kind} {sign}' data-reward='{reward}' data-advantage='{advantage}' "
        f"data-length='{len(record['tokens'])}'>"
        f"<p><b>{result}</b> · {format_reward(record['reward'])}{parts} · advantage {advantage:+.2f} · "
        f"{len(record['tokens'])} tokens</p><pre>{spans}</pre></article>"
    )


def format_part(value: float | None) -> str:
    """One of several rewards."""
    return "not judged" if value is None else f"{value:g}"
