"""The command line: `rfs train`, `eval`, `doctor` and more; COMMANDS has them all.

The function of a command returns what it has found or written twice, as data for `--json` and as text.

Functions import what they need: torch takes seconds, and `rfs --help` should not.
"""

import argparse
import difflib
import json
import os
import re
import signal
import sys
import textwrap
from collections.abc import Collection
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from .files.kinds import Kind, SettingError, whole

Outcome = tuple[Any, str]  # data for --json, and text

KEPT = "; what is finished is in the file, and the same command goes on from there"


def describe(parser, description: str, *examples: str) -> None:
    """The text above the options, and below them examples on lines of their own, to be copied."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = textwrap.fill(description, 79, break_on_hyphens=False)
    parser.epilog = "\n  ".join(["examples:", *examples])


def add_train(parser) -> None:
    describe(
        parser,
        "Train a model with reinforcement learning from verifiable rewards, and write a folder with metrics, sampled "
        "answers, checkpoints, a page for the browser and the trained model. Without options: tiny-base on generated "
        "word problems, in less than a minute on two CPU cores. Ctrl-C stops after the step with a checkpoint.",
        "rfs train",
        "rfs train --method dapo --steps 40 --seed 1 --out runs/mine",
        "rfs train --config my.toml --lr 1e-4",
        "rfs train --resume runs/mine",
    )
    from .engine.config import MAY_CHANGE

    parser.usage = "%(prog)s [--config FILE] [--resume RUN] [SETTING ...]"
    parser.add_argument("--config", metavar="FILE", help="settings from a TOML file; those given here have precedence")
    resume_help = (
        "go on with the run in this folder, from its last checkpoint; of the settings, only these can be given then: "
        f"{', '.join(flag(name) for name in MAY_CHANGE if name != 'out')}"
    )
    parser.add_argument("--resume", metavar="RUN", help=resume_help)
    add_settings(parser.add_argument_group("settings"))
    parser.set_defaults(run=run_train)


VALUES = {"prompt": "NAME|FILE", "stop": "TEXT", "chat": "WHEN"}


def unescaped(text: str) -> str:
    """A text with \\n, \\t and \\\\ read as a line break, a tab and a backslash, which are hard to type in a shell."""
    letters = {r"\n": "\n", r"\t": "\t", "\\\\": "\\"}
    return re.sub(r"\\[nt\\]", lambda found: letters[found[0]], text)


def add_prompt(parser) -> None:
    """The options that say how a model is asked, for commands without the other settings of a run."""
    from .engine.config import TrainConfig, setting_kinds

    for field in fields(TrainConfig):
        if field.name in VALUES:
            kind = unescaped if field.name == "stop" else str
            parser.add_argument(flag(field.name), type=kind, metavar=VALUES[field.name], help=field.metadata["help"])
    parser.set_defaults(kinds={**(parser.get_default("kinds") or {}), "chat": setting_kinds()["chat"]})


def given_prompt(args) -> tuple[str | None, str | None, str | None]:
    """What these options say: the prompt's text, the stop text and the chat format, each None where it is not given."""
    from .data import load_prompt

    return args.prompt and load_prompt(args.prompt), args.stop, args.chat


def add_output(parser) -> None:
    """The options that say how much a command writes, and in which form."""
    group = parser.add_argument_group("output")
    group.add_argument("--quiet", action="store_true", help="only results, warnings and errors: no bars, no lines")
    group.add_argument("--json", action="store_true", help="the result as JSON on standard output, and nothing else")


def flag(name: str) -> str:
    """A setting on the command line: --num-rollouts for num_rollouts."""
    return f"--{name.replace('_', '-')}"


def add_number(parser, name: str, kind, text: str, default=None, value: str = "N") -> None:
    """An option for a number of a kind, which `check_options` looks at; with "X" as its value it may be a fraction."""
    parser.add_argument(name, type=float if value == "X" else int, metavar=value, default=default, help=text)
    kinds = {**(parser.get_default("kinds") or {}), name.lstrip("-").replace("-", "_"): kind}
    parser.set_defaults(kinds=kinds)


