"""A run as one web page without any outside file: curves, and rollouts coloured token by token.

What a model wrote is text here and nothing else: every character goes through `html.escape`.
"""

import math
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from ..files import kinds, parse_json, read_fields, write_text
from ..files.kinds import TEXT, optional, whole
from ..plots import METRICS, Line, Metrics, curves
from ..terminal import wrapped
from .folder import read_run

RESULT = {  # of result.json, what the page needs
    "accuracy_before": kinds.number(0, 1), "accuracy_after": kinds.number(0, 1), "tokens_before": kinds.number(0),
    "tokens_after": kinds.number(0), "harder_accuracy_before": optional(kinds.number(0, 1)),
    "harder_accuracy_after": optional(kinds.number(0, 1)), "steps": whole(), "seconds": kinds.number(0),
    "seed": whole(), "method": TEXT, "model": TEXT, "ended_early": optional(TEXT),
}  # fmt: skip

CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --quiet: #5c5c5c; --line: #d8d8d8; --curve: #0072b2;
  --unsure: #e69f00; --good: #009e73; --bad: #d55e00; --card: #f6f6f4; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e8e6e3; --quiet: #a8a8a8; --line: #3a3d42;
  --curve: #56b4e9; --unsure: #e69f00; --good: #2bb98e; --bad: #f07c2c; --card: #1f2226; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .15rem .9rem .15rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; font-weight: normal; color: var(--quiet); }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .6rem .8rem; background: var(--card); border-radius: .4rem; }
