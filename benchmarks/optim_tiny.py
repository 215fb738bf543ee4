"""Do the low-memory optimisers learn as well as AdamW in float32? Trains the tiny model with each, over seeds.

    python benchmarks/optim_tiny.py --steps 200 --seeds 3

Prints one line of JSON a run, then the mean held-out accuracy of every optimiser and its distance from AdamW's, with
the standard error over seeds, in points. All but AdamW train bfloat16 weights, on any machine.
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rfs_utils.data import generate_tiny_problems  # noqa: E402
from rfs_utils.engine.config import TrainConfig
from rfs_utils.engine.learner import Learner, training_problems
from rfs_utils.engine.optim import OPTIMIZERS
from rfs_utils.evaluate import evaluate_model  # noqa: E402
from rfs_utils.models import load_model_and_tokenizer  # noqa: E402


def run(config: TrainConfig, held_out: list[dict]) -> dict:
    """Train with one optimiser and seed; accuracy and mean response length on held-out problems."""
    model, tokenizer = load_model_and_tokenizer(config.model, "cpu")
    torch.manual_seed(config.seed)
    learner = Learner(config, model, tokenizer, training_problems(config))
    for _ in range(config.steps):
        metrics = learner.step()
    result = evaluate_model(model, tokenizer, held_out, "cpu", max_new_tokens=config.max_new_tokens)
    return {
        "optimizer": config.optimizer, "seed": config.seed, "steps": config.steps, "lr": config.lr,
        "accuracy": result.accuracy, "tokens": result.mean_tokens, "last_reward": metrics["reward_avg"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-base")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=TrainConfig().lr)
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS)
    parser.add_argument("--problems", type=int, default=500, help="held-out problems")
    args = parser.parse_args()
    held_out = generate_tiny_problems(args.problems, "test", seed=0)
    accuracy: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        for name in args.optimizers:
            dtype = "float32" if name == "adamw" else "bfloat16"
            config = TrainConfig(model=args.model, steps=args.steps, lr=args.lr, optimizer=name, dtype=dtype, seed=seed)
            found = run(config, held_out)
            accuracy.setdefault(name, []).append(100 * found["accuracy"])
            print(json.dumps(found), flush=True)
    for name, values in accuracy.items():
        line = f"{name:12}{statistics.mean(values):7.1f} %"
        if "adamw" in accuracy and name != "adamw":
            differences = [a - b for a, b in zip(values, accuracy["adamw"], strict=True)]
            spread = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
            line += f"   {statistics.mean(differences):+5.1f} points from adamw, standard error {spread:.1f}"
        print(line)


if __name__ == "__main__":
    main()
