"""The CSV of a comparison: reading and appending, and what is read off it: tables, the best settings, differences."""

import csv
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..engine.config import field_type, setting_kinds
from ..files import append_rows
from ..files.kinds import shown
from ..statistics import mean_and_interval

MEASURED = ("seed", "step", "samples", "seconds", "accuracy", "tokens", "reward")
COUNTS = ("seed", "step", "samples")
REUSE = ("updates_per_step", "minibatches")  # what a comparison fixes, while it tunes the other settings
Row = dict[str, str]


def append_run(path: str | Path, key: Mapping[str, str], seed: int, rows: Sequence[Mapping]) -> None:
    """Add a run to a comparison's CSV, rounded to four digits after the point, with the header before the first one."""
    cells = [{name: "" if row[name] is None else str(round(row[name], 4)) for name in MEASURED[1:]} for row in rows]
    append_rows(path, [{**key, "seed": str(seed), **row} for row in cells], key="method")


def finished_runs(path: str | Path, varied: Sequence[str] = ()) -> set[tuple]:
    """Method, values of the settings that are `varied`, and seed of the runs in a CSV, which need not exist yet.

    ValueError when the file varies other settings.
    """
    if not Path(path).exists():
        return set()
    rows = read_comparison(path)
    found = varied_settings(rows)
    if rows and found != tuple(varied):
        raise ValueError(f"{path} compares methods {_over(found)}, not {_over(varied)}; choose another --csv")
    return {(row["method"], *(row[name] for name in varied), int(row["seed"])) for row in rows}


def _over(settings: Sequence[str]) -> str:
    return f"over {', '.join(settings)}" if settings else "alone"


def varied_settings(rows: Sequence[Row]) -> tuple[str, ...]:
    """The settings that have columns of their own."""
    return tuple(name for name in rows[0] if name not in ("method", *MEASURED)) if rows else ()


def read_comparison(path: str | Path) -> list[Row]:
    """The rows of a comparison's CSV, numbers as text; ValueError when the file is something else."""
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    header = tuple(reader.fieldnames or ())
    varied = header[1 : -len(MEASURED)]
    if header[:1] != ("method",) or header[-len(MEASURED) :] != MEASURED or not set(varied) <= set(setting_kinds()):
        columns = f"method, settings, {', '.join(MEASURED)}"
        raise ValueError(f"{path} is not the CSV of a comparison; expected the columns {columns}")
    if any(None in row.values() or None in row for row in rows):
        raise ValueError(f"{path}: a line is damaged; expected {len(header)} cells in each")
    for number, row in enumerate(rows, start=2):
        for name in MEASURED:
            if not _fits(name, row[name]):
                raise ValueError(f"{path}, line {number}: {name} is {shown(row[name])}, not a number that it can be")
    return rows


def _fits(name: str, cell: str) -> bool:
    """Whether the text of a cell is a number, or is empty where nothing was measured."""
    if name in COUNTS:
        return re.fullmatch(r"[0-9]{1,15}", cell) is not None
    try:
        return cell == "" and name in ("tokens", "reward") or math.isfinite(float(cell))
    except ValueError:
        return False


def runs_by_setting(path: str | Path, methods: Sequence[str] | None = None) -> dict[tuple[str, ...], dict[int, list]]:
    """The evaluations of every run, by method and values of the varied settings, then by seed.

    Of `methods`, or of all that the file has; ValueError when it has none of them.
    """
    rows = read_comparison(path)
    varied = varied_settings(rows)
    found: dict[tuple[str, ...], dict[int, list]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if methods is None or row["method"] in methods:
            key = (row["method"], *(row[name] for name in varied))
            found[key][int(row["seed"])].append(row)
    if not found:
        raise ValueError(f"{path} has no run of {', '.join(methods) if methods else 'any method'} to be summarised")
    return {key: dict(by_seed) for key, by_seed in found.items()}


def last_accuracies(by_seed: Mapping[int, Sequence[Row]]) -> dict[int, float]:
    """Accuracy at the end of each run, by seed."""
    return {seed: float(rows[-1]["accuracy"]) for seed, rows in by_seed.items()}


def summarise(path: str | Path, methods: Sequence[str] | None = None) -> str:
    """A table of a comparison: accuracy after equal steps and after equal seconds, mean and 95 % interval.

    Equal seconds are those of the fastest run; accuracy between evaluations is interpolated.
    """
    runs = runs_by_setting(path, methods)
    budget = min(float(rows[-1]["seconds"]) for by_seed in runs.values() for rows in by_seed.values())
    equal = f"equal seconds ({budget:.0f})"
    width = max(21, *(len(" ".join(key)) for key in runs))
    lines = [f"{'':{width}} {'equal steps':>14} {equal:>19} {'seconds':>8} {'samples':>8} {'tokens':>7}  seeds"]
    for key, by_seed in runs.items():
        cells = []
        for values in (last_accuracies(by_seed).values(), [at_seconds(rows, budget) for rows in by_seed.values()]):
            mean, half = mean_and_interval(list(values))
            cells.append(f"{mean:7.1%} ± {100 * half:4.1f}" if half < math.inf else f"{mean:7.1%}")
        seconds, samples, tokens = (
            statistics.mean(float(rows[-1][name]) for rows in by_seed.values())
            for name in ("seconds", "samples", "tokens")
        )
        name = f"{' '.join(key):{width}}"
        cost = f"{seconds:8.1f} {samples:8.0f} {tokens:7.1f} {len(by_seed):6}"
        lines.append(f"{name} {cells[0]:>14} {cells[1]:>19} {cost}")
    return "\n".join(lines)


def at_seconds(rows: Sequence[Row], budget: float) -> float:
    """Accuracy of a run after so many seconds of training, by linear interpolation."""
    points = [(float(row["seconds"]), float(row["accuracy"])) for row in rows]
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 <= budget <= x1:
            return y0 + (y1 - y0) * (budget - x0) / max(1e-9, x1 - x0)
    return points[-1][1]


def best_settings(path: str | Path, methods: Sequence[str] | None = None) -> list[dict]:
    """For each method, and each reuse of rollouts, the settings whose runs ended best, as `compare` takes them."""
    varied = varied_settings(read_comparison(path))
    best: dict[tuple, tuple[float, dict]] = {}
    for key, by_seed in runs_by_setting(path, methods).items():
        settings: dict = {"method": key[0]}
        for name, text in zip(varied, key[1:], strict=True):
            kind = field_type(name)
            settings[name] = None if text == "None" else kind(text)
        group = (key[0], *(settings[name] for name in varied if name in REUSE))
        mean = statistics.mean(last_accuracies(by_seed).values())
        if group not in best or mean > best[group][0]:
            best[group] = mean, settings
    return [settings for _, settings in best.values()]


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[float, float]:
    """Mean of ours minus theirs over the seeds that both have, with half its 95 % interval."""
    return mean_and_interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
