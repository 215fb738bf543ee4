"""The command line: `rfs train`, `rfs pretrain`."""

import argparse
import sys
from dataclasses import fields

from .trainer import TrainConfig, train


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


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `rfs` command. Returns 0, 2 for bad input (one sentence, no traceback), 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="rfs", description="Train reasoning models with reinforcement learning from verifiable rewards."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_train(commands)
    add_pretrain(commands)
    args = parser.parse_args(argv)
    del args.command
    try:
        args.run(args)
    except ValueError as error:
        print(f"rfs: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrfs: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
