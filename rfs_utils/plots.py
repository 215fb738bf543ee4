"""One palette and style for every figure of the book, and the curves of a training run.

The colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which readers with any
kind of colour vision can tell apart; `BAD` is darkened so that it also differs from `GOOD` in grey.
Even so, no figure should rely on colour alone: label the curve, or write the sign.
"""

import base64
import csv
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from .files.kinds import number, shown

POLICY = "#0072B2"  # blue: the model in training
REWARD = "#E69F00"  # orange: rewards and whatever gives them
LENGTH = "#56B4E9"  # sky blue: response lengths
REFERENCE = "#CC79A7"  # purple: the frozen reference model
GOOD = "#009E73"  # green: above average, correct
BAD = "#993D00"  # dark vermilion: below average, wrong
NEUTRAL = "#7A7A7A"  # grey: inputs, context, padding
INK = "#1A1A1A"  # text
PAPER = "#FFFFFF"  # background of every figure, so that it stays readable on a dark page
ROUNDING = 0.08  # inches: radius of its corners in notebooks
CYCLE = (POLICY, REWARD, GOOD, BAD, REFERENCE, LENGTH)  # order for several curves in one plot

STYLE: dict[str, Any] = {
    "figure.figsize": (7.5, 4.2),
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.12,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": NEUTRAL,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=CYCLE, linestyle=["-", "--", "-.", ":", "-", "--"]),
    "axes.titlesize": 14,
    "axes.titlelocation": "left",
    "axes.labelsize": 13,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.2,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "legend.fontsize": 12,
    "legend.edgecolor": PAPER,
    "legend.framealpha": 0.85,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same letters everywhere
    "font.size": 13,
    "mathtext.fontset": "dejavusans",
}
DPI = 110  # pixels per inch in the PNG, and
SCREEN_DPI = 96  # CSS pixels per inch on the page: the surplus keeps text sharp on fine screens


def set_style() -> None:
    """Give every figure drawn from now on the style of the book. Call it once per notebook."""
    matplotlib.rcParams.update(STYLE)


def tint(color: str, strength: float = 0.18, other: str = "white") -> str:
    """Mix `color` with white or another colour: strength 1 is the colour itself, 0 is the other."""
    red, green, blue = (strength * c + (1 - strength) * d for c, d in zip(to_rgb(color), to_rgb(other), strict=True))
    return to_hex((red, green, blue))


def _png(fig: Figure) -> bytes:
    """Render to PNG, on a card with round corners and nothing around it, for notebooks with a dark theme.

    Without the version stamp, the same library always gives the same bytes.
    """
    buffer = io.BytesIO()
    width, height = map(float, fig.get_size_inches())
    card = FancyBboxPatch(
        (0, 0), width, height, boxstyle=f"round,pad=0,rounding_size={ROUNDING}", fc=PAPER, lw=0,
        zorder=-1, transform=fig.dpi_scale_trans,
    )  # fmt: skip
    with matplotlib.rc_context(STYLE):
        fig.add_artist(card)
        fig.savefig(buffer, format="png", dpi=DPI, facecolor="none", metadata={"Software": None})
        card.remove()
    return buffer.getvalue()


class _Shown:
    """A rendered figure with its alt text, in the form that notebooks ask objects for."""

    def __init__(self, png: bytes, alt: str, width: int):
        self.png, self.alt, self.width = png, alt, width

    def __repr__(self) -> str:
        return f"<Figure: {self.alt}>"

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = {"image/png": base64.b64encode(self.png).decode(), "text/plain": repr(self)}
        return data, {"image/png": {"alt": self.alt, "width": self.width}}


def show(fig: Figure, alt: str) -> None:
    """Display `fig` in the notebook with `alt`, one or two sentences that say what it shows.

    The alt text is stored in the output's metadata, where nbconvert's classic template finds it,
    and once more as the plain-text form of the output. The figure is closed afterwards. Outside of
    a notebook nothing is drawn or saved. Raises ValueError when `alt` is empty.
    """
    import matplotlib.pyplot as plt

    alt = " ".join(alt.split())
    if not alt:
        raise ValueError("A figure needs an alt text that says what it shows.")
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        get_ipython = None
    if get_ipython is not None and get_ipython() is not None:
        display(_Shown(_png(fig), alt, round(fig.get_figwidth() * SCREEN_DPI)))
    plt.close(fig)


