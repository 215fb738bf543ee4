"""Methods side by side: short runs over seeds and settings, whose evaluations are appended to a CSV."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..data import GENERATED, ask_as, generated
from ..engine.config import TrainConfig, field_type, format_config, read_config
from ..engine.learner import Learner, training_problems
from ..evaluate import evaluate_model
from ..files import write_atomically
from ..models import load_model_and_tokenizer, load_tokenizer, model_directory
from ..threads import hold
from .comparison import append_run, finished_runs
from .folder import seed_everything

TUNING_SEEDS = 1000  # settings are chosen with seeds from here on, and on held-out problems of their own
Grid = Mapping[str, Sequence]  # settings of TrainConfig and the values that each is to take


def short_run(
    num_problems: int = 200,
    clock: Callable[[], float] = time.perf_counter,
    held_out_seed: int = 0,
    **settings,
) -> dict[str, list[float | None]]:
    """Train a model, on the CPU, without writing anything; returns the columns that `rfs train` writes to metrics.csv.

    `settings` are those of TrainConfig. Accuracy on `num_problems` held-out problems, of the kind of `data` where that
    is generated, else tiny ones, is measured before the first step, as step 0, every `eval_every` steps, and after the
    last; `held_out_seed` chooses them. `seconds`, by `clock`, counts training alone.
    """
    config = TrainConfig(**settings)
    model, tokenizer = load_model_and_tokenizer(config.model, "cpu")
    held_out = generated(config.data if config.data in GENERATED else "tiny", num_problems, "test", held_out_seed)
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


def compare(
    methods: Iterable[str | Mapping],
    seeds: Sequence[int],
    config: TrainConfig,
    path: str | Path,
    grid: Grid | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Train every method, with every combination of the grid's values and every seed, and append it all to a CSV.

    A method is a name, or a mapping of `method` and other settings, as `best_settings` returns them, which stand in
    columns of their own, like those of the grid. All other settings stand in a TOML file beside it. Runs that are there
    already are kept. All run on one thread, and seconds are those of the processor: a busy machine then treats all
    methods alike. Raises ValueError for unknown methods and settings, for a file that is something else or cannot be
    written, and for one that was made with other settings.
    """
    named = [{"method": m} if isinstance(m, str) else dict(m) for m in methods]
    values = [dict(zip(grid or (), row, strict=True)) for row in itertools.product(*(grid or {}).values())]
    runs = [one | row for one in named for row in values]
    configs = [replace(config, **run) for run in runs]
    for one in configs:
        one.check()
    varied = tuple(name for name in vars(config) if name in runs[0] and name != "method")
    finished_runs(path, varied)  # something else is found before anything is written
    tokenizer = load_tokenizer(model_directory(config.model))
    ask_as(tokenizer, config.prompt, config.stop, config.chat)  # so is a stop text that never comes
    keep_settings(path, config, varied)
    with hold(1):
        keys = [tuple(str(run[name]) for name in ("method", *varied)) for run in runs]
        calls = {key: partial(evaluations, one) for key, one in zip(keys, configs, strict=True)}
        run_missing(path, calls, seeds, report, varied)


def run_missing(
    path: str | Path,
    runs: Mapping[tuple[str, ...], Callable[[int], list[dict]]],
    seeds: Sequence[int],
    report: Callable[[str], None] = print,
    varied: Sequence[str] = (),
) -> None:
    """Call every run, a function from a seed to rows, with every seed, and append what is finished to a CSV.

    The key of a run is its method and the values of the settings that are `varied`. Rows have the keys MEASURED without
    the seed, with None for what was not measured. Runs that are in the file already are kept.
    """
    done = finished_runs(path, varied)
    for key, seed in [(key, seed) for seed in seeds for key in runs]:
        label = f"{' '.join(key):22} seed {seed}"
        if (*key, seed) in done:
            report(f"{label}  is in {path} already")
            continue
        rows = runs[key](seed)
        append_run(path, dict(zip(("method", *varied), key, strict=True)), seed, rows)
        report(f"{label}  accuracy {rows[-1]['accuracy']:6.1%}  {rows[-1]['seconds']:.1f} s")


def parse_grid(texts: Sequence[str], allowed: Sequence[str]) -> dict[str, list]:
    """The grid that texts such as "lr=1e-4,3e-4" mean; ValueError for settings that are not allowed, or bad values."""
    grid = {}
    for text in texts:
        name, _, listed = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in allowed or not listed:
            raise ValueError(f"--grid must be like lr=1e-4,3e-4, a setting and its values; got {text!r}")
        kind = field_type(name)
        try:
            grid[name] = [kind(value) for value in listed.split(",")]
        except ValueError:
            raise ValueError(f"--grid {name} must have values of type {kind.__name__}; got {listed!r}") from None
    return grid


def keep_settings(path: str | Path, config: TrainConfig, varied: Sequence[str] = ()) -> None:
    """Write the settings of a comparison beside its CSV; ValueError when they differ from those that are there."""
    beside = Path(path).with_suffix(".toml")
    defaults = {name: getattr(TrainConfig(), name) for name in ("method", "seed", *varied)}
    same = replace(config, **defaults, out=None)
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


def evaluations(config: TrainConfig, seed: int) -> list[dict]:
    """A row for each evaluation of a run, with the answers that were sampled up to there, whatever for."""
    settings = {k: v for k, v in vars(config).items() if k != "out"} | {"seed": seed}
    run = short_run(clock=time.process_time, held_out_seed=int(seed >= TUNING_SEEDS), **settings)
    columns = {
        "step": run["step"],
        "samples": list(itertools.accumulate(count or 0 for count in run["samples"])),
        "seconds": run["seconds"],
        "accuracy": run["eval_accuracy"],
        "tokens": run["eval_tokens"],
        "reward": run["reward_avg"],
    }
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [row for row in rows if row["accuracy"] is not None]