figcaption b { display: block; } figcaption { font-size: .85rem; color: var(--quiet); }
figcaption b { color: var(--ink); font-size: .95rem; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--quiet); font-size: 11px; }
polyline { fill: none; stroke: var(--curve); stroke-width: 2; vector-effect: non-scaling-stroke; }
.faint { stroke-width: 1; opacity: .55; } circle { fill: var(--curve); stroke: none; } line { stroke: var(--line); }
.held { stroke: var(--ink); stroke-width: 1.3; stroke-dasharray: 5 3; } circle.held { fill: var(--ink); stroke: none; }
.controls { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; align-items: center; margin: .5rem 0 1rem; }
label, select { font: inherit; } select { background: var(--card); color: var(--ink); padding: .15rem .3rem; }
.rollout { margin: 0 0 .8rem; padding: .6rem .8rem; background: var(--card); border-radius: .4rem; }
.rollout p { margin: 0 0 .4rem; font-size: .85rem; color: var(--quiet); }
.rollout pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: .9rem/1.6 ui-monospace, monospace; }
.by-logp .rollout span { background: color-mix(in srgb, var(--unsure) calc(var(--u) * 1%), transparent); }
.by-advantage .good pre { background: color-mix(in srgb, var(--good) calc(var(--s) * 1%), transparent); }
.by-advantage .bad pre { background: color-mix(in srgb, var(--bad) calc(var(--s) * 1%), transparent); }
"""

SCRIPT = """
const list = document.getElementById("rollouts"), cards = [...list.children];
const pick = id => document.getElementById(id).value;
function update() {
  list.className = "by-" + pick("colour");
  const key = pick("order"), step = pick("step");
  const sign = key === "step" || key === "length" ? 1 : -1;
  cards.sort((a, b) => sign * (a.dataset[key] - b.dataset[key]) || a.dataset.number - b.dataset.number);
  for (const card of cards) { card.hidden = step !== "all" && card.dataset.step !== step; list.append(card); }
}
for (const id of ["colour", "order", "step"]) document.getElementById(id).addEventListener("change", update);
update();
"""


def write_page(folder: Path, result: dict | None = None) -> Path:
    """Write report.html for a run that has metrics; returns its path. ValueError when there is nothing to show.

    `result` is what result.json holds, or will hold (default: what is in it, if it is there).
    """
    folder = Path(folder)
    if not (folder / "metrics.csv").is_file():
        raise ValueError(f"{folder} is not the folder of a run; expected metrics.csv in it")
    metrics = read_run(folder)
    if result is None:
        result = read_fields(folder / "result.json", RESULT) if (folder / "result.json").is_file() else {}
    records = read_samples(folder)
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(folder.name)}</title>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<style>{CSS}</style></head><body><main><h1>Training run {escape(folder.name)}</h1>",
        format_result(result),
        "<h2>Curves</h2><p>Thin: each step. Thick: their mean over a tenth of the run. Dashed: held-out problems.</p>",
        "<div class='curves'>",
        *(curve(metrics, column) for column in METRICS),
        "</div>",
        format_samples(records),
        "</main></body></html>\n",
    ]
    write_text(folder / "report.html", "\n".join(parts))
    return folder / "report.html"


def read_samples(folder: Path) -> list[dict]:
    """The rollouts that a run has kept; an unfinished last line is left out. ValueError for a damaged one."""
    path = Path(folder) / "samples.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(parse_json(line))
        except ValueError:
            raise ValueError(f"{path} is damaged: line {number} is not JSON") from None
        if fault := find_fault(records[-1]):
            raise ValueError(f"{path} is damaged: line {number} {fault}")
    return records


def find_fault(record: object) -> str | None:
    """What is wrong with a kept rollout, or None."""
    if not isinstance(record, dict):
        return "is no rollout; expected an object with step, reward, tokens and more"
    for name, (fits, expected) in FIELDS.items():
        if name not in record:
            return f"has no {name}; expected {expected}"
        if not fits(record[name]):
            return f"has a wrong {name}; expected {expected}"
    if len(record["tokens"]) != len(record["logps"]):
        return f"has {len(record['tokens'])} tokens and {len(record['logps'])} logps; expected as many"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _is_list(value: object, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


# Of a line of samples.jsonl: whether a value fits, and what is expected.
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (lambda value: isinstance(value, int) and 0 <= value < 10**15, "a whole number"),
    "reward": (lambda value: value is None or _is_number(value), "a number, or null where it was not judged"),
    "advantage": (_is_number, "a number"),
    "tokens": (partial(_is_list, fits=_is_text), "a list of texts"),
    "logps": (partial(_is_list, fits=lambda x: _is_number(x) and x <= 0), "a list of log-probabilities"),
    "problem": (_is_text, "a text"),
    "answer": (_is_text, "a text"),
}


def format_result(result: dict) -> str:
    """What the run came to, as a table."""
    if not result:
        return "<p>This run is not finished.</p>"
    rows: list[tuple[str, ...]] = [
        ("held-out accuracy", f"{result['accuracy_before']:.1%}", f"{result['accuracy_after']:.1%}"),
        ("response tokens", f"{result['tokens_before']:.1f}", f"{result['tokens_after']:.1f}"),
    ]
    harder = (result["harder_accuracy_before"], result["harder_accuracy_after"])
    if None not in harder:
        rows.append(("harder levels, never trained on", *(f"{value:.1%}" for value in harder)))
    cells = "".join(f"<tr><td>{name}</td><td>{before}</td><td>{after}</td></tr>" for name, before, after in rows)
    about = f"{result['model']}, method {result['method']}, seed {result['seed']}"
    early = f" It ended early: {result['ended_early']}." if result.get("ended_early") else ""
    return (
        f"<p>{escape(about)}: {result['steps']} steps in {result['seconds']:.1f} s.{escape(early)}</p>"
        f"<table><tr><th></th><th>before</th><th>after</th></tr>{cells}</table>"
    )


def curve(metrics: Metrics, column: str) -> str:
    """One metric as a small picture, like a panel of `plot_training`; nothing when it has no values."""
    (title, about), (each, smooth, _, held_out) = METRICS[column], curves(metrics, column)
    lines = [line for line in (each, smooth, held_out) if line[0]]
    if not lines:
        return ""
    xs, ys = ([x for line in lines for x in line[part]] for part in (0, 1))
    first, last, low, high = min(xs), max(xs), min(0.0, *ys), max(0.0, *ys)
    high = high if high > low else 1.0
    width, height, left = 300, 110, 56

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        return left + across * (width - left - 8), 6 + (height - 12) * (1 - (y - low) / (high - low))

    def polyline(kind: str, line: Line) -> str:
        placed = [place(x, y) for x, y in zip(*line, strict=True)]
        dots = [f"<circle class='{kind}' cx='{x:.1f}' cy='{y:.1f}' r='2.5'/>" for x, y in placed if len(placed) < 30]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        return f"<polyline class='{kind}' points='{points}'/>{''.join(dots if kind != 'smooth' else [])}"

    kinds = {"faint" if smooth[0] else "each": each, "smooth": smooth, "held": held_out}
    drawn = [polyline(kind, line) for kind, line in kinds.items() if line[0]]
    axis = place(first, low)[1]
    (x0, *_, x1), (y0, *_, y1) = (2 * part for part in lines[0])
    label = f"{title}: from {y0:.3g} at step {x0:.0f} to {y1:.3g} at step {x1:.0f}"
    return (
        f"<figure><figcaption><b>{title}</b>{about}</figcaption>"
        f"<svg viewBox='0 0 {width} {height + 16}' role='img' aria-label='{escape(label)}'>"
        f"<line x1='{left}' x2='{width - 8}' y1='{axis:.1f}' y2='{axis:.1f}'/>"
        f"<text x='{left - 4}' y='14' text-anchor='end'>{short_number(high)}</text>"
        f"<text x='{left - 4}' y='{axis:.1f}' text-anchor='end'>{short_number(low)}</text>"
        f"<text x='{left}' y='{height + 13}'>step {first:.0f}</text>"
        f"<text x='{width - 8}' y='{height + 13}' text-anchor='end'>{last:.0f}</text>"
        f"{''.join(drawn)}</svg></figure>"
    )


def short_number(value: float) -> str:
    """Three digits, and no powers of ten for large numbers."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_samples(records: list[dict]) -> str:
    """The kept rollouts with the controls that sort and colour them."""
    if not records:
        return ""
    steps = sorted({record["step"] for record in records})
    options = "".join(f"<option value='{step}'>{step}</option>" for step in steps)
    cards = "\n".join(format_rollout(number, record) for number, record in enumerate(records))
    return f"""<h2>Rollouts</h2>
<p>Each card is one sampled answer. Coloured by surprise, a token is the stronger marked the less likely it was when it
was drawn; coloured by advantage, an answer is green that was reinforced and orange that was discouraged.</p>
<div class='controls'>
<label>Colour <select id='colour'><option value='logp'>by surprise</option>
<option value='advantage'>by advantage</option></select></label>
<label>Sort by <select id='order'><option value='step'>step</option><option value='reward'>reward</option>
<option value='advantage'>advantage</option><option value='length'>length</option></select></label>
<label>Step <select id='step'><option value='all'>all</option>{options}</select></label>
</div>
<div id='rollouts' class='by-logp'>
{cards}
</div>
<script>{SCRIPT}</script>"""


