"""Does torch.compile pay? Training steps of the tiny model with compiled norms and feed-forward layers, and without.

    python benchmarks/compile_speed.py --rounds 3 --csv benchmarks/compile_speed.csv

Steps are those of `rfs train`, so that responses have all lengths; each run is a process of its own. Prints the seconds
of all steps, in which compilation is paid for, and the median of the last ten, where it is over, as ratios within a
round. Needs a C++ compiler on a CPU. The first round can find torch's cache of compiled code empty.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import format_ratios, write_rows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def train(steps: int, compiled: bool) -> dict[str, float]:
    """Seconds of a short run."""
    from rfs_utils.engine.config import TrainConfig
    from rfs_utils.engine.learner import Learner, training_problems
    from rfs_utils.models import load_model_and_tokenizer

    model, tokenizer = load_model_and_tokenizer("tiny-base", "cpu")
    if compiled:  # whole blocks would be compiled anew for each kind of cache; sampling has its own code, decode.py
        for block in model.trf_blocks:
            for layer in (block.norm1, block.norm2, block.ff):
                layer.compile(dynamic=True)
    config = TrainConfig(steps=steps)
    learner = Learner(config, model, tokenizer, training_problems(config))
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        learner.step()
        seconds.append(time.perf_counter() - started)
    return {"all_steps": round(sum(seconds), 3), "late_step": round(statistics.median(seconds[-10:]), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--one", choices=["plain", "compiled"], help="one run, as JSON")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(train(args.steps, args.one == "compiled")))
        return
    rows = []
    for number in range(args.rounds):
        for name in ("plain", "compiled"):
            command = [sys.executable, __file__, "--one", name, "--steps", str(args.steps)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            rows.append({"round": number, "mode": name, **json.loads(done.stdout.splitlines()[-1])})
            print(rows[-1], flush=True)
    for column in ("all_steps", "late_step"):
        by_name = {name: [row[column] for row in rows if row["mode"] == name] for name in ("plain", "compiled")}
        print(f"{column}: compiled / plain, {format_ratios(by_name['compiled'], by_name['plain'])}")
    if args.csv:
        write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