def check_options(args) -> None:
    """ValueError for the first number that is not of its kind, and for empty text; settings are checked elsewhere."""
    for name, kind in (args.__dict__.pop("kinds", None) or {}).items():
        if getattr(args, name) is not None:
            kind.check(name, getattr(args, name))
    for name, value in vars(args).items():
        if value == "" or isinstance(value, list) and "" in value:
            raise SettingError(f"{name} must be a text that is not empty", name)


def add_settings(parser, without: Collection[str] = ()) -> None:
    """A flag for every setting of a run but some; those that are not given are not in the result."""
    from .ch07 import Method
    from .engine.config import TrainConfig, field_type

    of_method = {field.name for field in fields(Method)}
    for field in fields(TrainConfig):
        if field.name in without:
            continue
        kind, text = field_type(field.name), field.metadata["help"]
        if kind is bool:
            parser.add_argument(flag(field.name), action="store_true", default=argparse.SUPPRESS, help=text)
            continue
        if field.default is not None:
            text += f" (default: {field.default})"
        elif field.name in of_method:
            text += " (default: the method's own)"
        value = {int: "N", float: "X", str: VALUES.get(field.name, field.name.split("_")[-1].upper())}[kind]
        read = unescaped if field.name == "stop" else kind
        parser.add_argument(flag(field.name), type=read, metavar=value, default=argparse.SUPPRESS, help=text)


def given_settings(args) -> dict:
    """The settings of a run among parsed arguments."""
    from .engine.config import TrainConfig

    return {field.name: getattr(args, field.name) for field in fields(TrainConfig) if hasattr(args, field.name)}


def reporter(args):
    """A function that writes lines on the way where they belong: not among JSON."""
    return (lambda text: print(text, file=sys.stderr)) if args.json else print


def progress(args):
    """The same for lines of which none is a result: nothing with --quiet."""
    return (lambda text: None) if args.quiet else reporter(args)


def run_train(args) -> Outcome:
    """`rfs train`, anew or resumed; its text is reported on the way."""
    from .engine import parallel
    from .engine.config import MAY_CHANGE, TrainConfig, read_config
    from .runs.run import resume, train

    settings = given_settings(args)
    parallel.start()
    try:
        if args.resume is None:
            config = TrainConfig(**{**(read_config(args.config) if args.config else {}), **settings})
            return train(config, reporter(args)), ""
        fixed = sorted(settings.keys() - set(MAY_CHANGE) | settings.keys() & {"out"})
        if fixed or args.config:
            what = flag(fixed[0]) if fixed else "--config"
            raise ValueError(f"a run goes on with its own settings: {what} cannot be given with --resume")
        return resume(args.resume, reporter(args), changes=settings), ""
    finally:
        parallel.stop()


def add_pretrain(parser) -> None:
    from .engine.config import setting_kinds
    from .exercises.pretrain import PretrainRecipe

    kinds = setting_kinds()
    describe(
        parser,
        "Train the tokenizer, tiny-base and tiny-reasoning from nothing and write two model directories, in about 14 "
        "minutes on two CPU cores. Ctrl-C keeps the model in the making, under a name that ends with -unfinished.",
        "rfs pretrain --out my-models",
        "rfs pretrain --steps 300 --out first-look",
    )
    out_help = "folder for the two model directories, new or empty (default: %(default)s)"
    parser.add_argument("--out", metavar="DIR", default="pretrained", help=out_help)
    steps_help = f"pre-training steps (default: {PretrainRecipe.steps}, as for the models that come with the book)"
    add_number(parser, "--steps", kinds["steps"], steps_help)
    add_number(parser, "--seed", kinds["seed"], "seed of weights and documents (default: %(default)s)", 0)
    parser.set_defaults(run=run_pretrain)


def run_pretrain(args) -> Outcome:
    """`rfs pretrain`; SIGTERM is Ctrl-C, which keeps the model as it is."""
    from .exercises.pretrain import pretrain_all

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with redirect_stdout(sys.stderr if args.json else sys.stdout):
            pretrain_all(args.out, steps=args.steps, seed=args.seed)
    finally:
        signal.signal(signal.SIGTERM, before)
    return {"written": args.out}, ""


