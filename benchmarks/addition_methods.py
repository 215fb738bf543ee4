"""The methods of the addition lab over seeds, on one thread; appends finished runs to a CSV, and can be interrupted.

python benchmarks/addition_methods.py [--methods grpo,rloo] [--seeds 5] [--csv rfs_utils/results/addition.csv]
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from common import listed

from rfs_utils.exercises.addition_dpo import iterate_dpo
from rfs_utils.exercises.addition_rl import ADDITION_RESULTS, RECIPES, train_recipe
from rfs_utils.runs.compare import run_missing

RUNS = {name: partial(train_recipe, recipe) for name, recipe in RECIPES.items()} | {"dpo": iterate_dpo}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(RUNS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--csv", type=Path, default=ADDITION_RESULTS)
    args = parser.parse_args()
    names = listed(parser, args.methods, RUNS)
    torch.set_num_threads(1)
    runs = {(name,): RUNS[name] for name in names}
    run_missing(args.csv, runs, range(args.seeds), report=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
