"""What chapter 6's run adds on problems that are longer than those it trains on; a CSV of levels, over seeds.

    python benchmarks/harder_levels.py --csv rfs_utils/results/harder_levels.csv

For the base model and for the trained ones: greedy accuracy, the share of answers that are worked out (an equation in
them), and of the worked ones the share whose every equation is the problem's, and how many equations there are for
each event; of the equations up to the first wrong one, the share that is right; and pass@k of 16 samples.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from common import write_rows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rfs_utils.ch06 import equations, train_rlvr_grpo
from rfs_utils.data import generate_tiny_problems
from rfs_utils.evaluate import answer_batches, evaluate_model
from rfs_utils.models import load_model_and_tokenizer
from rfs_utils.statistics import pass_at_k

LEVELS = (1, 3, 5, 6, 7, 8)
SAMPLES, KS = 16, (1, 4, 16)


def execution(records: list[dict], problems: list[dict]) -> dict[str, float | None]:
    """How the greedy answers that are worked out came off."""
    worked = length = whole = tried = right = 0
    for record, problem in zip(records, problems, strict=True):
        wanted, found = equations(problem["solution"]), equations(record["response"])
        if not found:
            continue
        worked += 1
        length += len(found) / len(wanted)
        whole += found == wanted
        same = [a == b for a, b in zip(found, wanted, strict=False)]
        agree = len(same) if all(same) else same.index(False)
        right += agree
        tried += min(agree + 1, len(same))
    return {
        "worked": worked / len(records), "whole": whole / worked if worked else None,
        "equations": length / worked if worked else None, "step_right": right / tried if tried else None,
    }  # fmt: skip


def measure(model, tokenizer, num_problems: int, limit: int = 192) -> list[dict]:
    """A row for each level."""
    rows = []
    for level in LEVELS:
        problems = generate_tiny_problems(num_problems, "test", levels=(level,), seed=0)
        greedy = evaluate_model(model, tokenizer, problems, "cpu", limit)
        right = [0] * num_problems
        for batch in answer_batches(
            model, tokenizer, problems, "cpu", limit, 1.0, 1.0, 512, num_samples=SAMPLES, seed=0
        ):
            for (index, _), record in batch.items():
                right[index] += record["correct"]
        passes = {f"pass_{k}": sum(pass_at_k(SAMPLES, c, k) for c in right) / num_problems for k in KS}
        rows.append({"level": level, "accuracy": greedy.accuracy} | execution(greedy.records, problems) | passes)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--num-problems", type=int, default=100, help="of each level")
    parser.add_argument("--csv", type=Path, required=True)
    args = parser.parse_args()
    rows: list[dict] = []
    for seed in range(-1, args.seeds):  # -1 is the base model
        model, tokenizer = load_model_and_tokenizer("tiny-base", "cpu")
        if seed >= 0:
            torch.manual_seed(seed)
            problems = generate_tiny_problems(2000, "train", seed=seed)
            torch.manual_seed(seed)
            with tempfile.TemporaryDirectory() as folder:
                train_rlvr_grpo(
                    model, tokenizer, [problems[i] for i in torch.randperm(2000)], "cpu", args.steps, 16, 96, 1.0, 1.0,
                    lr=2e-4, checkpoint_every=None, csv_log_path=Path(folder) / "log.csv", print_every=10**6,
                )  # fmt: skip
        for row in measure(model, tokenizer, args.num_problems):
            kept = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
            rows.append({"model": "base" if seed < 0 else "trained", "seed": "" if seed < 0 else seed} | kept)
            print(rows[-1], flush=True)
        write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
