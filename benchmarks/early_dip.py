"""Why does chapter 6's run get worse first? Its first steps again, with one thing changed at a time; a CSV.

    python benchmarks/early_dip.py --csv rfs_utils/results/early_dip.csv

One line for each setting, seed and measurement. 400 held-out problems are answered once at temperature 1 and once
greedily; an answer is worked when it has an equation in it, a guess when it has a box and no equation, and else
without a box. `forced` is the accuracy of the likeliest guess: greedy after a box that was opened for the model.
`sharpness` is the mean log-probability of the sampled tokens. Runs that are in the file already are not repeated.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import read_rows, write_rows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rfs_utils.ch06 import (
    Rollouts,
    group_advantages,
    policy_gradient_loss,
    response_logprobs,
    reward_rlvr,
    sample_batch,
)
from rfs_utils.data import generate_tiny_problems, render_prompt
from rfs_utils.models import load_model_and_tokenizer
from rfs_utils.statistics import format_mean


@dataclass(frozen=True)
class Setting:
    """What is changed against the chapter's run: one problem a step, 16 rollouts, AdamW at 2e-4."""

    steps: int = 50
    lr: float = 2e-4
    problems: int = 1
    rollouts: int = 16
    limit: int = 96  # tokens of an answer
    betas: tuple[float, float] = (0.9, 0.999)
    rewards: str = "right"


SETTINGS = {
    "as in the chapter": Setting(),
    "no room to work": Setting(limit=16),
    "no room, a coin's reward": Setting(limit=16, rewards="coin"),
    "no room, only boxed answers": Setting(limit=16, rewards="boxed"),
    "a tenth of the rate": Setting(lr=2e-5, steps=500),
    "8 problems": Setting(problems=8),
    "no momentum": Setting(betas=(0.0, 0.999)),
    "no room, a tenth of the rate": Setting(limit=16, lr=2e-5, steps=500),
}


def answer_rewards(kind: str, rollouts: Rollouts, answers: list[str]) -> torch.Tensor:
    """(N,) rewards: of the right answer; of a coin that knows nothing; or NaN, not judged, without a box."""
    if kind == "coin":
        return (torch.rand(len(answers)) < 0.2).float()
    rewards = torch.tensor([reward_rlvr(text, answer) for text, answer in zip(rollouts.texts, answers, strict=True)])
    if kind == "boxed":
        rewards[torch.tensor(["boxed{" not in text for text in rollouts.texts])] = torch.nan
    return rewards


def train(setting: Setting, seed: int, every: int, measure: Callable[..., dict]) -> list[dict]:
    """A run, and what was measured before it, every so many steps and after it."""
    model, tokenizer = load_model_and_tokenizer("tiny-base", "cpu")
    problems = generate_tiny_problems(max(2000, setting.steps * setting.problems), "train", seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.lr, betas=setting.betas)
    torch.manual_seed(seed)
    rows = [{"step": 0} | measure(model, tokenizer, setting.limit)]
    for step in range(1, setting.steps + 1):
        batch = problems[(step - 1) * setting.problems : step * setting.problems]
        prompts = [render_prompt(problem["problem"]) for problem in batch]
        rollouts = sample_batch(model, tokenizer, prompts, "cpu", setting.rollouts, setting.limit, 1.0, 1.0)
        answers = [problem["answer"] for problem in batch for _ in range(setting.rollouts)]
        rewards = answer_rewards(setting.rewards, rollouts, answers)
        advantages = group_advantages(rewards.view(len(batch), -1)).flatten()
        if advantages.any():
            loss = policy_gradient_loss(
                response_logprobs(model, rollouts), advantages, rollouts.mask * ~rewards.isnan()[:, None]
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if step % every == 0:
            rows.append({"step": step} | measure(model, tokenizer, setting.limit))
    return rows


def measured(problems: list[dict]) -> Callable[..., dict]:
    """A function that answers these problems and counts."""
    prompts = [render_prompt(problem["problem"]) for problem in problems]
    answers = [problem["answer"] for problem in problems]

    def right(texts: list[str]) -> list[float]:
        return [reward_rlvr(text, answer) for text, answer in zip(texts, answers, strict=True)]

    def measure(model, tokenizer, limit: int) -> dict:
        state = torch.get_rng_state()
        torch.manual_seed(0)  # the same draws at each measurement
        sampled = sample_batch(model, tokenizer, prompts, "cpu", 1, limit, 1.0, 1.0)
        greedy = right(sample_batch(model, tokenizer, prompts, "cpu", 1, limit, 0.0, 1.0).texts)
        opened = [prompt + r" \boxed{" for prompt in prompts]
        forced = sample_batch(model, tokenizer, opened, "cpu", 1, 4, 0.0, 1.0)
        torch.set_rng_state(state)
        correct = right(sampled.texts)
        worked = [c for c, text in zip(correct, sampled.texts, strict=True) if "=" in text]
        guesses = [c for c, text in zip(correct, sampled.texts, strict=True) if "=" not in text and "boxed{" in text]
        return {
            "greedy": mean(greedy), "sampled": mean(correct),
            "worked": len(worked) / len(correct), "guesses": len(guesses) / len(correct),
            "worked_right": mean(worked), "guesses_right": mean(guesses),
            "forced": mean(right([r"\boxed{" + text for text in forced.texts])),
            "sharpness": (sampled.logps.sum() / sampled.lengths.sum()).item(),
        }  # fmt: skip

    return measure


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--csv", type=Path, required=True)
    args = parser.parse_args()
    measure = measured(generate_tiny_problems(400, "test", seed=0))
    for name in args.settings:
        for seed in range(args.seeds):
            rows = read_rows(args.csv)
            if any(row["setting"] == name and int(row["seed"]) == seed for row in rows):
                continue
            setting = SETTINGS[name]
            found = train(setting, seed, max(1, setting.steps // 10), measure)
            kept = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in found]
            write_rows(args.csv, rows + [{"setting": name, "seed": seed} | row for row in kept])
        rows = [row for row in read_rows(args.csv) if row["setting"] == name]
        for step in dict.fromkeys(row["step"] for row in rows):
            at = [row for row in rows if row["step"] == step]
            shown = (f"{k} {format_mean([float(row[k]) for row in at], 1)}" for k in ("greedy", "forced"))
            print(f"{name:30} step {step:>4}  " + "  ".join(shown))


if __name__ == "__main__":
    main()
