"""Make the results that the exercises show, over several seeds, on one thread: the CSV files in rfs_utils/results.

python benchmarks/experiments.py ex06_partial_rewards ex06_temperature --seeds 5     (runs that are there are kept)
"""

import argparse

import torch

from rfs_utils.exercises.experiments import EXPERIMENTS, run_experiment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *EXPERIMENTS], metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... of each run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.names or EXPERIMENTS:
        run_experiment(name, range(args.seeds))


if __name__ == "__main__":
    main()
