"""Methods side by side: short runs over seeds, a CSV of their evaluations, and a table with intervals."""

import csv
import math
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..data import GENERATED, ask_as, generated
from ..engine.config import TrainConfig, format_config, read_config
from ..engine.learner import Learner, training_problems
from ..evaluate import evaluate_model
from ..files import append_rows, write_atomically
from ..files.kinds import shown
from ..models import load_model_and_tokenizer, load_tokenizer, model_directory
from ..statistics import mean_and_interval
from ..threads import hold
from .folder import seed_everything

COLUMNS = ("method", "seed", "step", "rollouts", "seconds", "accuracy", "tokens", "reward")


def short_run(
    num_problems: int = 200, clock: Callable[[], float] = time.perf_counter, **settings
) -> dict[str, list[float | None]]:
    """Train a model, on the CPU, without writing anything; returns the columns that `rfs train` writes to metrics.csv.

    `settings` are those of TrainConfig. Accuracy on `num_problems` held-out problems, of the kind of `data` where that
    is generated, else tiny ones, is measured before the first step, as step 0, every `eval_every` steps, and after the
    last; `seconds`, by `clock`, counts training alone.
    """
    config = TrainConfig(**settings)
    model, tokenizer = load_model_and_tokenizer(config.model, "cpu")
    held_out = generated(config.data if config.data in GENERATED else "tiny", num_problems, "test")
    learner = Learner(config, model, tokenizer, training_problems(config))
    seed_everything(config.seed)  # now that modules of rewards, which may draw as well, are imported
    rows: list[dict] = []
    seconds = 0.0
    for step in range(config.steps + 1):
        started = clock()
        row = {"step": step} | (learner.step() if step else {})
        seconds += clock() - started if step else 0.0
        row["seconds"] = seconds
        if step in (0, config.steps) or config.eval_every and step % config.eval_every == 0:
            result = evaluate_model(model, tokenizer, held_out, "cpu", config.max_new_tokens)
            row |= {"eval_accuracy": result.accuracy, "eval_tokens": result.mean_tokens}
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def compare(methods: Sequence[str], seeds: int, config: TrainConfig, path: str | Path, report=print) -> None:
    """Train every method with every seed and append its evaluations to a CSV; runs that are there already are kept.

    The settings stand in a TOML file beside it. All run on one thread, and seconds are those of the processor: a busy
    machine then treats all methods alike. Raises ValueError for unknown methods, for a file that is something else or
    cannot be written, and for one that was made with other settings.
    """
    configs = [replace(config, method=method, seed=seed) for seed in range(seeds) for method in methods]
    for one in configs:
        one.check()
    finished_runs(path)  # something else is found before anything is written
    tokenizer = load_tokenizer(model_directory(config.model))
    ask_as(tokenizer, config.prompt, config.stop, config.chat)  # so is a stop text that never comes
    keep_settings(path, config)
    with hold(1):
        runs = {method: partial(evaluations, config, method) for method in methods}
        run_missing(path, runs, seeds, report)


def run_missing(
    path: str | Path, runs: Mapping[str, Callable[[int], list[dict]]], seeds: int, report: Callable[[str], None] = print
) -> None:
    """Call every run, a function from a seed to rows, with seeds 0, 1, ..., and append what is finished to a CSV.

    Rows have the keys COLUMNS[2:], with None for what was not measured. Runs that are in the file already are kept.
    """
    done = finished_runs(path)
    for method, seed in [(method, seed) for seed in range(seeds) for method in runs]:
        if (method, seed) in done:
            report(f"{method:22} seed {seed}  is in {path} already")
            continue
        rows = runs[method](seed)
        append_run(path, method, seed, rows)
        report(f"{method:22} seed {seed}  accuracy {rows[-1]['accuracy']:6.1%}  {rows[-1]['seconds']:.1f} s")


def keep_settings(path: str | Path, config: TrainConfig) -> None:
    """Write the settings of a comparison beside its CSV; ValueError when they differ from those that are there."""
    beside = Path(path).with_suffix(".toml")
    same = replace(config, method=TrainConfig.method, seed=TrainConfig.seed, out=None)
    if beside.exists():
        made_with = TrainConfig(**read_config(beside))
        for name, value in vars(same).items():
            if value != getattr(made_with, name):
                raise ValueError(
                    f"{path} was made with {name} = {getattr(made_with, name)}, not {value}; choose another --csv"
                )
    elif Path(path).exists():
        raise ValueError(f"{path} has no {beside.name} with its settings beside it; choose another --csv")
    write_atomically(beside, format_config(same).encode())


