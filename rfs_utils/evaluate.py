"""Evaluation on problem sets: batched generation, grading, and accuracy by level."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

from .ch06 import reward_rlvr, sample_batch
from .data import render_prompt
from .qwen3 import Qwen3Model
from .tokenizer import Qwen3Tokenizer


@dataclass
class Evaluation:
    """Graded answers, one record for each problem in the problems' order.

    A record has the keys unique_id, level, type, answer (the expected one), response, tokens, correct (0 or 1)
    and truncated (whether the response ran into max_new_tokens).
    """

    records: list[dict]

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return sum(r["correct"] for r in self.records) / len(self.records)

    @property
    def mean_tokens(self) -> float:
        """Mean response length in tokens, the end-of-sequence token included."""
        return sum(r["tokens"] for r in self.records) / len(self.records)

    def by(self, field: str) -> dict[str, "Evaluation"]:
        """The same evaluation for each value of a field, such as "level"."""
        groups = defaultdict(list)
        for record in self.records:
            groups[str(record[field])].append(record)
        return {value: Evaluation(groups[value]) for value in sorted(groups)}


def evaluate_model(
    model: Qwen3Model,
    tokenizer: Qwen3Tokenizer,
    problems: Sequence[dict],
    device: torch.device | str = "cpu",
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    batch_size: int = 128,
    progress: bool = False,
) -> Evaluation:
    """Answer every problem, greedily by default, and grade it with the reward of chapter 6.

    Problems of similar length share a batch. The model's training mode is restored afterwards.
    """
    if not problems:
        raise ValueError("there are no problems to evaluate; expected at least one")
    prompts = [render_prompt(problem["problem"]) for problem in problems]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    records: list[dict] = [{} for _ in problems]
    bar = tqdm(total=len(problems), desc="evaluating", disable=not progress)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        rollouts = sample_batch(
            model, tokenizer, [prompts[i] for i in rows], device, 1, max_new_tokens, temperature, top_p
        )
        for i, text, tokens in zip(rows, rollouts.texts, rollouts.lengths.tolist(), strict=True):
            problem = problems[i]
            records[i] = {
                "unique_id": problem.get("unique_id", i),
                "level": problem.get("level", ""),
                "type": problem.get("type", ""),
                "answer": problem["answer"],
                "response": text,
                "tokens": tokens,
                "correct": int(reward_rlvr(text, problem["answer"])),
                "truncated": not text.endswith(tokenizer.eos_token),
            }
        bar.update(len(rows))
    bar.close()
    return Evaluation(records)