def add_eval(parser) -> None:
    from .engine.config import setting_kinds

    describe(
        parser,
        "Answer problems, grade the answers and report accuracy, length and truncation. An evaluation that was "
        "interrupted goes on where it was when the same command is given again.",
        "rfs eval --model runs/mine",
        "rfs eval --model tiny-base --samples 8 --temperature 1",
        "rfs eval --model qwen3-0.6b-base --data math500 --limit 100",
    )

    def option(name: str, value: str, text: str, default=None) -> None:
        parser.add_argument(name, metavar=value, default=default, help=text)

    kinds = setting_kinds()
    option(
        "--model", "MODEL",
        "tiny-base (the default), tiny-reasoning, a name that rfs download knows, or the path of a run folder or a "
        "model directory", "tiny-base",
    )  # fmt: skip
    option("--checkpoint", "FILE", "weights to load into that model: a .safetensors or .pth file")
    add_prompt(parser)
    option(
        "--data",
        "DATA",
        "tiny (the default), stories-1, stories-2, math500, math-train, or a JSON or JSON-lines file",
        "tiny",
    )
    add_number(parser, "--limit", whole(1, 10**6), "only the first N problems (default: all; 500 of tiny)")
    add_number(parser, "--batch-size", whole(1, 10**5), "responses generated at once (default: %(default)s)", 16)
    tokens_help = "longest answer, in tokens (default: 2048, if the model can)"
    add_number(parser, "--max-new-tokens", kinds["max_new_tokens"], tokens_help)
    samples_help = (
        "answers to each problem (default: 1); more, which need a temperature, add pass@k and the majority vote"
    )
    add_number(parser, "--samples", whole(1, 10**5), samples_help, 1)
    temperature = kinds["temperature"]
    greedy_too = Kind(f"0 or {temperature.text}", lambda value: value == 0 or temperature.fits(value))
    add_number(parser, "--temperature", greedy_too, "sampling temperature (default: 0, greedy answers)", 0.0, "X")
    top_p_help = "sample from the likeliest tokens of this probability (default: 1)"
    add_number(parser, "--top-p", kinds["top_p"], top_p_help, 1.0, "X")
    add_number(parser, "--seed", kinds["seed"], "seed of sampling (default: 0)", 0)
    option("--out", "FILE", "file for the answers, one JSON object a line (default: eval-MODEL-DATA.jsonl)")
    parser.set_defaults(run=run_eval, kept=KEPT)


def run_eval(args) -> Outcome:
    """`rfs eval`: answers go to a file, figures to the screen."""
    from .data import ask_as, problem_set
    from .engine.packing import packed
    from .evaluate import format_evaluation
    from .models import get_device, load_model_and_tokenizer, load_weights, read_prompt
    from .runs.answers import evaluate_to_file

    prompt = given_prompt(args)
    problems = problem_set(args.data, "test", args.limit)
    device = get_device()
    model, tokenizer = load_model_and_tokenizer(args.model, device)
    if args.checkpoint:
        load_weights(model, args.checkpoint)
        read_prompt(Path(args.checkpoint).parent, tokenizer)
    ask_as(tokenizer, *prompt)
    trained = Path(args.checkpoint or args.model)
    name = trained.stem if args.checkpoint else trained.name
    if name == "model":  # of a run, or of one of its checkpoints, whose folder says which
        name = next((part for part in reversed(trained.resolve().parts[:-1]) if part != "model"), name)
    out = args.out or f"eval-{name}-{Path(args.data).stem}.jsonl"
    result = evaluate_to_file(
        packed(model), tokenizer, problems, out, device, args.max_new_tokens, args.temperature, args.top_p,
        args.samples, args.seed, args.batch_size, args.limit,
    )  # fmt: skip
    asked = f"{args.checkpoint or args.model} on {args.data}"
    data = {
        "model": args.checkpoint or args.model, "data": args.data, "answers": len(result.records),
        "accuracy": result.accuracy, "mean_tokens": result.mean_tokens, "truncated": result.truncated,
        "levels": {name: part.accuracy for name, part in result.by("level").items()}, "written": out,
    }  # fmt: skip
    return data, f"{asked}\n{format_evaluation(result)}\nanswers in {out}"


