"""Does every seed learn? `rfs train` for several seeds, one after another: a CSV row each, then mean, min, max.

python benchmarks/train_seeds.py --seeds 5 --csv benchmarks/train_seeds.csv [any other option of rfs train]
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from common import write_rows

from rfs_utils.plots import read_metrics

COLUMNS = (
    "accuracy_before", "accuracy_after", "tokens_before", "tokens_after", "harder_accuracy_before",
    "harder_accuracy_after", "seconds", "seconds_to_95",
)  # fmt: skip


def seconds_to(accuracy: float, metrics: Path) -> float:
    """Seconds of training until an evaluation on the 100 held-out problems first found this accuracy."""
    table = read_metrics(metrics)
    found = [s for s, value in zip(table["seconds"], table["eval_accuracy"], strict=True) if (value or 0) >= accuracy]
    return found[0] if found else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--csv", type=Path, default=None)
    args, options = parser.parse_known_args()
    rows = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "rfs_utils.cli", "train", "--seed", str(seed), "--out", f"{folder}/run"]
            subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            result = json.loads((Path(folder) / "run" / "result.json").read_text())
            result["seconds_to_95"] = seconds_to(0.95, Path(folder) / "run" / "metrics.csv")
        rows.append({"seed": seed, "steps": result["steps"], **{c: result[c] for c in COLUMNS}})
        print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    print(f"\n{'':24}{'mean':>9}{'min':>9}{'max':>9}{'st.dev.':>9}")
    for column in COLUMNS:
        values = [row[column] for row in rows]
        spread = stdev(values) if len(values) > 1 else 0.0
        print(f"{column:24}{mean(values):9.3f}{min(values):9.3f}{max(values):9.3f}{spread:9.3f}")
    if args.csv:
        write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
