"""The runs over several seeds that chapter 7 and the exercises show: their settings, logs, and how to make them again.

The logs are CSV files that come with the package. `python benchmarks/experiments.py NAME --seeds 5` makes one.
"""

import csv
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..files import append_rows
from ..runs.compare import short_run
from ..statistics import mean_and_interval
from .ex06 import SELDOM_BOXED, base_with_habits
from .ex07 import EMPTY_THOUGHTS, habit_documents

RESULTS = Path(__file__).parents[1] / "results"
EXPERIMENT_COLUMNS = (
    "label", "seed", "step", "reward_avg", "accuracy", "avg_response_len", "zero_signal_groups", "truncated",
    "entropy", "clip_fraction", "kl", "eval_accuracy", "eval_tokens", "extra",
)  # fmt: skip
Log = dict[str, list[float | None]]  # a run's columns, as short_run returns them
BASES: dict[str, Callable[[str], Path]] = {  # models that are made before the runs, from tiny-base
    "seldom-boxed": lambda folder: base_with_habits(SELDOM_BOXED, folder),
    "empty-thoughts": lambda folder: base_with_habits(EMPTY_THOUGHTS, folder, habit_documents),
}


@dataclass
class Experiment:
    """Runs that differ in `runs`' settings and share `settings`; both are those of TrainConfig.

    `base` names one of BASES to start from. `extra` is a reward function whose mean is logged under this name. The
    label `default` has the settings of the plain runs of ex06_partial_rewards, which are shown for it.
    """

    runs: dict[str, dict]
    settings: dict = field(default_factory=dict)
    base: str = "tiny-base"
    extra: str = ""
    default: str = ""

    def of(self, label: str, seed: int = 0, model: str | Path | None = None) -> dict:
        """All settings of a run, for `short_run(**...)`; `model` is the directory of a base that has been made."""
        return self.settings | self.runs[label] | {"seed": seed, "model": str(model or self.base)}


