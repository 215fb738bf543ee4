"""The methods of the addition lab over seeds, on one thread; appends finished runs to a CSV, and can be interrupted.

python benchmarks/addition_methods.py [--methods grpo,rloo] [--seeds 5] [--csv rfs_utils/results/addition.csv]
"""

import argparse
from pathlib import Path

import torch

from rfs_utils.addition_rl import RECIPES, RESULTS, run_methods


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(RECIPES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--csv", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run_methods(args.csv, args.methods.split(","), args.seeds, report=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