def format_rollout(number: int, record: dict) -> str:
    """One rollout as a card."""
    advantage = record["advantage"]
    kind = "good" if advantage > 0 else "bad" if advantage < 0 else "even"
    strength = min(70, round(30 * abs(advantage)))
    reward = "-Infinity" if record["reward"] is None else record["reward"]  # to be sorted by
    spans = "".join(
        f"<span style='--u:{min(100, round(-20 * logp))}' title='probability {math.exp(logp):.1%}'>"
        f"{escape(token)}</span>"
        for token, logp in zip(record["tokens"], record["logps"], strict=True)
    )
    return (
        f"<article class='rollout {kind}' style='--s:{strength}' data-number='{number}' data-step='{record['step']}' "
        f"data-reward='{reward}' data-advantage='{advantage}' data-length='{len(record['tokens'])}'>"
        f"<p>step {record['step']} · {format_reward(record['reward'])} · advantage {advantage:+.2f} · "
        f"{len(record['tokens'])} tokens · expected {escape(record['answer'])}<br>{escape(record['problem'])}</p>"
        f"<pre>{spans}</pre></article>"
    )


def format_reward(reward: float | None) -> str:
    """A reward in words; None is what no reward function has judged."""
    return "not judged" if reward is None else f"reward {reward:g}"


def best_samples(records: list[dict], step: int | None = None, limit: int = 8) -> list[dict]:
    """The kept rollouts of a step (default: the last), best advantage first; ValueError when there are none."""
    steps = sorted({record["step"] for record in records})
    if not steps:
        raise ValueError("this run has kept no rollouts")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ValueError(f"no rollouts were kept at step {step}: there are those of {', '.join(map(str, steps))}")
    return sorted((r for r in records if r["step"] == step), key=lambda r: -r["advantage"])[:limit]


def format_samples_text(records: list[dict]) -> str:
    """Rollouts for a terminal."""
    return "\n\n".join(map(format_sample_text, records))


def format_sample_text(record: dict) -> str:
    """A kept rollout in lines that fit a terminal."""
    earned = f"{format_reward(record['reward'])}  advantage {record['advantage']:+.2f}"
    head = f"step {record['step']}  {earned}  {len(record['tokens'])} tokens"
    problem = wrapped(f"{record['problem']}  (answer: {record['answer']})")
    return "\n".join([head, problem, wrapped("".join(record["tokens"]), "  ")])
