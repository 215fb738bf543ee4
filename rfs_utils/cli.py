"""The command line: `rfs train`, `rfs pretrain`, `rfs eval`, `rfs download`, `rfs export`."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from .data import generate_tiny_problems, load_math500_test, load_math_train, load_problems
from .download import GRPO_FOLDERS, download_qwen3_grpo_checkpoints
from .evaluate import evaluate_to_file, format_evaluation
from .models import (
    ALIASES,
    HUB_MODELS,
    export_model,
    get_device,
    load_model_and_tokenizer,
    load_weights,
    model_directory,
)
from .sampling import check_sampling
from .trainer import TrainConfig, train

DATA_SETS = {"math500": (load_math500_test, "math500_test.json"), "math-train": (load_math_train, "math_train.json")}


def add_train(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model with reinforcement learning and write a folder of results",
        description="Train a model with reinforcement learning from verifiable rewards.",
        epilog="example: rfs train --model tiny-base --steps 40 --seed 1 --out runs/mine",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    helps = {
        "model": "tiny-base, tiny-reasoning, or the path of a model directory",
        "method": "the algorithm",
        "steps": "number of updates",
        "prompts_per_step": "problems in each update",
        "num_rollouts": "sampled answers for each problem, at least 2",
        "max_new_tokens": "longest answer, in tokens",
        "temperature": "sampling temperature",
        "top_p": "sample from the likeliest tokens that hold this share of the probability",
        "lr": "learning rate",
        "weight_decay": "AdamW's weight decay",
        "max_grad_norm": "gradients are clipped to this norm",
        "memory": "auto fits the device and keeps small models in float32; low takes the least memory",
        "optimizer": "adamw (float32), kahan or stochastic (bfloat16 weights), 8bit; auto follows --memory",
        "micro_batch": "response tokens back-propagated at a time; 0 follows --memory",
        "eval_every": "steps between evaluations on held-out problems",
        "seed": "seed of problems and sampling",
        "out": "folder for the results, new or empty (default: the next free one under runs/)",
    }
    for field in fields(TrainConfig):
        kind = str if field.name == "out" else field.type
        help_text = helps[field.name] if field.name != "out" else helps["out"].replace("%", "%%")
        default = argparse.SUPPRESS if field.name == "out" else field.default
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=default, help=help_text)
    parser.set_defaults(run=lambda args: train(TrainConfig(**{k: v for k, v in vars(args).items() if k != "run"})))


def add_pretrain(commands) -> None:
    parser = commands.add_parser(
        "pretrain",
        help="make tiny-base and tiny-reasoning from nothing",
        description="Train the tokenizer, tiny-base and tiny-reasoning from nothing and write two model directories.",
        epilog="example: rfs pretrain --out my-models",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", default="pretrained", help="folder for the two model directories, new or empty")
    parser.add_argument("--steps", type=int, default=None, help="pre-training steps (default: the recipe's own)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and documents")

    def run(args):
        from .pretrain import pretrain_all

        pretrain_all(args.out, steps=args.steps, seed=args.seed)

    parser.set_defaults(run=run)


def add_eval(commands) -> None:
    parser = commands.add_parser(
        "eval",
        help="measure a model on a set of problems",
        description="Answer problems, grade the answers and report accuracy, length and truncation. A run that stopped "
        "goes on where it was when it is started again with the same output file.",
        epilog="example: rfs eval --model qwen3-0.6b-base --data math500 --limit 100 --out base.jsonl",
    )
    model_help = (
        "tiny-base (the default), tiny-reasoning, qwen3-0.6b-base, qwen3-0.6b, or the path of a model directory"
    )
    parser.add_argument("--model", default="tiny-base", help=model_help)
    parser.add_argument("--checkpoint", help="weights to load into that model: a .safetensors or .pth file")
    parser.add_argument(
        "--data", default="tiny", help="math500, math-train, tiny (the default), or a JSON or JSON-lines file"
    )
    parser.add_argument("--limit", type=int, help="only the first LIMIT problems (default: all; 500 of tiny)")
    parser.add_argument("--batch-size", type=int, default=16, help="responses generated at once (default: %(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=int, help="longest answer, in tokens (default: 2048, if the model can)"
    )
    parser.add_argument(
        "--samples", type=int, default=1, help="answers to each problem (default: 1); more add pass@k and the vote"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="sampling temperature (default: 0, greedy answers)"
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="sample from the likeliest tokens of this probability (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling (default: 0)")
    parser.add_argument("--out", help="file for the answers, one JSON object a line (default: eval-MODEL-DATA.jsonl)")
    parser.set_defaults(run=run_eval)


def run_eval(args) -> None:
    """`rfs eval`: answers go to a file, figures to the screen."""
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"limit must be at least 1, got {args.limit}")
    check_sampling(args.max_new_tokens, args.temperature, args.top_p)  # before anything is downloaded
    problems = load_eval_problems(args.data, args.limit)
    device = get_device()
    model, tokenizer = load_model_and_tokenizer(args.model, device)
    if args.checkpoint:
        load_weights(model, args.checkpoint)
    trained = Path(args.checkpoint or args.model)
    out = args.out or f"eval-{trained.stem if args.checkpoint else trained.name}-{Path(args.data).stem}.jsonl"
    result = evaluate_to_file(
        model, tokenizer, problems, out, device, args.max_new_tokens, args.temperature, args.top_p,
        args.samples, args.seed, args.batch_size, args.limit,
    )  # fmt: skip
    print(f"{args.checkpoint or args.model} on {args.data}\n{format_evaluation(result)}\nanswers in {out}")


def load_eval_problems(data: str, limit: int | None) -> list[dict]:
    """The problems that `--data` names; ValueError for a name that is neither known nor a file."""
    if data == "tiny":
        return generate_tiny_problems(max(500, limit or 0), "test", seed=0)
    if data in DATA_SETS:
        load, file = DATA_SETS[data]
        return load(file)
    if not Path(data).is_file():
        known = ", ".join([*DATA_SETS, "tiny"])
        raise ValueError(f"unknown data {data!r}: known names are {known}, or the path of a problem file")
    return load_problems(data)


def add_download(commands) -> None:
    names = [*HUB_MODELS, *DATA_SETS, *(f"grpo-{kind}" for kind in GRPO_FOLDERS)]
    parser = commands.add_parser(
        "download",
        help="fetch a model, a problem set or a published checkpoint",
        description=f"Fetch one of: {', '.join(names)}.",
        epilog="example: rfs download qwen3-0.6b-base",
    )
    parser.add_argument("name", help="what to fetch; base and reasoning are short for the two models")
    parser.add_argument("--to", help="folder (default: the shared cache for models, else the current folder)")
    parser.add_argument("--step", default="50", help="training step of a grpo checkpoint (default: 50)")
    parser.set_defaults(run=run_download, names=names)


def run_download(args) -> None:
    """`rfs download`: prints where the files are."""
    name = ALIASES.get(args.name, args.name)
    if name not in args.names:
        raise ValueError(f"unknown name {args.name!r}: known names are {', '.join(args.names)}")
    folder = Path(args.to or ".")
    if name in HUB_MODELS:
        path = model_directory(name, args.to)
    elif name in DATA_SETS:
        load, file = DATA_SETS[name]
        path = folder / file
        folder.mkdir(parents=True, exist_ok=True)
        load(path)
    else:
        path = download_qwen3_grpo_checkpoints(name.removeprefix("grpo-"), args.step, folder)
    print(f"{name} is in {path}")


def add_export(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write a trained model as a directory that transformers, TRL and vLLM open",
        description="Write a trained model as a Hugging Face directory, which transformers, TRL and vLLM open.",
        epilog="example: rfs export runs/mine --to my-model",
    )
    parser.add_argument("source", metavar="RUN", help="run folder, model directory, or .safetensors or .pth checkpoint")
    parser.add_argument("--to", required=True, metavar="DIR", help="the new directory")
    parser.add_argument("--model", help="which model a checkpoint belongs to, such as qwen3-0.6b-base")

    def run(args):
        print(f"written to {export_model(args.source, args.to, args.model)}")

    parser.set_defaults(run=run)


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `rfs` command. Returns 0, 2 for bad input (one sentence, no traceback), 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="rfs", description="Train reasoning models with reinforcement learning from verifiable rewards."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_train(commands)
    add_pretrain(commands)
    add_eval(commands)
    add_download(commands)
    add_export(commands)
    args = parser.parse_args(argv)
    del args.command
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"rfs: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrfs: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