def save_figure(fig: Figure, path: str | os.PathLike) -> None:
    """Save `fig` in the format that the suffix of `path` names (.png, .svg, .pdf).

    The file appears whole or not at all: it is written under a temporary name in the same folder
    and then renamed.
    """
    path = Path(path)
    known = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix[1:] not in known:
        raise ValueError(f"cannot draw {path}: its name must end in one of {', '.join(f'.{name}' for name in known)}")
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        with matplotlib.rc_context(STYLE):
            fig.savefig(part, dpi=DPI)
        os.replace(part, path)
    except OSError as error:  # the temporary name would say nothing to a reader
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        part.unlink(missing_ok=True)


def read_metrics(path: str | os.PathLike, required: Sequence[str] = ("step",)) -> dict[str, list[float | None]]:
    """Read a run's metrics.csv into one list per column; an empty cell becomes None.

    Raises ValueError, naming the file and the line, when the header lacks one of the `required`
    columns or has an empty or repeated name, when a row has too few or too many cells, or when a
    cell is not a number.
    """
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.reader(file)
        try:
            return _read_columns(reader, path, required)
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}.") from None


def _read_columns(reader, path: str | os.PathLike, required: Sequence[str]) -> dict[str, list[float | None]]:
    header = [name.strip() for name in next(reader, [])]
    missing = [name for name in required if name not in header]
    if missing:
        raise ValueError(f"{path}, line 1: the header has no column {', '.join(missing)}.")
    if "" in header or len(set(header)) < len(header):
        raise ValueError(f"{path}, line 1: the header has an empty or a repeated column name.")
    columns: dict[str, list[float | None]] = {name: [] for name in header}
    for row in reader:
        if not row:  # a blank line
            continue
        if len(row) != len(header):
            raise ValueError(f"{path}, line {reader.line_num}: expected {len(header)} cells, found {len(row)}.")
        for name, cell in zip(header, row, strict=True):
            try:
                columns[name].append(float(cell) if cell.strip() else None)
            except ValueError:
                raise ValueError(f"{path}, line {reader.line_num}: {name} is {shown(cell)}, not a number.") from None
            if name == "step" and not number(0, 1e15).fits(columns[name][-1]):
                raise ValueError(f"{path}, line {reader.line_num}: {name} is {shown(cell)}, not the number of a step.")
    return columns


# ------------------------------------------------------------------ the curves of a run