PARTIAL = "rfs_utils.exercises.ex06:partial_rewards"
PARTIAL_RUNS = {"plain": {"rewards": f"accuracy,{PARTIAL}=0"}, "partial": {"rewards": f"{PARTIAL},accuracy=0"}}
WORKED = "rfs_utils.exercises.ex07:worked_thought_rewards"
CONDITIONAL = "rfs_utils.exercises.ex07:conditional_format_rewards"
WORK = "rfs_utils.exercises.ex07:worked_rewards"
SHORT = {"steps": 25, "eval_every": 5}
SMALL_STEPS = {"prompts_per_step": 4, "eval_every": 10}
STALE: dict = {"sampler": "stale:8"}
MISMATCH_RUNS: dict[str, dict] = {
    "own samples": {},
    "stale, ignored": STALE | {"ratio_to": "trainer"},
    "clip": STALE,
    "tis": STALE | {"method": "tis"},
    "icepop": STALE | {"method": "icepop"},
    "cispo": STALE | {"method": "cispo"},
    "gspo": STALE | {"method": "gspo", "clip_low": 0.03, "clip_high": 0.04},
    "sapo": STALE | {"method": "sapo"},
}
LITTLE = {"prompts_per_step": 4, "steps": 30, "eval_every": 15}
EXPERIMENTS = {
    "ex06_partial_rewards": Experiment(PARTIAL_RUNS, SHORT, extra=PARTIAL),
    "ex06_partial_rewards_seldom_boxed": Experiment(PARTIAL_RUNS, SHORT, "seldom-boxed", PARTIAL),
    "ex06_temperature": Experiment({f"T = {t}": {"temperature": t} for t in (0.5, 1.0, 1.5)}, SHORT, default="T = 1.0"),
    "ex06_group_size": Experiment(
        {f"{64 // g} x {g}": {"prompts_per_step": 64 // g, "num_rollouts": g} for g in (2, 8, 32)}, SHORT,
        default="8 x 8",
    ),
    "ex06_limit": Experiment(
        {f"{n} tokens": {"max_new_tokens": n} for n in (16, 32, 96)}, SHORT, default="96 tokens"
    ),
    "ex07_format": Experiment(
        {
            "accuracy": {"rewards": "accuracy,format=0"},
            "added": {"rewards": "accuracy,format"},
            "worked thought": {"rewards": f"accuracy,format=0,{WORKED}"},
            "conditional": {"rewards": f"accuracy,format=0,{CONDITIONAL}"},
        },
        SHORT, "empty-thoughts", "format",
    ),
    "ex07_kl": Experiment(
        {f"beta = {b}": {"kl_coef": b} for b in (0.0, 0.3, 1.0)},
        SHORT | {"method": "rloo", "kl": "k2", "rewards": f"accuracy,{WORK}=0"}, extra=WORK,
    ),
    "ch07_kl": Experiment(
        {"none": {}}
        | {f"{kind}, {b}": {"kl": kind, "kl_coef": b} for b in (0.02, 0.1) for kind in ("k1", "k2", "k3", "reward")},
        SMALL_STEPS | {"steps": 40, "method": "rloo"},
    ),
    "ch07_hacking": Experiment(
        {
            "accuracy": {"rewards": "accuracy,format=0"},
            "added": {"rewards": "accuracy,format"},
            "a fifth": {"rewards": "accuracy,format=0.2"},
            "a fifth, not divided": {"rewards": "accuracy,format=0.2", "method": "dr_grpo"},
        },
        SMALL_STEPS | {"steps": 60, "max_new_tokens": 48}, "tiny-reasoning", "format",
    ),
    "ch07_format": Experiment(
        {
            "accuracy": {"rewards": f"accuracy,{CONDITIONAL}=0"},
            "added": {"rewards": f"accuracy,format,{CONDITIONAL}=0"},
            "only both": {"rewards": f"accuracy=0,{CONDITIONAL}"},
        },
        SMALL_STEPS | {"steps": 60}, extra=CONDITIONAL,
    ),
    "ch07_spurious": Experiment(
        {
            "accuracy": {},
            "a coin": {"rewards": "accuracy=0,rfs_utils.ch07:coin_rewards"},
            "any box": {"rewards": "accuracy=0,rfs_utils.ch07:boxed_rewards"},
        },
        SMALL_STEPS | {"steps": 40},
    ),
    "off_policy_mismatch": Experiment(MISMATCH_RUNS, LITTLE | {"steps": 32, "eval_every": 16}),
    "off_policy_entropy": Experiment(
        {
            "all tokens": {},
            "bonus 0.03": {"token_rule": "entropy_bonus=0.03"},
            "bonus 0.1": {"token_rule": "entropy_bonus=0.1"},
            "Clip-Cov": {"token_rule": "clip_cov=0.02"},
            "top 20 %": {"token_rule": "top_entropy=0.2"},
        },
        LITTLE,
    ),
    "off_policy_entropy_four_updates": Experiment(
        {
            "all tokens": {},
            "clip-higher": {"clip_high": 0.28},
            "KL-Cov": {"token_rule": "kl_cov=0.02"},
        },
        LITTLE | {"updates_per_step": 4, "lr": 1e-4},
    ),
}  # fmt: skip


def run_experiment(name: str, seeds: Sequence[int], report: Callable[[str], None] = print) -> None:
    """Train every run of an experiment with every seed and append the logs to its CSV; runs that are there are kept."""
    experiment, path = EXPERIMENTS[name], RESULTS / f"{name}.csv"
    done = set()
    if path.exists():
        done = {(label, log["seed"][0]) for label, logs in read_experiment(name).items() for log in logs}
    labels = [label for label in experiment.runs if label != experiment.default]
    missing = [(label, seed) for seed in seeds for label in labels if (label, seed) not in done]
    with tempfile.TemporaryDirectory() as folder:
        made = BASES[experiment.base](folder) if missing and experiment.base in BASES else None
        for label, seed in missing:
            log = short_run(**experiment.of(label, seed, made))
            append_log(path, label, seed, log, experiment.extra)
            report(f"{name}  {label:12} seed {seed}  accuracy {log['eval_accuracy'][-1]:.1%}")


def append_log(path: Path, label: str, seed: int, log: Log, extra: str = "") -> None:
    """Add a run to a CSV file, rounded to four digits after the point."""
    steps = range(len(log["step"]))
    columns: dict[str, Sequence] = {**log, "label": [label for _ in steps], "seed": [seed for _ in steps]}
    columns["extra"] = log.get(f"reward_{extra}", [None for _ in steps])
    rows = [{name: columns[name][i] for name in EXPERIMENT_COLUMNS} for i in steps]
    append_rows(path, [{name: _cell(value) for name, value in row.items()} for row in rows], key="label")


def _cell(value: object) -> str:
    return "" if value is None else str(round(value, 4) if isinstance(value, float) else value)


def read_results(name: str) -> list[dict[str, str]]:
    """The rows of a stored CSV of rfs_utils/results, such as "early_dip.csv", as text by column."""
    with (RESULTS / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_experiment(name: str) -> dict[str, list[Log]]:
    """The logs of an experiment by label, one for each seed: what `plot_grpo_metrics` draws as bands.

    ValueError when there are none.
    """
    path = RESULTS / f"{name}.csv"
    if not path.is_file():
        raise ValueError(f"there are no results called {name!r}: known are {', '.join(EXPERIMENTS)}")
    logs: dict[str, dict[int, Log]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            empty: dict = {column: [] for column in EXPERIMENT_COLUMNS[1:]}
            log = logs.setdefault(row["label"], {}).setdefault(int(row["seed"]), empty)
            for column in EXPERIMENT_COLUMNS[1:]:
                log[column].append(float(row[column]) if row[column] else None)
    experiment, runs = EXPERIMENTS[name], {label: list(by_seed.values()) for label, by_seed in logs.items()}
    if experiment.default:
        runs[experiment.default] = read_experiment("ex06_partial_rewards")["plain"]
    return {label: runs[label] for label in experiment.runs if label in runs}


def at_step(logs: Sequence[Log], column: str, step: int = -1, window: int = 1) -> list[float]:
    """A column's value in each log at a step (-1: the last), or its mean over the `window` steps up to there."""
    found = []
    for log in logs:
        end = len(log["step"]) if step == -1 else log["step"].index(step) + 1
        found.append(statistics.mean(v for v in log[column][max(0, end - window) : end] if v is not None))
    return found


def format_results(runs: Mapping[str, Sequence[Log]], columns: Mapping[str, Callable]) -> str:
    """A table: for each label its number of seeds, and of each column, a function from logs to numbers, their mean.

    Beside it stands the 95 % interval, where there is more than one seed.
    """
    table = [["", "seeds", *columns]]
    for label, logs in runs.items():
        cells = [format_mean(function(logs)) for function in columns.values()]
        table.append([label, str(len(logs)), *cells])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *rest in table:
        padded = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join((first.ljust(widths[0]), *padded)))
    return "\n".join(lines)


def format_mean(values: Sequence[float]) -> str:
    """Mean and 95 % interval; a single value alone."""
    mean, half = mean_and_interval(values)
    digits = 1 if max(map(abs, values)) > 1 else 3
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")
