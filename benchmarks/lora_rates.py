"""Which learning rate do adapters want? `rfs train` at several rates, ranks and seeds; a CSV row each, then means.

    python benchmarks/lora_rates.py --seeds 3 --csv benchmarks/lora_rates.csv [any other option of rfs train]

Rank 0 stands for training all weights. Accuracy is that of greedy answers to 500 held-out problems.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

from common import write_rows


def train(rank: int, rate: float, seed: int, options: list[str]) -> float:
    """The held-out accuracy after a run."""
    settings = ["--lr", rate, "--seed", seed, "--eval-every", 0, "--checkpoint-every", 0]
    settings += ["--lora-rank", rank] if rank else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rfs_utils", "train", *settings, "--out", f"{folder}/run", *options]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return json.loads((Path(folder) / "run" / "result.json").read_text())["accuracy_after"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", type=int, nargs="+", default=[0, 1, 8])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3])
    parser.add_argument("--csv", type=Path, default=None)
    args, options = parser.parse_known_args()
    rows = []
    for seed in range(args.seeds):
        for rank in args.ranks:
            for rate in args.rates:
                rows.append({"seed": seed, "rank": rank, "lr": rate, "accuracy": train(rank, rate, seed, options)})
                print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
        if args.csv:
            write_rows(args.csv, rows)
    print("\nmean accuracy\nrank" + "".join(f"{rate:>9.1g}" for rate in args.rates))
    for rank in args.ranks:
        found = ([r["accuracy"] for r in rows if (r["rank"], r["lr"]) == (rank, rate)] for rate in args.rates)
        print(f"{rank:4}" + "".join(f"{mean(values):9.1%}" for values in found))


if __name__ == "__main__":
    main()
