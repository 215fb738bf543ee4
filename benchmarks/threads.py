"""Seconds of training beside busy processes, with one thread, with all, and with as many as the package chooses.

    python benchmarks/threads.py --rounds 5

Each round trains once in each way, in processes of their own, first on an idle machine and then beside N processes that
do nothing but count (0 and 4; `--busy 0 1 2 4` takes more). `seconds` are those of the steps alone, as result.json
has them, and `threads` what was used after the last step. Another program that computes at the same time spoils it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import write_rows

ROOT = Path(__file__).resolve().parent.parent
WAYS = {  # what is set in the environment of the process that trains
    "one": {"OMP_NUM_THREADS": "1"},
    "all": {"OMP_NUM_THREADS": str(os.cpu_count())},
    "passive": {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "PASSIVE"},
    "chosen": {},
}
TRAIN = """
import json, sys, torch
from rfs_utils.runs.compare import short_run
run = short_run(1, steps=int(sys.argv[1]), eval_every=0)
print(json.dumps({"seconds": run["seconds"][-1], "threads": torch.get_num_threads()}))
"""


@contextmanager
def busy(number: int) -> Iterator[None]:
    """So many processes that count, until the block ends."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def train(way: str, steps: int) -> dict:
    """Seconds and threads of one training in a process of its own."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    environment = others | {"PYTHONPATH": str(ROOT)} | WAYS[way]
    command = [sys.executable, "-c", TRAIN, str(steps)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def format_table(rows: list[dict]) -> str:
    """Median, lowest and highest seconds of each way beside each number of busy processes."""
    lines = [f"{'busy':>4}  {'way':8}{'median':>8}{'low':>8}{'high':>8}  threads"]
    for number, way in dict.fromkeys((row["busy"], row["way"]) for row in rows):
        found = [row for row in rows if (row["busy"], row["way"]) == (number, way)]
        seconds = [row["seconds"] for row in found]
        cells = "".join(f"{value:8.2f}" for value in (statistics.median(seconds), min(seconds), max(seconds)))
        lines.append(f"{number:4}  {way:8}{cells}  {', '.join(str(row['threads']) for row in found)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 4], metavar="N", help="busy processes (0 and 4)")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY", help=str([*WAYS]))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    args = parser.parse_args()
    rows: list[dict] = []
    for number in range(args.rounds):
        for count in args.busy:
            with busy(count):
                for way in args.ways:
                    found = train(way, args.steps)
                    rows.append({"round": number, "busy": count, "way": way, **found})
                    write_rows(args.csv, rows)
    print(format_table(rows))


if __name__ == "__main__":
    main()