METRICS = {  # column of metrics.csv: the title of its panel, and what it tells
    "reward_avg": ("Mean reward", "of the sampled answers"),
    "accuracy": ("Right answers (share)", "of the sampled answers"),
    "eval_accuracy": ("Held-out accuracy", "share of greedy answers to problems never trained on"),
    "avg_response_len": ("Response length (tokens)", "mean"),
    "entropy": ("Entropy", "mean of minus the log-probability of the sampled tokens; 0 is certainty"),
    "zero_signal_groups": ("Groups without signal (share)", "all rewards of the group are equal"),
    "truncated": ("Truncated answers (share)", "which ran into the limit"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "clip_fraction": ("Clipped tokens (share)", "whose gradient the clipping removed"),
    "kl": ("KL from the start", "mean per token, estimate k3"),
    "lr": ("Learning rate", "of the step's updates"),
    "reward_format": ("In the format (share)", "of the sampled answers"),
    "tokens_per_second": ("Speed", "response tokens per second"),
}
USUAL = ("reward_avg", "avg_response_len", "eval_accuracy")  # what a run is judged by
HELD_OUT = {"eval_accuracy": "eval_accuracy", "avg_response_len": "eval_tokens"}  # panel: the evaluations in it
COLORS = {"reward_avg": REWARD, "avg_response_len": LENGTH}  # others have POLICY's

Metrics = Mapping[str, Sequence[float | None]]  # a run's columns, as `read_metrics` returns them
Line = tuple[list[float], list[float]]  # steps and values


class Curves(NamedTuple):
    """What one run shows of a metric; each line may be empty."""

    each: Line  # of the steps
    smooth: Line  # means of `window` steps
    window: int
    held_out: Line  # of the evaluations


def curves(metrics: Metrics, column: str, evals: Metrics | None = None) -> Curves:
    """The lines of a metric of one run, those of evaluations from a table of their own if there is one.

    Each step's values are smoothed over about a tenth of the run, by the mean of as many steps before as after.
    """
    held_out = points(metrics if evals is None else evals, HELD_OUT.get(column, ""))
    steps, values = points(metrics, column if HELD_OUT.get(column) != column else "")
    window = max(3, len(values) // 10) | 1  # odd
    parts = [values[max(0, i - window // 2) : i + window // 2 + 1] for i in range(len(values))]
    smooth = (steps, [sum(part) / len(part) for part in parts]) if len(values) > window else ([], [])
    return Curves((steps, values), smooth, window, held_out)


def points(metrics: Metrics, column: str) -> Line:
    """The steps at which a column has a finite value, and these values; none where there is no such column."""
    pairs = zip(metrics.get("step", ()), metrics.get(column, ()), strict=False)
    kept = [(s, v) for s, v in pairs if s is not None and v is not None and math.isfinite(v)]
    return [s for s, _ in kept], [v for _, v in kept]


def draw_panels(columns: Sequence[str], draw: Callable[[Axes, str], None]) -> Figure:
    """A figure with a panel over the training steps for each metric, which `draw(ax, column)` fills.

    The upright axis begins at zero, where no value lies below: a share of 0 is at the bottom, not in the middle.
    """
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(7.5, 0.6 + 2.2 * len(columns)))
        all_axes = fig.subplots(len(columns), sharex=True, squeeze=False)[:, 0]
        for ax, column in zip(all_axes, columns, strict=True):
            ax.set_title(METRICS.get(column, (column,))[0])
            draw(ax, column)
            low, high = min(0, ax.dataLim.y0), ax.get_ylim()[1]
            ax.set_ylim(low - 0.03 * (high - low), high)  # with room for the line's width
        all_axes[-1].set_xlabel("Training step")
        all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return fig


def plot_bars(values: Mapping[str, float], label: str, unit: str) -> Figure:
    """A bar for each of the named values, from the top, with its value and the unit at its end."""
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(7.5, 1 + 0.4 * len(values)))
        ax = fig.subplots()
        bars = ax.barh(list(values), list(values.values()), color=POLICY)
        ax.bar_label(bars, [f"{value:.1f} {unit}" for value in values.values()], padding=4)
        ax.set_xlim(right=1.2 * max(values.values()))  # with room for the longest bar's value
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(label)
    return fig


def plot_training(metrics: Metrics, evals: Metrics | None = None) -> Figure:
    """Plot one run: mean reward, mean response length, and held-out accuracy against the step.

    Columns used: step, reward_avg, avg_response_len (tokens), eval_accuracy (0 to 1) and eval_tokens (mean length of
    the held-out answers), the last two of `evals` if it is given. A column without any value leaves its panel out.
    Raises ValueError when there is nothing to plot.
    """

    def draw(ax: Axes, column: str) -> None:
        each, smooth, window, held_out = found[column]
        color = COLORS.get(column, POLICY)
        if each[0]:
            ax.plot(*each, "-", color=color, lw=0.9, alpha=0.75, label="each step")
        if smooth[0]:
            ax.plot(*smooth, "-", color=tint(color, 0.6, "black"), lw=2.8, label=f"mean of {window} steps")
        if held_out[0]:
            ax.plot(*held_out, "--o", color=INK, ms=5.5, lw=1.4, label="held-out")
        if len(ax.lines) > 1:
            # Beside the title, where it hides no curve.
            ax.legend(
                loc="lower right", bbox_to_anchor=(1, 1.02), ncols=3, borderpad=0.2, borderaxespad=0,
                handlelength=1.3, handletextpad=0.4, columnspacing=1, fontsize=11,
            )  # fmt: skip

    found = {column: curves(metrics, column, evals) for column in USUAL}
    columns = [column for column, lines in found.items() if lines.each[0] or lines.held_out[0]]
    if not columns:
        raise ValueError("The metrics have no values of reward, response length or accuracy.")
    return draw_panels(columns, draw)