def add_plot(parser) -> None:
    describe(
        parser,
        "Draw the metrics of runs. Runs that differ in nothing but the seed become one curve with a band from the "
        "lowest to the highest.",
        "rfs plot runs/mine",
        "rfs plot runs/mine --columns entropy,kl,grad_norm --out more.png",
        "rfs plot runs/grpo-seed0 runs/grpo-seed1 runs/rloo-seed0 --out compared.png",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    columns_help = (
        "columns of metrics.csv, separated by commas (default: reward_avg, avg_response_len and eval_accuracy)"
    )
    parser.add_argument("--columns", metavar="A,B,...", help=columns_help)
    add_number(parser, "--window", whole(1, 10**6), "steps of the moving average (default: %(default)s)", 5)
    out_help = "picture to write: .png, .svg or .pdf (default: %(default)s)"
    parser.add_argument("--out", metavar="FILE", default="runs.png", help=out_help)
    parser.set_defaults(run=run_plot)


def run_plot(args) -> Outcome:
    """`rfs plot`: a picture of several runs."""
    from .ch07 import plot_grpo_metrics
    from .plots import save_figure

    columns = args.columns.split(",") if args.columns else []
    figure = plot_grpo_metrics(group_runs(args.runs, columns), columns or None, args.window)
    save_figure(figure, args.out)
    return {"written": args.out}, f"written to {args.out}"


def group_runs(folders: list[str], columns: list[str]) -> dict[str, list[dict]]:
    """The metrics of run folders, by the settings in which they differ besides seed and folder.

    ValueError when a folder is none of a run, or its metrics lack one of the columns.
    """
    from .engine.config import read_config
    from .runs.folder import read_run

    settings = {}
    for folder in map(Path, folders):
        if not (folder / "metrics.csv").is_file():
            raise ValueError(f"{folder} is not the folder of a run; expected metrics.csv in it")
        config = read_config(folder / "config.toml") if (folder / "config.toml").is_file() else {"run": folder.name}
        settings[folder] = {key: value for key, value in config.items() if key not in ("seed", "out")}
    every = {key for config in settings.values() for key in config}
    differ = sorted(key for key in every if len({str(config.get(key)) for config in settings.values()}) > 1)
    groups: dict[str, list[dict]] = {}
    for folder, config in settings.items():
        label = ", ".join(str(config.get(k)) if k in ("method", "run") else f"{k} {config.get(k)}" for k in differ)
        groups.setdefault(label or config.get("method", folder.name), []).append(read_run(folder, ("step", *columns)))
    return groups


def add_samples(parser) -> None:
    describe(
        parser,
        "Print answers that a run has sampled and kept, with their rewards, best first; or write the page that shows "
        "them token by token. A run keeps two groups of its first step and of every step with an evaluation.",
        "rfs samples runs/mine --step 20 --search 'Ann apples'",
        "rfs samples runs/mine --html",
    )
    parser.add_argument("run_folder", metavar="RUN", help="run folder")
    add_number(parser, "--step", whole(1, 10**6), "training step (default: the last one kept)")
    parser.add_argument("--search", metavar="WORDS", help="only answers with these words in them or in their problem")
    add_number(parser, "--limit", whole(1, 10**6), "how many answers (default: %(default)s)", 8)
    parser.add_argument("--html", action="store_true", help="write the page RUN/report.html instead")
    parser.set_defaults(run=run_samples)


def run_samples(args) -> Outcome:
    """`rfs samples`: to the screen, or as a page."""
    from .runs.page import write_page
    from .runs.samples import best_samples, format_samples_text, read_samples

    folder = Path(args.run_folder)
    if args.html:
        path = write_page(folder)
        return {"written": str(path)}, f"written to {path}; open it in a browser"
    if not folder.is_dir():
        raise ValueError(f"there is no run folder {folder}")
    chosen = best_samples(read_samples(folder), args.step, args.limit, args.search)
    return chosen, format_samples_text(chosen)


def add_report(parser) -> None:
    describe(
        parser,
        "Write a page that compares two runs: results, the settings in which they differ, every curve of both, and "
        "their sampled answers by problem. `rfs samples RUN --html` writes the page of one.",
        "rfs report runs/grpo runs/rloo",
        "rfs report runs/grpo runs/rloo --out grpo-rloo.html",
    )
    parser.add_argument("runs", nargs=2, metavar="RUN", help="run folder")
    out_help = "page to write: .html (default: %(default)s)"
    parser.add_argument("--out", metavar="FILE", default="two-runs.html", help=out_help)
    parser.set_defaults(run=run_report)


def run_report(args) -> Outcome:
    """`rfs report`: two runs as one page."""
    from .runs.two import write_report

    path = write_report(args.runs, args.out)
    return {"written": str(path)}, f"written to {path}; open it in a browser"


def add_watch(parser) -> None:
    describe(
        parser,
        "Follow a run that goes on, in another terminal or process: RUN/report.html is written again whenever the run "
        "has logged a step, and a browser in which it is open shows it. It ends with the run.",
        "rfs watch runs/mine",
        "rfs watch runs/mine --every 30",
    )
    parser.add_argument("run_folder", metavar="RUN", help="run folder")
    add_number(parser, "--every", whole(1, 86_400), "seconds between two looks (default: %(default)s)", 5)
    parser.set_defaults(run=run_watch, kept="; the page stays as it is, `rfs samples RUN --html` writes it again")


def run_watch(args) -> Outcome:
    """`rfs watch`: a page that follows the run."""
    from .runs.live import follow

    path = follow(args.run_folder, args.every, progress(args))
    return {"written": str(path)}, f"written to {path}"


def add_doctor(parser) -> None:
    describe(
        parser,
        "Say why a run may not learn, in plain words: what its log shows, and what to try. A run that still goes on, "
        "or has been cut short, can be examined, too.",
        "rfs doctor runs/mine",
        "rfs doctor runs/mine --json",
    )
    parser.add_argument("run_folder", metavar="RUN", help="run folder")
    parser.set_defaults(run=run_doctor)


def run_doctor(args) -> Outcome:
    """`rfs doctor`."""
    from .runs.doctor import as_records, examine, format_findings

    findings = examine(args.run_folder)
    return as_records(findings), format_findings(args.run_folder, findings)


# Settings of a run that a comparison decides itself, or has no use for.
NOT_COMPARED = (
    "method", "seed", "out", "eval_data", "eval_problems", "checkpoint_every", "keep_checkpoints", "stop_on_collapse",
    "tensorboard", "track", "shard",
)  # fmt: skip


def add_compare(parser) -> None:
    from .ch07 import METHODS

    describe(
        parser,
        "Train several methods under equal conditions, over several seeds, and print a table with intervals. "
        "Evaluations go to a CSV file, and the settings to a TOML file beside it; runs that are there already are not "
        "repeated. Accuracy is that of greedy answers to 200 held-out problems, of --data where that is generated, "
        "else tiny ones: after the last step (equal steps), and when each had used the seconds of the quickest run "
        "(equal seconds). A ranking at one learning rate is a ranking of that rate: choose each method's own with "
        "--grid and --tune, then compare with --best-of.",
        "rfs compare --methods grpo,rloo --seeds 3 --steps 20 --csv short.csv",
        "rfs compare --methods grpo,rloo --grid lr=1e-4,3e-4 --tune --csv tuning.csv",
        "rfs compare --methods grpo,rloo --best-of tuning.csv --seeds 10 --csv best.csv",
    )
    parser.usage = "%(prog)s [--methods A,B] [--seeds N] [--grid NAME=V,V] [SETTING ...]"
    parser.allow_abbrev = False  # --seed is not short for --seeds
    methods_help = f"methods, separated by commas (default: all, which are {', '.join(METHODS)})"
    parser.add_argument("--methods", metavar="A,B,...", help=methods_help)
    add_number(parser, "--seeds", whole(1, 10**4), "number of seeds, from 0 on (default: %(default)s)", 5)
    grid_help = "values that a setting is to take, such as lr=1e-4,3e-4; several are combined"
    parser.add_argument("--grid", metavar="NAME=V,V", action="append", default=[], help=grid_help)
    tune_help = "use seeds and held-out problems that no other comparison has, to choose settings by"
    parser.add_argument("--tune", action="store_true", help=tune_help)
    best_help = "train each method with the settings that ended best in this CSV of --grid"
    parser.add_argument("--best-of", metavar="FILE", help=best_help)
    csv_help = "file for the evaluations (default: %(default)s)"
    parser.add_argument("--csv", metavar="FILE", default="compare.csv", help=csv_help)
    add_settings(parser.add_argument_group("settings"), NOT_COMPARED)
    parser.set_defaults(run=run_compare, kept=KEPT)


def run_compare(args) -> Outcome:
    """`rfs compare`: runs, then the table."""
    from .ch07 import METHODS
    from .engine.config import TrainConfig
    from .runs.compare import TUNING_SEEDS, compare, parse_grid
    from .runs.comparison import best_settings, read_comparison, summarise

    named = (args.methods or ",".join(METHODS)).split(",")
    methods = list(dict.fromkeys(name.strip() for name in named if name.strip()))
    if not methods:
        raise ValueError(f"methods must be some of {', '.join(METHODS)}, separated by commas; got {args.methods!r}")
    if args.best_of and (args.grid or args.tune):
        raise ValueError("--best-of takes its settings from a file; expected no --grid and no --tune beside it")
    allowed = [field.name for field in fields(TrainConfig) if field.name not in NOT_COMPARED]
    grid = parse_grid(args.grid, allowed)
    settings = best_settings(args.best_of, args.methods and methods) if args.best_of else methods
    first = TUNING_SEEDS if args.tune else 0
    seeds = range(first, first + args.seeds)
    compare(settings, seeds, TrainConfig(**given_settings(args)), args.csv, grid, progress(args))
    rows = [row for row in read_comparison(args.csv) if row["method"] in methods]
    return {"written": args.csv, "evaluations": rows}, f"\n{summarise(args.csv, methods)}"


def add_download(parser) -> None:
    from .data import PROBLEM_SETS
    from .hub.download import GRPO_FOLDERS
    from .models import HUB_MODELS

    checkpoints = [f"grpo-{kind}" for kind in GRPO_FOLDERS]
    describe(
        parser,
        f"Fetch a model ({', '.join(HUB_MODELS)}), a problem set ({', '.join(PROBLEM_SETS)}) or a checkpoint that the "
        f"printed book's author has published ({', '.join(checkpoints)}).",
        "rfs download qwen3-0.6b-base",
        "rfs download smollm2-135m-instruct",
        "rfs download math500",
        "rfs download grpo-no_kl --step 50 --to checkpoints",
    )
    name_help = "one of these; base and reasoning are short for qwen3-0.6b-base and qwen3-0.6b"
    parser.add_argument("name", metavar="NAME", help=name_help)
    to_help = "folder (default: for a model the cache that Hugging Face libraries share, else the current folder)"
    parser.add_argument("--to", metavar="DIR", help=to_help)
    add_number(parser, "--step", whole(1, 99_999), "training step of the checkpoint (default: %(default)s)", 50)
    parser.set_defaults(run=run_download, names=[*HUB_MODELS, *PROBLEM_SETS, *checkpoints])


def run_download(args) -> Outcome:
    """`rfs download`: prints where the files are."""
    from .data import PROBLEM_SETS
    from .hub.download import download_qwen3_grpo_checkpoints
    from .models import ALIASES, HUB_MODELS, model_directory

    name = ALIASES.get(args.name, args.name)
    if name not in args.names:
        raise ValueError(f"unknown name {args.name!r}: known names are {', '.join(args.names)}")
    folder = Path(args.to or ".")
    if name in HUB_MODELS:
        path = model_directory(name, args.to)
    elif name in PROBLEM_SETS:
        load, file = PROBLEM_SETS[name]
        path = folder / file
        folder.mkdir(parents=True, exist_ok=True)
        load(path)
    else:
        path = download_qwen3_grpo_checkpoints(name.removeprefix("grpo-"), args.step, folder)
    return {"written": str(path)}, f"{name} is in {path}"


def add_import(parser) -> None:
    describe(
        parser,
        "Make a Hugging Face directory of a GGUF file, the format of llama.cpp, with a Qwen3, Qwen2 or Llama model in "
        "it; quantised weights are de-quantised. This needs the package gguf: pip install gguf.",
        "rfs import SmolLM2-135M-Instruct.Q4_1.gguf --to smollm2",
    )
    parser.add_argument("file", metavar="FILE", help="the GGUF file")
    parser.add_argument("--to", required=True, metavar="DIR", help="the new directory")

    def run(args) -> Outcome:
        from .models import import_gguf

        path = import_gguf(args.file, args.to)
        return {"written": str(path)}, f"written to {path}"

    parser.set_defaults(run=run)


def add_export(parser) -> None:
    describe(
        parser,
        "Write a trained model as a Hugging Face directory, which transformers, TRL and vLLM open. Its README.md says "
        "how to ask it.",
        "rfs export runs/mine --to my-model",
        "rfs export runs/mine/checkpoints/step-00050 --to step-50",
        "rfs export weights.pth --model qwen3-0.6b-base --prompt mine.txt --to dir",
    )
    source_help = "run folder, model directory, or file of weights: .safetensors or .pth"
    parser.add_argument("source", metavar="RUN", help=source_help)
    parser.add_argument("--to", required=True, metavar="DIR", help="the new directory")
    model_help = "which model a file of weights belongs to, such as qwen3-0.6b-base"
    parser.add_argument("--model", metavar="MODEL", help=model_help)
    add_prompt(parser)

    def run(args) -> Outcome:
        from .runs.export import export_model

        path = export_model(args.source, args.to, args.model, *given_prompt(args))
        return {"written": str(path)}, f"written to {path}"

    parser.set_defaults(run=run)


COMMANDS = {
    "train": (add_train, "train a model with reinforcement learning and write a folder of results"),
    "pretrain": (add_pretrain, "make tiny-base and tiny-reasoning from nothing"),
    "eval": (add_eval, "measure a model on a set of problems"),
    "plot": (add_plot, "draw the curves of one or several runs"),
    "samples": (add_samples, "show rollouts that a run has kept"),
    "report": (add_report, "compare two runs, as a page for the browser"),
    "watch": (add_watch, "follow a run that goes on, in a browser"),
    "doctor": (add_doctor, "say why a run may not learn, and what to try"),
    "compare": (add_compare, "train several methods over several seeds and print a table"),
    "download": (add_download, "fetch a model, a problem set or a published checkpoint"),
    "import": (add_import, "make a model directory of a GGUF file"),
    "export": (add_export, "write a trained model as a directory that transformers, TRL and vLLM open"),
}


def installed_version() -> str:
    """The package's version, where it is installed and not only on the path."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rfs-utils")
    except PackageNotFoundError:
        return "not installed"


class Parser(argparse.ArgumentParser):
    """A parser that says what may have been meant by a mistyped command or option."""

    options: Collection[str] = ()  # of the command, which the parser of all commands reports the unknown ones of

    def error(self, message: str) -> NoReturn:
        """Usage and one sentence, exit code 2."""
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown and (meant := nearest(unknown[1], self.options)):
            message += f"; did you mean {meant}?"
        super().error(message)


OTHER_NAMES = {
    "--learning-rate": "--lr",
    "--temp": "--temperature",
    "--epochs": "--steps",
    "--output": "--out",
    "--to": "--out",
    "--prompt": "--search",  # of samples, which has no prompt of its own
}


def nearest(word: str, known: Collection[str]) -> str | None:
    """The known word that a mistyped one is likeliest to be, or None."""
    if OTHER_NAMES.get(word) in known:
        return OTHER_NAMES[word]
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def make_parser(words: list[str]) -> argparse.ArgumentParser:
    """The parser of the command line `words`: all commands with a line of help, and the options of the one named."""
    parser = Parser(
        prog="rfs",
        description="Train reasoning models with reinforcement learning from verifiable rewards.",
        epilog="To begin: rfs train. All options of a command: rfs COMMAND --help.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {installed_version()}")
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        meant = nearest(words[0], COMMANDS)
        hint = f"did you mean {meant}?" if meant else f"there are {', '.join(COMMANDS)}"
        parser.error(f"there is no command {words[0]!r}; {hint}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (add_options, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name in words:
            import_module(".runs.run", __package__)  # and with it torch and nearly all that a command may need
            add_options(command)
            add_output(command)
            parser.options = [option for action in command._actions for option in action.option_strings]
    return parser


@contextmanager
def ended_by_ctrl_c():
    """Ctrl-C ends the process at once: in the middle of an import, KeyboardInterrupt can turn into any other error."""

    def end(number, frame):
        os.write(2, b"\nrfs: interrupted\n")
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:  # as it is for a job in the background
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `rfs` command; the exit code is 2 for bad input, which gets one sentence and no traceback.

    It is 1 for a run that failed, and 130 or 143 after Ctrl-C or SIGTERM.
    """
    with ended_by_ctrl_c() if argv is None else nullcontext():  # the process is not ours when another program calls
        if argv is None and (not sys.stderr.isatty() or "--quiet" in sys.argv):
            os.environ.setdefault("TQDM_DISABLE", "1")  # bars that are not terminal.py's, such as those of downloads
        parser = make_parser(sys.argv[1:] if argv is None else argv)
        args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    return run_command(args)


def run_command(args) -> int:
    """Do what the arguments say; the exit code of `main`."""
    from .memory_errors import is_out_of_memory
    from .runs.run import RunFailed, RunStopped
    from .terminal import set_quiet

    del args.command
    set_quiet(args.quiet)
    try:
        check_options(args)
        data, text = args.run(args)
        if args.json:
            print(json.dumps(data, ensure_ascii=False, indent=2))
        elif text:
            print(text)
    except OSError as error:  # without its number; a temporary file's second name is the one that people know
        name = error.filename2 or error.filename
        print(f"rfs: error: {f'{name}: {error.strerror}' if name else error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"rfs: error: {error.spelt(as_typed) if isinstance(error, SettingError) else error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"rfs: error: {error}", file=sys.stderr)
        return 1
    except RunStopped as stop:
        print(f"\nrfs: {stop}", file=sys.stderr)
        return 128 + (stop.number or signal.SIGINT)
    except KeyboardInterrupt as stop:  # some say what they have kept
        kept = f"; {stop}" if stop.args else getattr(args, "kept", "")
        print(f"\nrfs: interrupted{kept}", file=sys.stderr)
        return 130
    except Exception as error:
        if is_out_of_memory(error):
            said = str(error).strip().partition("\n")[0] or type(error).__name__
            print(f"rfs: error: there is too little memory for this: {said}", file=sys.stderr)
            return 1
        if type(error) is Exception and "(os error" in str(error):  # how the tokenizers library says it of a file
            print(f"rfs: error: a file cannot be read or written: {error}", file=sys.stderr)
            return 2
        raise
    finally:
        set_quiet(False)  # for a program that calls `main` several times
    return 0


PLACES = {"run_folder": "RUN", "runs": "RUN", "source": "RUN", "name": "NAME", "file": "FILE"}  # have no option


def as_typed(name: str) -> str:
    """A setting or argument as it is typed on the command line."""
    return PLACES.get(name) or flag(name)


if __name__ == "__main__":
    sys.exit(main())
