"""Which problems a model solves in how many tries, before training, after 35 steps and after 500; a CSV of counts.

    python benchmarks/what_rl_added.py --csv rfs_utils/results/what_rl_added.csv

For the base model and the trained ones of each seed: how many of the samples of each problem have the right number, and
how many are solved, that is with every line of the working right as well. `kl` is the mean over samples of the log of
how much likelier an answer is than under the base model, by token. What is in the CSV already is kept.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from common import read_rows, write_rows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rfs_utils.ch06 import equations, response_logprobs, sample_batch
from rfs_utils.data import generate_tiny_problems, render_prompt
from rfs_utils.engine.config import TrainConfig
from rfs_utils.engine.learner import Learner
from rfs_utils.evaluate import answer_batches
from rfs_utils.models import load_model_and_tokenizer
from rfs_utils.qwen3 import Qwen3Model
from rfs_utils.runs.folder import seed_everything

LEVELS, STEPS = (5, 8), (35, 500)


def counts(model: Qwen3Model, tokenizer, problems: list[dict], samples: int) -> list[dict]:
    """For each problem, how many samples are right, and how many are solved."""
    rows = [{"problem": i, "samples": samples, "right": 0, "solved": 0} for i in range(len(problems))]
    wanted = [equations(problem["solution"]) for problem in problems]
    for batch in answer_batches(model, tokenizer, problems, "cpu", 128, 1.0, 1.0, 512, num_samples=samples, seed=0):
        for (index, _), record in batch.items():
            rows[index]["right"] += record["correct"]
            rows[index]["solved"] += record["correct"] and equations(record["response"]) == wanted[index]
    return rows


@torch.no_grad()
def distance(model: Qwen3Model, base: Qwen3Model, tokenizer, problems: list[dict]) -> float:
    """The KL divergence from the base model by token, estimated from four answers to each problem."""
    torch.manual_seed(0)
    prompts = [render_prompt(problem["problem"], tokenizer) for problem in problems]
    drawn = sample_batch(model, tokenizer, prompts, "cpu", 4, 128, 1.0, 1.0)
    mask = drawn.mask
    return ((response_logprobs(model, drawn) - response_logprobs(base, drawn)) * mask).sum().item() / mask.sum().item()


def models(seeds: int, steps: tuple[int, ...], done: set) -> Iterator[tuple[str, int, Qwen3Model]]:
    """The base model as seed "" and step 0, then every seed's after each of the steps, unless all of it is done."""
    base, tokenizer = load_model_and_tokenizer("tiny-base", "cpu")
    if ("", "0") not in done:
        yield "", 0, base
    for seed in range(seeds):
        if all((str(seed), str(step)) in done for step in steps):
            continue
        model, tokenizer = load_model_and_tokenizer("tiny-base", "cpu")
        config = TrainConfig(steps=max(steps), seed=seed)
        learner = Learner(config, model, tokenizer, generate_tiny_problems(2000, "train", seed=seed))
        seed_everything(seed)
        for step in range(1, max(steps) + 1):
            learner.step()
            if step in steps and (str(seed), str(step)) not in done:
                state = torch.get_rng_state()
                yield str(seed), step, model
                torch.set_rng_state(state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--num-problems", type=int, default=100, help="of each level")
    parser.add_argument("--samples", type=int, default=256, help="of each problem")
    parser.add_argument("--csv", type=Path, required=True)
    args = parser.parse_args()
    rows: list[dict] = list(read_rows(args.csv))
    done = {(row["seed"], row["step"]) for row in rows}
    base, tokenizer = load_model_and_tokenizer("tiny-base", "cpu")
    for seed, step, model in models(args.seeds, tuple(args.steps), done):
        for level in LEVELS:
            problems = generate_tiny_problems(args.num_problems, "test", (level,), seed=3)
            kl = round(distance(model, base, tokenizer, problems), 4)
            about = {"seed": seed, "step": step, "level": level, "kl": kl}
            rows += [about | row for row in counts(model, tokenizer, problems, args.samples)]
        print(f"seed {seed or '-'} step {step}", flush=True)
        write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
