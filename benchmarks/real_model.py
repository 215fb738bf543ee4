"""SmolLM2-135M-Instruct learns short stories: runs over seeds, as a CSV with a line for every evaluation.

    python benchmarks/real_model.py
    python benchmarks/real_model.py --lora-rank 1 --lr 5e-4 --steps 20 --kinds new_sums
    python benchmarks/real_model.py --steps 0 --seeds 0

Greedy accuracy on held-out stories: of one event with sums that training never meets (a fifth of all sums, by their
checksum), of one event with the other sums, and of two events; general questions; the training's processor seconds and
the process's peak memory. `--steps 0` measures the model as it is. Runs that are in the file already are not repeated.
ch06/real_model.ipynb reads the file.
"""

import argparse
import re
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from common import read_rows, write_rows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rfs_utils.ch06 import sample_batch
from rfs_utils.data import generate_stories
from rfs_utils.engine.config import TrainConfig
from rfs_utils.engine.learner import Learner, training_problems
from rfs_utils.engine.packing import packed
from rfs_utils.evaluate import evaluate_model
from rfs_utils.exercises.experiments import RESULTS, read_results
from rfs_utils.models import load_model_and_tokenizer
from rfs_utils.qwen3 import Qwen3Model
from rfs_utils.runs.folder import seed_everything

STORIES = TrainConfig(
    model="smollm2-135m-instruct", data="stories-1", prompt="few-shot", stop="\n", chat="off", steps=60,
    prompts_per_step=4, num_rollouts=8, max_new_tokens=24, lr=1e-5, warmup_steps=3, schedule="linear",
    optimizer="adamw", dtype="float32",
)  # fmt: skip
NO_TRAINING = 1_000_000  # a seed of stories that no run trains on


def general_answers(model: Qwen3Model) -> float:
    """The share of general questions, asked in chat format, whose greedy answer holds an expected word."""
    _, tokenizer = load_model_and_tokenizer(STORIES.model, "cpu")
    rows = read_results("general_questions.csv")
    texts = sample_batch(model, tokenizer, [row["question"] for row in rows], "cpu", 1, 40, 0.0, 1.0).texts
    found = [
        any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in row["answer"].split("|"))
        for row, text in zip(rows, texts, strict=True)
    ]
    return sum(found) / len(found)


KINDS = {"new_sums": ("test", 1), "known_sums": ("train", 1), "two_events": ("test", 2), "general": None}


def measure(learner: Learner, num_problems: int, kinds: Sequence[str]) -> dict[str, float]:
    """Shares of right greedy answers: to stories of a side and a number of events, and to general questions."""
    model, limit = packed(learner.model), learner.config.max_new_tokens
    shares = {}
    for name in kinds:
        if KINDS[name] is None:
            shares[name] = general_answers(model)
            continue
        split, events = KINDS[name]
        problems = generate_stories(num_problems, split, events, seed=NO_TRAINING)
        shares[name] = evaluate_model(model, learner.tokenizer, problems, "cpu", limit * events).accuracy
    return shares


def train(config: TrainConfig, every: int, num_problems: int, kinds: Sequence[str]) -> list[dict]:
    """A run: what was measured every so many steps and after the last; without steps, the model as it is."""
    model, tokenizer = load_model_and_tokenizer(config.model, "cpu")
    learner = Learner(replace(config, steps=max(1, config.steps)), model, tokenizer, training_problems(config))
    seed_everything(config.seed)
    rows: list[dict] = []
    steps: list[dict] = []
    seconds = 0.0
    for step in range(config.steps + 1):
        started = time.process_time()
        if step:
            steps.append(learner.step())
            seconds += time.process_time() - started
            print(f"step {step} reward {steps[-1]['reward_avg']:.2f} {seconds / step:.1f} s a step", flush=True)
        if step and step % every == 0 or step == config.steps:
            row = {"step": step, "cpu_seconds": round(seconds, 1)}
            if steps:
                row |= {name: round(mean(s[name] for s in steps), 4) for name in ("reward_avg", "entropy")}
                row["truncated"] = round(mean(s["truncated"] for s in steps), 4)
            row |= measure(learner, num_problems, kinds if step == config.steps else kinds[:1])
            row["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)
            print(row, flush=True)
            rows.append(row)
            steps = []
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations")
    parser.add_argument("--num-problems", type=int, default=120, help="held-out stories of each kind")
    parser.add_argument("--prompt", default="few-shot")
    for name in ("data", "schedule"):
        parser.add_argument(f"--{name}", default=getattr(STORIES, name))
    for name in ("steps", "prompts_per_step", "num_rollouts", "max_new_tokens", "lora_rank"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(STORIES, name))
    parser.add_argument("--lr", type=float, default=STORIES.lr)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="asked at the end")
    parser.add_argument("--csv", type=Path, default=RESULTS / "real_model.csv")
    args = parser.parse_args()
    asked = ("seeds", "every", "num_problems", "kinds", "csv")
    own = {name: value for name, value in vars(args).items() if name not in asked}
    for seed in args.seeds:
        rows = read_rows(args.csv)
        run = {name: "" if value is None else str(value) for name, value in (own | {"seed": seed}).items()}
        if any(all(row[name] == value for name, value in run.items()) for row in rows):
            continue
        found = train(replace(STORIES, **own, seed=seed), args.every, args.num_problems, args.kinds)
        write_rows(args.csv, rows + [run | row for row in found])


if __name__ == "__main__":
    main()