def evaluations(config: TrainConfig, method: str, seed: int) -> list[dict]:
    """A row for each evaluation of a run."""
    config = replace(config, method=method, seed=seed)
    run = short_run(clock=time.process_time, **{k: v for k, v in vars(config).items() if k != "out"})
    each = config.prompts_per_step * config.num_rollouts
    columns = {
        "step": run["step"],
        "rollouts": [None if step is None else step * each for step in run["step"]],
        "seconds": run["seconds"],
        "accuracy": run["eval_accuracy"],
        "tokens": run["eval_tokens"],
        "reward": run["reward_avg"],
    }
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [row for row in rows if row["accuracy"] is not None]


def finished_runs(path: str | Path) -> set[tuple[str, int]]:
    """Method and seed of the runs in a comparison's CSV, which need not exist yet."""
    return {(row["method"], int(row["seed"])) for row in read_comparison(path)} if Path(path).exists() else set()


def append_run(path: str | Path, method: str, seed: int, rows: Sequence[Mapping]) -> None:
    """Add a run to a comparison's CSV, rounded to four digits after the point, with the header before the first one."""
    cells = [{name: "" if row[name] is None else str(round(row[name], 4)) for name in COLUMNS[2:]} for row in rows]
    append_rows(path, [{"method": method, "seed": str(seed), **row} for row in cells], key="method")


def read_comparison(path: str | Path) -> list[dict]:
    """The rows of a comparison's CSV, numbers as text; ValueError when the file is something else."""
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{path} is not the CSV of a comparison; expected the columns {', '.join(COLUMNS)}")
    if any(None in row.values() or None in row for row in rows):
        raise ValueError(f"{path}: a line is damaged; expected {len(COLUMNS)} cells in each")
    for number, row in enumerate(rows, start=2):
        for name in COLUMNS[1:]:
            if not _fits(name, row[name]):
                raise ValueError(f"{path}, line {number}: {name} is {shown(row[name])}, not a number that it can be")
    return rows


def _fits(name: str, cell: str) -> bool:
    """Whether the text of a cell is a number, or is empty where nothing was measured."""
    if name in ("seed", "step", "rollouts"):
        return re.fullmatch(r"[0-9]{1,15}", cell) is not None
    try:
        return cell == "" and name in ("tokens", "reward") or math.isfinite(float(cell))
    except ValueError:
        return False


def summarise(path: str | Path, methods: Sequence[str] | None = None) -> str:
    """A table of a comparison: accuracy after equal rollouts and after equal seconds, mean and 95 % interval.

    Of `methods`, or of all that the file has.

    Equal seconds are those of the fastest run; accuracy between evaluations is interpolated.
    """
    runs: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for row in read_comparison(path):
        if methods is None or row["method"] in methods:
            runs[row["method"], row["seed"]].append(row)
    if not runs:
        raise ValueError(f"{path} has no run of {', '.join(methods) if methods else 'any method'} to be summarised")
    budget = min(float(rows[-1]["seconds"]) for rows in runs.values())
    by_method: dict[str, list[list[dict]]] = defaultdict(list)
    for (method, _), rows in runs.items():
        by_method[method].append(rows)
    equal = f"equal seconds ({budget:.0f})"
    lines = [f"{'':21} {'equal rollouts':>14} {equal:>19} {'seconds':>8} {'tokens':>7}  seeds"]
    for method, several in by_method.items():
        cells = []
        last = [float(rows[-1]["accuracy"]) for rows in several]
        for values in (last, [at_seconds(rows, budget) for rows in several]):
            mean, half = mean_and_interval(values)
            cells.append(f"{mean:7.1%} ± {100 * half:4.1f}" if half < math.inf else f"{mean:7.1%}")
        seconds = statistics.mean(float(rows[-1]["seconds"]) for rows in several)
        tokens = statistics.mean(float(rows[-1]["tokens"]) for rows in several)
        lines.append(f"{method:21} {cells[0]:>14} {cells[1]:>19} {seconds:8.1f} {tokens:7.1f} {len(several):6}")
    return "\n".join(lines)


def at_seconds(rows: Sequence[dict], budget: float) -> float:
    """Accuracy of a run after so many seconds of training, by linear interpolation."""
    points = [(float(row["seconds"]), float(row["accuracy"])) for row in rows]
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 <= budget <= x1:
            return y0 + (y1 - y0) * (budget - x0) / max(1e-9, x1 - x0)
    return points[-1][1]
