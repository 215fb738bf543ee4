"""Which learning rate do adapters want? The runs of `rfs train --lora-rank R --lr X`, over seeds; then means.

    python benchmarks/lora_rates.py --ranks 1 8 --seeds 1 --csv benchmarks/lora_rates.csv
    python benchmarks/lora_rates.py --ranks 1 8 --rates 1e-3 --csv benchmarks/lora_rates.csv
    python benchmarks/lora_rates.py --ranks 0 --rates 3e-4 --csv benchmarks/lora_rates.csv

Rank 0 stands for training all weights. `accuracy` is that of greedy answers to 200 held-out problems after the last
step, `last_reward` the mean reward of the last ten steps. Runs that are in the file already are not repeated.
"""

import argparse
import sys
from itertools import product
from pathlib import Path
from statistics import mean

import torch
from common import read_rows, write_rows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rfs_utils.data import generate_tiny_problems
from rfs_utils.engine.config import TrainConfig
from rfs_utils.engine.learner import Learner, training_problems
from rfs_utils.evaluate import evaluate_model
from rfs_utils.models import load_model_and_tokenizer


def train(rank: int, alpha: float, rate: float, seed: int, steps: int) -> dict:
    """A run, and what has become of it."""
    config = TrainConfig(steps=steps, seed=seed, lr=rate, lora_rank=rank or None, lora_alpha=alpha)
    model, tokenizer = load_model_and_tokenizer(config.model, "cpu")
    torch.manual_seed(seed)
    learner = Learner(config, model, tokenizer, training_problems(config))
    rewards = [learner.step()["reward_avg"] for _ in range(steps)]
    result = evaluate_model(model, tokenizer, generate_tiny_problems(200, "test", seed=0), "cpu", config.max_new_tokens)
    return {
        "seed": seed, "rank": rank, "alpha": alpha if rank else None, "lr": rate, "steps": steps,
        "accuracy": result.accuracy, "last_reward": round(mean(rewards[-10:]), 4),
    }  # fmt: skip


def accuracy(rows: list[dict], rank: int, rate: float) -> float:
    """The mean over seeds."""
    return mean(float(row["accuracy"]) for row in rows if int(row["rank"]) == rank and float(row["lr"]) == rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", type=int, nargs="+", default=[0, 1, 8])
    parser.add_argument("--alpha", type=float, default=TrainConfig.lora_alpha)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--csv", type=Path, default=None)
    args = parser.parse_args()
    rows = read_rows(args.csv) if args.csv else []
    done = {(int(row["seed"]), int(row["rank"]), float(row["lr"])) for row in rows}
    for seed, rank, rate in product(range(args.seeds), args.ranks, args.rates):
        if (seed, rank, rate) not in done:
            rows.append(train(rank, args.alpha, rate, seed, args.steps))
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
            if args.csv:
                write_rows(args.csv, rows)
    print("\nmean accuracy\nrank" + "".join(f"{rate:>9.1g}" for rate in args.rates))
    for rank in args.ranks:
        print(f"{rank:4}" + "".join(f"{accuracy(rows, rank, rate):9.1%}" for rate in args.rates))


if __name__ == "__main__":
    main()
