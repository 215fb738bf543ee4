"""The old DPO run with one line mended at a time, on one thread: rfs_utils/results/autopsy.csv.

python benchmarks/autopsy.py [--seeds 3] [--steps 40] [--mends none,all,masked]     (runs that are there are kept)
"""

import argparse
from pathlib import Path

import torch
from common import listed

from rfs_utils.exercises.autopsy import AUTOPSY_RESULTS, MENDS, autopsy_run, read_autopsy
from rfs_utils.files import append_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... of each run")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--mends", default=",".join(MENDS), help="lines to mend, each in runs of its own")
    parser.add_argument("--csv", type=Path, default=AUTOPSY_RESULTS)
    args = parser.parse_args()
    names = listed(parser, args.mends, MENDS)
    torch.set_num_threads(1)
    rows = read_autopsy(args.csv) if args.csv.exists() else []
    done = {(row["mend"], row["seed"], row["steps"]) for row in rows}
    for seed, name in [(seed, name) for seed in range(args.seeds) for name in names]:
        if (name, seed, args.steps) in done:
            continue
        found = {key: f"{value:.4f}" for key, value in autopsy_run(MENDS[name], seed, args.steps).items()}
        append_rows(args.csv, [{"mend": name, "seed": str(seed), "steps": str(args.steps)} | found], key="mend")
        print(name, seed, found, flush=True)


if __name__ == "__main__":
    main()
